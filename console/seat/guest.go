package seat

import (
	"context"
	"errors"
	"image"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hid/route"
	"github.com/lodgehv/lodge/vgpu/display"
)

// How long a guest's machine may take to answer, and how long to wait before it is tried again: the delay doubles while
// nobody is there. When it is at its longest the socket is not tried any more until it appears, if that can be told.
const (
	answerLimit = 5 * time.Second
	minDelay    = 100 * time.Millisecond
	maxDelay    = 2 * time.Second
)

// screenID is the number of a guest's console that is shown.
const screenID = 0

// guest is a guest with the connection to its machine, which comes and goes. It is the hid.Sink of its input.
type guest struct {
	s      *Seat
	cfg    Guest
	bar    trustbar.Guest
	source *compose.Source

	sender   atomic.Pointer[qdisplay.Sender] // nil while nobody is there
	screens  chan struct{}                   // of one: it may have another monitor
	absolute atomic.Bool
	size     atomic.Int64 // of the picture, width<<32 | height
}

func newGuest(s *Seat, cfg Guest, bar trustbar.Guest) *guest {
	g := &guest{s: s, cfg: cfg, bar: bar, source: s.NewSource(bar), screens: make(chan struct{}, 1)}
	g.placard(trustbar.Stopped(bar, s.hint), "switched off")
	return g
}

func (g *guest) placard(p trustbar.Placard, note string) { g.source.SetPlacard(&p, note) }

// Send implements hid.Sink.
func (g *guest) Send(batch []hid.Event) {
	if k := g.sender.Load(); k != nil {
		k.Send(batch)
	}
}

// WantsAbsolute tells the router which kind of motion the guest takes.
func (g *guest) WantsAbsolute() bool { return g.absolute.Load() }

// run keeps the connection until ctx is done.
func (g *guest) run(ctx context.Context) {
	defer g.source.Close()
	var there *appearance // nil while its directory does not exist, or cannot be watched
	defer func() { there.close() }()
	delay := minDelay
	for ctx.Err() == nil {
		if there == nil { // before the socket is tried, so that it cannot appear in between
			there, _ = watchFor(g.cfg.Display)
		}
		began := time.Now()
		err := g.connected(ctx)
		if err != nil {
			g.s.opt.Log.Debug("guest's display", "guest", g.cfg.Name, "err", err)
		}
		if time.Since(began) > maxDelay {
			delay = minDelay
		}
		nobody := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
		if there != nil && nobody && delay == maxDelay { // switched off: a seat at rest wakes up for nothing
			select {
			case <-ctx.Done():
			case _, watched := <-there.came:
				if !watched {
					there.close()
					there = nil
				}
				delay = minDelay
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, maxDelay)
	}
}

// connected connects to the machine, and returns when the connection has ended.
func (g *guest) connected(ctx context.Context) error {
	var told told
	setLEDs := func(leds hid.LEDs) { _ = g.s.Router.SetLEDs(g.cfg.Name, leds) }
	c, err := qdisplay.Dial(g.cfg.Display, qdisplay.ClientConfig{
		OnLEDs:     func(_ uint32, leds hid.LEDs) { told.news(&told.leds, func() { setLEDs(leds) }) },
		OnAbsolute: func(_ uint32, abs bool) { told.news(&told.absolute, func() { g.absolute.Store(abs) }) },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	asked, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	info, err := c.Console(asked, screenID)
	if err != nil {
		return err
	}
	told.answer(&told.absolute, func() { g.absolute.Store(info.IsAbsolute) })
	g.placard(trustbar.Starting(g.bar), "")
	var monitor display.Monitor
	g.setMonitor(asked, c, &monitor)
	r, err := c.Listen(asked, screenID, (*sink)(g), qdisplay.ReceiverConfig{})
	cancel() // its timer would wake us for nothing
	if err != nil {
		return err
	}
	defer r.Close()
	g.sender.Store(c.Sender(screenID))
	g.source.SetPlacard(nil, "")
	if err := g.s.Router.Up(g.cfg.Name, g); err != nil {
		return err
	}
	told.answer(&told.leds, func() { setLEDs(info.LEDs) })
	g.s.arrived(g)
	g.tell(true)
	defer g.tell(false)
	for there := true; there; {
		select {
		case <-g.screens:
			g.setMonitor(ctx, c, &monitor)
			continue
		case <-ctx.Done():
		case <-c.Done():
		case <-r.Done():
		}
		there = false
	}
	_ = g.s.Router.Down(g.cfg.Name, route.Rebooting) // it gets the focus again if it comes back
	g.sender.Store(nil)
	g.placard(trustbar.Stopped(g.bar, g.s.hint), "switched off")
	g.s.own.changed()
	select {
	case <-r.Done():
		return r.Err()
	default:
		return nil
	}
}

// told is what a machine has told by itself since it was connected to: what it answered when it was asked is older.
type told struct {
	mu             sync.Mutex
	leds, absolute bool
}

func (t *told) news(what *bool, set func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	*what = true
	set()
}

func (t *told) answer(what *bool, set func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !*what {
		set()
	}
}

func (g *guest) tell(there bool) {
	if f := g.s.opt.OnGuest; f != nil {
		f(g.cfg.Name, there)
	}
}

// arrived is called when a guest can be seen: the first one is shown at once, unless somebody types in the console.
func (s *Seat) arrived(g *guest) {
	s.own.changed()
	if s.own.first.CompareAndSwap(false, true) {
		_ = s.Router.Offer(g.cfg.Name) // it is a target
	}
}

// moved says that the guest may be shown on another output.
func (g *guest) moved() {
	select {
	case g.screens <- struct{}{}:
	default:
	}
}

// setMonitor tells the machine of the monitor that fits below the bar of the output where the guest is shown, if it is
// another than last. A card without monitors to change refuses: its picture is placed as it is then.
func (g *guest) setMonitor(ctx context.Context, c *qdisplay.Client, last *display.Monitor) {
	head := g.s.monitors.headOf(g)
	if head == nil { // all are gone: what comes next is as good as what was there
		return
	}
	p := head.GuestSize()
	m := display.Monitor{Connected: true, Width: p.X, Height: p.Y, Name: "Lodge"}
	if m == *last {
		return
	}
	*last = m
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if err := c.SetMonitor(ctx, screenID, m); err != nil {
		g.s.opt.Log.Debug("guest's monitor", "guest", g.cfg.Name, "err", err)
	}
}

// sink passes the guest's picture on, and notes down its size.
type sink guest

func (k *sink) Scanout(f *display.Surface) {
	if f != nil {
		k.size.Store(int64(f.Width)<<32 | int64(f.Height))
		_ = k.s.Router.SetSize(k.cfg.Name, f.Width, f.Height)
	}
	k.source.Scanout(f)
}

func (k *sink) Update(r image.Rectangle) { k.source.Update(r) }
func (k *sink) Cursor(c *display.Cursor) { k.source.Cursor(c) }
func (k *sink) MoveCursor(p image.Point) { k.source.MoveCursor(p) }

// place makes positions on the screen positions in the guest's picture. A device tells only what has changed: the rest is
// where the pointer was on the screen, whatever guest it was in then.
func (g *guest) place(batch []hid.Event) []hid.Event {
	head := g.s.monitors.headOf(g)
	size := g.size.Load()
	w, h := int(size>>32), int(int32(size))
	if head == nil || w < 2 || h < 2 {
		return batch
	}
	screen := head.Size()
	picture := func(p image.Point) (x, y int32) {
		_, p, _ = head.ToGuest(p)
		return scale(min(max(p.X, 0), w-1), w-1, hid.AbsMax), scale(min(max(p.Y, 0), h-1), h-1, hid.AbsMax)
	}
	onScreen := func(v int32, pixels int) int { return int(scale(int(v), hid.AbsMax, pixels-1)) }
	at := &g.s.at
	at.mu.Lock()
	defer at.mu.Unlock()
	moved := false
	out := make([]hid.Event, 0, len(batch)+2)
	for _, e := range batch {
		switch {
		case e.Type == hid.EVAbs && e.Code == hid.AbsX:
			at.X, moved = onScreen(e.Value, screen.X), true
			continue
		case e.Type == hid.EVAbs && e.Code == hid.AbsY:
			at.Y, moved = onScreen(e.Value, screen.Y), true
			continue
		case e.Type == hid.EVAbs && e.Code == hid.AbsMTPositionX: // neither axis depends on the other
			e.Value, _ = picture(image.Pt(onScreen(e.Value, screen.X), 0))
		case e.Type == hid.EVAbs && e.Code == hid.AbsMTPositionY:
			_, e.Value = picture(image.Pt(0, onScreen(e.Value, screen.Y)))
		}
		out = append(out, e)
	}
	if moved {
		x, y := picture(at.Point)
		out = append(out, hid.Event{Type: hid.EVAbs, Code: hid.AbsX, Value: x}, hid.Event{Type: hid.EVAbs, Code: hid.AbsY, Value: y})
	}
	return out
}

// scale maps v, of 0 to from, to 0 to to, rounded.
func scale(v, from, to int) int32 { return int32((v*to + from/2) / from) }
