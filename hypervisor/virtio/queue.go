package virtio

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Flags of the rings, virtio 1.2 §2.7.6 and §2.7.8.
const (
	availNoInterrupt = 1
	usedNoNotify     = 1
)

// Config is where the driver put a queue: guest-physical addresses of the three areas (virtio 1.2 §2.7).
type Config struct {
	Size              uint16 // descriptors, a power of two
	Desc, Avail, Used mem.GPA
}

// Queue is one split virtqueue as the device sees it. Between Start and Stop it belongs to the goroutine that serves it;
// only Kick may be called from another.
type Queue struct {
	index     int
	mem       *mem.Memory
	cfg       Config
	eventIdx  bool
	indirect  bool
	interrupt func() // sends the queue's interrupt
	kick      *os.File

	desc, avail, used []byte // the rings, in guest memory

	lastAvail uint16 // next entry of the available ring to take
	usedIdx   uint16 // next entry of the used ring to fill
	signalled uint16 // usedIdx at the last decision about an interrupt
	flags     uint16 // of the used ring: the guest may overwrite its copy
	waits     uint8  // counts waits, see linger
	stopping  atomic.Bool
	one       [8]byte // what Kick adds to the eventfd
	count     [8]byte // what Wait reads from the eventfd: here, as os.File's buffers escape to the heap
	fd        int32   // kick's
	poll      [1]unix.PollFd
}

// NewQueue returns queue number index with the rings that cfg names. kick is the eventfd (non-blocking, in Go's poller)
// that the driver's notifications signal. It is an error if a ring is misaligned or outside the guest's memory.
func NewQueue(index int, m *mem.Memory, cfg Config, features uint64, kick *os.File, interrupt func()) (*Queue, error) {
	q := &Queue{
		index: index, mem: m, cfg: cfg, kick: kick, fd: int32(EventFD(kick)), interrupt: interrupt,
		one:      [8]byte{1}, // little-endian
		eventIdx: features&FeatureEventIdx != 0,
		indirect: features&FeatureIndirectDesc != 0,
	}
	n := int(cfg.Size)
	if n == 0 || n&(n-1) != 0 || n > 1<<15 {
		return nil, Protocolf("queue %d: size %d is not a power of two up to 32768", index, n)
	}
	for _, r := range []struct {
		name  string
		gpa   mem.GPA
		align mem.GPA
		size  int
		dst   *[]byte
	}{
		{"descriptor table", cfg.Desc, 16, 16 * n, &q.desc},
		{"available ring", cfg.Avail, 2, 6 + 2*n, &q.avail},
		{"used ring", cfg.Used, 4, 6 + 8*n, &q.used},
	} {
		if r.gpa%r.align != 0 {
			return nil, Protocolf("queue %d: %s at %#x is not aligned to %d bytes", index, r.name, r.gpa, r.align)
		}
		b, err := m.Slice(r.gpa, r.size)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", Protocolf("queue %d: %s at %#x", index, r.name, r.gpa), err)
		}
		*r.dst = b
	}
	return q, nil
}

// Index returns the queue's number.
func (q *Queue) Index() int { return q.index }

// Size returns the number of descriptors.
func (q *Queue) Size() int { return int(q.cfg.Size) }

// Next takes the next available chain into c, whose storage it reuses. It returns false when there is none or the device
// is to stop, and an error when what the driver made available cannot be: the device is then broken. Not more than Size
// chains are ever taken and not Done.
func (q *Queue) Next(c *Chain) (bool, error) {
	if q.stopping.Load() {
		return false, nil
	}
	idx := load16(q.avail, 2)
	n := idx - q.lastAvail
	if n == 0 {
		return false, nil
	}
	// What was taken and not Done counts too: its descriptors are not free. So no device holds more than Size chains.
	if taken := q.lastAvail - q.usedIdx; int(n)+int(taken) > int(q.cfg.Size) {
		return false, Protocolf("queue %d: available index %d is %d ahead of %d, with %d of %d chains taken", q.index, idx, n, q.lastAvail, taken, q.cfg.Size)
	}
	head := get16(q.avail, 4+2*int(q.lastAvail%q.cfg.Size))
	if err := q.walk(head, c); err != nil {
		return false, err
	}
	q.lastAvail++
	return true, nil
}

// Available returns how many chains Next would return now, for a device that needs several at once.
func (q *Queue) Available() int { return int(load16(q.avail, 2) - q.lastAvail) }

// Undo gives back the last n chains that Next returned, in any order, as if it had not: none of them is Done.
func (q *Queue) Undo(n int) { q.lastAvail -= uint16(n) }

// Again takes a chain into c that Next has returned and that was not Done: head is its Chain's Head. The driver may have
// changed its descriptors since, so they are checked anew.
func (q *Queue) Again(head uint16, c *Chain) error { return q.walk(head, c) }

// Done returns c to the driver with the number of bytes that were written to its device-writable part.
func (q *Queue) Done(c *Chain) {
	q.put(c)
	q.publish()
}

// DoneAll returns several chains to the driver at once: it sees all of them or none.
func (q *Queue) DoneAll(cs []*Chain) {
	for _, c := range cs {
		q.put(c)
	}
	q.publish()
}

func (q *Queue) put(c *Chain) {
	e := q.used[4+8*int(q.usedIdx%q.cfg.Size):]
	binary.LittleEndian.PutUint32(e, uint32(c.head))
	binary.LittleEndian.PutUint32(e[4:], c.used())
	q.usedIdx++
}

// publish makes the entries visible, then the index: the store is the barrier between them.
func (q *Queue) publish() {
	store32(q.used, 0, uint32(q.usedIdx)<<16|uint32(q.flags))
}

// Flush interrupts the driver if it wants to hear of the chains that were done since the last Flush. The worker flushes
// when a handler returns; a handler that waits for something else first does so itself.
func (q *Queue) Flush() {
	old, now := q.signalled, q.usedIdx
	if old == now {
		return
	}
	q.signalled = now
	if q.eventIdx {
		event := load16(q.avail, 4+2*int(q.cfg.Size))
		if now-event-1 >= now-old { // §2.7.7.2: the driver waits for another entry than old+1…now
			return
		}
	} else if load16(q.avail, 0)&availNoInterrupt != 0 {
		return
	}
	q.interrupt()
}

// suppress tells the driver that it need not kick. With event indices the stale event does that by itself.
func (q *Queue) suppress() {
	if !q.eventIdx {
		q.flags = usedNoNotify
		q.publish()
	}
}

// rearm asks the driver to kick again, and reports whether it has made something available meanwhile: then no kick may
// come for that. The store before the load is a full barrier, as §2.7.13.4.1 needs.
func (q *Queue) rearm() bool {
	if q.eventIdx {
		store16(q.used, 4+8*int(q.cfg.Size), q.lastAvail)
	} else {
		q.flags = 0
		q.publish()
	}
	return load16(q.avail, 2) != q.lastAvail
}

// Wait waits until the driver kicks, for a handler that needs buffers while it has something to put into them. It returns
// true if there may be some, and false if the device is to stop. It does not wait while there are some: a handler that
// does not take them would spin.
func (q *Queue) Wait() bool {
	q.Flush()
	if q.stopping.Load() {
		return false
	}
	if !q.rearm() {
		q.linger()
		_, _ = q.kick.Read(q.count[:]) // a kick, or the deadline that halt set
	}
	q.suppress()
	return !q.stopping.Load()
}

// Rest waits until the device is to stop, whatever the driver makes available meanwhile.
func (q *Queue) Rest() {
	q.Flush()
	for !q.stopping.Load() {
		_, _ = q.kick.Read(q.count[:]) // as in Wait
	}
}

// Stopping reports whether the device is to stop, for a handler that is busy with one chain for long.
func (q *Queue) Stopping() bool { return q.stopping.Load() }

// halt makes Next and Wait return false from now on, and wakes whoever waits for a kick.
func (q *Queue) halt() {
	q.stopping.Store(true)
	_ = q.kick.SetReadDeadline(time.Unix(1, 0)) // in the past: a Read returns at once
	q.Kick()                                    // as does poll
}

// resume undoes halt.
func (q *Queue) resume() {
	q.stopping.Store(false)
	_ = q.kick.SetReadDeadline(time.Time{})
}

// Kick does what the driver's notification does, from any goroutine.
func (q *Queue) Kick() {
	_, _ = q.kick.Write(q.one[:]) // it fails only when 2⁶⁴−2 kicks are pending
}

// State carries the queue's position in its rings. What the driver configured is the transport's to carry.
func (q *Queue) State(c *snap.Codec) {
	c.U16(&q.lastAvail)
	c.U16(&q.usedIdx)
	c.U16(&q.signalled)
}

// Config returns where the driver put the queue.
func (q *Queue) Config() Config { return q.cfg }

// KickFD returns the eventfd that the driver's notifications signal.
func (q *Queue) KickFD() int { return int(q.fd) }

// Position returns the index of the next entry of the available ring to take, of a queue whose chains that were taken are
// all Done. It is for a Remote device, as are the three that follow.
func (q *Queue) Position() uint16 { return q.lastAvail }

// SetPosition sets where the other process has stopped.
func (q *Queue) SetPosition(next uint16) { q.lastAvail, q.usedIdx, q.signalled = next, next, next }

// AvailIndex returns the index of the available ring: how far the driver is. It is the guest's to set, right or wrong.
func (q *Queue) AvailIndex() uint16 { return load16(q.avail, 2) }

// UsedIndex returns the index of the used ring: how far whoever serves the queue is, if the guest leaves it alone.
func (q *Queue) UsedIndex() uint16 { return load16(q.used, 2) }

// NewEventFD returns an eventfd for a queue's kicks. name is what errors call it.
func NewEventFD(name string) (*os.File, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd for %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// NewRemoteEventFD returns an eventfd for the kicks of a Remote device's queue: not in Go's poller, which would wake this
// process at each kick of the guest.
func NewRemoteEventFD(name string) (*os.File, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd for %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name) // which puts what is non-blocking by now into the poller
	if err := unix.SetNonblock(fd, true); err != nil {
		f.Close()
		return nil, fmt.Errorf("eventfd for %s: %w", name, err)
	}
	return f, nil
}

// EventFD returns the descriptor of an eventfd, or -1 of nil. Fd() could switch the file to blocking mode.
func EventFD(f *os.File) int {
	fd := -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(u uintptr) { fd = int(u) })
	}
	return fd
}
