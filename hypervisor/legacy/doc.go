// Package legacy holds the small devices that every PC has had since before PCI, as the Q35 board has them: the 16550A
// serial ports, the i8042 keyboard controller, the CMOS clock, the ACPI power-management block, the reset registers,
// and what firmware talks to: fw_cfg, the debug console and the debug exit.
//
// Every device is a bus.Device whose registers are bytes unless its comment says otherwise: a wider access is what the
// ISA bus makes of it, one access for each byte, in ascending order.
//
// Every device is a snap.Component and is made paused: Resume starts it, whether it is new or its state was just
// decoded. A reset of the board makes new ones.
//
// Three classic neighbours are not here. The interrupt controllers with their ELCR (0x20, 0xa0, 0x4d0), and the timer
// with port 0x61 beside it, are KVM's: the PIT is created with KVM_PIT_SPEAKER_DUMMY, so that the kernel answers 0x61
// too. The POST port, 0x80, needs no device: a write that nobody answers is just the delay that its writers want.
package legacy

import (
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// pin is a device's end of an interrupt line. It remembers the level, so that setting the level that the line already
// has costs nothing.
type pin struct {
	line  irq.Line
	level bool
}

// set drives the line. Its error is dropped: a line fails only when the machine is going away, and the guest, whose
// access this is, cannot be told.
func (p *pin) set(level bool) {
	if level != p.level {
		p.level = level
		_ = p.line.Set(level)
	}
}

// drive drives the line with the level that p remembers, for Resume: the line of a machine that was just restored is
// low whatever the device's state says.
func (p *pin) drive() error { return p.line.Set(p.level) }

// ring is a queue of bytes of fixed capacity.
type ring struct {
	buf  []byte
	head int // index of the oldest byte
	n    int // bytes held
}

func newRing(size int) ring { return ring{buf: make([]byte, size)} }

func (r *ring) free() int { return len(r.buf) - r.n }

// push appends b, or reports false if r is full.
func (r *ring) push(b byte) bool {
	if r.n == len(r.buf) {
		return false
	}
	r.buf[(r.head+r.n)%len(r.buf)] = b
	r.n++
	return true
}

// pop removes the oldest byte; an empty ring gives 0.
func (r *ring) pop() byte {
	if r.n == 0 {
		return 0
	}
	b := r.buf[r.head]
	r.head = (r.head + 1) % len(r.buf)
	r.n--
	return b
}

func (r *ring) clear() { r.head, r.n = 0, 0 }

// state carries the bytes held, not where in the buffer they are.
func (r *ring) state(c *snap.Codec) {
	n := c.Len(r.n, len(r.buf))
	if c.Loading() {
		r.head, r.n = 0, n
	}
	for i := range n {
		c.U8(&r.buf[(r.head+i)%len(r.buf)])
	}
}
