package console

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, func(testing.TB) virtio.Device { return New(io.Discard) })
	t.Run("with input", func(t *testing.T) {
		virtiotest.Suite(t, func(t testing.TB) virtio.Device {
			d := New(io.Discard)
			receive(t, d, "typed before there was a driver")
			return d
		})
	})
}

func receive(t testing.TB, d *Device, s string) {
	t.Helper()
	if n, err := d.Receive(context.Background(), []byte(s)); n != len(s) || err != nil {
		t.Fatalf("Receive of %d bytes: %d, %v", len(s), n, err)
	}
}

func TestTransmit(t *testing.T) {
	var out bytes.Buffer
	r := virtiotest.New(t, New(&out), 0)
	q := r.Queues[transmitQueue]
	q.Do(r.Out([]byte("hello, ")), r.Out([]byte("world")))
	q.Do(r.Out([]byte("!\n")))
	r.Stop()
	if diff := cmp.Diff("hello, world!\n", out.String()); diff != "" {
		t.Error(diff)
	}
}

// broken refuses everything.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("nobody there") }

func TestTransmitToNobody(t *testing.T) {
	r := virtiotest.New(t, New(broken{}), 0)
	r.Queues[transmitQueue].Do(r.Out([]byte("lost")))
}

func TestReceive(t *testing.T) {
	d := New(io.Discard)
	receive(t, d, "early")
	r := virtiotest.New(t, d, 0)
	q := r.Queues[receiveQueue]
	a, b := r.In(3), r.In(10)
	if n := q.Do(a); n != 3 {
		t.Fatalf("%d bytes, want 3", n)
	}
	if n := q.Do(b); n != 2 {
		t.Fatalf("%d bytes, want 2", n)
	}
	if diff := cmp.Diff("early", string(r.Bytes(a.Addr, 3))+string(r.Bytes(b.Addr, 2))); diff != "" {
		t.Error(diff)
	}
	select {
	case <-q.Interrupts: // of what went before, if it was wanted
	default:
	}
	q.Send(b) // a buffer waits for input
	receive(t, d, "late")
	select {
	case <-q.Interrupts:
	case <-time.After(10 * time.Second):
		t.Fatal("no interrupt")
	}
	if _, n := q.Wait(); n != 4 {
		t.Fatalf("%d bytes, want 4", n)
	}
}

// TestReceiveMuch sends more than the buffer holds while the guest takes it bit by bit: nothing is lost.
func TestReceiveMuch(t *testing.T) {
	d := New(io.Discard)
	r := virtiotest.New(t, d, 0)
	want := make([]byte, 5*inputSize)
	for i := range want {
		want[i] = byte(i ^ i>>8)
	}
	result := make(chan error, 1)
	go func() {
		_, err := d.Receive(context.Background(), want)
		result <- err
	}()
	var got []byte
	in := r.In(1000)
	for len(got) < len(want) {
		n := r.Queues[receiveQueue].Do(in)
		got = append(got, r.Bytes(in.Addr, int(n))...)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("what arrived differs")
	}
}

func TestReceiveGivesUp(t *testing.T) {
	d := New(io.Discard)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if n, err := d.Receive(ctx, make([]byte, inputSize+1)); n != inputSize || !errors.Is(err, context.Canceled) {
		t.Errorf("Receive = %d, %v; want %d, %v", n, err, inputSize, context.Canceled)
	}
}

// TestBlockedWriter has nobody read the output: input flows all the same, the device stops, and after a pause, here through
// a saved state, the output goes on where it was.
func TestBlockedWriter(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	d := New(ours)
	r := virtiotest.New(t, d, 0)
	r.Queues[transmitQueue].Send(r.Out([]byte("first,")), r.Out([]byte("second")))
	b := make([]byte, 8)
	if _, err := io.ReadFull(theirs, b); err != nil {
		t.Fatal(err)
	}
	receive(t, d, "x")
	r.Queues[receiveQueue].Do(r.In(1))
	r.Stop()
	if r.Queues[transmitQueue].Used() != 0 {
		t.Error("a chain was used that was not written")
	}
	enc := snap.NewEncoder(1)
	d.State(enc)
	d.sent = 0
	d.State(snap.NewDecoder(enc.Data(), 1))
	r.Start()
	rest := make([]byte, 4)
	if _, err := io.ReadFull(theirs, rest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("first,second", string(b)+string(rest)); diff != "" {
		t.Error(diff)
	}
	r.Queues[transmitQueue].Wait()
}

// gate is a writer that blocks until it is let go on, and cannot be interrupted.
type gate struct {
	entered, open chan struct{}
	bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	g.entered <- struct{}{}
	<-g.open
	return g.Buffer.Write(p)
}

// TestStopBetweenWrites has the writer lose what it has when the device stops, as a socket whose client is replaced: it is
// given no more before the device starts again.
func TestStopBetweenWrites(t *testing.T) {
	g := &gate{entered: make(chan struct{}), open: make(chan struct{})}
	d := New(g)
	r := virtiotest.New(t, d, 0)
	q := r.Queues[transmitQueue]
	q.Send(r.Out([]byte("one,")), r.Out([]byte("two,")))
	q.Send(r.Out([]byte("three")))
	<-g.entered
	stopped := make(chan struct{})
	go func() { r.Stop(); close(stopped) }()
	for !d.stopping.Load() {
		time.Sleep(time.Millisecond)
	}
	g.open <- struct{}{}
	select {
	case <-stopped:
	case <-g.entered:
		t.Fatal("the writer was given more")
	}
	r.Start()
	for range 2 {
		<-g.entered
		g.open <- struct{}{}
	}
	q.Wait()
	q.Wait()
	if diff := cmp.Diff("one,two,three", g.String()); diff != "" {
		t.Error(diff)
	}
}

func TestSize(t *testing.T) {
	d := New(io.Discard)
	r := virtiotest.New(t, d, 0)
	d.SetSize(132, 43)
	<-r.Changed
	d.SetSize(132, 43)
	var p [4]byte
	if d.ReadConfig(0, p[:]); p != [4]byte{132, 0, 43, 0} {
		t.Errorf("size %v", p)
	}
	if len(r.Changed) != 0 {
		t.Error("the same size again is a change")
	}
}

func TestAllocations(t *testing.T) {
	d := New(io.Discard)
	r := virtiotest.New(t, d, 0)
	out, in, p, ctx := r.Out([]byte("out")), r.In(8), []byte("in"), context.Background()
	if n := testing.AllocsPerRun(100, func() {
		r.Queues[transmitQueue].Do(out)
		_, _ = d.Receive(ctx, p)
		r.Queues[receiveQueue].Do(in)
	}); n != 0 {
		t.Errorf("%v allocations per request, want none", n)
	}
}

// FuzzRequests makes chains of what the fuzzer thinks up: each is used, once there is input, or the driver is to blame.
func FuzzRequests(f *testing.F) {
	f.Add([]byte{0, 1, 'h', 'i'})
	f.Add([]byte{0, 1, 1, 1, 0xf1, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		d := New(io.Discard)
		receive(t, d, "some input")
		r := virtiotest.New(t, d, 0)
		for _, q := range r.Queues {
			q.Send(virtiotest.Descs(r, data)...)
			for {
				if _, _, ok := q.TryWait(time.Millisecond); ok || len(r.Broken) > 0 {
					break
				}
			}
		}
	})
}
