// Package ps2 is a keyboard and a mouse with PS/2 plugs: what firmware, boot loaders, installers and old systems know how to
// use. They speak the protocol of IBM's PS/2 Hardware Interface Technical Reference ("Keyboards (101- and 102-Key)", "Mouse")
// with a controller that takes their bytes one by one, as the guest reads them. The wire's timing is not modelled.
//
// Both take what a person does as hid.Sinks. What a guest does not read does not pile up: the keyboard keeps as many bytes
// as a real one and ignores further presses, never the release of a key that it has told of; the mouse adds up motion.
package ps2

import (
	"slices"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Bytes that both devices answer with.
const (
	ack      = 0xfa
	resend   = 0xfe // what was sent is no command
	failure  = 0xfc // neither is what was sent after "resend"
	selfTest = 0xaa // the test after a reset was passed
)

// Commands that both devices know.
const (
	cmdID       = 0xf2
	cmdEnable   = 0xf4
	cmdDisable  = 0xf5
	cmdDefaults = 0xf6
	cmdResend   = 0xfe
	cmdReset    = 0xff
)

// bufferSize is how many scan codes a keyboard keeps: one byte less than firmware reads at most to empty the controller,
// which holds another one.
const bufferSize = 14

// buffer is a queue of bytes.
type buffer struct {
	b [bufferSize]byte
	n int
}

// push appends all of p, or reports false if there is no room.
func (q *buffer) push(p ...byte) bool {
	if q.n+len(p) > len(q.b) {
		return false
	}
	q.n += copy(q.b[q.n:], p)
	return true
}

// set replaces what is in the queue.
func (q *buffer) set(p ...byte) { q.n = copy(q.b[:], p) }

// pop removes the oldest byte.
func (q *buffer) pop() (b byte, ok bool) {
	if q.n == 0 {
		return 0, false
	}
	b = q.b[0]
	q.n = copy(q.b[:], q.b[1:q.n])
	return b, true
}

func (q *buffer) state(c *snap.Codec) {
	q.n = c.Len(q.n, len(q.b))
	c.Fixed(q.b[:q.n])
}

// gate lets a device call its controller until it is paused. The caller's lock order is gate, controller, device.
type gate struct {
	mu   sync.RWMutex
	open bool
}

// enter reports whether the device runs. It then does until leave.
func (g *gate) enter() bool {
	g.mu.RLock()
	if !g.open {
		g.mu.RUnlock()
		return false
	}
	return true
}

func (g *gate) leave() { g.mu.RUnlock() }

// set opens or closes the gate. When it returns, nobody is inside a gate that it has closed.
func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = open
}

// oneOf refuses a saved value that cannot be.
func oneOf(c *snap.Codec, what string, v uint8, of ...uint8) {
	if !slices.Contains(of, v) {
		c.Fail("%s is %#x", what, v)
	}
}
