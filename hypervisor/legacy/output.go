package legacy

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/hypervisor/snap"
)

const (
	outputSize = 16 << 10 // bytes; 70 ms of a guest that does nothing but print
	// gather is how long after a write the next one waits for company. A guest prints a byte an exit: without it every
	// byte would wake the writer and cost a system call or two. A byte after silence is written at once.
	gather = time.Millisecond
	// pauseLimit bounds how long pause waits for a writer that has no deadlines.
	pauseLimit = time.Second
)

// output carries bytes from vCPUs to an io.Writer, which may block: a bounded ring with one producer at a time (the
// device's lock sees to it) and one goroutine that writes. Neither side ever takes a lock of the other.
//
// What the writer refuses is dropped, as by a cable with nothing at its other end. A writer that can block for good
// should have SetWriteDeadline, as sockets and files in Go's poller do: pause uses it to get the goroutine back, and what
// was not written then stays in the ring and is part of the saved state. From a writer without deadlines pause walks away
// after pauseLimit. What such a writer was given then is its own, written or not; it gets no more before it has returned.
type output struct {
	w       io.Writer
	drained func()        // called by the goroutine, holding nothing, whenever it has made room; may be nil
	wake    chan struct{} // capacity 1: there is something to write
	empty   chan struct{} // capacity 1: the ring became empty

	stop, done chan struct{} // of the goroutine, while it runs
	left       chan struct{} // done of the goroutine that pause has walked away from last; nil if there is none

	ring    *[outputSize]byte
	head    int          // owned by the goroutine
	tail    int          // owned by the producer
	n       atomic.Int32 // bytes held; what publishes ring's content to the other side
	writing atomic.Int32 // bytes that the writer is being given; who sets it to 0, goroutine or pause, takes them out
}

func (o *output) init(w io.Writer, drained func()) {
	o.w, o.drained, o.ring = w, drained, new([outputSize]byte)
	o.wake, o.empty = make(chan struct{}, 1), make(chan struct{}, 1)
}

func (o *output) room() int { return outputSize - int(o.n.Load()) }

// push takes all of p, or nothing and reports false.
func (o *output) push(p ...byte) bool {
	if len(p) > o.room() {
		return false
	}
	for _, b := range p {
		o.ring[o.tail] = b
		o.tail = (o.tail + 1) % outputSize
	}
	if o.n.Add(int32(len(p))) == int32(len(p)) { // was empty: the writer sleeps, or is about to
		signal(o.wake)
	}
	return true
}

// signal leaves a token in a channel of capacity 1 unless there is one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// start starts the goroutine.
func (o *output) start() {
	o.stop, o.done = make(chan struct{}), make(chan struct{})
	if o.n.Load() > 0 {
		signal(o.wake)
	}
	go o.run(o.left, o.stop, o.done)
}

// pause stops the goroutine and returns when it has ended, or writes what is its own by now and will not touch o again.
func (o *output) pause() {
	close(o.stop)
	if d, ok := o.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		// An error means that the writer has no deadlines, as a regular file, which does not block for good.
		_ = d.SetWriteDeadline(time.Unix(1, 0))
		defer d.SetWriteDeadline(time.Time{})
	}
	limit := time.NewTimer(pauseLimit)
	defer limit.Stop()
	select {
	case <-o.done:
		return
	case <-limit.C:
	}
	n := o.writing.Load()
	if n == 0 || !o.writing.CompareAndSwap(n, 0) {
		<-o.done // it has come back just now, and sees stop
		return
	}
	ring := *o.ring
	o.ring, o.left = &ring, o.done // the old ring is the writer's
	o.take(int(n))
}

// run is the goroutine. It waits until left is closed, unless that is nil.
func (o *output) run(left, stop <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	if left != nil {
		select {
		case <-left:
		case <-stop:
			return
		}
	}
	timer := time.NewTimer(gather)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-o.wake:
		}
		for o.n.Load() > 0 {
			if !o.write(stop) {
				return
			}
		}
		timer.Reset(gather)
		select {
		case <-stop:
			return
		case <-timer.C:
		}
	}
}

// write hands the writer what lies contiguous in the ring. It reports false if it must not go on.
func (o *output) write(stop <-chan struct{}) bool {
	p := o.ring[o.head:min(o.head+int(o.n.Load()), outputSize)]
	o.writing.Store(int32(len(p)))
	select {
	case <-stop: // looked at after writing is set, for pause
		o.writing.Store(0)
		return false
	default:
	}
	n, err := o.w.Write(p)
	if !o.writing.CompareAndSwap(int32(len(p)), 0) {
		return false // pause has walked away
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		o.take(max(0, min(n, len(p))))
	} else {
		o.take(len(p)) // written, or refused and dropped
	}
	return true
}

// take takes n bytes out of the ring.
func (o *output) take(n int) {
	o.head = (o.head + n) % outputSize
	if o.n.Add(int32(-n)) == 0 {
		signal(o.empty)
	}
	if o.drained != nil {
		o.drained()
	}
}

// flush waits until the writer has had everything.
func (o *output) flush(ctx context.Context) error {
	for o.n.Load() > 0 {
		select {
		case <-o.empty:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// state carries what was not written yet. The goroutine must be stopped.
func (o *output) state(c *snap.Codec) {
	n := c.Len(int(o.n.Load()), outputSize)
	if c.Loading() {
		o.head, o.tail = 0, n%outputSize
		o.n.Store(int32(n))
	}
	for i := range n {
		c.U8(&o.ring[(o.head+i)%outputSize])
	}
}
