package compose

import (
	"context"
	"errors"
	"fmt"
	"image"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/vgpu/display"
)

const (
	// never is how long step waits when nothing is to come by itself.
	never = time.Duration(-1)
	// prepareEvery is how long after one hidden guest the next is brought up to date: 20 full copies a second at most,
	// whatever and how many they are.
	prepareEvery = 50 * time.Millisecond
	// retryAfter is how long after a failure of an output it is tried again.
	retryAfter = time.Second
	// atOnce is how many pixels are copied before a switch at most: about 0.1 ms. Where a hidden guest has drawn more
	// since it was brought up to date, its ready picture is shown first.
	atOnce = 256 << 10
)

// Head is one output of a compositor. Run does everything; its other methods may be called by any goroutine.
type Head struct {
	c   *Compositor
	out output.Output

	want    atomic.Pointer[Source] // what is to be shown
	asked   atomic.Int64           // since when, in nanoseconds since start
	urgent  atomic.Bool            // want has been changed since step has looked
	refresh atomic.Bool            // the screen has forgotten everything
	resting atomic.Bool            // hidden guests are not looked at until one has drawn
	wake    chan struct{}          // of one
	calls   chan func()            // for the goroutine of Run
	ended   chan struct{}          // closed when Run has returned
	pinned  *Source                // under c.mu
	size    atomic.Pointer[image.Point]

	// All else belongs to the goroutine of Run.
	start    time.Time
	fonts    *trustbar.Fonts
	area     image.Rectangle // the guests'
	sources  *[]*Source      // those that are known
	bars     map[*Source]*trustbar.Bar
	placards map[*Source]placard
	slots    []*slot
	most     int              // buffers that there may be
	retired  []*output.Buffer // of the mode before
	shown    *slot
	pending  *slot // presented, and not on the screen yet
	frames   uint64
	inactive bool      // the screen is not ours
	again    bool      // the screen has forgotten what it shows
	next     time.Time // no frame before, save a switch
	prepare  time.Time // no look at hidden guests before
	turn     int       // of the hidden guests
	released time.Time // when the frame before was on the screen
	hw       hardwarePointer
	drawing  *Source // whose picture is being drawn
	painter  painter
	dirty    output.Region
	todo     output.Region
}

// placard is one that has been drawn.
type placard struct {
	text    trustbar.Placard
	picture *trustbar.Picture
}

func newHead(c *Compositor, out output.Output) (*Head, error) {
	h := &Head{
		c: c, out: out, start: time.Now(), most: c.cfg.Buffers,
		wake: make(chan struct{}, 1), calls: make(chan func()), ended: make(chan struct{}),
	}
	h.painter.aborted = func() bool { return h.urgent.Load() && h.want.Load() != h.drawing }
	if err := h.setup(); err != nil {
		return nil, err
	}
	return h, nil
}

// setup makes everything that depends on the mode.
func (h *Head) setup() error {
	size := h.out.Mode().Size().Max
	fonts, err := trustbar.NewFonts(size)
	if err != nil {
		return fmt.Errorf("output %s: %w", h.out.Info().Name, err)
	}
	for _, s := range h.slots {
		if s.src != nil {
			s.src.disown(s)
		}
		if s == h.shown || s == h.pending { // until a frame of the new mode is on the screen
			h.retired = append(h.retired, s.buf)
		} else {
			h.out.FreeBuffer(s.buf)
		}
	}
	h.slots, h.shown, h.pending = nil, nil, nil
	h.fonts = fonts
	h.bars, h.placards = make(map[*Source]*trustbar.Bar), make(map[*Source]placard)
	h.area = image.Rectangle{image.Pt(0, min(trustbar.Height(size), size.Y)), size}
	h.painter.area, h.painter.line = h.area, make([]byte, 4*size.X)
	h.size.Store(&size)
	return nil
}

// Output returns what the head shows its picture on. Only its Info may be asked.
func (h *Head) Output() output.Output { return h.out }

// Size returns the size of the screen, in pixels.
func (h *Head) Size() image.Point { return *h.size.Load() }

// GuestSize returns the size of the picture that fills the screen below the bar.
func (h *Head) GuestSize() image.Point { return GuestSize(*h.size.Load()) }

// ToGuest returns which pixel of the picture that is shown is at a pixel of the screen. It is false if there is none.
func (h *Head) ToGuest(at image.Point) (s *Source, p image.Point, ok bool) {
	s = h.want.Load()
	if s == nil || s == h.c.none {
		return nil, image.Point{}, false
	}
	snap, _ := s.pending(nil)
	if snap.surface == nil {
		return s, image.Point{}, false
	}
	screen := *h.size.Load()
	area := image.Rectangle{image.Pt(0, min(trustbar.Height(screen), screen.Y)), screen}
	p = fit(snap.surface.Bounds().Max, area, h.c.cfg.IntegerScale).toPicture(at)
	return s, p, at.In(area) && p.In(snap.surface.Bounds())
}

// show makes s the picture. c.mu is held.
func (h *Head) show(s *Source, asked time.Time) {
	if h.want.Swap(s) == s {
		h.poke()
		return
	}
	h.asked.Store(int64(asked.Sub(h.start)))
	h.urgent.Store(true)
	h.poke()
}

func (h *Head) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// do has f called by Run's goroutine, and waits for it.
func (h *Head) do(f func()) error {
	done := make(chan struct{})
	select {
	case h.calls <- func() { f(); close(done) }:
		<-done
		return nil
	case <-h.ended:
		return fmt.Errorf("output %s is gone", h.out.Info().Name)
	}
}

// SetMode changes the output's mode.
func (h *Head) SetMode(m output.Mode) error {
	var err error
	if e := h.do(func() {
		if err = h.out.SetMode(m); err == nil {
			err = h.setup()
		}
	}); e != nil {
		return e
	}
	return err
}

// Screenshot returns what is on the screen, or will be with the next frame.
func (h *Head) Screenshot() (*image.RGBA, error) {
	var img *image.RGBA
	err := h.do(func() { img = h.screenshot() })
	return img, err
}

// Run shows the picture until ctx is done or the output is gone, then closes the output and removes the head from the
// compositor. It fails only if the output cannot be closed.
func (h *Head) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for gone := false; !gone; {
		select {
		case <-ctx.Done():
			gone = true
			continue
		case <-h.wake:
		case <-timer.C:
		case f := <-h.calls:
			f()
		case _, ok := <-h.out.Flips():
			if !ok {
				gone = true
				continue
			}
			h.flipped(time.Now())
		}
		if wait := h.step(time.Now()); wait != never {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
	}
	h.c.remove(h)
	close(h.ended)
	for _, s := range h.slots {
		if s.src != nil {
			s.src.disown(s)
		}
	}
	return h.out.Close()
}

// flipped is called when the frame that was presented is on the screen.
func (h *Head) flipped(now time.Time) {
	if h.pending == nil { // a frame of the mode before, or of before a refresh
		return
	}
	h.shown, h.pending, h.released = h.pending, nil, now
	for _, b := range h.retired {
		h.out.FreeBuffer(b)
	}
	h.retired = h.retired[:0]
}

// step does everything that there is to do now, and returns after how long there is more, never if only a poke or a flip
// can bring it.
func (h *Head) step(now time.Time) time.Duration {
	h.urgent.Store(false)
	if h.refresh.Swap(false) {
		h.again, h.inactive = true, false
		h.hw.forget()
	}
	h.purge()
	wait := never
	if h.pending == nil && !h.inactive {
		wait = h.frame(now, h.want.Load())
	}
	if wait == 0 || h.urgent.Load() {
		return 0 // another guest is wanted: hidden ones can wait
	}
	if w := h.hidden(now); wait == never || w != never && w < wait {
		return w
	}
	return wait
}

// purge forgets the sources that are gone.
func (h *Head) purge() {
	list := h.c.sources.Load()
	if list == h.sources {
		return
	}
	h.sources = list
	there := make(map[*Source]bool)
	for _, s := range *list {
		there[s] = true
	}
	for s := range h.bars {
		if !there[s] {
			delete(h.bars, s)
			delete(h.placards, s)
		}
	}
	for _, s := range h.slots {
		if s.src != nil && !there[s.src] {
			h.assign(s, nil)
		}
	}
}

// frame presents the next frame, if there is anything new in it and it is time.
func (h *Head) frame(now time.Time, want *Source) time.Duration {
	h.setBar(want, true)
	switching := h.shown == nil || h.shown.src != want
	if !switching && !h.again {
		if h.clean(h.shown) {
			h.movePointer(want)
			return never
		}
		if d := h.next.Sub(now); d > 0 {
			h.movePointer(want)
			return d
		}
	}
	s := h.back(want)
	if s == nil {
		return retryAfter
	}
	behind := false
	direct, err := h.presentDirect(s, switching)
	if !direct && err == nil {
		var drawn bool
		if drawn, behind = h.draw(s, switching); !drawn {
			return 0
		}
		var damage []image.Rectangle
		if !switching && !h.again {
			damage = s.drawn.Rects()
		}
		err = h.out.Present(s.buf, damage)
	}
	if err != nil {
		return h.failed(err)
	}
	s.drawn.Clear()
	h.again = false
	h.frames++
	s.used = h.frames
	h.pending = s
	h.next = now.Add(h.out.Mode().Period() * 3 / 4)
	if behind {
		h.next = now
	}
	if switching {
		h.switched(want, behind)
	}
	h.movePointer(want)
	return never
}

// failed says what happens when Present has failed.
func (h *Head) failed(err error) time.Duration {
	switch {
	case errors.Is(err, output.ErrInactive):
		h.inactive = true
		return never
	case errors.Is(err, output.ErrBusy):
		return time.Millisecond
	}
	h.c.cfg.Log.Error("cannot show the picture; trying again", "output", h.out.Info().Name, "err", err)
	return retryAfter
}

// switched tells of a switch that was just handed to the output.
func (h *Head) switched(to *Source, behind bool) {
	if h.c.cfg.OnSwitch == nil {
		return
	}
	asked := h.start.Add(time.Duration(h.asked.Load()))
	if to == h.c.none {
		to = nil
	}
	waited := max(h.released.Sub(asked), 0)
	h.c.cfg.OnSwitch(Switched{h.out.Info().Name, to, time.Since(asked) - waited, waited, behind})
}

// setBar brings the bar of a source up to date.
func (h *Head) setBar(s *Source, onScreen bool) (changed bool) {
	bar := h.bars[s]
	if bar == nil {
		bar = h.fonts.New(h.area.Max.X)
		h.bars[s] = bar
	}
	r := bar.Set(h.c.barState(s, onScreen))
	if r.Empty() {
		return false
	}
	for _, k := range h.slots {
		if k.src == s {
			k.bar = k.bar.Union(r)
		}
	}
	return true
}

// lookOf returns what a source's picture is drawn with.
func (h *Head) lookOf(s *Source, snap *snapshot) look {
	var l look
	if snap.surface != nil {
		l.size = snap.surface.Bounds().Max
		l.at = fit(l.size, h.area, h.c.cfg.IntegerScale)
		if snap.placard == nil {
			return l
		}
	} else {
		l.at = place{h.area.Min, 1}
	}
	text := h.c.placardOf(s, snap)
	if have := h.placards[s]; have.picture != nil && have.text == text {
		l.placard = have.picture
		return l
	}
	pic, err := text.Draw(h.area.Size())
	if err != nil {
		h.c.cfg.Log.Error("cannot draw a placard", "output", h.out.Info().Name, "err", err)
		return l
	}
	h.placards[s] = placard{text, pic}
	l.placard = pic
	return l
}

// clean reports whether a slot shows its source as it is now.
func (h *Head) clean(k *slot) bool {
	snap, area := k.src.pending(k)
	l := h.lookOf(k.src, &snap)
	there := k.valid || k.direct != nil && k.direct == snap.surface
	return there && area == 0 && k.bar.Empty() && k.look == l && k.cursor == h.softPointer(&snap, l)
}

// draw brings a slot up to date. drawn is false if another guest is wanted meanwhile. behind says that its picture was left
// as it was, since it can be shown at once.
func (h *Head) draw(k *slot, switching bool) (drawn, behind bool) {
	src := k.src
	src.reading.Lock()
	defer src.reading.Unlock()
	snap, area := src.pending(k)
	l := h.lookOf(src, &snap)
	ptr := h.softPointer(&snap, l)
	whole := !k.valid || k.look != l
	if behind = switching && !whole && area*l.at.scale*l.at.scale > atOnce; !behind {
		if !h.drawPicture(k, l, ptr, whole) {
			return false, false
		}
	}
	h.drawBar(k)
	return true, behind
}

// drawPicture brings the guest's part of a slot up to date. src.reading is held.
func (h *Head) drawPicture(k *slot, l look, ptr pointer, whole bool) bool {
	snap := k.src.take(k, &h.dirty)
	h.todo.Clear()
	if whole {
		h.todo.Add(h.area)
	} else {
		for _, r := range h.dirty.Rects() {
			h.todo.Add(l.at.toScreen(r).Intersect(h.area))
		}
		if ptr != k.cursor {
			h.todo.Add(k.cursor.rect.Intersect(h.area))
			h.todo.Add(ptr.rect.Intersect(h.area))
		}
	}
	if h.todo.Empty() {
		return true
	}
	h.painter.set(k.buf, &snap, l, ptr)
	h.drawing = k.src
	k.valid, k.direct = false, nil
	if snap.surface != nil {
		snap.surface.BeginRead()
		defer snap.surface.EndRead()
	}
	if !h.painter.paint(&h.todo) {
		return false
	}
	k.valid, k.direct, k.look, k.cursor = true, nil, l, ptr
	k.drawn.AddAll(&h.todo)
	return true
}

// drawBar brings the bar of a slot up to date.
func (h *Head) drawBar(k *slot) {
	r := k.bar
	if r.Empty() {
		return
	}
	pic := h.bars[k.src].Picture()
	from, to := pixels{pic.Stride, pic.Pixels}, pixels{k.buf.Stride, k.buf.Pixels}
	for y := r.Min.Y; y < r.Max.Y; y++ {
		copy(to.row(y, r.Min.X, r.Max.X), from.row(y, r.Min.X, r.Max.X))
	}
	k.drawn.Add(r)
	k.bar = image.Rectangle{}
}

// screenshot draws what is shown into memory of its own.
func (h *Head) screenshot() *image.RGBA {
	size := h.area.Max
	src := h.want.Load()
	h.purge()
	h.setBar(src, true)
	k := &slot{head: h, src: src, bar: image.Rect(0, 0, size.X, h.area.Min.Y)}
	k.buf = &output.Buffer{Width: size.X, Height: size.Y, Stride: 4 * size.X, Pixels: make([]byte, 4*size.X*size.Y)}
	aborted := h.painter.aborted
	h.painter.aborted = nil
	src.reading.Lock()
	snap, _ := src.pending(k)
	l := h.lookOf(src, &snap)
	h.drawPicture(k, l, pointerOf(&snap, l), true)
	src.reading.Unlock()
	h.painter.aborted = aborted
	h.drawBar(k)
	img := image.NewRGBA(image.Rectangle{Max: size})
	copyRow(img.Pix, k.buf.Pixels, display.XBGR8888) // the same exchange of channels
	for i := 3; i < len(img.Pix); i += 4 {
		img.Pix[i] = 0xff
	}
	return img
}

// placardOf returns the placard of a source that needs one.
func (c *Compositor) placardOf(s *Source, snap *snapshot) trustbar.Placard {
	if snap.placard != nil {
		return *snap.placard
	}
	if s == c.none {
		c.mu.Lock()
		defer c.mu.Unlock()
		return trustbar.NoGuest(c.status.Hint)
	}
	g, _ := s.describe()
	if snap.seen {
		return trustbar.Off(g)
	}
	return trustbar.Starting(g)
}
