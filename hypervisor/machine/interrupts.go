package machine

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// interrupts implements package irq over KVM's interrupt controllers.
//
// A message of our own devices is one KVM_SIGNAL_MSI: no route, nothing to update when the guest moves it. Only a vector
// that somebody else signals (EventFD) gets a GSI of its own, a route and an irqfd.
type interrupts struct {
	vm *kvm.VM

	mu     sync.Mutex
	levels [numGSI]int         // how many devices assert each line
	pirq   [8]uint8            // routing registers of PIRQ A to H (ICH9 datasheet §13.1.17): bit 7 off, else an ISA interrupt
	raised [8]bool             // what each PIRQ drives its ISA interrupt with now
	routes map[uint32]struct{} // GSIs that messages have
	table  []kvm.RoutingEntry
}

const (
	pirqOff      = 0x80
	pirqReserved = 1<<0 | 1<<1 | 1<<2 | 1<<8 | 1<<13 // ISA interrupts that a PIRQ cannot be routed to
)

// newInterrupts sets the routes of the 24 lines: an ISA interrupt reaches both the PIC and the IOAPIC, the timer at pin 2
// of the latter as the MADT says (its own pin 2, the cascade, does not exist there); a PIRQ the IOAPIC only.
func newInterrupts(vm *kvm.VM) (*interrupts, error) {
	n := &interrupts{vm: vm}
	for i := range n.pirq {
		n.pirq[i] = pirqOff
	}
	for gsi := range uint32(numGSI) {
		if gsi < 8 && gsi != 2 {
			n.table = append(n.table, kvm.RouteIRQChip(gsi, kvm.IRQChipPICMaster, gsi))
		} else if gsi >= 8 && gsi < 16 {
			n.table = append(n.table, kvm.RouteIRQChip(gsi, kvm.IRQChipPICSlave, gsi-8))
		}
		switch gsi {
		case 0:
			n.table = append(n.table, kvm.RouteIRQChip(gsi, kvm.IRQChipIOAPIC, 2))
		case 2:
		default:
			n.table = append(n.table, kvm.RouteIRQChip(gsi, kvm.IRQChipIOAPIC, gsi))
		}
	}
	return n, vm.SetGSIRouting(n.table)
}

// line returns a new participant in the wired-or line gsi.
func (n *interrupts) line(gsi uint32) irq.Line { return &line{n: n, gsi: gsi} }

type line struct {
	n     *interrupts
	gsi   uint32
	level bool // guarded by n.mu
}

// Set implements irq.Line.
func (l *line) Set(level bool) error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if l.level == level {
		return nil
	}
	l.level = level
	return l.n.assert(l.gsi, level)
}

// assert counts one more or one less device that asserts gsi, with n locked.
func (n *interrupts) assert(gsi uint32, level bool) error {
	if level {
		n.levels[gsi]++
	} else {
		n.levels[gsi]--
	}
	if on := n.levels[gsi] > 0; on != level || n.levels[gsi] > 1 {
		return nil // others assert it still, or did already
	}
	err := n.vm.IRQLine(gsi, level)
	if gsi >= gsiPIRQ {
		err = errors.Join(err, n.driveISA(int(gsi-gsiPIRQ)))
	}
	return err
}

// driveISA makes the ISA interrupt of PIRQ i agree with the PIRQ's level and routing.
func (n *interrupts) driveISA(i int) error {
	isa := n.pirq[i] & 0xf
	want := n.levels[gsiPIRQ+i] > 0 && n.pirq[i]&pirqOff == 0 && pirqReserved>>isa&1 == 0
	if want == n.raised[i] {
		return nil
	}
	n.raised[i] = want
	return n.assert(uint32(isa), want)
}

// routePIRQ is the guest's write to the routing register of PIRQ i.
func (n *interrupts) routePIRQ(i int, v uint8) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pirq[i] == v {
		return
	}
	if n.raised[i] {
		n.raised[i] = false
		_ = n.assert(uint32(n.pirq[i]&0xf), false) // a line that was raised can be lowered
	}
	n.pirq[i] = v
	_ = n.driveISA(i)
}

// Vectors implements irq.Allocator.
func (n *interrupts) Vectors(count int) (irq.Vectors, error) {
	v := &vectors{n: n, v: make([]vector, count)}
	for i := range v.v {
		v.v[i].masked, v.v[i].fd = true, -1
	}
	return v, nil
}

// vectors are the messages of one device.
type vectors struct {
	n  *interrupts
	mu sync.Mutex
	v  []vector
}

type vector struct {
	msg     irq.MSI
	masked  bool
	pending bool
	fd      int    // eventfd, or -1
	gsi     uint32 // of the eventfd
	bound   bool   // the eventfd is KVM's irqfd now
}

// Len implements irq.Vectors.
func (v *vectors) Len() int { return len(v.v) }

// Trigger implements irq.Vectors.
func (v *vectors) Trigger(i int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := &v.v[i]
	if e.masked {
		e.pending = true
		return nil
	}
	return v.send(e)
}

// forAPIC reports whether m is an interrupt (Intel SDM volume 3, §11.11.1). A message to another address would be a write
// to memory: KVM does not look, and would make an interrupt of that too.
func forAPIC(m irq.MSI) bool { return m.Addr>>20 == lapicBase>>20 }

func (v *vectors) send(e *vector) error {
	if !forAPIC(e.msg) {
		return nil
	}
	_, err := v.n.vm.SignalMSI(e.msg.Addr, e.msg.Data) // not delivered: the guest aimed it at a CPU that is not there
	return err
}

// Pending implements irq.Vectors.
func (v *vectors) Pending(i int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := &v.v[i]
	if e.fd < 0 || e.bound {
		return e.pending
	}
	p := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return e.pending || err == nil && n == 1
}

// Cancel implements irq.Vectors.
func (v *vectors) Cancel(i int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := &v.v[i]
	e.pending = false
	if e.fd >= 0 && !e.bound {
		var count [8]byte
		_, _ = unix.Read(e.fd, count[:]) // it does not block: there may be no signal
	}
}

// Update implements irq.Vectors. While an eventfd's vector is masked KVM does not listen: signals add up in the eventfd,
// and KVM looks at it when it is bound again.
func (v *vectors) Update(i int, m irq.MSI, masked bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := &v.v[i]
	e.msg, e.masked = m, masked
	if e.fd >= 0 {
		if err := v.bind(e); err != nil {
			return err
		}
	}
	if e.pending && !masked {
		e.pending = false
		return v.send(e)
	}
	return nil
}

// EventFD implements irq.Vectors.
func (v *vectors) EventFD(i int) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := &v.v[i]
	if e.fd >= 0 {
		return e.fd, nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("eventfd for interrupt vector %d: %w", i, err)
	}
	if e.gsi, err = v.n.allocate(); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	e.fd = fd
	return fd, v.bind(e)
}

// bind makes the irqfd of e agree with its mask and message.
func (v *vectors) bind(e *vector) error {
	if e.masked || !forAPIC(e.msg) {
		if !e.bound {
			return nil
		}
		e.bound = false
		return v.n.vm.IRQFD(kvm.IRQFD{FD: uint32(e.fd), GSI: e.gsi, Flags: kvm.IRQFDDeassign})
	}
	if err := v.n.route(e.gsi, e.msg); err != nil || e.bound {
		return err
	}
	e.bound = true
	return v.n.vm.IRQFD(kvm.IRQFD{FD: uint32(e.fd), GSI: e.gsi})
}

// Close implements irq.Vectors.
func (v *vectors) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	for i := range v.v {
		e := &v.v[i]
		if e.fd < 0 {
			continue
		}
		e.masked = true
		errs = append(errs, v.bind(e), v.n.release(e.gsi), unix.Close(e.fd))
		e.fd = -1
	}
	return errors.Join(errs...)
}

// maxGSI is how many interrupts KVM routes on x86-64 (KVM_MAX_IRQ_ROUTES).
const maxGSI = 4096

// allocate returns a GSI for a message.
func (n *interrupts) allocate() (uint32, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for gsi := uint32(numGSI); gsi < maxGSI; gsi++ {
		if _, used := n.routes[gsi]; !used {
			if n.routes == nil {
				n.routes = make(map[uint32]struct{})
			}
			n.routes[gsi] = struct{}{}
			return gsi, nil
		}
	}
	return 0, fmt.Errorf("all %d interrupt routes are taken", maxGSI)
}

func (n *interrupts) route(gsi uint32, m irq.MSI) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := kvm.RouteMSI(gsi, m.Addr, m.Data)
	for i := range n.table {
		if n.table[i].GSI == gsi {
			n.table[i] = e
			return n.vm.SetGSIRouting(n.table)
		}
	}
	n.table = append(n.table, e)
	return n.vm.SetGSIRouting(n.table)
}

func (n *interrupts) release(gsi uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.routes, gsi)
	for i := range n.table {
		if n.table[i].GSI == gsi {
			n.table = append(n.table[:i], n.table[i+1:]...)
			return n.vm.SetGSIRouting(n.table)
		}
	}
	return nil
}

// doorbells implements bus.Doorbells by ioeventfds.
type doorbells struct{ vm *kvm.VM }

// Bind implements bus.Doorbells.
func (d doorbells) Bind(addr uint64, size, fd int) error {
	return d.vm.IOEventFD(kvm.IOEventFD{Addr: addr, Len: uint32(size), FD: int32(fd)})
}

// Unbind implements bus.Doorbells.
func (d doorbells) Unbind(addr uint64, size, fd int) error {
	return d.vm.IOEventFD(kvm.IOEventFD{Addr: addr, Len: uint32(size), FD: int32(fd), Flags: kvm.IOEventFDDeassign})
}
