// Package virtiotest has the driver's side of virtio for tests, and one suite that every device has to pass.
package virtiotest

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// MemSize is the size in bytes of a Rig's memory.
const MemSize = 4 << 20

// timeout bounds every wait of a test: far more than any device takes.
const timeout = 10 * time.Second

// Rig is a device with a driver: heap-backed memory, one driver queue for every queue of the device.
type Rig struct {
	T       testing.TB
	Device  virtio.Device
	Mem     *mem.Memory
	Env     *virtio.Env
	Queues  []*Queue
	Broken  chan error    // what the device was marked broken with
	Changed chan struct{} // configuration changes

	next mem.GPA // where Alloc continues
}

// New returns a running device with the features that it offers, less those in without.
func New(t testing.TB, d virtio.Device, without uint64) *Rig {
	t.Helper()
	r := &Rig{T: t, Device: d, Mem: mem.NewHeap(MemSize), next: 0x1000,
		Broken: make(chan error, 16), Changed: make(chan struct{}, 64)}
	features := (d.Features() | virtio.CoreFeatures) &^ without
	for i, size := range d.QueueSizes() {
		r.Queues = append(r.Queues, r.newQueue(i, size, features))
	}
	r.Env = &virtio.Env{Mem: r.Mem, Features: features,
		ConfigChanged: func() {
			select {
			case r.Changed <- struct{}{}:
			default:
			}
		},
		Broken: func(err error) {
			select {
			case r.Broken <- err:
			default:
			}
		}}
	for _, q := range r.Queues {
		r.Env.Queues = append(r.Env.Queues, q.dev)
	}
	if err := d.Start(r.Env); err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() { r.Stop(); d.Reset() })
	return r
}

// Stop stops the device, and fails the test if that takes too long.
func (r *Rig) Stop() {
	done := make(chan struct{})
	go func() { r.Env.Stop(r.Device); close(done) }()
	select {
	case <-done:
	case <-time.After(timeout):
		r.T.Errorf("device did not stop within %v", timeout)
	}
}

// Start starts the device again after Stop, as a resume does.
func (r *Rig) Start() {
	r.T.Helper()
	if err := r.Device.Start(r.Env); err != nil {
		r.T.Fatalf("start: %v", err)
	}
}

// Alloc returns the address of n bytes of memory that nothing else uses, aligned to 16.
func (r *Rig) Alloc(n int) mem.GPA {
	r.T.Helper()
	at := (r.next + 15) &^ 15
	if at+mem.GPA(n) > MemSize {
		r.T.Fatalf("out of test memory")
	}
	r.next = at + mem.GPA(n)
	return at
}

// Free gives back all that was allocated since Alloc returned at.
func (r *Rig) Free(at mem.GPA) { r.next = at }

// Bytes returns the n bytes at gpa.
func (r *Rig) Bytes(gpa mem.GPA, n int) []byte {
	r.T.Helper()
	b, err := r.Mem.Slice(gpa, n)
	if err != nil {
		r.T.Fatal(err)
	}
	return b
}

// Queue is the driver's side of a queue. Its methods are for one goroutine.
type Queue struct {
	r                 *Rig
	dev               *virtio.Queue
	cfg               virtio.Config
	desc, avail, used []byte
	free              uint16 // next descriptor to use; they are used round and round
	seen              uint16 // used entries taken
	Interrupts        chan struct{}
	NoKick            bool // Send makes available without notifying
}

func (r *Rig) newQueue(index int, size uint16, features uint64) *Queue {
	n := int(size)
	q := &Queue{r: r, Interrupts: make(chan struct{}, 1)}
	q.cfg = virtio.Config{Size: size, Desc: r.Alloc(16 * n), Avail: r.Alloc(6 + 2*n), Used: r.Alloc(6 + 8*n)}
	q.desc, q.avail, q.used = r.Bytes(q.cfg.Desc, 16*n), r.Bytes(q.cfg.Avail, 6+2*n), r.Bytes(q.cfg.Used, 6+8*n)
	kick, err := virtio.NewEventFD("test queue")
	if err != nil {
		r.T.Fatal(err)
	}
	r.T.Cleanup(func() { kick.Close() })
	q.dev, err = virtio.NewQueue(index, r.Mem, q.cfg, features, kick, func() {
		select {
		case q.Interrupts <- struct{}{}:
		default:
		}
	})
	if err != nil {
		r.T.Fatal(err)
	}
	return q
}

// Desc is one descriptor of a chain.
type Desc struct {
	Addr  mem.GPA
	Len   uint32
	Write bool // device-writable
}

// Out returns a device-readable descriptor that holds p.
func (r *Rig) Out(p []byte) Desc {
	gpa := r.Alloc(len(p))
	copy(r.Bytes(gpa, len(p)), p)
	return Desc{Addr: gpa, Len: uint32(len(p))}
}

// In returns a device-writable descriptor of n bytes.
func (r *Rig) In(n int) Desc { return Desc{Addr: r.Alloc(n), Len: uint32(n), Write: true} }

// Send makes a chain available and kicks. It returns the chain's head.
func (q *Queue) Send(chain ...Desc) uint16 {
	head := q.free
	for i, d := range chain {
		q.SetDesc(q.free, d.Addr, d.Len, d.flags(i == len(chain)-1), (q.free+1)%q.cfg.Size)
		q.free = (q.free + 1) % q.cfg.Size
	}
	q.Offer(head)
	return head
}

// SendIndirect makes a chain available as one indirect table and kicks. It returns the chain's head.
func (q *Queue) SendIndirect(chain ...Desc) uint16 {
	q.r.T.Helper()
	gpa := q.r.Alloc(16 * len(chain))
	table := q.r.Bytes(gpa, 16*len(chain))
	for i, d := range chain {
		putDesc(table[16*i:], d.Addr, d.Len, d.flags(i == len(chain)-1), uint16(i+1))
	}
	head := q.free
	q.SetDesc(head, gpa, uint32(len(table)), 4, 0)
	q.free = (q.free + 1) % q.cfg.Size
	q.Offer(head)
	return head
}

func (d Desc) flags(last bool) (flags uint16) {
	if !last {
		flags |= 1
	}
	if d.Write {
		flags |= 2
	}
	return flags
}

// SetDesc writes descriptor i as it is told, right or wrong.
func (q *Queue) SetDesc(i uint16, addr mem.GPA, length uint32, flags, next uint16) {
	putDesc(q.desc[16*int(i):], addr, length, flags, next)
}

func putDesc(b []byte, addr mem.GPA, length uint32, flags, next uint16) {
	binary.LittleEndian.PutUint64(b, uint64(addr))
	binary.LittleEndian.PutUint32(b[8:], length)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// Offer makes the chain at head available and kicks, unless NoKick is set.
func (q *Queue) Offer(head uint16) {
	idx := uint16(load32(q.avail, 0) >> 16)
	binary.LittleEndian.PutUint16(q.avail[4+2*int(idx%q.cfg.Size):], head)
	q.SetAvailable(idx + 1)
	if !q.NoKick {
		q.dev.Kick()
	}
}

// SetAvailable sets the index of the available ring, right or wrong.
func (q *Queue) SetAvailable(idx uint16) {
	store32(q.avail, 0, load32(q.avail, 0)&0xffff|uint32(idx)<<16)
}

// Device returns the device's side of the queue, for a test that plays the device.
func (q *Queue) Device() *virtio.Queue { return q.dev }

// Rig returns the rig that the queue is part of.
func (q *Queue) Rig() *Rig { return q.r }

// UsedFlags returns the flags of the used ring; 1 asks for no kicks.
func (q *Queue) UsedFlags() uint16 { return uint16(load32(q.used, 0)) }

// AvailEvent returns the index at which the device wants a kick.
func (q *Queue) AvailEvent() uint16 { return uint16(load32(q.used, 4+8*int(q.cfg.Size))) }

// Used returns how many chains the device has used that Wait has not returned.
func (q *Queue) Used() int { return int(uint16(load32(q.used, 0)>>16) - q.seen) }

// Kick notifies the device.
func (q *Queue) Kick() { q.dev.Kick() }

// Wait waits for the next used chain and returns its head and how many bytes were written. The test fails if none comes.
func (q *Queue) Wait() (head uint16, written uint32) {
	q.r.T.Helper()
	head, written, ok := q.TryWait(timeout)
	if !ok {
		select {
		case err := <-q.r.Broken:
			q.r.T.Fatalf("queue %d: device broken: %v", q.dev.Index(), err)
		default:
			q.r.T.Fatalf("queue %d: no chain used within %v", q.dev.Index(), timeout)
		}
	}
	return head, written
}

// TryWait is Wait with a limit of d, after which ok is false.
func (q *Queue) TryWait(d time.Duration) (head uint16, written uint32, ok bool) {
	deadline := time.Now().Add(d)
	for spin := 0; uint16(load32(q.used, 0)>>16) == q.seen; spin++ {
		if spin < 100 {
			runtime.Gosched()
			continue
		}
		if time.Now().After(deadline) {
			return 0, 0, false
		}
		time.Sleep(20 * time.Microsecond)
	}
	e := q.used[4+8*int(q.seen%q.cfg.Size):]
	q.seen++
	// The driver wants an interrupt for the next entry (used_event, which has the last whole word of its area).
	store32(q.avail, 4+2*int(q.cfg.Size), uint32(q.seen))
	return binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint32(e[4:]), true
}

// Do sends a chain, waits for it and returns how many bytes were written.
func (q *Queue) Do(chain ...Desc) uint32 {
	q.r.T.Helper()
	want := q.Send(chain...)
	head, n := q.Wait()
	if head != want {
		q.r.T.Fatalf("queue %d: chain %d came back, not %d", q.dev.Index(), head, want)
	}
	return n
}

// Index words are accessed atomically, as the device does: the race detector then knows what they order. The areas of a
// Rig are aligned to 16 bytes.

func load32(b []byte, off int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[off])))
}

func store32(b []byte, off int, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[off])), v)
}

// Descs makes a chain from what a fuzzer thought up: a byte whose low bit says "device-writable", a byte of length in
// units of 16 bytes less that first byte's high bits, and so on; the content of readable ones follows in data. It is never
// longer than half a queue of 64.
func Descs(r *Rig, data []byte) (chain []Desc) {
	for len(data) >= 2 && len(chain) < 32 {
		kind, n := data[0], int(data[1])*16-int(data[0]>>4)
		data = data[2:]
		n = max(n, 1)
		d := Desc{Addr: r.Alloc(n), Len: uint32(n), Write: kind&1 != 0}
		if !d.Write {
			k := copy(r.Bytes(d.Addr, n), data)
			data = data[k:]
		}
		chain = append(chain, d)
	}
	if len(chain) == 0 {
		chain = append(chain, r.In(1))
	}
	return chain
}
