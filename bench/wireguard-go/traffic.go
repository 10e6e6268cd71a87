package main

import (
	"encoding/binary"
	"math/bits"
	"runtime"
	"sort"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The layout of rustguard_py/cli/generate/layout.py.
const (
	headers    = 28
	record     = 32
	magic      = 0x4e454752 // RGEN
	firstPort  = 10000
	targetPort = 7007
)

// As in native/generator/src/pace.rs.
const (
	mostAtOnce  = 64
	burstTime   = 100 * time.Microsecond
	mostOverrun = 0.5
	quiet       = 100 * time.Millisecond
	mostQuiet   = time.Second
)

// histogram counts values as HdrHistogram does with three significant digits: by the highest value that counts as
// the same.
type histogram map[uint64]uint64

func (h histogram) add(value, times uint64) {
	shift := max(0, bits.Len64(value)-11)
	h[(value>>shift+1)<<shift-1] += times
}

func (h histogram) pairs() [][2]uint64 {
	pairs := make([][2]uint64, 0, len(h))
	for value, count := range h {
		pairs = append(pairs, [2]uint64{value, count})
	}
	sort.Slice(pairs, func(a, b int) bool { return pairs[a][0] < pairs[b][0] })
	return pairs
}

func monotonic() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return uint64(now.Nano())
}

func sleepUntil(when uint64) {
	then := unix.NsecToTimespec(int64(when))
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &then, nil) == unix.EINTR {
	}
}

// cpu is CPU time in nanoseconds.
type cpu struct {
	User   int64 `json:"user"`
	System int64 `json:"system"`
}

func used(who int) cpu {
	var usage unix.Rusage
	_ = unix.Getrusage(who, &usage)
	return cpu{usage.Utime.Nano(), usage.Stime.Nano()}
}

func (c cpu) minus(other cpu) cpu {
	return cpu{c.User - other.User, c.System - other.System}
}

// template returns a packet with all that doesn't change, and the sum of its UDP checksum so far.
func template(size int, source, target [4]byte) ([]byte, uint64) {
	packet := make([]byte, size)
	packet[0], packet[6], packet[8], packet[9] = 0x45, 0x40, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(packet[2:], uint16(size))
	copy(packet[12:], source[:])
	copy(packet[16:], target[:])
	binary.BigEndian.PutUint16(packet[10:], ^fold(sum(packet[:20])))
	binary.BigEndian.PutUint16(packet[22:], targetPort)
	binary.BigEndian.PutUint16(packet[24:], uint16(size-20))
	binary.LittleEndian.PutUint32(packet[headers:], magic)
	binary.LittleEndian.PutUint32(packet[headers+12:], uint32(size))
	return packet, sum(packet[12:]) + unix.IPPROTO_UDP + uint64(size-20)
}

func sum(data []byte) (total uint64) {
	for ; len(data) > 1; data = data[2:] {
		total += uint64(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		total += uint64(data[0]) << 8
	}
	return total
}

func fold(total uint64) uint16 {
	for total > 0xffff {
		total = total&0xffff + total>>16
	}
	return uint16(total)
}

type generator struct {
	asked     *order
	templates map[int][]byte
	sums      map[int]uint64
	buffers   [][]byte
	packets   [][]byte
	next      []uint64 // by flow
	made      uint64
}

// fill makes the next packets.
func (g *generator) fill(count int, due uint64) {
	flows := uint64(g.asked.Flows)
	for place := range count {
		number := g.made + uint64(place)
		flow := number % flows
		size := g.asked.Sizes[(number/flows+flow)%uint64(len(g.asked.Sizes))]
		packet := g.buffers[place][:size]
		copy(packet, g.templates[size])
		binary.BigEndian.PutUint16(packet[20:], uint16(firstPort+flow))
		body := packet[headers:]
		binary.LittleEndian.PutUint32(body[4:], g.asked.Trial)
		binary.LittleEndian.PutUint32(body[8:], uint32(flow))
		binary.LittleEndian.PutUint64(body[16:], g.next[flow])
		binary.LittleEndian.PutUint64(body[24:], due)
		total := g.sums[size] + uint64(firstPort+flow) + sum(body[4:12]) + sum(body[16:record])
		checksum := ^fold(total)
		if checksum == 0 {
			checksum = 0xffff
		}
		binary.BigEndian.PutUint16(packet[26:], checksum)
		g.next[flow]++
		g.packets[place] = packet
	}
}

// keep undoes what `fill` has counted of packets that weren't taken.
func (g *generator) keep(taken, count int) {
	for number := g.made + uint64(taken); number < g.made+uint64(count); number++ {
		g.next[number%uint64(g.asked.Flows)]--
	}
	g.made += uint64(taken)
}

func send(to *channel, asked *order, source, target [4]byte) map[string]any {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	g := &generator{asked: asked, templates: map[int][]byte{}, sums: map[int]uint64{}}
	g.next, g.packets = make([]uint64, asked.Flows), make([][]byte, mostAtOnce)
	for _, size := range asked.Sizes {
		g.templates[size], g.sums[size] = template(size, source, target)
	}
	for range mostAtOnce {
		g.buffers = append(g.buffers, make([]byte, to.mtu))
	}
	process, thread := used(unix.RUSAGE_SELF), used(unix.RUSAGE_THREAD)
	start := monotonic()
	var offered, bytes, end uint64
	lateness := histogram{}
	count := func(packets [][]byte) {
		for _, packet := range packets {
			bytes += uint64(len(packet))
		}
	}
	if asked.Rate > 0 {
		burst := int(min(max(asked.Rate*burstTime.Seconds(), 1), mostAtOnce))
		planned := uint64(asked.Rate * asked.Seconds)
		latest := start + uint64(asked.Seconds*(1+mostOverrun)*1e9)
		for offered < planned {
			due := start + uint64(float64(offered)/asked.Rate*1e9)
			now := monotonic()
			if now > latest {
				break
			}
			if now < due {
				sleepUntil(due)
				now = monotonic()
			}
			lateness.add(now-due, 1)
			now_burst := int(min(uint64(burst), planned-offered))
			g.fill(now_burst, due)
			taken := to.out.put(g.packets[:now_burst], 0)
			count(g.packets[:taken])
			g.keep(taken, now_burst)
			offered += uint64(now_burst)
		}
	} else {
		until := start + uint64(asked.Seconds*1e9)
		for now := start; now < until; now = monotonic() {
			g.fill(mostAtOnce, now)
			taken := to.out.put(g.packets, 0)
			count(g.packets[:taken])
			g.keep(taken, mostAtOnce)
			offered += uint64(taken)
			if taken < mostAtOnce {
				to.out.waitForRoom()
			}
		}
	}
	end = monotonic()
	own := used(unix.RUSAGE_THREAD).minus(thread)
	return map[string]any{
		"offered": offered, "sent": g.made, "bytes": bytes, "nanoseconds": end - start,
		"lateness": lateness.pairs(), "generator": own,
		"engine": map[string]cpu{"all": used(unix.RUSAGE_SELF).minus(process).minus(own)},
	}
}

type flow struct {
	expected uint64
	seen     []uint64 // a bit for each sequence number
}

// sink checks and counts the packets of a trial in a goroutine of its own.
type sink struct {
	from                                                          *channel
	trial                                                         uint32
	flows                                                         []flow
	received                                                      atomic.Uint64
	expected, duplicates, reordered, extent, stale, invalid, size uint64
	first, last                                                   uint64
	latency                                                       histogram
	stopping                                                      atomic.Bool
	ended                                                         chan struct{}
	process, own                                                  cpu
	lost                                                          uint64
}

func receive(from *channel, trial uint32, flows int) *sink {
	s := &sink{from: from, trial: trial, flows: make([]flow, flows), latency: histogram{}, ended: make(chan struct{})}
	s.process, s.lost = used(unix.RUSAGE_SELF), from.lost.Load()
	go s.run()
	return s
}

func (s *sink) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := used(unix.RUSAGE_THREAD)
	buffers, sizes := make([][]byte, mostAtOnce), make([]int, mostAtOnce)
	for place := range buffers {
		buffers[place] = make([]byte, s.from.mtu)
	}
	for !s.stopping.Load() {
		count := s.from.in.take(buffers, sizes, 0, func() bool { return !s.stopping.Load() })
		now := monotonic()
		for place := range count {
			s.packet(buffers[place][:sizes[place]], now)
		}
	}
	s.own = used(unix.RUSAGE_THREAD).minus(before)
	close(s.ended)
}

func (s *sink) packet(packet []byte, now uint64) {
	if len(packet) < headers+record || binary.LittleEndian.Uint32(packet[headers:]) != magic {
		s.invalid++
		return
	}
	body := packet[headers:]
	number := binary.LittleEndian.Uint32(body[8:])
	if binary.LittleEndian.Uint32(body[4:]) != s.trial {
		s.stale++
		return
	}
	if binary.LittleEndian.Uint32(body[12:]) != uint32(len(packet)) || int(number) >= len(s.flows) {
		s.invalid++
		return
	}
	of, sequence := &s.flows[number], binary.LittleEndian.Uint64(body[16:])
	for uint64(len(of.seen)) <= sequence/64 {
		of.seen = append(of.seen, 0)
	}
	word, bit := &of.seen[sequence/64], uint64(1)<<(sequence%64)
	if *word&bit != 0 {
		s.duplicates++
		return
	}
	*word |= bit
	if sequence < of.expected {
		s.reordered++
		s.extent = max(s.extent, of.expected-sequence)
	} else {
		s.expected += sequence + 1 - of.expected
		of.expected = sequence + 1
	}
	if s.first == 0 {
		s.first = now
	}
	s.last = now
	s.size += uint64(len(packet))
	due := binary.LittleEndian.Uint64(body[24:])
	s.latency.add(now-min(due, now), 1)
	s.received.Add(1)
}

// report waits until all has arrived or nothing more does, and ends the trial.
func (s *sink) report(sent uint64) map[string]any {
	began, moved, before := time.Now(), time.Now(), s.received.Load()
	for before < sent && time.Since(moved) < quiet && time.Since(began) < mostQuiet {
		time.Sleep(5 * time.Millisecond)
		if now := s.received.Load(); now != before {
			before, moved = now, time.Now()
		}
	}
	s.stopping.Store(true)
	s.from.in.wake()
	<-s.ended
	return map[string]any{
		"received": s.received.Load(), "expected": s.expected, "duplicates": s.duplicates, "reordered": s.reordered, "extent": s.extent,
		"stale": s.stale, "invalid": s.invalid, "bytes": s.size, "nanoseconds": s.last - s.first,
		"latency": s.latency.pairs(), "sink": s.own, "drops": map[string]uint64{"channel_full": s.from.lost.Load() - s.lost},
		"engine": map[string]cpu{"all": used(unix.RUSAGE_SELF).minus(s.process).minus(s.own)},
	}
}
