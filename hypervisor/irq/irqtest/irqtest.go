// Package irqtest has interrupt lines and vectors for tests of devices: they record what a device does, and know the
// rules of package irq.
package irqtest

import (
	"errors"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/irq"
)

// Line is an irq.Line that remembers its level.
type Line struct {
	mu     sync.Mutex
	level  bool
	raised int
}

// Set implements irq.Line.
func (l *Line) Set(level bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level && !l.level {
		l.raised++
	}
	l.level = level
	return nil
}

// Level returns whether the line is asserted.
func (l *Line) Level() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.level
}

// Raised returns how often the line went from low to high.
func (l *Line) Raised() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.raised
}

// Allocator is an irq.Allocator that remembers what it handed out.
type Allocator struct {
	mu   sync.Mutex
	sets []*Vectors
}

// Vectors implements irq.Allocator.
func (a *Allocator) Vectors(n int) (irq.Vectors, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := &Vectors{v: make([]vector, n)}
	for i := range v.v {
		v.v[i].masked = true
	}
	a.sets = append(a.sets, v)
	return v, nil
}

// Last returns the set that was handed out last.
func (a *Allocator) Last() *Vectors {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sets[len(a.sets)-1]
}

// ErrClosed is what Vectors answer after Close.
var ErrClosed = errors.New("vectors are closed")

// Vectors is an irq.Vectors that records the messages that it would send. All vectors are masked at first.
type Vectors struct {
	mu     sync.Mutex
	v      []vector
	sent   []irq.MSI
	closed bool
}

type vector struct {
	msg             irq.MSI
	masked, pending bool
	fd              int // eventfd, or 0
}

// Trigger implements irq.Vectors.
func (v *Vectors) Trigger(i int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return ErrClosed
	}
	if e := &v.v[i]; e.masked {
		e.pending = true
	} else {
		v.sent = append(v.sent, e.msg)
	}
	return nil
}

// Pending implements irq.Vectors.
func (v *Vectors) Pending(i int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.v[i].pending
}

// Cancel implements irq.Vectors.
func (v *Vectors) Cancel(i int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.v[i].pending = false
}

// EventFD implements irq.Vectors. Nobody listens to the eventfd: a test may compare and read it.
func (v *Vectors) EventFD(i int) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return -1, ErrClosed
	}
	if v.v[i].fd == 0 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return -1, err
		}
		v.v[i].fd = fd
	}
	return v.v[i].fd, nil
}

// Update implements irq.Vectors.
func (v *Vectors) Update(i int, m irq.MSI, masked bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return ErrClosed
	}
	e := &v.v[i]
	e.msg, e.masked = m, masked
	if e.pending && !masked {
		e.pending = false
		v.sent = append(v.sent, m)
	}
	return nil
}

// Len implements irq.Vectors.
func (v *Vectors) Len() int { return len(v.v) }

// Close implements irq.Vectors.
func (v *Vectors) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for _, e := range v.v {
		if e.fd != 0 {
			_ = unix.Close(e.fd)
		}
	}
	return nil
}

// Sent returns the messages that were sent, in their order.
func (v *Vectors) Sent() []irq.MSI {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.sent)
}

// Count returns how often m was sent.
func (v *Vectors) Count(m irq.MSI) (n int) {
	for _, s := range v.Sent() {
		if s == m {
			n++
		}
	}
	return n
}

// Closed reports whether Close was called.
func (v *Vectors) Closed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closed
}
