package legacy

import (
	"sync"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Where the two reset registers are. ResetPort lies within the ports of PCI's configuration address, which is 4 bytes
// wide: whoever has those hands accesses of one byte to this port on.
const (
	ResetPort = 0xcf9
	Port92    = 0x92
)

// Values of the reset control register (Intel ICH9 data sheet, §13.7.5). ResetValue is what the FADT's RESET_VALUE
// asks for.
const (
	rstSystem  = 1 << 1 // with rstCPU: the whole board, not only the processor
	rstCPU     = 1 << 2 // going from 0 to 1, resets
	rstFull    = 1 << 3 // with both: a power cycle
	ResetValue = rstSystem | rstCPU
)

// ResetKind says how much a guest wants to reset.
type ResetKind int

// The kinds of reset, from the least to the most.
const (
	ResetINIT  ResetKind = iota // INIT# to the processor
	ResetHard                   // the whole board
	ResetPower                  // the board, with its power off and on again
)

// ResetControl is the reset control register, RST_CNT.
type ResetControl struct {
	reset func(ResetKind)
	mu    sync.Mutex
	value uint8
}

// NewResetControl returns a reset control register, mapped at ResetPort, that calls reset with no lock held.
func NewResetControl(reset func(ResetKind)) *ResetControl { return &ResetControl{reset: reset} }

// Read implements bus.Device.
func (r *ResetControl) Read(a bus.Access, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range p {
		p[i] = 0xff
	}
	p[0] = r.value
}

// Write implements bus.Device.
func (r *ResetControl) Write(a bus.Access, p []byte) {
	r.mu.Lock()
	old := r.value
	r.value = p[0] & (rstSystem | rstCPU | rstFull)
	now := r.value
	r.mu.Unlock()
	if now&^old&rstCPU == 0 {
		return
	}
	switch {
	case now&rstSystem == 0:
		r.reset(ResetINIT)
	case now&rstFull == 0:
		r.reset(ResetHard)
	default:
		r.reset(ResetPower)
	}
}

// SnapID implements snap.Component.
func (r *ResetControl) SnapID() string { return "reset" }

// SnapVersion implements snap.Component.
func (r *ResetControl) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (r *ResetControl) Pause() error { return nil }

// Resume implements snap.Component.
func (r *ResetControl) Resume() error { return nil }

// State implements snap.Component.
func (r *ResetControl) State(c *snap.Codec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.U8(&r.value)
}

// Bits of port 0x92.
const (
	fastINIT = 1 << 0 // going from 0 to 1, resets the processor
	fastA20  = 1 << 1
)

// FastA20 is the PS/2's system control port A, 0x92: A second way to reset the processor and to open A20. A20 is always
// open, as KVM cannot close it: its bit only reads back.
type FastA20 struct {
	reset func(ResetKind)
	mu    sync.Mutex
	value uint8
}

// NewFastA20 returns the port, mapped at Port92. It calls reset, always with ResetINIT, with no lock held.
func NewFastA20(reset func(ResetKind)) *FastA20 { return &FastA20{reset: reset, value: fastA20} }

// Read implements bus.Device.
func (f *FastA20) Read(a bus.Access, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range p {
		p[i] = 0xff
	}
	p[0] = f.value
}

// Write implements bus.Device.
func (f *FastA20) Write(a bus.Access, p []byte) {
	f.mu.Lock()
	old := f.value
	f.value = p[0] & (fastINIT | fastA20)
	now := f.value
	f.mu.Unlock()
	if now&^old&fastINIT != 0 {
		f.reset(ResetINIT)
	}
}

// SnapID implements snap.Component.
func (f *FastA20) SnapID() string { return "port92" }

// SnapVersion implements snap.Component.
func (f *FastA20) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (f *FastA20) Pause() error { return nil }

// Resume implements snap.Component.
func (f *FastA20) Resume() error { return nil }

// State implements snap.Component.
func (f *FastA20) State(c *snap.Codec) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.U8(&f.value)
}
