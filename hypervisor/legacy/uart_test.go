package legacy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/bus"
)

// testUART is a UART with its line, and short forms of access.
type testUART struct {
	*UART
	line *testLine
}

func newTestUART(w io.Writer) testUART {
	l := new(testLine)
	return testUART{NewUART("com1", l, w), l}
}

func (u testUART) in(reg uint64) byte     { return byte(in(u.UART, COM1Base, reg, 1)) }
func (u testUART) out(reg uint64, b byte) { out(u.UART, COM1Base, reg, 1, uint64(b)) }

func (u testUART) resume(t *testing.T) {
	t.Helper()
	if err := u.Resume(); err != nil {
		t.Fatal(err)
	}
}

func (u testUART) pause(t *testing.T) {
	t.Helper()
	if err := u.Pause(); err != nil {
		t.Fatal(err)
	}
}

func (u testUART) feed(t *testing.T, s string) {
	t.Helper()
	if n, err := u.Receive(t.Context(), []byte(s)); n != len(s) || err != nil {
		t.Fatalf("received %d of %d: %v", n, len(s), err)
	}
}

func TestUARTRegisters(t *testing.T) {
	u := newTestUART(io.Discard)
	for _, tc := range []struct {
		reg          uint64
		write, reads byte
	}{
		{uartIER, 0xff, 0x0f},
		{uartSCR, 0x5a, 0x5a},
		{uartMCR, 0xef, 0x0f},
		{uartLSR, 0xff, lsrTHRE | lsrTEMT}, // read-only
		{uartMSR, 0xff, msrCTS | msrDSR | msrDCD},
		{uartLCR, 0x83, 0x83}, // the divisor latch from here
		{uartRBR, 0x34, 0x34},
		{uartIER, 0x12, 0x12},
		{uartLCR, 0x03, 0x03},
		{uartIER, 0x00, 0x00},
		{uartIIR, 0x00, iirNone},
		{uartIIR, 0xc7, iirNone | iirFIFO}, // a 16550A shows both bits
	} {
		u.out(tc.reg, tc.write)
		if got := u.in(tc.reg); got != tc.reads {
			t.Errorf("register %d: wrote %#x, reads %#x, want %#x", tc.reg, tc.write, got, tc.reads)
		}
	}
	// A wide access is one of each byte.
	u.out(uartLCR, lcrDLAB)
	out(u.UART, COM1Base, 0, 2, 0xabcd)
	if got := in(u.UART, COM1Base, 0, 2); got != 0xabcd {
		t.Errorf("divisor %#x, want 0xabcd", got)
	}
}

func TestUARTOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got bytes.Buffer
		u := newTestUART(&got)
		u.resume(t)
		for _, b := range []byte("Hello, world\n") {
			if u.in(uartLSR)&lsrTHRE == 0 {
				t.Fatal("transmitter busy")
			}
			u.out(uartRBR, b)
		}
		if err := u.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		u.pause(t)
		if got.String() != "Hello, world\n" {
			t.Errorf("sent %q", got.String())
		}
	})
}

// gate is a writer that blocks until it is opened.
type gate struct {
	open chan struct{}
	bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.Buffer.Write(p)
}

func TestUARTBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		u := newTestUART(g)
		u.resume(t)
		u.out(uartIER, ierTHRE)
		var want []byte
		for i := 0; u.in(uartLSR)&lsrTHRE != 0; i++ {
			if i > outputSize {
				t.Fatal("the transmitter is never busy")
			}
			want = append(want, byte(i))
			u.out(uartRBR, byte(i))
		}
		if u.line.level.Load() || u.in(uartIIR) != iirNone {
			t.Error("interrupts although the transmitter is busy")
		}
		if len(want) < outputSize-uartFIFO {
			t.Errorf("busy after %d bytes", len(want))
		}
		close(g.open)
		if err := u.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !u.line.level.Load() || u.in(uartIIR) != iirTHRE || u.in(uartLSR)&lsrTHRE == 0 {
			t.Error("no interrupt when the transmitter is ready again")
		}
		u.pause(t)
		if !bytes.Equal(g.Bytes(), want) {
			t.Errorf("sent %d bytes, the writer has %d or others", len(want), g.Len())
		}
	})
}

// TestUARTPauseBlocked pauses a UART whose writer would block for good, and finds what it did not take in the state.
func TestUARTPauseBlocked(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	u := newTestUART(ours)
	u.resume(t)
	for _, b := range []byte("abc") {
		u.out(uartRBR, b)
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(theirs, first); err != nil { // the goroutine is in Write from here
		t.Fatal(err)
	}
	u.pause(t)
	state, err := encode(u)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	got.Write(first)
	v := newTestUART(&got)
	if err := decode(v, state); err != nil {
		t.Fatal(err)
	}
	v.resume(t)
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.pause(t)
	if got.String() != "abc" {
		t.Errorf("both together sent %q, want abc", got.String())
	}
}

// TestUARTPauseStuck pauses a UART whose writer blocks for good and has no deadlines. What it was given is its own; the
// rest waits until it has returned, over any number of pauses, and is written once.
func TestUARTPauseStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		u := newTestUART(g)
		u.resume(t)
		u.out(uartRBR, 'a')
		synctest.Wait() // the goroutine is in Write from here
		u.out(uartIER, ierTHRE)
		for u.in(uartLSR)&lsrTHRE != 0 {
			u.out(uartRBR, 'b')
		}
		rest := int(u.UART.out.n.Load()) - 1
		u.pause(t)
		if u.in(uartLSR)&lsrTHRE == 0 || !u.line.level.Load() {
			t.Error("the transmitter stays busy although there is room for a FIFO")
		}
		state, err := encode(u)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			u.resume(t)
			synctest.Wait()
			u.pause(t)
		}
		u.resume(t)
		close(g.open)
		if err := u.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		u.pause(t)
		want := bytes.Repeat([]byte{'b'}, rest)
		if !bytes.Equal(g.Bytes(), append([]byte{'a'}, want...)) {
			t.Errorf("the writer has %d bytes or others, want a and %d times b", g.Len(), rest)
		}

		var saved bytes.Buffer
		v := newTestUART(&saved)
		if err := decode(v, state); err != nil {
			t.Fatal(err)
		}
		v.resume(t)
		if err := v.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		v.pause(t)
		if !bytes.Equal(saved.Bytes(), want) {
			t.Errorf("restored, it sends %d bytes or others, want %d times b", saved.Len(), rest)
		}
	})
}

// TestUARTPauseBetweenWrites pauses a UART whose writer loses what it has, as a socket whose client is replaced, and would
// block with the next: it is given no more.
func TestUARTPauseBetweenWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		u := newTestUART(g)
		u.resume(t)
		u.out(uartRBR, 'a')
		synctest.Wait()
		u.out(uartRBR, 'b')
		go func() {
			time.Sleep(pauseLimit / 2) // pause waits by then
			g.open <- struct{}{}
		}()
		u.pause(t)
		if n := u.UART.out.n.Load(); n != 1 || g.String() != "a" {
			t.Errorf("%d bytes wait and the writer has %q, want 1 and a", n, g.String())
		}
		close(g.open)
	})
}

func TestUARTInterrupts(t *testing.T) {
	u := newTestUART(io.Discard)
	u.resume(t)
	defer u.pause(t)
	u.out(uartIIR, fcrEnable|2<<6) // trigger level 8
	u.out(uartIER, ierRDA|ierTHRE|ierRLS|ierMS)
	want := func(iir byte) {
		t.Helper()
		if got := u.in(uartIIR); got != iir|iirFIFO {
			t.Errorf("IIR %#x, want %#x", got, iir|iirFIFO)
		}
		if level := u.line.level.Load(); level != (u.cause() != iirNone) {
			t.Errorf("line %v", level)
		}
	}
	want(iirTHRE) // for enabling it
	want(iirNone) // reading IIR acknowledged it
	u.feed(t, "1234567")
	want(iirTimeout) // below the trigger level, nothing follows
	u.feed(t, "8")
	want(iirRDA)
	u.out(uartRBR, 'x')
	u.out(uartMCR, mcrLoop) // CTS, DSR and DCD fall
	for range uartFIFO - 8 + 1 {
		u.out(uartRBR, 'L') // the last overruns
	}
	want(iirRLS)
	if lsr := u.in(uartLSR); lsr&(lsrOE|lsrDR) != lsrOE|lsrDR {
		t.Errorf("LSR %#x, want overrun and data", lsr)
	}
	if lsr := u.in(uartLSR); lsr&lsrOE != 0 {
		t.Errorf("LSR %#x: reading it did not clear the overrun", lsr)
	}
	var got []byte
	for u.in(uartLSR)&lsrDR != 0 {
		got = append(got, u.in(uartRBR))
	}
	if string(got) != "12345678LLLLLLLL" {
		t.Errorf("received %q", got)
	}
	want(iirTHRE)
	want(iirMS)
	if msr := u.in(uartMSR); msr != 0x0b {
		t.Errorf("MSR %#x, want three deltas", msr)
	}
	want(iirNone)
}

func TestUARTTHREPulses(t *testing.T) {
	u := newTestUART(io.Discard)
	u.out(uartIER, ierTHRE)
	before := u.line.edges.Load()
	for range 3 {
		u.out(uartRBR, 'x') // each is an edge, whether the driver reads IIR or not
	}
	if n := u.line.edges.Load() - before; n != 3 {
		t.Errorf("%d edges, want 3", n)
	}
	u.out(uartIER, 0)
	if u.line.level.Load() {
		t.Error("line high with all interrupts disabled")
	}
}

func TestUARTLoopbackModem(t *testing.T) {
	u := newTestUART(io.Discard)
	for _, tc := range []struct{ mcr, msr byte }{
		{mcrLoop, 0x0b}, // CTS, DSR, DCD fell
		{mcrLoop | mcrRTS | mcrOUT2, msrCTS | msrDCD | 0x09},
		{mcrLoop | mcrDTR | mcrOUT1, msrDSR | msrRI | 0x0b}, // RI rises: no delta
		{mcrLoop, msrTERI | 0x02},                           // and falls
		{0, msrCTS | msrDSR | msrDCD | 0x0b},
	} {
		u.out(uartMCR, tc.mcr)
		if got := u.in(uartMSR); got != tc.msr {
			t.Errorf("MCR %#x: MSR %#x, want %#x", tc.mcr, got, tc.msr)
		}
	}
	u.out(uartMCR, mcrLoop) // without FIFO, an overrun replaces
	u.out(uartRBR, 'a')
	u.out(uartRBR, 'b')
	if lsr, b := u.in(uartLSR), u.in(uartRBR); lsr&lsrOE == 0 || b != 'b' {
		t.Errorf("LSR %#x, byte %q, want an overrun and b", lsr, b)
	}
}

// TestUARTInput feeds input in pieces while a guest reads as it likes: the order holds, and nothing is lost.
func TestUARTInput(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		want := rapid.SliceOfN(rapid.Byte(), 1, 3*uartInput).Draw(rt, "input")
		fcr := rapid.SampledFrom([]byte{0, fcrEnable, fcrEnable | 3<<6}).Draw(rt, "FCR")
		burst := rapid.IntRange(1, 40).Draw(rt, "burst")
		piece := rapid.IntRange(1, 2000).Draw(rt, "piece")
		var got []byte
		var errs []error
		synctest.Test(t, func(t *testing.T) {
			u := newTestUART(io.Discard)
			u.resume(t)
			u.out(uartIIR, fcr)
			u.out(uartIER, ierRDA)
			done := make(chan error, 1)
			go func() {
				for p := want; len(p) > 0; {
					n, err := u.Receive(t.Context(), p[:min(piece, len(p))])
					if err != nil {
						done <- err
						return
					}
					p = p[n:]
				}
				done <- nil
			}()
			for len(got) < len(want) {
				synctest.Wait()
				if !u.line.level.Load() {
					errs = append(errs, errors.New("data without interrupt"))
					break
				}
				for i := 0; i < burst && u.in(uartLSR)&lsrDR != 0; i++ {
					got = append(got, u.in(uartRBR))
				}
			}
			if len(errs) == 0 {
				errs = append(errs, <-done)
			}
			u.pause(t)
		})
		if err := errors.Join(errs...); err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("input (-fed +read):\n%s", diff)
		}
	})
}

func TestUARTReceiveBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTestUART(io.Discard)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := u.Receive(ctx, []byte("x")); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("paused: took %d, %v", n, err)
		}
		u.resume(t)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := u.Receive(ctx, make([]byte, 5000)); n != uartInput+1 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("took %d, %v", n, err)
		}
		u.pause(t)
	})
}

// TestUARTReceiveTwo has two hand over input at a time, as a client's and its successor's goroutines do: both get on.
func TestUARTReceiveTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTestUART(io.Discard)
		u.resume(t)
		u.feed(t, string(make([]byte, uartInput+1)))
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { u.feed(t, "0123456789") })
		}
		synctest.Wait() // both wait
		n := 0
		for u.in(uartLSR)&lsrDR != 0 {
			for ; u.in(uartLSR)&lsrDR != 0; n++ { // faster than they wake
				u.in(uartRBR)
			}
			synctest.Wait()
		}
		wg.Wait()
		if want := uartInput + 1 + 20; n != want {
			t.Errorf("the guest read %d bytes, want %d", n, want)
		}
		u.pause(t)
	})
}

func BenchmarkUARTWrite(b *testing.B) {
	u := newTestUART(io.Discard)
	if err := u.Resume(); err != nil {
		b.Fatal(err)
	}
	defer u.Pause()
	p := []byte{'x'}
	for b.Loop() {
		u.Write(bus.Access{Addr: COM1Base}, p)
		if u.UART.out.room() < uartFIFO {
			b.StopTimer()
			_ = u.Flush(b.Context())
			b.StartTimer()
		}
	}
}
