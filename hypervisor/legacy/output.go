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
)

// output carries bytes from vCPUs to an io.Writer, which may block: a bounded ring with one producer at a time (the
// device's lock sees to it) and one goroutine that writes. Neither side ever takes a lock of the other.
//
// What the writer refuses is dropped, as by a cable with nothing at its other end. A writer that can block for good
// must have SetWriteDeadline, as files and sockets do: pause uses it to get the goroutine back. What was not written
// then stays in the ring and is part of the saved state.
type output struct {
	w       io.Writer
	drained func()        // called by the goroutine, holding nothing, whenever it has made room; may be nil
	wake    chan struct{} // capacity 1: there is something to write
	empty   chan struct{} // capacity 1: the ring became empty

	stop, done chan struct{} // of the goroutine, while it runs

	ring [outputSize]byte
	head int          // owned by the goroutine
	tail int          // owned by the producer
	n    atomic.Int32 // bytes held; what publishes ring's content to the other side
}

func (o *output) init(w io.Writer, drained func()) {
	o.w, o.drained = w, drained
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
	go o.run()
}

// pause stops the goroutine and returns when it has ended.
func (o *output) pause() {
	close(o.stop)
	if d, ok := o.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		// An error means that the writer has no deadlines, as a regular file, which does not block for good.
		_ = d.SetWriteDeadline(time.Unix(1, 0))
		defer d.SetWriteDeadline(time.Time{})
	}
	<-o.done
}

func (o *output) run() {
	defer close(o.done)
	timer := time.NewTimer(gather)
	defer timer.Stop()
	for {
		select {
		case <-o.stop:
			return
		case <-o.wake:
		}
		for o.n.Load() > 0 {
			if !o.write() {
				signal(o.wake)
				break
			}
		}
		timer.Reset(gather)
		select {
		case <-o.stop:
			return
		case <-timer.C:
		}
	}
}

// write hands the writer what lies contiguous in the ring. It reports false if nothing more should be tried now.
func (o *output) write() bool {
	end := min(o.head+int(o.n.Load()), outputSize)
	n, err := o.w.Write(o.ring[o.head:end])
	again := true
	if errors.Is(err, os.ErrDeadlineExceeded) {
		n, again = max(0, min(n, end-o.head)), false
	} else {
		n = end - o.head // written, or refused and dropped
	}
	o.head = (o.head + n) % outputSize
	if o.n.Add(int32(-n)) == 0 {
		signal(o.empty)
	}
	if o.drained != nil {
		o.drained()
	}
	return again
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
