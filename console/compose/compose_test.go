package compose

import (
	"encoding/binary"
	"image"
	"image/color"
	"slices"
	"testing"
	"time"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/vgpu/display"
)

// screen is an output of tests. A frame is on it when the test says so.
type screen struct {
	mode     output.Mode
	flips    chan output.Flip
	buffers  []*output.Buffer // that exist
	most     int              // 0: no bound
	front    *output.Buffer
	next     *output.Buffer
	damage   []image.Rectangle // of the last Present
	presents int
	err      error // of Present
	hardware bool  // has a pointer
	cursor   *display.Cursor
	at       image.Point
	closed   bool
}

func newScreen(w, h int) *screen {
	return &screen{mode: output.Mode{Width: w, Height: h}, flips: make(chan output.Flip, 1)}
}

func (s *screen) Info() output.Info              { return output.Info{Name: "TEST-1"} }
func (s *screen) Modes() []output.Mode           { return []output.Mode{s.mode} }
func (s *screen) Mode() output.Mode              { return s.mode }
func (s *screen) SetMode(m output.Mode) error    { s.mode = m; return nil }
func (s *screen) Flips() <-chan output.Flip      { return s.flips }
func (s *screen) MoveCursor(p image.Point) error { s.at = p; return nil }
func (s *screen) Close() error                   { s.closed = true; return nil }

func (s *screen) NewBuffer() (*output.Buffer, error) {
	if s.most > 0 && len(s.buffers) >= s.most {
		return nil, errFull
	}
	stride := 4*s.mode.Width + 12
	b := &output.Buffer{Width: s.mode.Width, Height: s.mode.Height, Stride: stride, Pixels: make([]byte, stride*s.mode.Height)}
	s.buffers = append(s.buffers, b)
	return b, nil
}

func (s *screen) FreeBuffer(b *output.Buffer) {
	if b == s.front || b == s.next {
		panic("a buffer that is shown was freed")
	}
	i := slices.Index(s.buffers, b)
	s.buffers = slices.Delete(s.buffers, i, i+1)
}

func (s *screen) Present(b *output.Buffer, damage []image.Rectangle) error {
	if s.err != nil {
		return s.err
	}
	if s.next != nil {
		return output.ErrBusy
	}
	s.next, s.damage = b, slices.Clone(damage)
	s.presents++
	return nil
}

func (s *screen) SetCursor(c *display.Cursor) error {
	if !s.hardware && c != nil {
		return output.ErrNoCursor
	}
	s.cursor = c
	return nil
}

// flip puts the presented frame on the screen.
func (s *screen) flip() { s.front, s.next = s.next, nil }

// at returns a pixel of the screen.
func (s *screen) pixel(x, y int) uint32 {
	return binary.LittleEndian.Uint32(s.front.Pixels[y*s.front.Stride+4*x:]) & 0xffffff
}

type testError string

func (e testError) Error() string { return string(e) }

const errFull testError = "no memory"

// tester is a testing.TB, or what rapid has for it.
type tester interface {
	Helper()
	Fatal(...any)
}

// rig is a compositor with one output, whose time the test makes.
type rig struct {
	t   tester
	c   *Compositor
	out *screen
	h   *Head
	now time.Time
}

func newRig(t tester, cfg Config, w, h int) *rig {
	t.Helper()
	r := &rig{t: t, c: New(cfg), out: newScreen(w, h), now: time.Now()}
	head, err := r.c.Add(r.out)
	if err != nil {
		t.Fatal(err)
	}
	r.h = head
	return r
}

// step lets the head work once; a frame that it presents is shown.
func (r *rig) step() time.Duration {
	r.now = r.now.Add(time.Second) // everything is due
	wait := r.h.step(r.now)
	if r.out.next != nil {
		r.out.flip()
		r.h.flipped(r.now)
	}
	return wait
}

// settle steps until there is nothing to do.
func (r *rig) settle() {
	r.t.Helper()
	for range 1000 {
		if n := r.out.presents; r.step() == never && n == r.out.presents {
			select {
			case <-r.h.wake:
			default:
				return
			}
		}
	}
	r.t.Fatal("the head does not come to rest")
}

// plain returns a surface of one colour.
func plain(w, h int, c uint32) *display.Surface {
	s := &display.Surface{Width: w, Height: h, Stride: 4 * w, Format: display.XRGB8888, Pixels: make([]byte, 4*w*h)}
	paint(s, s.Bounds(), c)
	return s
}

func paint(s *display.Surface, r image.Rectangle, c uint32) {
	p := pixels{s.Stride, s.Pixels}
	for y := r.Min.Y; y < r.Max.Y; y++ {
		row := p.row(y, r.Min.X, r.Max.X)
		for x := 0; x < len(row); x += 4 {
			binary.LittleEndian.PutUint32(row[x:], c)
		}
	}
}

func guest(name string, slot int, c string) trustbar.Guest {
	col, _ := trustbar.ParseColor(c)
	return trustbar.Guest{Name: name, Slot: slot, Color: col}
}

const (
	red   = 0xff0000
	green = 0x00ff00
	blue  = 0x0000ff
)

func TestSwitch(t *testing.T) {
	var switched []string
	cfg := Config{OnSwitch: func(s Switched) {
		name := "none"
		if s.Source != nil {
			name = s.Source.guest.Name
		}
		switched = append(switched, name)
	}}
	r := newRig(t, cfg, 320, 200)
	size := r.h.GuestSize()
	a, b := r.c.NewSource(guest("a", 1, "blue")), r.c.NewSource(guest("b", 2, "green"))
	a.Scanout(plain(size.X, size.Y, red))
	b.Scanout(plain(size.X, size.Y, green))
	r.settle()
	if got := r.out.pixel(0, 199); got != trustbar.Background()&0xffffff {
		t.Errorf("no guest: pixel %06x", got)
	}
	for _, tt := range []struct {
		to   *Source
		want uint32
	}{{a, red}, {b, green}, {a, red}} {
		r.c.Switch(tt.to)
		r.step() // one is enough: it is there at once
		for _, at := range []image.Point{{0, 200 - size.Y}, {160, 100}, {319, 199}} {
			if got := r.out.pixel(at.X, at.Y); got != tt.want {
				t.Errorf("%v is %06x, want %06x", at, got, tt.want)
			}
		}
		if r.out.damage != nil {
			t.Errorf("another guest's picture differs in %v alone", r.out.damage)
		}
		r.settle()
	}
	a.Close()
	r.settle()
	if got := r.out.pixel(0, 199); got != trustbar.Background()&0xffffff {
		t.Errorf("guest gone: pixel %06x", got)
	}
	want := []string{"none", "a", "b", "a", "none"}
	if !slices.Equal(switched, want) {
		t.Errorf("switches to %v, want %v", switched, want)
	}
	if r.c.Shown() != nil {
		t.Error("a closed source is shown")
	}
}

// TestReady counts what is copied at a switch: a hidden guest's picture waits in a buffer of its own.
func TestReady(t *testing.T) {
	r := newRig(t, Config{}, 320, 200)
	size := r.h.GuestSize()
	var all []*Source
	for i := range 4 {
		s := r.c.NewSource(guest("g", i+1, "blue"))
		s.Scanout(plain(size.X, size.Y, uint32(i+1)))
		all = append(all, s)
	}
	r.c.Switch(all[0])
	r.settle()
	for i := range 12 {
		// What is below the surface's pixels cannot be read any more: it must not be.
		s := all[(i+1)%4]
		pixels := s.surface.Pixels
		s.surface.Pixels = nil
		r.c.Switch(s)
		r.step()
		s.surface.Pixels = pixels
		if got := r.out.pixel(100, 100); got != uint32((i+1)%4+1) {
			t.Fatalf("switch %d shows guest %d", i, got)
		}
		r.settle()
	}
	if n := len(r.out.buffers); n > 6 {
		t.Errorf("%d buffers for 4 guests and none", n)
	}
}

// TestBehind switches to a guest that has drawn all of its screen meanwhile: first there is what is ready, then the rest.
func TestBehind(t *testing.T) {
	var got []bool
	r := newRig(t, Config{OnSwitch: func(s Switched) { got = append(got, s.Behind) }}, 1024, 768)
	a := r.c.NewSource(guest("a", 1, "blue"))
	a.Scanout(plain(1024, 740, red))
	r.settle()
	paint(a.surface, a.surface.Bounds(), green)
	r.c.Switch(a)
	a.Update(a.surface.Bounds())
	r.step()
	if c := r.out.pixel(500, 500); c != red {
		t.Errorf("first frame is %06x", c)
	}
	r.step()
	if c := r.out.pixel(500, 500); c != green {
		t.Errorf("second frame is %06x", c)
	}
	if !slices.Equal(got, []bool{false, true}) {
		t.Errorf("switches behind: %v", got)
	}
}

// TestFewBuffers has more guests than buffers: each is shown nevertheless.
func TestFewBuffers(t *testing.T) {
	for _, most := range []int{2, 3} {
		r := newRig(t, Config{}, 320, 200)
		r.out.most = most
		size := r.h.GuestSize()
		var all []*Source
		for i := range 6 {
			s := r.c.NewSource(guest("g", i+1, "blue"))
			s.Scanout(plain(size.X, size.Y, uint32(i+1)))
			all = append(all, s)
		}
		for i := range 30 {
			r.c.Switch(all[i*5%6])
			r.settle()
			if got := r.out.pixel(100, 100); got != uint32(i*5%6+1) {
				t.Fatalf("%d buffers: switch %d shows guest %d", most, i, got)
			}
		}
	}
}

func TestGeometry(t *testing.T) {
	type check struct {
		at   image.Point
		want uint32
	}
	const w, h = 640, 480 // the bar has 22 rows: 458 are left
	for name, tt := range map[string]struct {
		cfg    Config
		width  int
		height int
		checks []check
	}{
		"fits": {Config{}, 640, 458, []check{{image.Pt(0, 22), red}, {image.Pt(639, 479), red}}},
		"smaller": {Config{}, 320, 200, []check{
			{image.Pt(160, 151), red}, {image.Pt(159, 151), 0}, {image.Pt(160, 150), 0}, {image.Pt(479, 350), red},
			{image.Pt(480, 350), 0}, {image.Pt(479, 351), 0}, {image.Pt(0, 22), 0}, {image.Pt(639, 479), 0},
		}},
		"twice": {Config{IntegerScale: true}, 320, 200, []check{
			{image.Pt(0, 51), red}, {image.Pt(0, 50), 0}, {image.Pt(639, 450), red}, {image.Pt(0, 451), 0},
		}},
		"larger":            {Config{}, 1000, 1000, []check{{image.Pt(0, 22), red}, {image.Pt(639, 479), red}}},
		"larger and scaled": {Config{IntegerScale: true}, 1000, 1000, []check{{image.Pt(0, 22), red}, {image.Pt(639, 479), red}}},
		"wide":              {Config{}, 1000, 2, []check{{image.Pt(0, 250), red}, {image.Pt(639, 251), red}, {image.Pt(0, 249), 0}}},
		"one pixel":         {Config{}, 1, 1, []check{{image.Pt(319, 250), red}, {image.Pt(320, 250), 0}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tt.cfg, w, h)
			s := r.c.NewSource(guest("a", 1, "blue"))
			s.Scanout(plain(tt.width, tt.height, red))
			r.c.Switch(s)
			r.settle()
			for _, k := range tt.checks {
				if got := r.out.pixel(k.at.X, k.at.Y); got != k.want {
					t.Errorf("%v is %06x, want %06x", k.at, got, k.want)
				}
				src, p, ok := r.h.ToGuest(k.at)
				if ok != (k.want == red) || src != s || ok && !p.In(s.surface.Bounds()) {
					t.Errorf("ToGuest(%v) = %v, %t", k.at, p, ok)
				}
			}
			if _, _, ok := r.h.ToGuest(image.Pt(320, 21)); ok {
				t.Error("the bar belongs to the guest")
			}
		})
	}
}

// TestFakeBar has a guest that does what it can to draw where the bar is.
func TestFakeBar(t *testing.T) {
	for _, hardware := range []bool{false, true} {
		r := newRig(t, Config{}, 640, 480)
		r.out.hardware = hardware
		s := r.c.NewSource(guest("work", 1, "blue"))
		s.Scanout(plain(640, 458, green))
		r.c.Switch(s)
		r.settle()
		bar := func() []byte { return slices.Clone(r.out.front.Pixels[:22*r.out.front.Stride]) }
		want := bar()
		s.Scanout(plain(2000, 2000, red))
		s.Update(image.Rect(-100, -100, 5000, 5000))
		r.settle()
		cursor := &display.Cursor{Width: 64, Height: 64, Pixels: slices.Repeat([]byte{0, 0, 255, 255}, 64*64)}
		for _, hot := range []image.Point{{0, 0}, {63, 63}, {0, 1 << 40}, {-5, -1 << 40}} {
			k := *cursor
			k.Hot = hot
			s.Cursor(&k)
			for _, y := range []int{0, 63, 64, 65, 10, -1, -100, -1 << 62, 1 << 62} {
				s.MoveCursor(image.Pt(100, y))
				r.settle()
				if got := bar(); !slices.Equal(got, want) {
					t.Fatalf("hot spot %v at row %d: the bar has changed", hot, y)
				}
				if r.out.cursor != nil && r.out.at.Y-r.out.cursor.Hot.Y < 22 {
					t.Errorf("hot spot %v at row %d: hardware pointer %v with hot spot %v", hot, y, r.out.at, r.out.cursor.Hot)
				}
				if soft := r.out.pixel(100, 22) != red; r.out.cursor == nil && soft {
					t.Errorf("hot spot %v at row %d: the guest's picture is gone", hot, y)
				}
			}
		}
	}
}

func TestPointer(t *testing.T) {
	half := &display.Cursor{Width: 2, Height: 2, Hot: image.Pt(1, 1), Pixels: slices.Repeat([]byte{0, 0, 0, 0x80}, 4)}
	for _, hardware := range []bool{false, true} {
		r := newRig(t, Config{}, 320, 200)
		r.out.hardware = hardware
		s := r.c.NewSource(guest("a", 1, "blue"))
		size := r.h.GuestSize()
		top := 200 - size.Y
		s.Scanout(plain(size.X, size.Y, 0xffffff))
		s.Cursor(half)
		s.MoveCursor(image.Pt(50, 60))
		r.c.Switch(s)
		r.settle()
		if hardware {
			if r.out.cursor != half || r.out.at != image.Pt(50, 60+top) {
				t.Errorf("hardware pointer %v at %v", r.out.cursor, r.out.at)
			}
			n := r.out.presents
			s.MoveCursor(image.Pt(51, 61))
			r.settle()
			if r.out.at != image.Pt(51, 61+top) || r.out.presents != n {
				t.Errorf("moved to %v by %d frames", r.out.at, r.out.presents-n)
			}
			s.Cursor(nil)
			r.settle()
			if r.out.cursor != nil {
				t.Error("still a pointer")
			}
			continue
		}
		look := func(at image.Point, want uint32) {
			t.Helper()
			for y := at.Y - 3; y < at.Y+3; y++ {
				for x := at.X - 3; x < at.X+3; x++ {
					w := uint32(0xffffff)
					if image.Pt(x, y).In(image.Rect(at.X-1, at.Y-1, at.X+1, at.Y+1)) {
						w = want
					}
					if got := r.out.pixel(x, y+top); got != w {
						t.Errorf("pointer at %v: (%d, %d) is %06x, want %06x", at, x, y, got, w)
					}
				}
			}
		}
		look(image.Pt(50, 60), 0x7f7f7f)
		s.Update(image.Rect(50, 60, 51, 61)) // below it: it is drawn once, not twice
		r.settle()
		look(image.Pt(50, 60), 0x7f7f7f)
		s.MoveCursor(image.Pt(52, 61))
		r.settle()
		look(image.Pt(52, 61), 0x7f7f7f)
		s.Cursor(nil)
		r.settle()
		look(image.Pt(52, 61), 0xffffff)
	}
}

func TestPlacard(t *testing.T) {
	r := newRig(t, Config{}, 640, 480)
	s := r.c.NewSource(guest("a", 1, "blue"))
	r.c.Switch(s)
	r.settle()
	middle := func() uint32 { return r.out.pixel(320, 215) } // between the text and the card's edge
	card := middle()
	if card == trustbar.Background()&0xffffff || card == red {
		t.Errorf("before the first picture: %06x in the middle", card)
	}
	s.Scanout(plain(640, 458, red))
	r.settle()
	if got := middle(); got != red {
		t.Errorf("picture: %06x in the middle", got)
	}
	p := trustbar.NotResponding(guest("a", 1, "blue"), "Ctrl+Alt+Esc")
	s.SetPlacard(&p, "not responding")
	r.settle()
	if got, edge := middle(), r.out.pixel(0, 479); got != card || edge != red {
		t.Errorf("not responding: %06x in the middle, %06x at the edge", got, edge)
	}
	s.Update(s.surface.Bounds())
	r.settle()
	if got := middle(); got != card {
		t.Errorf("the guest has drawn over the placard: %06x", got)
	}
	s.SetPlacard(nil, "")
	s.Scanout(nil)
	r.settle()
	if got, edge := middle(), r.out.pixel(0, 479); got != card || edge != trustbar.Background()&0xffffff {
		t.Errorf("off: %06x in the middle, %06x at the edge", got, edge)
	}
}

// TestPace has a guest that draws without end: there is a frame for every refresh of the screen and no more.
func TestPace(t *testing.T) {
	r := newRig(t, Config{}, 320, 200)
	s := r.c.NewSource(guest("a", 1, "blue"))
	s.Scanout(plain(320, 180, red))
	r.c.Switch(s)
	r.settle()
	start := r.out.presents
	for range 1000 { // a second, by milliseconds
		s.Update(s.surface.Bounds())
		r.now = r.now.Add(time.Millisecond)
		r.h.step(r.now)
		if r.out.next != nil {
			r.out.flip()
			r.h.flipped(r.now)
		}
	}
	if n := r.out.presents - start; n < 55 || n > 85 {
		t.Errorf("%d frames in a second on a screen of 60 Hz", n)
	}
}

// TestHiddenPace has many hidden guests that draw without end: they cost no more than one does.
func TestHiddenPace(t *testing.T) {
	r := newRig(t, Config{Buffers: 20}, 320, 200)
	var all []*Source
	for i := range 16 {
		s := r.c.NewSource(guest("g", i, "blue"))
		s.Scanout(plain(320, 180, red))
		all = append(all, s)
	}
	r.settle()
	updates := 0
	for range 1000 {
		for _, s := range all {
			s.Update(s.surface.Bounds())
		}
		r.now = r.now.Add(time.Millisecond)
		before := r.h.prepare
		r.h.step(r.now)
		if r.h.prepare != before {
			updates++
		}
	}
	if updates < 15 || updates > 25 {
		t.Errorf("%d pictures of hidden guests in a second", updates)
	}
}

// TestRest looks at what wakes an idle head: nothing does.
func TestRest(t *testing.T) {
	r := newRig(t, Config{}, 320, 200)
	a, b := r.c.NewSource(guest("a", 1, "blue")), r.c.NewSource(guest("b", 2, "red"))
	a.Scanout(plain(320, 180, red))
	r.c.Switch(a)
	r.settle()
	if wait := r.h.step(r.now); wait != never {
		t.Errorf("at rest the head wants to be called in %v", wait)
	}
	b.Scanout(plain(320, 180, green))
	b.Update(b.surface.Bounds())
	b.Update(b.surface.Bounds())
	if n := len(r.h.wake); n != 1 {
		t.Errorf("%d pokes by a hidden guest", n)
	}
}

func TestRefresh(t *testing.T) {
	r := newRig(t, Config{}, 320, 200)
	s := r.c.NewSource(guest("a", 1, "blue"))
	s.Scanout(plain(320, 180, red))
	r.c.Switch(s)
	r.settle()
	r.out.err = output.ErrInactive
	paint(s.surface, s.surface.Bounds(), green)
	s.Update(s.surface.Bounds())
	if r.settle(); r.out.pixel(100, 100) != red {
		t.Error("shown on a screen that is not ours")
	}
	r.out.err, r.out.front = nil, nil
	r.c.Refresh()
	r.settle()
	if got := r.out.pixel(100, 100); got != green {
		t.Errorf("after coming back: %06x", got)
	}
}

func TestMode(t *testing.T) {
	out := newScreen(320, 200)
	c := New(Config{})
	h, err := c.Add(out)
	if err != nil {
		t.Fatal(err)
	}
	s := c.NewSource(guest("a", 1, "blue"))
	s.Scanout(plain(320, 180, red))
	c.Switch(s)
	r := &rig{t: t, c: c, out: out, h: h, now: time.Now()}
	r.settle()
	r.h.step(r.now) // no flip pending
	s.Update(s.surface.Bounds())
	r.now = r.now.Add(time.Second)
	r.h.step(r.now) // a frame is on its way
	if err := out.SetMode(output.Mode{Width: 640, Height: 480}); err != nil {
		t.Fatal(err)
	}
	if err := h.setup(); err != nil {
		t.Fatal(err)
	}
	out.flip()
	r.h.flipped(r.now) // of the mode before
	r.settle()
	if h.GuestSize() != image.Pt(640, 458) || out.front.Width != 640 || out.pixel(320, 240) != red {
		t.Errorf("guest's size %v, buffer of %d, pixel %06x", h.GuestSize(), out.front.Width, out.pixel(320, 240))
	}
	for _, b := range out.buffers {
		if b.Width != 640 {
			t.Error("a buffer of the mode before is left")
		}
	}
}

func TestPin(t *testing.T) {
	c := New(Config{})
	var heads []*rig
	for range 2 {
		out := newScreen(320, 200)
		h, err := c.Add(out)
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, &rig{t: t, c: c, out: out, h: h, now: time.Now()})
	}
	a, b := c.NewSource(guest("a", 1, "blue")), c.NewSource(guest("b", 2, "green"))
	a.Scanout(plain(320, 180, red))
	b.Scanout(plain(320, 180, green))
	see := func(what string, left, right uint32) {
		t.Helper()
		for i, want := range []uint32{left, right} {
			heads[i].settle()
			if got := heads[i].out.pixel(100, 100); got != want {
				t.Errorf("%s: output %d shows %06x, want %06x", what, i, got, want)
			}
		}
	}
	c.Switch(a)
	see("mirror", red, red)
	c.Pin(heads[1].h, b)
	see("pinned", red, green)
	c.Switch(b)
	see("switched to the one that is pinned", red, green)
	c.Switch(a)
	see("and back", red, green)
	c.Pin(heads[1].h, nil)
	see("mirror again", red, red)
	c.Pin(heads[1].h, b)
	b.Close()
	see("the pinned one is gone", red, red)
}

// TestRun lets the head's goroutine run: what a switch shows comes by itself, and it ends when it is told, or when its
// output is gone.
func TestRun(t *testing.T) {
	out := newScreen(320, 200)
	c := New(Config{})
	h, err := c.Add(out)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.Run(t.Context()) }()
	s := c.NewSource(guest("a", 1, "blue"))
	s.Scanout(plain(320, 180, red))
	c.Switch(s)
	img, err := h.Screenshot()
	if err != nil {
		t.Fatal(err)
	}
	if got := img.RGBAAt(100, 100); got != (color.RGBA{0xff, 0, 0, 0xff}) {
		t.Errorf("screenshot has %v", got)
	}
	if err := h.SetMode(output.Mode{Width: 640, Height: 480}); err != nil {
		t.Fatal(err)
	}
	if img, err = h.Screenshot(); err != nil || img.Rect.Dx() != 640 {
		t.Errorf("screenshot of %v, %v", img.Rect, err)
	}
	close(out.flips)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !out.closed || len(c.Heads()) != 0 {
		t.Errorf("closed: %t, heads: %d", out.closed, len(c.Heads()))
	}
	if _, err := h.Screenshot(); err == nil {
		t.Error("a screenshot of an output that is gone")
	}
	s.Update(s.surface.Bounds())
	s.Close()
}

func TestAllocs(t *testing.T) {
	r := newRig(t, Config{}, 320, 200)
	r.out.hardware = true
	a, b := r.c.NewSource(guest("a", 1, "blue")), r.c.NewSource(guest("b", 2, "green"))
	a.Scanout(plain(320, 180, red))
	b.Scanout(plain(320, 180, green))
	a.Cursor(&display.Cursor{Width: 1, Height: 1, Pixels: make([]byte, 4)})
	r.c.Switch(b)
	r.settle()
	r.c.Switch(a)
	r.settle()
	var k int
	r.out.damage = make([]image.Rectangle, 0, 16)
	out := &quiet{r.out}
	r.h.out = out
	if n := testing.AllocsPerRun(100, func() {
		k++
		a.Update(image.Rect(k%100, k%100, k%100+20, k%100+20))
		a.MoveCursor(image.Pt(k, k))
		b.Update(image.Rect(0, 0, 5, 5))
		r.step()
	}); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

// quiet is a screen that keeps no damage.
type quiet struct{ *screen }

func (q *quiet) Present(b *output.Buffer, _ []image.Rectangle) error {
	q.next = b
	return nil
}
