// wireguard-go as one end of `rustguard bench generate`: the reference that the engines are compared with.
//
// It speaks the protocol of rustguard_py/cli/generate/end.py: the first line of standard input is the configuration,
// each further one an order, and each answer is a line of JSON on standard output. It ends with its standard input.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

type configuration struct {
	PrivateKey  string `json:"private_key"`
	PeerKey     string `json:"peer_key"`
	Port        int    `json:"port"`
	Endpoint    string `json:"endpoint"`
	Address     string `json:"address"`
	PeerAddress string `json:"peer_address"`
	MTU         int    `json:"mtu"`
	Capacity    int    `json:"capacity"`
}

type order struct {
	Do      string  `json:"do"`
	Trial   uint32  `json:"trial"`
	Sizes   []int   `json:"sizes"`
	Flows   int     `json:"flows"`
	Rate    float64 `json:"rate"` // 0: as fast as the device takes packets
	Seconds float64 `json:"seconds"`
	Sent    uint64  `json:"sent"`
}

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve() error {
	lines := json.NewDecoder(bufio.NewReader(os.Stdin))
	say := json.NewEncoder(os.Stdout)
	var given configuration
	if err := lines.Decode(&given); err != nil {
		return err
	}
	source, err := netip.ParseAddr(given.Address)
	if err != nil {
		return err
	}
	target, err := netip.ParseAddr(given.PeerAddress)
	if err != nil {
		return err
	}
	channel := newChannel(given.MTU, given.Capacity)
	engine := device.NewDevice(channel, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer engine.Close()
	settings, err := uapi(&given)
	if err != nil {
		return err
	}
	if err := engine.IpcSet(settings); err != nil {
		return err
	}
	if err := engine.Up(); err != nil {
		return err
	}
	if err := say.Encode(map[string]any{"ready": true, "about": version(), "notes": []string{}}); err != nil {
		return err
	}
	var receiving *sink
	for {
		var asked order
		if err := lines.Decode(&asked); err != nil {
			return nil
		}
		var answer any
		switch asked.Do {
		case "send":
			answer = send(channel, &asked, source.As4(), target.As4())
		case "receive":
			receiving = receive(channel, asked.Trial, asked.Flows)
			answer = map[string]bool{"receiving": true}
		case "report":
			answer = receiving.report(asked.Sent)
		default:
			return fmt.Errorf("unknown order %q", asked.Do)
		}
		if err := say.Encode(answer); err != nil {
			return err
		}
	}
}

// version returns the module and its version, as they were built in.
func version() string {
	const module = "golang.zx2c4.com/wireguard"
	if built, ok := debug.ReadBuildInfo(); ok {
		for _, each := range built.Deps {
			if each.Path == module {
				return module + " " + each.Version
			}
		}
	}
	return module
}

// uapi returns the configuration as wireguard-go's own interface takes it.
func uapi(given *configuration) (string, error) {
	private, err := base64.StdEncoding.DecodeString(given.PrivateKey)
	if err != nil {
		return "", err
	}
	peer, err := base64.StdEncoding.DecodeString(given.PeerKey)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(
		"private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s\nallowed_ip=%s/32\n",
		hex.EncodeToString(private), given.Port, hex.EncodeToString(peer), given.Endpoint, given.PeerAddress,
	), nil
}
