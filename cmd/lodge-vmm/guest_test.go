package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/virtio/console"
	virtionet "github.com/lodgehv/lodge/hypervisor/virtio/net"
)

// What is typed on a console whose guest reboots before it has room goes to the device of the next machine.
func TestReceiveAcrossReboot(t *testing.T) {
	g := newGuest(&definition.Definition{}, nil, nil)
	life, end := context.WithCancel(t.Context())
	g.set(&machine.Machine{}, life)
	var current atomic.Pointer[console.Device]
	current.Store(console.New(io.Discard))
	const size = 4096 // of the device's buffer
	calls := make(chan int)
	done := make(chan error, 1)
	go func() {
		done <- g.receive(t.Context(), make([]byte, size+100), func(life context.Context, _ *machine.Machine, p []byte) (int, error) {
			calls <- len(p)
			return current.Load().Receive(life, p)
		})
	}()
	<-calls
	current.Store(console.New(io.Discard))
	g.set(nil, nil)
	end()
	g.set(&machine.Machine{}, t.Context())
	if n := <-calls; n != 100 {
		t.Errorf("the new device is given %d bytes, want 100", n)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A guest is saved once at a time; meanwhile it tells its state, and after it was saved to end it runs no more.
func TestSaveOnce(t *testing.T) {
	g := newGuest(&definition.Definition{}, nil, nil)
	g.set(&machine.Machine{}, t.Context())
	if s := g.state(); s != "running" {
		t.Errorf("state %q", s)
	}
	g.command.Lock()
	first := make(chan error, 1)
	go func() { first <- g.save(t.Context(), nil, false, nil) }()
	for deadline := time.Now().Add(10 * time.Second); g.state() != "saving"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("state %q", g.state())
		}
	}
	if err := g.save(t.Context(), nil, false, nil); err == nil {
		t.Error("two are saved at a time")
	}
	if s := g.state(); s != "saving" {
		t.Errorf("state %q after the second was refused", s)
	}
	g.saved = true // by the first
	g.command.Unlock()
	for what, err := range map[string]error{"save": <-first, "resume": g.resume(t.Context()), "pause": g.pause(t.Context())} {
		if !errors.Is(err, errSaved) {
			t.Errorf("%s: %v, want %v", what, err, errSaved)
		}
	}
}

// A guest that does what is logged, or resets, as fast as it can is logged and rebuilt slowly.
func TestStorms(t *testing.T) {
	if !haveKVM() {
		t.Skip("needs /dev/kvm")
	}
	for name, stormy := range map[string]func(log string, s guestStatus) bool{
		"sleep": func(log string, _ guestStatus) bool { return strings.Contains(log, "lines were dropped") },
		"reset": func(_ string, s guestStatus) bool { return s.Reboots > 2 },
	} {
		t.Run(name, func(t *testing.T) {
			def := writeDefinition(t, name)
			cmd := lodgeVMM(t, "run", def)
			log, err := os.Create(filepath.Join(t.TempDir(), "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			cmd.Stderr = log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second) // for as much as it can do
			var s guestStatus
			if err := call(t.Context(), def, "status", nil, &s, nil); err != nil {
				t.Fatal(err)
			}
			text := func() string {
				b, err := os.ReadFile(log.Name())
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			if s.Reboots > int(s.Uptime)+2 {
				t.Errorf("%d reboots in %.1f seconds", s.Reboots, s.Uptime)
			}
			if lines := strings.Count(text(), "\n"); lines > logBurst+5 {
				t.Errorf("%d lines in %.1f seconds:\n%s", lines, s.Uptime, text())
			}
			if err := call(t.Context(), def, "quit", nil, nil, nil); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if !stormy(text(), s) {
				t.Errorf("there was no storm: %+v\n%s", s, text())
			}
			if !strings.Contains(text(), "guest ended") {
				t.Errorf("no word of the guest's end:\n%s", text())
			}
		})
	}
}

// A disk without space pauses the guest, which says why until it is resumed; then it can happen again.
func TestDiskFull(t *testing.T) {
	res := &resources{}
	g := newGuest(&definition.Definition{}, res, slog.New(slog.DiscardHandler))
	res.diskFull(errors.New("no machine is there to be paused"))
	g.set(&machine.Machine{}, t.Context())
	await := func(state, reason string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); g.status().State != state || g.status().Reason != reason; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%+v, want %s, %q", g.status(), state, reason)
			}
		}
	}
	await("running", "")
	for range 2 {
		res.diskFull(errors.New("no space"))
		res.diskFull(errors.New("no space for another disk"))
		await("paused", "disk-full")
		if err := g.resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		await("running", "")
	}
	if err := g.pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	await("paused", "")
}

// Who watches hears of each change, and of nothing else.
func TestWatch(t *testing.T) {
	g := newGuest(&definition.Definition{}, nil, slog.New(slog.DiscardHandler))
	m := &machine.Machine{}
	for _, change := range []func(){
		func() { g.set(m, t.Context()) }, func() { g.notePaused(m, true) }, func() { g.notePaused(m, false) },
		func() { g.beginSaving() }, g.endSaving, func() { g.set(nil, nil) },
	} {
		before := g.changes
		heard := make(chan error)
		go func() { heard <- g.watch(t.Context(), before) }()
		select {
		case err := <-heard:
			t.Fatalf("heard of nothing: %v", err)
		case <-time.After(time.Millisecond):
		}
		change()
		if err := <-heard; err != nil || g.changes == before {
			t.Fatalf("%d changes, %v", g.changes, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.watch(ctx, g.changes); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody watches any more: %v", err)
	}
}

// fakeBackend carries nothing.
type fakeBackend struct{ virtionet.Backend }

func (fakeBackend) Receive([]unix.Iovec, func()) (int, error) { return virtionet.HeaderSize + 100, nil }
func (fakeBackend) Send([]unix.Iovec) error                   { return nil }

func TestTraffic(t *testing.T) {
	g := newGuest(&definition.Definition{}, &resources{}, nil)
	c := &countedBackend{fakeBackend{}, &g.res.traffic}
	packet := []unix.Iovec{{Len: virtionet.HeaderSize}, {Len: 40}, {Len: 2}}
	if _, err := c.Receive(packet, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(packet); err != nil {
		t.Fatal(err)
	}
	if got, want := g.stats(), (guestStats{NetReceived: 100, NetSent: 42}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
