package seat

import (
	"context"
	"image"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hid/route"
	"github.com/lodgehv/lodge/vgpu/display"
)

// How long a guest's machine may take to answer, and how long to wait before it is tried again: the delay doubles while
// nobody is there.
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
	at       position     // of the pointer on the screen
}

// position is where a device with positions was last; devices have goroutines of their own.
type position struct {
	mu   sync.Mutex
	x, y int
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
	delay := minDelay
	for ctx.Err() == nil {
		began := time.Now()
		if err := g.connected(ctx); err != nil {
			g.s.opt.Log.Debug("guest's display", "guest", g.cfg.Name, "err", err)
		}
		if time.Since(began) > maxDelay {
			delay = minDelay
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
	c, err := qdisplay.Dial(g.cfg.Display, qdisplay.ClientConfig{
		OnLEDs:     func(_ uint32, leds hid.LEDs) { _ = g.s.Router.SetLEDs(g.cfg.Name, leds) },
		OnAbsolute: func(_ uint32, abs bool) { g.absolute.Store(abs) },
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
	g.absolute.Store(info.IsAbsolute)
	g.placard(trustbar.Starting(g.bar), "")
	var monitor display.Monitor
	g.setMonitor(asked, c, &monitor)
	r, err := c.Listen(asked, screenID, (*sink)(g), qdisplay.ReceiverConfig{})
	if err != nil {
		return err
	}
	defer r.Close()
	g.sender.Store(c.Sender(screenID))
	g.source.SetPlacard(nil, "")
	if err := g.s.Router.Up(g.cfg.Name, g); err != nil {
		return err
	}
	_ = g.s.Router.SetLEDs(g.cfg.Name, info.LEDs)
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
	g.s.own.show()
	select {
	case <-r.Done():
		return r.Err()
	default:
		return nil
	}
}

func (g *guest) tell(there bool) {
	if f := g.s.opt.OnGuest; f != nil {
		f(g.cfg.Name, there)
	}
}

// arrived is called when a guest can be seen: the first one is shown at once.
func (s *Seat) arrived(g *guest) {
	s.own.show()
	if s.own.first.CompareAndSwap(false, true) {
		_ = s.Router.SetFocus(g.cfg.Name) // it may have gone again
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

// place makes positions on the screen positions in the guest's picture.
func (g *guest) place(batch []hid.Event) []hid.Event {
	head := g.s.monitors.headOf(g)
	size := g.size.Load()
	w, h := int(size>>32), int(int32(size))
	if head == nil || w < 2 || h < 2 {
		return batch
	}
	screen := head.Size()
	var out []hid.Event
	x, y := -1, -1
	for _, e := range batch {
		switch {
		case e.Type == hid.EVAbs && e.Code == hid.AbsX:
			x = int(e.Value) * (screen.X - 1) / hid.AbsMax
		case e.Type == hid.EVAbs && e.Code == hid.AbsY:
			y = int(e.Value) * (screen.Y - 1) / hid.AbsMax
		default:
			out = append(out, e)
		}
	}
	if x < 0 && y < 0 {
		return batch
	}
	g.at.mu.Lock()
	defer g.at.mu.Unlock()
	if x >= 0 {
		g.at.x = x
	}
	if y >= 0 {
		g.at.y = y
	}
	_, p, _ := head.ToGuest(image.Pt(g.at.x, g.at.y))
	p.X, p.Y = min(max(p.X, 0), w-1), min(max(p.Y, 0), h-1)
	return append(out,
		hid.Event{Type: hid.EVAbs, Code: hid.AbsX, Value: int32(p.X * hid.AbsMax / (w - 1))},
		hid.Event{Type: hid.EVAbs, Code: hid.AbsY, Value: int32(p.Y * hid.AbsMax / (h - 1))})
}
