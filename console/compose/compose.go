// Package compose makes the picture of a seat: on each output the trust bar at the top, below it one guest's picture, or a
// placard where there is none, and the guest's pointer.
//
//	display.Screen ──▶ Source ──▶ Head ──▶ output.Output
//	(a guest's)                   (one goroutine each)
//
// A Source takes what one guest shows and remembers what has changed, for each buffer apart; it never waits for a guest,
// nor does a guest for the screen. A Head owns an output and its buffers, and copies only what has changed. Every guest
// has a buffer that is kept ready while it is hidden, so that switching to it is a flip of the page and no copy.
//
// No guest can draw into the bar: its rows are written from the bar's own picture, and everything of a guest's is cut off
// at its rectangle's edge, the pointer too.
package compose

import (
	"image"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/console/trustbar"
)

// Config is what a Compositor is built from. Its zero value is good.
type Config struct {
	// Buffers is how many buffers an output may have: two for the guest on screen, and one for each other guest that is to
	// be there at once. 0 is 12. One on a screen of 1920×1080 has 8 MiB.
	Buffers int
	// IntegerScale draws a guest's picture two, three, … times as large where it fits.
	IntegerScale bool
	// OnSwitch is called by a Head's goroutine after each switch, if it is not nil.
	OnSwitch func(Switched)
	Log      *slog.Logger // nil is slog.Default
}

// Switched tells of a switch.
type Switched struct {
	Output string
	Source *Source
	// Took is the time from Switch until the guest's picture was handed to the output, without Waited.
	Took time.Duration
	// Waited is how long of it the frame before was not on the screen yet, which has to come first.
	Waited time.Duration
	// Behind says that the picture was the one kept ready, and that what the guest drew since follows with the next frame.
	Behind bool
}

// Status is what every bar shows beside its guest.
type Status struct {
	Battery trustbar.Battery
	Clock   string        // see trustbar.Clock
	Hint    string        // the attention key: "Ctrl+Alt+Esc"
	News    trustbar.News // not on the bar of the guest that it is about
}

// Compositor makes the picture of a seat. Its methods may be called by any goroutine; they do not wait for a screen or a
// guest.
type Compositor struct {
	cfg     Config
	none    *Source                   // shown where no guest is
	sources atomic.Pointer[[]*Source] // replaced, never changed

	mu     sync.Mutex
	heads  []*Head
	shown  *Source // on heads that are not pinned
	input  *Source // nil: what is shown
	status Status
}

// New returns a compositor without outputs and guests.
func New(cfg Config) *Compositor {
	if cfg.Buffers == 0 {
		cfg.Buffers = 12
	}
	cfg.Buffers = max(cfg.Buffers, 2)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Compositor{cfg: cfg}
	c.none = &Source{c: c}
	c.sources.Store(&[]*Source{c.none})
	c.shown = c.none
	return c
}

// NewSource returns the source of a guest's picture, for Attach to the guest's Screen. Close it after it was detached.
func (c *Compositor) NewSource(g trustbar.Guest) *Source {
	s := &Source{c: c, guest: g}
	c.mu.Lock()
	list := append(slices.Clone(*c.sources.Load()), s)
	c.sources.Store(&list)
	c.mu.Unlock()
	c.wake()
	return s
}

// Add makes an output show what the others do; Run of the Head that it returns does it. The compositor owns the output
// from then on.
func (c *Compositor) Add(out output.Output) (*Head, error) {
	h, err := newHead(c, out)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.want.Store(c.shown)
	c.heads = append(c.heads, h)
	return h, nil
}

// Heads returns the outputs that are there.
func (c *Compositor) Heads() []*Head {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.heads)
}

func (c *Compositor) remove(h *Head) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heads = slices.DeleteFunc(c.heads, func(k *Head) bool { return k == h })
}

// Switch shows s and says that input goes to it; nil is no guest. If an output is pinned to s, it is there already and
// the others stay as they are.
func (c *Compositor) Switch(s *Source) {
	now := time.Now()
	if s == nil {
		s = c.none
	}
	c.mu.Lock()
	c.input = s
	pinned := slices.ContainsFunc(c.heads, func(h *Head) bool { return h.pinned == s })
	if !pinned {
		c.shown = s
	}
	for _, h := range c.heads {
		if h.pinned == nil && !pinned {
			h.show(s, now)
		} else {
			h.poke()
		}
	}
	c.mu.Unlock()
}

// Shown returns the source that Switch has chosen, nil if there is none.
func (c *Compositor) Shown() *Source {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shown == c.none {
		return nil
	}
	return c.shown
}

// InputTo returns where input goes, as Switch or SetInput have said; nil is nowhere.
func (c *Compositor) InputTo() *Source {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.input {
	case nil:
		if c.shown == c.none {
			return nil
		}
		return c.shown
	case c.none:
		return nil
	}
	return c.input
}

// SetInput says where input goes; nil is nowhere. It does not change what is shown.
func (c *Compositor) SetInput(s *Source) {
	if s == nil {
		s = c.none
	}
	c.mu.Lock()
	c.input = s
	c.mu.Unlock()
	c.wake()
}

// SetStatus changes what all bars show.
func (c *Compositor) SetStatus(s Status) {
	c.mu.Lock()
	c.status = s
	c.mu.Unlock()
	c.wake()
}

// Refresh shows everything anew: the outputs were another's for a while.
func (c *Compositor) Refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.heads {
		h.refresh.Store(true)
		h.poke()
	}
}

func (c *Compositor) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.heads {
		h.poke()
	}
}

// barState returns what the bar of a head shows with s on screen.
func (c *Compositor) barState(s *Source, onScreen bool) trustbar.State {
	c.mu.Lock()
	input, status := c.input, c.status
	c.mu.Unlock()
	st := trustbar.State{Battery: status.Battery, Clock: status.Clock, Hint: status.Hint}
	st.Guest, st.Note = s.describe()
	if status.News.Guest != st.Guest {
		st.News = status.News
	}
	// A hidden guest's bar is as it will be after a switch to it, so that nothing is left to draw then.
	if !onScreen || input == nil || input == s {
		st.Input = st.Guest
	} else {
		st.Input, _ = input.describe()
	}
	return st
}

// closed forgets a source.
func (c *Compositor) closed(s *Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(*c.sources.Load()), func(k *Source) bool { return k == s })
	c.sources.Store(&list)
	if c.shown == s {
		c.shown = c.none
	}
	if c.input == s {
		c.input = c.none
	}
	for _, h := range c.heads {
		if h.pinned == s {
			h.pinned = nil
			h.show(c.shown, time.Now())
		} else if h.want.Load() == s {
			h.show(c.none, time.Now())
		}
		h.poke()
	}
}

// Pin makes a head show s whatever is switched to; nil makes it follow the others again.
func (c *Compositor) Pin(h *Head, s *Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.pinned = s
	if s == nil {
		s = c.shown
	}
	h.show(s, time.Now())
}

// GuestSize returns the size of the picture that fills a screen of the given size below the bar.
func GuestSize(screen image.Point) image.Point {
	return image.Pt(screen.X, max(screen.Y-trustbar.Height(screen), 1))
}
