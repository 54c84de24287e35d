package virtiopci

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/irq/irqtest"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

const (
	memSize  = 1 << 20
	ecamBase = 0xb0000000
	barBase  = 0xe0000000
	timeout  = 10 * time.Second
)

var slot = pci.Address{Device: 4}

// echo is a device with two queues: what the driver sends on either comes back in the same chain.
type echo struct {
	features uint64
	fails    error         // of Start
	gate     chan struct{} // if it is set, a request waits until it can take something from it
	stopped  chan struct{}
	waiting  atomic.Int32 // requests that wait

	mu     sync.Mutex
	cfg    [8]byte
	env    *virtio.Env
	served uint64
	resets int
}

func (*echo) ID() virtio.DeviceID    { return virtio.IDConsole }
func (e *echo) Features() uint64     { return e.features }
func (*echo) QueueSizes() []uint16   { return []uint16{64, 16} }
func (*echo) StateVersion() uint16   { return 1 }
func (e *echo) State(c *snap.Codec)  { c.U64(&e.served) }
func (e *echo) Stop()                { close(e.stopped) }
func (e *echo) lock() func()         { e.mu.Lock(); return e.mu.Unlock }
func (e *echo) Reset()               { defer e.lock()(); e.served = 0; e.resets++ }
func (e *echo) count() uint64        { defer e.lock()(); return e.served }
func (e *echo) setConfig(b [8]byte)  { defer e.lock()(); e.cfg = b }
func (e *echo) current() *virtio.Env { defer e.lock()(); return e.env }

func (e *echo) ReadConfig(off uint32, p []byte) {
	defer e.lock()()
	virtio.ConfigAt(e.cfg[:], off, p)
}

func (e *echo) WriteConfig(off uint32, p []byte) {
	defer e.lock()()
	if int64(off)+int64(len(p)) <= int64(len(e.cfg)) {
		copy(e.cfg[off:], p)
	}
}

func (e *echo) Start(env *virtio.Env) error {
	if e.fails != nil {
		return e.fails
	}
	e.stopped = make(chan struct{})
	unlock := e.lock()
	e.env = env
	unlock()
	for i := range e.QueueSizes() {
		var c virtio.Chain
		env.Serve(i, func(q *virtio.Queue) error {
			for {
				if ok, err := q.Next(&c); !ok || err != nil {
					return err
				}
				if e.gate != nil {
					e.waiting.Add(1)
					select {
					case <-e.gate:
					case <-e.stopped:
						e.waiting.Add(-1)
						q.Undo(1)
						return nil
					}
					e.waiting.Add(-1)
				}
				b := make([]byte, c.Readable())
				_, _ = c.Read(b)
				_, _ = c.Write(b)
				unlock := e.lock()
				e.served++
				unlock()
				q.Done(&c)
			}
		})
	}
	return nil
}

// bells are doorbells that remember their bindings.
type bells struct {
	mu    sync.Mutex
	bound map[uint64]int
	errs  []string
}

func (b *bells) Bind(addr uint64, size, fd int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, twice := b.bound[addr]; twice || size != 0 || fd < 0 {
		b.errs = append(b.errs, fmt.Sprintf("bind %#x size %d fd %d", addr, size, fd))
	}
	if b.bound == nil {
		b.bound = make(map[uint64]int)
	}
	b.bound[addr] = fd
	return nil
}

func (b *bells) Unbind(addr uint64, size, fd int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if got, ok := b.bound[addr]; !ok || size != 0 || got != fd {
		b.errs = append(b.errs, fmt.Sprintf("unbind %#x size %d fd %d", addr, size, fd))
	}
	delete(b.bound, addr)
	return nil
}

// ring signals the eventfd that is bound to addr, if one is.
func (b *bells) ring(addr uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	fd, ok := b.bound[addr]
	if ok {
		_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return ok
}

func (b *bells) addresses() (a []uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for addr := range b.bound {
		a = append(a, addr)
	}
	slices.Sort(a)
	return a
}

// board is a machine with one device in it.
type board struct {
	t           testing.TB
	mem         *mem.Memory
	ports, mmio bus.Bus
	root        pci.Root
	line        irqtest.Line
	msi         irqtest.Allocator
	bells       *bells // nil: notifications are register writes
	tr          *Transport
}

func newBoard(t testing.TB, dev virtio.Device, withBells bool) *board {
	t.Helper()
	b := &board{t: t, mem: mem.NewHeap(memSize)}
	cfg := Config{Name: "test", Mem: b.mem, Pin: 1}
	if withBells {
		b.bells = new(bells)
		cfg.Doorbells = b.bells
	}
	tr, err := New(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.tr = tr
	if err := tr.Function().Attach(pci.Env{Ports: &b.ports, MMIO: &b.mmio, Line: &b.line, MSI: &b.msi}); err != nil {
		t.Fatal(err)
	}
	if err := b.root.Insert(slot, tr); err != nil {
		t.Fatal(err)
	}
	if err := b.mmio.Map(bus.Range{Base: ecamBase, Size: pci.ECAMSize}, b.root.ECAM()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Function().Detach(); err != nil {
			t.Error(err)
		}
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
		if b.bells != nil && (len(b.bells.bound) != 0 || len(b.bells.errs) != 0) {
			t.Errorf("doorbells left: %v; wrong calls: %v", b.bells.bound, b.bells.errs)
		}
	})
	return b
}

func (b *board) read(addr uint64, n int) uint64 {
	var p [8]byte
	b.mmio.Read(0, addr, p[:n])
	return binary.LittleEndian.Uint64(p[:])
}

func (b *board) write(addr uint64, n int, v uint64) {
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], v)
	b.mmio.Write(0, addr, p[:n])
}

func config(off int) uint64 { return ecamBase + uint64(slot.Device)<<15 + uint64(off) }

// eventually waits for cond.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(timeout); !cond(); time.Sleep(20 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", timeout, what)
		}
	}
}

// driver does what virtio 1.2 §3.1 and §4.1 ask of one, with nothing but accesses to memory and configuration space.
type driver struct {
	*board
	bar     uint64
	window  bool // go through the configuration access capability
	pciCap  int
	msixCap int
	caps    map[byte]capability // by type
	queues  []*ring
}

type capability struct {
	at             int // in configuration space
	offset, length uint32
	multiplier     uint32
}

// probe finds the structures and places the BAR.
func probe(b *board) *driver {
	b.t.Helper()
	d := &driver{board: b, bar: barBase, caps: make(map[byte]capability)}
	for p := int(b.read(config(pci.CapPointer), 1)); p != 0; p = int(b.read(config(p+1), 1)) {
		switch id := b.read(config(p), 1); id {
		case pci.CapMSIX:
			d.msixCap = p
		case pci.CapVendor:
			typ := byte(b.read(config(p+3), 1))
			c := capability{at: p, offset: uint32(b.read(config(p+8), 4)), length: uint32(b.read(config(p+12), 4))}
			if typ == capNotify {
				c.multiplier = uint32(b.read(config(p+16), 4))
			}
			d.caps[typ] = c
		default:
			b.t.Errorf("capability %#x at %#x", id, p)
		}
	}
	if len(d.caps) != 5 || d.msixCap == 0 {
		b.t.Fatalf("capabilities %v, MSI-X at %#x", d.caps, d.msixCap)
	}
	d.pciCap = d.caps[capPCI].at
	b.write(config(pci.BAR0), 4, barBase)
	b.write(config(pci.Command), 2, pci.CommandMemory|pci.CommandMaster)
	return d
}

// get reads n bytes at off of a structure.
func (d *driver) get(typ byte, off uint32, n int) uint64 {
	at := d.caps[typ].offset + off
	if !d.window {
		return d.read(d.bar+uint64(at), n)
	}
	d.aim(at, n)
	return d.read(config(d.pciCap+16), n)
}

// put writes n bytes at off of a structure.
func (d *driver) put(typ byte, off uint32, n int, v uint64) {
	at := d.caps[typ].offset + off
	if !d.window {
		d.write(d.bar+uint64(at), n, v)
		return
	}
	d.aim(at, n)
	d.write(config(d.pciCap+16), n, v)
}

func (d *driver) aim(at uint32, n int) {
	d.write(config(d.pciCap+4), 1, barIndex)
	d.write(config(d.pciCap+8), 4, uint64(at))
	d.write(config(d.pciCap+12), 4, uint64(n))
}

func (d *driver) status() uint8     { return uint8(d.get(capCommon, regStatus, 1)) }
func (d *driver) setStatus(v uint8) { d.put(capCommon, regStatus, 1, uint64(v)) }

func (d *driver) offered() (f uint64) {
	for i := range uint64(2) {
		d.put(capCommon, regDeviceFeatureSelect, 4, i)
		f |= d.get(capCommon, regDeviceFeature, 4) << (32 * i)
	}
	return f
}

func (d *driver) accept(f uint64) {
	for i := range uint64(2) {
		d.put(capCommon, regDriverFeatureSelect, 4, i)
		d.put(capCommon, regDriverFeature, 4, f>>(32*i)&0xffffffff)
	}
}

// message is what the driver programs vector i with.
func message(i int) irq.MSI { return irq.MSI{Addr: 0xfee00000, Data: 0x41 + uint32(i)} }

// enableMSIX programs and unmasks all vectors.
func (d *driver) enableMSIX() {
	for i := range 3 {
		e, m := d.bar+tableOff+16*uint64(i), message(i)
		d.write(e, 4, m.Addr)
		d.write(e+4, 4, 0)
		d.write(e+8, 4, uint64(m.Data))
		d.write(e+12, 4, 0)
	}
	d.write(config(d.msixCap+2), 2, 0x8000)
}

// interrupts returns how often vector i was sent.
func (d *driver) interrupts(i int) int { return d.msi.Last().Count(message(i)) }

// negotiate goes from reset to FEATURES_OK.
func (d *driver) negotiate(features uint64) {
	d.t.Helper()
	d.setStatus(0)
	if v := d.status(); v != 0 {
		d.t.Fatalf("status %#x after a reset", v)
	}
	d.setStatus(statusAcknowledge)
	d.setStatus(statusAcknowledge | statusDriver)
	d.accept(d.offered() & features)
	d.setStatus(statusAcknowledge | statusDriver | statusFeaturesOK)
	if d.status()&statusFeaturesOK == 0 {
		d.t.Fatal("the device refuses its own features")
	}
}

// setUp makes all queues; vectors says whether they interrupt by MSI-X.
func (d *driver) setUp(vectors bool) {
	d.t.Helper()
	if vectors {
		d.put(capCommon, regConfigVector, 2, 0)
	}
	d.queues = nil
	for i := range int(d.get(capCommon, regNumQueues, 2)) {
		d.put(capCommon, regQueueSelect, 2, uint64(i))
		size := int(d.get(capCommon, regQueueSize, 2))
		if i == 0 {
			size /= 2 // smaller than offered
			d.put(capCommon, regQueueSize, 2, uint64(size))
		}
		at := mem.GPA(0x4000 * (i + 1))
		r := &ring{d: d, index: i, size: size, at: at,
			notify: d.caps[capNotify].offset + d.caps[capNotify].multiplier*uint32(d.get(capCommon, regQueueNotifyOff, 2)),
			desc:   d.bytes(at, 0x400), avail: d.bytes(at+0x1000, 0x400), used: d.bytes(at+0x2000, 0x400)}
		clear(r.desc)
		clear(r.avail)
		clear(r.used)
		for reg, gpa := range map[uint32]mem.GPA{regQueueDesc: at, regQueueDriver: at + 0x1000, regQueueDevice: at + 0x2000} {
			d.put(capCommon, reg, 4, uint64(gpa)&0xffffffff)
			d.put(capCommon, reg+4, 4, uint64(gpa)>>32)
		}
		if vectors {
			d.put(capCommon, regQueueVector, 2, uint64(i+1))
			if v := d.get(capCommon, regQueueVector, 2); v != uint64(i+1) {
				d.t.Fatalf("queue %d has vector %#x", i, v)
			}
		}
		d.put(capCommon, regQueueEnable, 2, 1)
		d.queues = append(d.queues, r)
	}
}

// start does everything up to DRIVER_OK.
func (d *driver) start(vectors bool) {
	d.t.Helper()
	if vectors {
		d.enableMSIX()
	}
	d.negotiate(^uint64(virtio.FeatureEventIdx)) // every chain interrupts: easier to count
	d.setUp(vectors)
	d.setStatus(statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK)
}

func (b *board) bytes(gpa mem.GPA, n int) []byte {
	b.t.Helper()
	s, err := b.mem.Slice(gpa, n)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// ring is the driver's side of a queue. It has one request under way per two descriptors.
type ring struct {
	d                 *driver
	index, size       int
	at                mem.GPA
	notify            uint32 // in the BAR
	desc, avail, used []byte
	next              int    // descriptor
	seen              uint16 // of the used ring
}

// offer makes a request available: text to read, and as much room for the answer.
func (r *ring) offer(text string) {
	buf := r.at + 0x3000 + mem.GPA(64*(r.next/2%16))
	b := r.d.bytes(buf, 64)
	clear(b)
	n := uint32(copy(b[:32], text))
	for i, d := range []struct {
		addr        mem.GPA
		flags, next uint16
	}{{buf, 1, uint16((r.next + 1) % r.size)}, {buf + 32, 2, 0}} {
		e := r.desc[16*((r.next+i)%r.size):]
		binary.LittleEndian.PutUint64(e, uint64(d.addr))
		binary.LittleEndian.PutUint32(e[8:], n)
		binary.LittleEndian.PutUint16(e[12:], d.flags)
		binary.LittleEndian.PutUint16(e[14:], d.next)
	}
	idx := uint16(load(r.avail) >> 16)
	binary.LittleEndian.PutUint16(r.avail[4+2*(int(idx)%r.size):], uint16(r.next%r.size))
	r.setAvailable(idx + 1)
	r.next += 2
}

func (r *ring) setAvailable(idx uint16) { store(r.avail, uint32(idx)<<16) }

// kick notifies the device, by the doorbell if there is one.
func (r *ring) kick() {
	if b := r.d.bells; b != nil && b.ring(r.d.bar+uint64(r.notify)) {
		return
	}
	if r.d.window {
		r.d.aim(r.notify, 2)
		r.d.write(config(r.d.pciCap+16), 2, uint64(r.index))
		return
	}
	r.d.write(r.d.bar+uint64(r.notify), 2, uint64(r.index))
}

// done reports how many answers have come that were not taken.
func (r *ring) done() int { return int(uint16(load(r.used)>>16) - r.seen) }

// take waits for the next answer.
func (r *ring) take() string {
	r.d.t.Helper()
	eventually(r.d.t, fmt.Sprintf("answer %d of queue %d", r.seen, r.index), func() bool { return r.done() > 0 })
	e := r.used[4+8*(int(r.seen)%r.size):]
	head, n := int(binary.LittleEndian.Uint32(e)), int(binary.LittleEndian.Uint32(e[4:]))
	r.seen++
	in := r.desc[16*((head+1)%r.size):]
	return string(r.d.bytes(mem.GPA(binary.LittleEndian.Uint64(in)), n))
}

// do makes a request and checks the answer.
func (r *ring) do(text string) {
	r.d.t.Helper()
	r.offer(text)
	r.kick()
	if got := r.take(); got != text {
		r.d.t.Errorf("queue %d: %q came back as %q", r.index, text, got)
	}
}

// The indices of the rings are accessed atomically, as the device does.

func load(b []byte) uint32     { return atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[0]))) }
func store(b []byte, v uint32) { atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[0])), v) }
