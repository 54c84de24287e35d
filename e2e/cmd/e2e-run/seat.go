package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lodgehv/lodge/e2e/desk"
)

// shots is where the tour leaves its screenshots.
const shots = "out/seat"

// showSeat starts the notebook with two desktops and the seat on its screen: in a window, if there is a display to have one
// on, else as a tour, which presses the keys itself.
func showSeat(ctx context.Context, bin string) (err error) {
	cfg := desk.Config{Bin: bin, Shots: shots, Log: progress{}, Console: announcer}
	window := os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
	if window {
		cfg.Display = "sdl,grab-mod=rctrl" // what QEMU does itself with Ctrl+Alt is in the way of our chords
	}
	d, err := desk.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.StartSeat(); err != nil {
		return err
	}
	t := &tourist{d: d, machines: make(map[string]*desk.Machine)}
	for _, k := range desk.Desktops() {
		how := "from its kernel"
		if k.Firmware {
			how = "as a PC, by SeaBIOS and GRUB"
		}
		say("lodged starts guest %s %s: Debian 12, 384 MiB, a desktop on %s", k.Name, how, map[string]string{"virtio": "virtio-gpu", "vga": "a VGA"}[k.Card])
		m, err := d.Launch(ctx, k)
		if err != nil {
			return err
		}
		t.machines[k.Name] = m
	}
	if window {
		return t.wait(ctx)
	}
	return t.tour(ctx)
}

// announcer returns a console that tells how far a guest has come, of which its system tells in lines of its own.
func announcer(name string) io.Writer {
	return &stages{name: name}
}

type stages struct {
	name string
	mu   sync.Mutex
	line []byte
}

var stageRE = regexp.MustCompile(`lodge-guest: (init|desktop|terminal) ([0-9.]+)`)

func (s *stages) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range b {
		if s.line = append(s.line, c); c != '\n' {
			continue
		}
		if m := stageRE.FindSubmatch(s.line); m != nil {
			say("guest %s: its %s is there after %s s of its own clock", s.name, m[1], m[2])
		}
		s.line = s.line[:0]
	}
	return len(b), nil
}

// chordPause is between two chords: time to see the picture, and for the guest's compositor to read the keys that were held,
// of which its kernel keeps no more than 64 events.
const chordPause = 300 * time.Millisecond

// tourist goes through the tour.
type tourist struct {
	d        *desk.Desk
	machines map[string]*desk.Machine
}

// wait lets the user play until all guests are off, the window is closed or the program interrupted.
func (t *tourist) wait(ctx context.Context) error {
	say("the notebook's window is yours: Ctrl+Alt+1 and 2 go to the guests, Ctrl+Alt+Esc to Lodge's console")
	say("the guests take a minute to start; switch them off, close the window or press Ctrl-C here to end")
	for _, m := range t.machines {
		select {
		case <-m.Done():
		case <-t.d.Notebook.Done():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// tour presses the keys that a user would, and tells what comes of it.
func (t *tourist) tour(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Minute, errors.New("the tour takes longer than 15 minutes"))
	defer cancel()
	desktops := desk.Desktops()
	for _, k := range desktops {
		if err := t.machines[k.Name].Await(ctx); err != nil {
			return err
		}
	}
	first := desktops[0]
	if _, err := t.d.Manager.Lodge(ctx, "switch", first.Name); err != nil {
		return err
	}
	if err := t.shows(ctx, first, first.Name); err != nil {
		return err
	}
	list, err := t.d.Manager.Lodge(ctx, "list")
	if err != nil {
		return err
	}
	say("both desktops are up; lodge list:\n%s", list)
	say("pressing chords")
	var took []float64
	var shown desk.Desktop
	for n := range 10 {
		k := desktops[(n+1)%len(desktops)]
		e, err := t.d.Chord(ctx, k)
		if err != nil {
			return err
		}
		shown = k
		took = append(took, e.TookUS/1000)
		say("Ctrl+Alt+%d: the picture of %s was handed to the display after %.2f ms", k.Slot, k.Name, e.TookUS/1000)
		if n < len(desktops) {
			if err := t.shows(ctx, k, k.Name); err != nil {
				return err
			}
		}
		time.Sleep(chordPause)
	}
	slices.Sort(took)
	say("from chord to picture in this emulated notebook: %.2f to %.2f ms, %.2f in the middle", took[0], took[len(took)-1], took[len(took)/2])
	if err := t.typing(ctx, shown); err != nil {
		return err
	}
	if err := t.attention(ctx, first); err != nil {
		return err
	}
	if err := t.off(ctx); err != nil {
		return err
	}
	abs, err := filepath.Abs(shots)
	if err != nil {
		return err
	}
	say("screenshots are in %s", abs)
	return nil
}

// shows waits until a desktop is on the screen, and leaves a picture of it.
func (t *tourist) shows(ctx context.Context, k desk.Desktop, shot string) error {
	_, err := t.d.AwaitDesktop(ctx, k, shot)
	return err
}

// typing types a word into the desktop that is on the screen.
func (t *tourist) typing(ctx context.Context, k desk.Desktop) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("a minute is over"))
	defer cancel()
	const word = "hello"
	say("typing %q", word)
	if err := t.d.Type(ctx, word+"\n"); err != nil {
		return err
	}
	got := ""
	for {
		now, err := t.machines[k.Name].Typed(ctx)
		switch {
		case err == nil:
			got = now
		case ctx.Err() == nil:
			return err
		}
		if strings.Contains(got, word) {
			break
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("guest %s has not got what was typed, but %q: %w", k.Name, got, context.Cause(ctx))
		}
	}
	say("guest %s has got it, in its terminal", k.Name)
	return t.shows(ctx, k, "typed")
}

// attention opens Lodge's console, and goes from there to a guest.
func (t *tourist) attention(ctx context.Context, to desk.Desktop) error {
	seen := t.d.Seat.Seen()
	if err := t.d.Press(ctx, "ctrl", "alt", "esc"); err != nil {
		return err
	}
	e, err := t.d.Seat.Switched(ctx, seen, "Lodge")
	if err != nil {
		return err
	}
	say("Ctrl+Alt+Esc: Lodge's console was handed to the display after %.2f ms", e.TookUS/1000)
	time.Sleep(time.Second) // until it has been told what guests do
	if _, err := t.d.Shoot(ctx, "console"); err != nil {
		return err
	}
	if err := t.d.Press(ctx, fmt.Sprint(to.Slot)); err != nil {
		return err
	}
	return t.shows(ctx, to, to.Name)
}

// off presses the power buttons of all guests.
func (t *tourist) off(ctx context.Context) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all error
	for name, m := range t.machines {
		say("pressing the power button of %s", name)
		wg.Go(func() {
			err := m.PowerOff(ctx)
			if err == nil {
				say("guest %s is off", name)
			}
			mu.Lock()
			defer mu.Unlock()
			all = errors.Join(all, err)
		})
	}
	wg.Wait()
	return all
}
