package legacy

import (
	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Where the debug exit is.
const (
	DebugExitBase = 0xf4
	DebugExitSize = 4
)

// DebugExit ends the machine with a value of the guest's choice: test guests report their result with one instruction.
type DebugExit struct{ exit func(v uint32) }

// NewDebugExit returns a debug exit, mapped at DebugExitBase. It calls exit with what the guest writes, of any size.
func NewDebugExit(exit func(v uint32)) *DebugExit { return &DebugExit{exit} }

// ExitCode returns the exit status of a VMM whose guest has written v. It is odd, so that no value of a guest is taken
// for success; only the low 7 bits of v are in it.
func ExitCode(v uint32) int { return int(v<<1&0xff | 1) }

// Read implements bus.Device.
func (d *DebugExit) Read(a bus.Access, p []byte) { clear(p) }

// Write implements bus.Device.
func (d *DebugExit) Write(a bus.Access, p []byte) {
	var v uint32
	for i := range min(len(p), 4) {
		v |= uint32(p[i]) << (8 * i)
	}
	d.exit(v)
}

// SnapID implements snap.Component.
func (d *DebugExit) SnapID() string { return "debugexit" }

// SnapVersion implements snap.Component.
func (d *DebugExit) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (d *DebugExit) Pause() error { return nil }

// Resume implements snap.Component.
func (d *DebugExit) Resume() error { return nil }

// State implements snap.Component: there is none.
func (d *DebugExit) State(c *snap.Codec) {}
