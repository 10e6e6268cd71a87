package main

import (
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"
)

// The most packets that wireguard-go reads or writes at once, as of its own TUN device. The device of tun/tuntest
// has 1, which would cost wireguard-go most of its speed.
const batch = 128

// queue holds packets between two goroutines, a bounded number of them.
type queue struct {
	lock        sync.Mutex
	filled      sync.Cond
	room        sync.Cond
	slots       [][]byte
	sizes       []int
	first, held int
	closed      bool
}

func newQueue(capacity, size int) *queue {
	q := &queue{slots: make([][]byte, capacity), sizes: make([]int, capacity)}
	q.filled.L, q.room.L = &q.lock, &q.lock
	for place := range q.slots {
		q.slots[place] = make([]byte, size)
	}
	return q
}

// put copies as many of the packets as there is room for, and returns their number.
func (q *queue) put(packets [][]byte, offset int) int {
	q.lock.Lock()
	taken := min(len(packets), len(q.slots)-q.held)
	for _, packet := range packets[:taken] {
		place := (q.first + q.held) % len(q.slots)
		q.sizes[place] = copy(q.slots[place], packet[offset:])
		q.held++
	}
	q.lock.Unlock()
	if taken > 0 {
		q.filled.Signal()
	}
	return taken
}

// waitForRoom returns once there is room, or the queue is closed.
func (q *queue) waitForRoom() {
	q.lock.Lock()
	for q.held == len(q.slots) && !q.closed {
		q.room.Wait()
	}
	q.lock.Unlock()
}

// take waits for packets and copies them out. It returns their number: 0 if the queue was closed or woken.
func (q *queue) take(packets [][]byte, sizes []int, offset int, waits func() bool) int {
	q.lock.Lock()
	defer q.lock.Unlock()
	for q.held == 0 && !q.closed && waits() {
		q.filled.Wait()
	}
	taken := min(len(packets), q.held)
	for place := range taken {
		sizes[place] = copy(packets[place][offset:], q.slots[q.first][:q.sizes[q.first]])
		q.first = (q.first + 1) % len(q.slots)
	}
	q.held -= taken
	if taken > 0 {
		q.room.Signal()
	}
	return taken
}

// wake makes those that wait look again.
func (q *queue) wake() {
	q.lock.Lock()
	q.lock.Unlock()
	q.filled.Broadcast()
	q.room.Broadcast()
}

func (q *queue) close() {
	q.lock.Lock()
	q.closed = true
	q.lock.Unlock()
	q.wake()
}

// channel is a tun.Device of two queues in memory.
type channel struct {
	out, in *queue // the packets to seal, the opened ones
	events  chan tun.Event
	mtu     int
	once    sync.Once
	lost    atomic.Uint64 // opened packets that found no room
}

func newChannel(mtu, capacity int) *channel {
	made := &channel{
		out:    newQueue(capacity, mtu),
		in:     newQueue(capacity, mtu),
		events: make(chan tun.Event, 1),
		mtu:    mtu,
	}
	made.events <- tun.EventUp
	return made
}

func (c *channel) Read(packets [][]byte, sizes []int, offset int) (int, error) {
	taken := c.out.take(packets[:min(len(packets), batch)], sizes, offset, func() bool { return true })
	if taken == 0 {
		return 0, os.ErrClosed
	}
	return taken, nil
}

// Write takes what fits. The rest is lost, as in a socket whose buffer is full.
func (c *channel) Write(packets [][]byte, offset int) (int, error) {
	taken := c.in.put(packets, offset)
	c.lost.Add(uint64(len(packets) - taken))
	return len(packets), nil
}

func (c *channel) File() *os.File           { return nil }
func (c *channel) MTU() (int, error)        { return c.mtu, nil }
func (c *channel) Name() (string, error)    { return "channel", nil }
func (c *channel) Events() <-chan tun.Event { return c.events }
func (c *channel) BatchSize() int           { return batch }

func (c *channel) Close() error {
	c.once.Do(func() {
		c.out.close()
		c.in.close()
		close(c.events)
	})
	return nil
}
