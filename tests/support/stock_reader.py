"""What wg-quick and wg make of a file: wg-quick's own `parse_options`, then `wg setconf` on a wireguard-go.

One shell and one interface serve all files, which takes some milliseconds for each.
"""

from __future__ import annotations

import subprocess
from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path

from rustguard_py.lab.hosts import Host
from support.wireguard_go import WireGuardGo

# wg-quick without its last part, which runs the command line.
_SHELL = r"""
source <(sed '/function override insertion point/,$d' "$(command -v wg-quick)")
set +e
while IFS= read -r go; do
  (
    set -e
    parse_options "$1/wg0.conf"
    cmd_strip > "$1/stripped"
    {
      for each in "${ADDRESSES[@]}"; do printf 'address %s\n' "$each"; done
      for each in "${DNS[@]}" "${DNS_SEARCH[@]}"; do printf 'dns %s\n' "$each"; done
      for each in "${PRE_UP[@]}"; do printf 'pre_up %s\n' "$each"; done
      for each in "${POST_UP[@]}"; do printf 'post_up %s\n' "$each"; done
      for each in "${PRE_DOWN[@]}"; do printf 'pre_down %s\n' "$each"; done
      for each in "${POST_DOWN[@]}"; do printf 'post_down %s\n' "$each"; done
      printf 'mtu %s\ntable %s\nsave %s\n' "$MTU" "$TABLE" "$SAVE_CONFIG"
    } > "$1/own"
    wg setconf wg0 "$1/stripped"
    wg showconf wg0 > "$1/shown"
  ) 2> "$1/error"
  echo "$?"
done
"""


@dataclass(slots=True)
class Read:
    """A file as they read it.

    Attributes:
        error: What they said if they refused it, else empty.
        own: The values that wg-quick uses itself, by key, in order.
        interface: What `wg showconf` has of the interface: key and value.
        peers: The same of each peer, by its public key.
    """

    error: str = ""
    own: dict[str, list[str]] = field(default_factory=dict)
    interface: dict[str, str] = field(default_factory=dict)
    peers: dict[bytes, dict[str, str]] = field(default_factory=dict)


class StockReader:
    """Reads files in a host that has a wireguard-go of its own.

    Args:
        host: Made with `own_run`.
        directory: A directory for the files, empty.
    """

    def __init__(self, host: Host, directory: Path) -> None:
        self._directory = directory
        self._go = WireGuardGo(host, [])
        self._shell = host.popen(
            ["bash", "-c", _SHELL, "wg-quick", directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"LC_ALL": "C", "WG_ENDPOINT_RESOLUTION_RETRIES": "0"},
        )

    def read(self, content: bytes) -> Read:
        """Return a file as they read it."""
        (self._directory / "wg0.conf").write_bytes(content)
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write("\n")
        self._shell.stdin.flush()
        if self._shell.stdout.readline() != "0\n":
            return Read(self._text("error") or "refused")
        own: dict[str, list[str]] = {}
        for line in self._lines("own"):
            key, _, value = line.partition(" ")
            own.setdefault(key, []).append(value)
        read = Read(own=own)
        section = read.interface
        for line in self._lines("shown"):
            key, _, value = line.partition(" = ")
            if line == "[Peer]":
                section = {}
            elif key == "PublicKey":
                read.peers[b64decode(value)] = section
            elif value:
                section[key] = value
        return read

    def _text(self, name: str) -> str:
        return (self._directory / name).read_bytes().decode("utf-8", "surrogateescape")

    def _lines(self, name: str) -> list[str]:
        return self._text(name).removesuffix("\n").split("\n")
