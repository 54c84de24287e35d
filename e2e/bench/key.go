package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lodgehv/lodge/console/headless"
	"github.com/lodgehv/lodge/console/seat"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hid/evdev"
)

//go:embed testdata/relay.c
var relaySource []byte

const (
	// keysPerRun is how many events of a key a run takes the median of.
	keysPerRun = 200
	// betweenKeys is how long everything rests between two: longer than anybody looks out for the next one.
	betweenKeys = 5 * time.Millisecond
	// keyLimit is how long a key may take.
	keyLimit = 10 * time.Second
)

// keys is the figure of a key's way: from its event at the seat's input device to the interrupt handler in the guest. The seat
// is this process, with a pipe for the device; the guest's machine is another one. The peer is a byte that goes as far.
func keys(dir string) figure {
	return figure{
		name: "key at the device to interrupt in the guest, p50", unit: "µs", goal: goal{value: 100}, runs: 5, peerName: "poll and write in C",
		prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
			way, err := newKeyWay(ctx, dir)
			if err != nil {
				return nil, nil, nil, err
			}
			bare, err := newRelay(ctx, dir)
			if err != nil {
				return nil, nil, way.close, err
			}
			return medianDelay(way.key), medianDelay(bare.key), func() error { return errors.Join(bare.close(), way.close()) }, nil
		},
	}
}

// medianDelay returns a measurement of the median of keysPerRun delays.
func medianDelay(key func(n int) (time.Duration, error)) measurement {
	return func(ctx context.Context) (float64, error) {
		took := make([]time.Duration, 0, keysPerRun)
		for n := range keysPerRun {
			d, err := key(n)
			if err != nil {
				return 0, err
			}
			took = append(took, d)
			time.Sleep(betweenKeys)
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
		}
		slices.Sort(took)
		return float64(took[keysPerRun/2]) / float64(time.Microsecond), nil
	}
}

// arrivals are the times that another process tells, eight bytes each.
type arrivals struct{ out *os.File }

func (a arrivals) next() (time.Duration, error) {
	if err := a.out.SetReadDeadline(time.Now().Add(keyLimit)); err != nil {
		return 0, err
	}
	var b [8]byte
	if _, err := io.ReadFull(a.out, b[:]); err != nil {
		return 0, fmt.Errorf("a key does not arrive: %w", err)
	}
	return time.Duration(binary.NativeEndian.Uint64(b[:])), nil
}

// keyWay is a seat with a keyboard, and a guest that tells of its interrupts.
type keyWay struct {
	arrivals
	guest  *screens
	device *os.File // what the kernel would write to
	stop   func()
	dir    string
}

func newKeyWay(ctx context.Context, dir string) (_ *keyWay, err error) {
	w := &keyWay{guest: new(screens), stop: func() {}}
	if w.dir, err = os.MkdirTemp(dir, "key"); err != nil {
		return nil, err
	}
	if w.out, err = w.guest.start(ctx, keyGuestCommand, screenSocket(w.dir, 0)); err != nil {
		return nil, err
	}
	var ready [1]byte
	if _, err := io.ReadFull(w.out, ready[:]); err != nil {
		return nil, errors.Join(fmt.Errorf("the guest with a keyboard: %w", err), w.close())
	}
	if err := w.sit(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// sit makes the seat, as lodge-seat does.
func (w *keyWay) sit(ctx context.Context) error {
	there := make(chan struct{}, 1)
	s, err := seat.New(seatOf(1, w.dir), seat.Options{
		OnGuest: announce(there),
		Log:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	screen, err := headless.NewScreen("bench", seatWidth, seatHeight)
	if err != nil {
		return err
	}
	show, err := s.Plug(screen)
	if err != nil {
		return err
	}
	r, device, err := os.Pipe()
	if err != nil {
		return err
	}
	w.device = device
	keyboard := evdev.NewStream(r, &evdev.Info{Path: "a pipe", Name: "keyboard"})
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = show(ctx) }) // a screen in memory has nothing to say
	wg.Go(func() { s.Run(ctx) })
	wg.Go(func() {
		t := evdev.NewTranslator(keyboard.Info(), evdev.Options{})
		for {
			report, err := keyboard.Read()
			if err != nil { // closed
				return
			}
			t.Translate(report, func(at time.Duration, batch []hid.Event) { s.Input(1, at, batch) })
		}
	})
	w.stop = func() { cancel(); keyboard.Close(); wg.Wait() }
	select {
	case <-there:
		return nil
	case <-time.After(time.Minute):
		return errors.New("the seat does not find its guest")
	}
}

func (w *keyWay) close() error {
	w.stop()
	if w.device != nil {
		w.device.Close()
	}
	return errors.Join(w.guest.close(), os.RemoveAll(w.dir))
}

// key presses or releases a key and returns how long it was under way.
func (w *keyWay) key(n int) (time.Duration, error) {
	began := monotonic()
	var p []byte
	for _, e := range []hid.Event{{Type: hid.EVKey, Code: hid.KeyA, Value: int32(1 - n%2)}, {Type: hid.EVSyn, Code: hid.SynReport}} {
		p = binary.NativeEndian.AppendUint64(p, uint64(began/time.Second)) // struct input_event
		p = binary.NativeEndian.AppendUint64(p, uint64(began%time.Second/time.Microsecond))
		p = binary.NativeEndian.AppendUint16(p, e.Type)
		p = binary.NativeEndian.AppendUint16(p, e.Code)
		p = binary.NativeEndian.AppendUint32(p, uint32(e.Value))
	}
	if _, err := w.device.Write(p); err != nil {
		return 0, err
	}
	at, err := w.next()
	return at - began, err
}

// relay is the peer: two processes in C.
type relay struct {
	arrivals
	in  io.WriteCloser
	cmd *exec.Cmd
}

func newRelay(ctx context.Context, dir string) (*relay, error) {
	program := filepath.Join(dir, "relay")
	cc := exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-o", program, "-x", "c", "-")
	cc.Stdin = bytes.NewReader(relaySource)
	if out, err := cc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("gcc: %w: %s", err, out)
	}
	r := &relay{cmd: exec.CommandContext(ctx, program)}
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r.out = out.(*os.File)
	return r, r.cmd.Start()
}

func (r *relay) close() error { return errors.Join(r.in.Close(), r.cmd.Wait()) }

func (r *relay) key(int) (time.Duration, error) {
	began := monotonic()
	if _, err := r.in.Write([]byte{1}); err != nil {
		return 0, err
	}
	at, err := r.next()
	return at - began, err
}
