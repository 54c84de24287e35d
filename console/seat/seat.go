// Package seat is what a person sits at: the guests' pictures on the outputs, below the bar, and one keyboard and pointer
// that go to the guest on screen. It ties together the router of input (hid/route), the compositor (console/compose) and a
// connection to each guest's machine (console/qdisplay).
//
//	devices ──▶ Input ──▶ route.Router ──▶ the guest in the focus ──▶ its machine
//	                          │ OnFocus
//	outputs ◀── compose.Compositor ◀── each guest's picture ◀── its machine
//
// A guest's machine that hangs, floods or ends never holds up the seat: each has a goroutine of its own, what is sent to
// it does not wait, and what it shows is taken when it is there. Where the keyboards and monitors are is not this
// package's matter: whoever runs it calls Input, and adds outputs to the Compositor.
package seat

import (
	"context"
	"fmt"
	"image"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hid/route"
)

// ownName is what the bar calls Lodge's own console.
const ownName = "Lodge"

// maxBuffers is how many buffers a screen has at most, so that a seat of very many guests does not use up the memory: 160 MiB
// at 1920×1080. A switch to a guest without one is a copy.
const maxBuffers = 20

// Options are what a seat tells, and whom. All may be left out.
type Options struct {
	OnLEDs     func(hid.LEDs) // what the real keyboards are to show
	OnFocus    func(old, now, why string)
	OnGuest    func(name string, there bool) // a guest's machine is there, or gone
	OnSwitched func(compose.Switched)        // after each switch, from the goroutine of an output
	Manager    textui.System                 // starts and commands the guests of whom it tells; Switch is not called
	Ready      <-chan string                 // names of guests that have just become ready, of which the bar tells
	OnMonitor  func(MonitorState)            // a monitor is there, shows another guest, or is gone
	Log        *slog.Logger
}

// Seat is one seat.
type Seat struct {
	*compose.Compositor
	Router *route.Router

	cfg      Config
	opt      Options
	guests   []*guest
	own      *ownConsole
	monitors *monitors
	news     *news
	hint     string // how to press the attention key
	at       position
}

// position is the pixel of the screen where a device with positions was last; devices have goroutines of their own.
type position struct {
	mu sync.Mutex
	image.Point
}

// New makes a seat of the guests of cfg, which are connected to when it runs.
func New(cfg Config, opt Options) (*Seat, error) {
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	s := &Seat{cfg: cfg, opt: opt, news: newNews()}
	s.Compositor = compose.New(compose.Config{
		// Two for the picture on the screen, one for each other, Lodge's own among them.
		Buffers: min(len(cfg.Guests)+2, maxBuffers), OnSwitch: opt.OnSwitched, Log: opt.Log,
	})
	chords := cfg.Chords.chords()
	s.hint = title(chords.Attention.String())
	s.own = newOwnConsole(s)
	var err error
	if s.monitors, err = newMonitors(s); err != nil {
		return nil, fmt.Errorf("seat: %w", err)
	}
	s.Router, err = route.New(route.Config{
		Console: s.own, Chords: chords, OnFocus: s.focused, OnLEDs: opt.OnLEDs, Now: monotonic,
		Edge: route.Edge{Push: cfg.Mouse.Edge}, KeyboardFollowsMouse: cfg.Mouse.KeyboardFollows == nil || *cfg.Mouse.KeyboardFollows,
	})
	if err != nil {
		return nil, err
	}
	for _, g := range cfg.Guests {
		color, _ := trustbar.ParseColor(g.Color) // checked when it was read
		k := newGuest(s, g, trustbar.Guest{Name: g.Name, Label: g.Label, Slot: g.Slot, Color: color})
		if err := s.Router.Add(g.Name, g.Slot, k); err != nil {
			return nil, err
		}
		if err := s.Router.Down(g.Name, route.Died); err != nil {
			return nil, err
		}
		s.guests = append(s.guests, k)
	}
	s.Switch(s.own.source)
	return s, nil
}

// title writes a chord as keys are labelled: "Ctrl+Alt+Esc".
func title(chord string) string {
	keys := strings.Split(chord, "+")
	for i, k := range keys {
		if k != "" {
			keys[i] = strings.ToUpper(k[:1]) + k[1:]
		}
	}
	return strings.Join(keys, "+")
}

// monotonic is the clock of input events.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it exists
	return time.Duration(ts.Nano())
}

// Run connects to the guests, and shows them, until ctx is done.
func (s *Seat) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, g := range s.guests {
		wg.Go(func() { g.run(ctx) })
	}
	wg.Go(func() { s.own.run(ctx) })
	wg.Go(func() { s.status(ctx) })
	wg.Go(func() { s.tellReady(ctx) })
	wg.Wait()
}

// Focus returns the name of the guest that has screen and keyboard, "Lodge" if it is the seat's own console.
func (s *Seat) Focus() string {
	if name := s.Router.Focus(); name != route.Console {
		return name
	}
	return ownName
}

// SetFocus gives screen and keyboard to a guest that is there, or to the seat's own console, "Lodge".
func (s *Seat) SetFocus(name string) error {
	if name == ownName {
		name = route.Console
	}
	return s.Router.SetFocus(name)
}

// Each calls f for each guest, in the order of the configuration; there says whether it has a picture.
func (s *Seat) Each(f func(name string, slot int, there bool)) {
	for _, g := range s.guests {
		f(g.cfg.Name, g.cfg.Slot, g.sender.Load() != nil)
	}
}

// Device numbers a source of input; evdev's are from 1 up.
type Device = route.Device

// Input is what a person does. Positions are those of the whole screen.
func (s *Seat) Input(dev Device, at time.Duration, batch []hid.Event) {
	s.Router.Input(dev, at, s.toGuest(batch))
}

// toGuest makes positions on the screen positions in the picture of the guest that is shown.
func (s *Seat) toGuest(batch []hid.Event) []hid.Event {
	input := s.InputTo()
	for _, g := range s.guests {
		if g.source == input {
			return g.place(batch)
		}
	}
	return batch
}

// focused is called with the router locked.
func (s *Seat) focused(c route.Change) {
	s.own.focused(c.New == route.Console)
	s.news.seen(c.New)
	s.Switch(s.sourceOf(c.New))
	if s.opt.OnFocus != nil {
		s.opt.OnFocus(c.Old, c.New, c.Why.String())
	}
}

// sourceOf returns a target's picture.
func (s *Seat) sourceOf(name string) *compose.Source {
	if g := s.guest(name); g != nil {
		return g.source
	}
	return s.own.source
}

// guest returns the guest of that name, or nil.
func (s *Seat) guest(name string) *guest {
	for _, g := range s.guests {
		if g.cfg.Name == name {
			return g
		}
	}
	return nil
}
