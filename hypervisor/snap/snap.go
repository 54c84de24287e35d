// Package snap is the saved state of a virtual machine: the interface that every device implements to be saved, the
// codec that its state goes through, and the file that the states of one machine form.
package snap

import "fmt"

// Component is a part of a machine that has state.
//
// A machine is saved in this order: every vCPU is stopped, every Component paused, every State called with an encoding
// Codec, and then, unless the guest is to stop, every Component and vCPU resumed. It is restored by building the same
// machine from its definition, calling State with a decoding Codec on every Component before anything runs, and then
// Resume. When a State fails while decoding, the whole machine is thrown away: a Component need not undo anything.
type Component interface {
	// SnapID names the component within its machine, such as "blk.root".
	SnapID() string
	// SnapVersion is the version of the state that this code writes, at least 1. It reads this version and all before it,
	// which Codec.Version tells apart.
	SnapVersion() uint16
	// Pause stops the component's workers and returns when they have stopped: it then neither touches guest memory nor
	// interrupts. Pausing twice is an error of the caller.
	Pause() error
	// Resume undoes Pause; after decoding it starts the workers for the first time.
	Resume() error
	// State saves or restores every field, in one fixed order, through c. A value that cannot be right (an index
	// beyond a queue's size) is refused with c.Fail, and so is one that would be saved again as another.
	State(c *Codec)
}

// Codec carries a component's state to or from a byte slice. One State method serves both directions: each call names a
// field, whose value is written when encoding and replaced when decoding. All integers are little-endian.
//
// The first error sticks; after it, decoding leaves fields as they are. Check Err at the end.
type Codec struct {
	buf     []byte // encoding: what was written; decoding: what is left to read
	loading bool
	version uint16
	err     error
}

// NewEncoder returns a Codec that writes version's form of a state.
func NewEncoder(version uint16) *Codec { return &Codec{version: version} }

// NewDecoder returns a Codec that reads a state of the given version from b, which it does not change.
func NewDecoder(b []byte, version uint16) *Codec {
	return &Codec{buf: b, loading: true, version: version}
}

// Loading reports whether c decodes.
func (c *Codec) Loading() bool { return c.loading }

// Version returns the version of the state that is read or written.
func (c *Codec) Version() uint16 { return c.version }

// Err returns the first error.
func (c *Codec) Err() error { return c.err }

// Data returns what was encoded.
func (c *Codec) Data() []byte { return c.buf }

// Fail makes c fail with an error, unless it has failed already.
func (c *Codec) Fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// Done makes c fail if it decodes and anything is left to read.
func (c *Codec) Done() {
	if c.loading && len(c.buf) != 0 {
		c.Fail("%d bytes more than expected", len(c.buf))
	}
}
