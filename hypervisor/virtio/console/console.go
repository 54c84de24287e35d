// Package console is the virtio console (virtio 1.2 §5.3) with one port, the guest's /dev/hvc0. Named ports for agents are
// vsock's job.
package console

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

const featureSize = 1 << 0 // §5.3.3

const (
	receiveQueue  = 0
	transmitQueue = 1
	inputSize     = 4096 // bytes that wait for the guest to give a buffer
)

// deadliner is a writer that can be interrupted, as files in Go's poller and sockets can.
type deadliner interface{ SetWriteDeadline(time.Time) error }

// Device is a console. Its methods for the host may be called at any time from any goroutine.
type Device struct {
	out io.Writer

	space   chan struct{} // capacity 1: Receive may find room
	arrived chan struct{} // capacity 1: there may be input

	mu    sync.Mutex
	env   *virtio.Env   // while started
	stop  chan struct{} // closed by Stop; nil while stopped
	input [inputSize]byte
	n     int // bytes in input

	cols, rows uint16
	stopping   atomic.Bool

	receiving virtio.Chain // of the receive queue's goroutine

	// Of the transmit queue's goroutine.
	sending virtio.Chain
	sent    uint32 // bytes of the next chain that were written before a stop
}

// New returns a console whose output goes to out, in pieces of guest memory that Write may not keep. If out blocks, the
// guest's output waits and nothing else does. A writer that can block for good must have SetWriteDeadline, or Stop waits
// for it; one that fails loses what it was given, as a cable with nothing at its other end does.
func New(out io.Writer) *Device {
	return &Device{out: out, space: make(chan struct{}, 1), arrived: make(chan struct{}, 1)}
}

// Receive hands p to the guest. It returns when the last byte has room in the device's buffer, which waits for the guest,
// or with the number of bytes that had and ctx's error.
func (d *Device) Receive(ctx context.Context, p []byte) (int, error) {
	for n := 0; ; {
		d.mu.Lock()
		k := copy(d.input[d.n:], p[n:])
		d.n, n = d.n+k, n+k
		room := d.n < inputSize
		d.mu.Unlock()
		signal(d.arrived)
		if n == len(p) {
			if room {
				signal(d.space) // for another Receive that waits
			}
			return n, nil
		}
		select {
		case <-d.space:
		case <-ctx.Done():
			return n, ctx.Err()
		}
	}
}

// SetSize tells the guest how large the terminal is, in characters.
func (d *Device) SetSize(cols, rows uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cols == cols && d.rows == rows {
		return
	}
	d.cols, d.rows = cols, rows
	if d.env != nil && d.env.Has(featureSize) {
		d.env.ConfigChanged()
	}
}

// ID returns virtio.IDConsole.
func (*Device) ID() virtio.DeviceID { return virtio.IDConsole }

// Features returns the terminal's size.
func (*Device) Features() uint64 { return featureSize }

// QueueSizes returns the sizes of receiveq and transmitq of port 0.
func (*Device) QueueSizes() []uint16 { return []uint16{64, 64} }

// ReadConfig reads struct virtio_console_config, §5.3.4.
func (d *Device) ReadConfig(off uint32, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c [12]byte
	binary.LittleEndian.PutUint16(c[0:], d.cols)
	binary.LittleEndian.PutUint16(c[2:], d.rows)
	virtio.ConfigAt(c[:], off, p)
}

// WriteConfig does nothing: emergency writes are not offered.
func (*Device) WriteConfig(uint32, []byte) {}

// Start begins to serve both queues.
func (d *Device) Start(env *virtio.Env) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	stop := make(chan struct{})
	d.env, d.stop = env, stop
	d.stopping.Store(false)
	if w, ok := d.out.(deadliner); ok {
		_ = w.SetWriteDeadline(time.Time{})
	}
	env.Serve(receiveQueue, func(q *virtio.Queue) error { return d.receive(q, stop) })
	env.Serve(transmitQueue, d.transmit)
	return nil
}

// Stop makes both handlers return.
func (d *Device) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stop == nil {
		return
	}
	close(d.stop)
	d.env, d.stop = nil, nil
	d.stopping.Store(true) // before the deadline: see write
	if w, ok := d.out.(deadliner); ok {
		_ = w.SetWriteDeadline(time.Unix(1, 0)) // in the past: a Write that waits returns
	}
}

// Reset forgets how far a chain was written. Input that waits is the host's, and for the next driver.
func (d *Device) Reset() { d.sent = 0 }

// StateVersion returns 1.
func (*Device) StateVersion() uint16 { return 1 }

// State carries the size, the input that waits, and how much of a chain in the ring was written.
func (d *Device) State(c *snap.Codec) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.U16(&d.cols)
	c.U16(&d.rows)
	d.n = c.Len(d.n, inputSize)
	c.Fixed(d.input[:d.n])
	c.U32(&d.sent)
	if c.Loading() && d.n > 0 {
		signal(d.arrived)
	}
}

// receive puts input into the driver's buffers. It returns only to stop: the buffers wait for input here, not in Wait.
func (d *Device) receive(q *virtio.Queue, stop <-chan struct{}) error {
	c := &d.receiving
	for {
		if !d.pending() {
			select {
			case <-d.arrived:
			case <-stop:
				return nil
			}
			continue
		}
		ok, err := q.Next(c)
		if err != nil {
			return err
		}
		if !ok {
			if !q.Wait() {
				return nil
			}
			continue
		}
		d.take(c)
		q.Done(c)
		q.Flush()
	}
}

func (d *Device) pending() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n > 0
}

// take moves as much input as fits to c.
func (d *Device) take(c *virtio.Chain) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, _ := c.Write(d.input[:min(d.n, c.Writable())])
	d.n = copy(d.input[:], d.input[n:d.n])
	signal(d.space)
}

// transmit writes what the driver sends.
func (d *Device) transmit(q *virtio.Queue) error {
	c := &d.sending
	for {
		ok, err := q.Next(c)
		if !ok || err != nil {
			return err
		}
		c.AdvanceReadable(int(d.sent))
		for c.Readable() > 0 {
			b := c.NextReadable(c.Readable())
			n := d.write(b)
			d.sent += uint32(n)
			if n < len(b) {
				q.Undo(1) // it goes on there after the pause
				return nil
			}
		}
		d.sent = 0
		q.Done(c)
		q.Flush()
	}
}

// write gives b to the writer and returns how much of it was taken or lost: all, unless the device stops.
func (d *Device) write(b []byte) int {
	if d.stopping.Load() { // the last Write may have lost what it had, and this one wait for ever
		return 0
	}
	n, err := d.out.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) && d.stopping.Load() {
		return n
	}
	return len(b)
}

// signal leaves a token in a channel of capacity 1 unless there is one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
