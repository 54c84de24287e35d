package kms

import (
	"context"
	"encoding/binary"
	"errors"
	"image"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/vgpu/display"
)

func open(t testing.TB, f *fake, opt Options) *Display {
	t.Helper()
	d, err := newDisplay(&Card{path: "card0", dev: f}, opt)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// scan returns the screens that are new.
func scan(t testing.TB, d *Display) []*Screen {
	t.Helper()
	s, err := d.Scan()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// refresh lets the screens refresh once.
func refresh(t testing.TB, d *Display, s *Screen) output.Flip {
	t.Helper()
	if len(s.flips) == 0 {
		if err := d.card.ReadEvents(d.flipped); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case f := <-s.Flips():
		return f
	default:
		t.Fatal("no flip")
		panic(0)
	}
}

func present(t testing.TB, s *Screen, b *output.Buffer, damage ...image.Rectangle) {
	t.Helper()
	if err := s.Present(b, damage); err != nil {
		t.Fatal(err)
	}
}

func buffer(t testing.TB, s *Screen) *output.Buffer {
	t.Helper()
	b, err := s.NewBuffer()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// edid returns an EDID with the given serial number.
func edid(serial uint32) []byte {
	e := make([]byte, 128)
	copy(e, []byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x10, 0xac})
	binary.LittleEndian.PutUint32(e[12:], serial)
	for _, v := range e[:127] {
		e[127] -= v
	}
	return e
}

// kinds are the ways in which modes are set.
func kinds(t *testing.T, test func(t *testing.T, f *fake)) {
	for name, f := range map[string]*fake{
		"atomic":                   newFake(),
		"atomic without damage":    {noDamage: true},
		"legacy":                   {noAtomic: true},
		"legacy without flips":     {noAtomic: true, noFlip: true},
		"legacy without DIRTYFB":   {noAtomic: true, noDirty: true},
		"legacy with nothing else": {noAtomic: true, noDirty: true, noFlip: true},
	} {
		full := newFake()
		full.noAtomic, full.noFlip, full.noDirty, full.noDamage = f.noAtomic, f.noFlip, f.noDirty, f.noDamage
		t.Run(name, func(t *testing.T) { test(t, full) })
	}
}

func TestPresent(t *testing.T) {
	kinds(t, func(t *testing.T, f *fake) {
		f.blobs[9] = edid(0x1234)
		f.connectors[0].edid = 9
		d := open(t, f, Options{})
		if d.Atomic() == f.noAtomic {
			t.Errorf("atomic: %t", d.Atomic())
		}
		screens := scan(t, d)
		if len(screens) != 1 {
			t.Fatalf("%d screens", len(screens))
		}
		s := screens[0]
		want := output.Info{Name: "eDP-1", Monitor: "DEL-0000-00001234", WidthMM: 300, HeightMM: 200, Internal: true}
		if diff := cmp.Diff(want, s.Info()); diff != "" {
			t.Errorf("info (-want +got):\n%s", diff)
		}
		modes := []output.Mode{{Width: 1024, Height: 768, RefreshMilliHz: 59999, Preferred: true}, {Width: 800, Height: 600, RefreshMilliHz: 60000}}
		if diff := cmp.Diff(modes, s.Modes()); diff != "" {
			t.Errorf("modes (-want +got):\n%s", diff)
		}
		if s.Mode() != modes[0] {
			t.Errorf("mode %v", s.Mode())
		}

		a, b := buffer(t, s), buffer(t, s)
		if len(a.Pixels) != a.Stride*a.Height || a.Stride != 1024*4+64 {
			t.Errorf("buffer of %d bytes, stride %d", len(a.Pixels), a.Stride)
		}
		present(t, s, a)
		if c := f.crtcs[0]; c.fb != a.ID || !c.active || c.mode.HDisplay != 1024 {
			t.Errorf("CRTC %+v", c)
		}
		if !f.noFlip && !f.noAtomic {
			if err := s.Present(b, nil); !errors.Is(err, output.ErrBusy) {
				t.Errorf("while a frame is on its way: %v", err)
			}
		}
		refresh(t, d, s)
		sets := f.modesets
		present(t, s, b, image.Rect(1, 2, 3, 4), image.Rect(5, 6, 700, 700))
		flip := refresh(t, d, s)
		if f.crtcs[0].fb != b.ID {
			t.Errorf("shows framebuffer %d, want %d", f.crtcs[0].fb, b.ID)
		}
		if !f.noFlip {
			if f.modesets != sets {
				t.Errorf("%d modes set for a flip", f.modesets-sets)
			}
			if diff := cmp.Diff(output.Flip{Sequence: 77, Time: 5 * time.Second}, flip); diff != "" {
				t.Errorf("flip (-want +got):\n%s", diff)
			}
		}
		switch {
		case !f.noAtomic && !f.noDamage:
			if !slices.Equal(f.damage, []modeRect{{1, 2, 3, 4}, {5, 6, 700, 700}}) {
				t.Errorf("damage %v", f.damage)
			}
		case f.noAtomic && !f.noDirty:
			if !slices.Equal(f.clips, []clipRect{{1, 2, 3, 4}, {5, 6, 700, 700}}) {
				t.Errorf("clips %v", f.clips)
			}
		}
		present(t, s, a)
		refresh(t, d, s)
		if f.damage != nil {
			t.Errorf("damage of all: %v", f.damage)
		}

		// Another mode.
		if err := s.SetMode(output.Mode{Width: 800, Height: 600}); err != nil {
			t.Fatal(err)
		}
		if err := s.SetMode(output.Mode{Width: 801, Height: 600}); err == nil {
			t.Error("a mode was set that there is not")
		}
		if err := s.Present(a, nil); err == nil {
			t.Error("a buffer of another mode was shown")
		}
		c := buffer(t, s)
		present(t, s, c)
		refresh(t, d, s)
		if f.crtcs[0].mode.HDisplay != 800 {
			t.Errorf("mode of %d pixels", f.crtcs[0].mode.HDisplay)
		}

		// And nothing is left, save what was there before.
		s.FreeBuffer(a)
		s.FreeBuffer(b)
		if err := errors.Join(s.Close(), d.Close()); err != nil {
			t.Error(err)
		}
		if len(f.dumbs) != 0 || len(f.fbs) != 1 || len(f.blobs) != 1 || !f.closed {
			t.Errorf("left: %d buffers, %d framebuffers, %d blobs; closed: %t", len(f.dumbs), len(f.fbs), len(f.blobs), f.closed)
		}
		if c := f.crtcs[0]; !c.active || c.fb != 7 || c.mode.HDisplay != 1024 {
			t.Errorf("the text console is not back: %+v", c)
		}
	})
}

// TestRelease hands the card to another program and takes it back.
func TestRelease(t *testing.T) {
	kinds(t, func(t *testing.T, f *fake) {
		d := open(t, f, Options{})
		s := scan(t, d)[0]
		b := buffer(t, s)
		present(t, s, b)
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		<-s.Flips() // one for each Present, even now
		if f.master {
			t.Error("still the master")
		}
		for _, err := range []error{s.Present(b, nil), s.SetCursor(nil), s.MoveCursor(image.Pt(1, 1))} {
			if !errors.Is(err, output.ErrInactive) {
				t.Errorf("while it is another's: %v", err)
			}
		}
		f.crtcs[0].fb, f.crtcs[0].mode, f.crtcs[0].busy = 7, mode(640, 480, 0), false // what the other does
		for len(f.events) > 0 {
			_ = d.card.ReadEvents(d.flipped) // late
		}
		f.otherHasIt = true
		if err := d.Acquire(); err == nil {
			t.Error("taken from another")
		}
		f.otherHasIt = false
		if err := d.Acquire(); err != nil {
			t.Fatal(err)
		}
		present(t, s, b)
		refresh(t, d, s)
		if c := f.crtcs[0]; c.fb != b.ID || c.mode.HDisplay != 1024 {
			t.Errorf("not back: %+v", c)
		}
	})
}

func TestHotplug(t *testing.T) {
	kinds(t, func(t *testing.T, f *fake) {
		f.blobs[9], f.blobs[10] = edid(1), edid(2)
		d := open(t, f, Options{})
		panel := scan(t, d)[0]
		present(t, panel, buffer(t, panel))
		refresh(t, d, panel)
		if s := scan(t, d); len(s) != 0 {
			t.Errorf("%d new screens, though nothing happened", len(s))
		}
		hdmi := f.connectors[1]
		hdmi.plugged, hdmi.edid = true, 9
		if s := scan(t, d); len(s) != 0 {
			t.Error("a monitor was shown on a CRTC that is in use: it can have no other")
		}
		hdmi.possible = 2
		s := scan(t, d)
		if len(s) != 1 || s[0].Info().Name != "HDMI-A-1" || s[0].Info().Monitor != "DEL-0000-00000001" || s[0].Info().Internal {
			t.Fatalf("plugged in: %v", s)
		}
		first := s[0]
		present(t, first, buffer(t, first))
		refresh(t, d, first)
		if c := f.crtcs[1]; !c.active || hdmi.crtc != c.id {
			t.Errorf("CRTC %+v of connector %+v", c, hdmi)
		}
		hdmi.edid = 10 // another monitor
		s = scan(t, d)
		if len(s) != 1 || s[0].Info().Monitor != "DEL-0000-00000002" {
			t.Fatalf("another monitor: %v", s)
		}
		if _, ok := <-first.Flips(); ok {
			t.Error("the first monitor is there still")
		}
		if err := first.Present(&output.Buffer{Width: 1920, Height: 1080}, nil); !errors.Is(err, output.ErrInactive) {
			t.Errorf("on a monitor that is gone: %v", err)
		}
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		second := s[0]
		present(t, second, buffer(t, second))
		refresh(t, d, second)
		hdmi.plugged = false
		scan(t, d)
		if _, ok := <-second.Flips(); ok {
			t.Error("an unplugged monitor is there still")
		}
		if f.crtcs[1].active || !f.crtcs[0].active {
			t.Errorf("after unplugging: %+v, %+v", f.crtcs[0], f.crtcs[1])
		}
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestLeftOver finds the connector at a CRTC that another program has left on, so that the kernel refuses to move it.
func TestLeftOver(t *testing.T) {
	f := newFake()
	f.connectors[0].crtc = 52
	f.connectors[0].possible = 1 // of the other
	f.crtcs[1].active, f.crtcs[1].fb = true, 7
	f.crtcs[0].active = false
	d := open(t, f, Options{})
	s := scan(t, d)[0]
	present(t, s, buffer(t, s))
	refresh(t, d, s)
	if !f.crtcs[0].active || f.crtcs[1].active || f.connectors[0].crtc != 51 {
		t.Errorf("CRTCs %+v and %+v, connector at %d", f.crtcs[0], f.crtcs[1], f.connectors[0].crtc)
	}
}

// TestLeftOverPlane finds a plane that another program has left on: it could lie above the bar.
func TestLeftOverPlane(t *testing.T) {
	for _, noOverlay := range []bool{false, true} {
		f := newFake()
		f.noOverlay = noOverlay
		f.over.crtc, f.over.fb = 51, 7
		d := open(t, f, Options{})
		s := scan(t, d)[0]
		present(t, s, buffer(t, s))
		refresh(t, d, s)
		if f.over.crtc != 0 || f.over.fb != 0 {
			t.Errorf("the plane is left on: %+v (an overlay for us: %t)", f.over, !noOverlay)
		}
	}
}

func TestCursor(t *testing.T) {
	cursor := func(w, h int) *display.Cursor {
		return &display.Cursor{Width: w, Height: h, Hot: image.Pt(1, 2), Pixels: slices.Repeat([]byte{1, 2, 3, 4}, w*h)}
	}
	f := newFake()
	d := open(t, f, Options{})
	s := scan(t, d)[0]
	if err := s.SetCursor(cursor(2, 3)); err != nil {
		t.Fatal(err)
	}
	got := f.cursor
	if got.width != 32 || got.height != 32 || got.hotX != 1 || got.hotY != 2 || got.crtc != 51 {
		t.Errorf("cursor %+v", got)
	}
	mem := f.dumbs[got.handle]
	pitch := 32*4 + 64
	for _, k := range []struct {
		x, y int
		want byte
	}{{0, 0, 1}, {1, 2, 1}, {2, 0, 0}, {0, 3, 0}} {
		if mem[k.y*pitch+4*k.x] != k.want {
			t.Errorf("(%d, %d) is %d, want %d", k.x, k.y, mem[k.y*pitch+4*k.x], k.want)
		}
	}
	if err := s.MoveCursor(image.Pt(100, 50)); err != nil || f.at != [2]int32{99, 48} {
		t.Errorf("moved to %v, %v", f.at, err)
	}
	if err := s.SetCursor(cursor(33, 3)); !errors.Is(err, output.ErrNoCursor) || f.cursor.handle != 0 {
		t.Errorf("too large: %v, cursor %+v", err, f.cursor)
	}
	if err := s.SetCursor(cursor(32, 32)); err != nil || f.cursor.handle == got.handle {
		t.Errorf("next: %v, drawn into what is shown: %t", err, f.cursor.handle == got.handle)
	}
	if err := s.SetCursor(nil); err != nil || f.cursor.handle != 0 {
		t.Errorf("hidden: %v, %+v", err, f.cursor)
	}
	if err := s.Close(); err != nil || len(f.dumbs) != 0 {
		t.Errorf("%v; %d buffers are left", err, len(f.dumbs))
	}

	without := newFake()
	without.noCursor = true
	s = scan(t, open(t, without, Options{}))[0]
	for range 2 {
		if err := s.SetCursor(cursor(2, 2)); !errors.Is(err, output.ErrNoCursor) {
			t.Errorf("without hardware: %v", err)
		}
	}
	if err := s.SetCursor(nil); err != nil {
		t.Errorf("hidden without hardware: %v", err)
	}
	s = scan(t, open(t, newFake(), Options{SoftCursor: true}))[0]
	if err := s.SetCursor(cursor(2, 2)); !errors.Is(err, output.ErrNoCursor) {
		t.Errorf("not wanted: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	f := newFake()
	f.otherHasIt = true
	if _, err := newDisplay(&Card{path: "card0", dev: f}, Options{}); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("another's card: %v", err)
	}
	if _, err := OpenDisplay("/dev/null", Options{}); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("no card: %v", err)
	}
	if _, err := OpenDisplay("/nonexistent/card0", Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

func TestImport(t *testing.T) {
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, f := range map[string]*fake{"no PRIME": {}, "refused": {prime: true, noImport: true}} {
		c := &Card{path: "card0", dev: f}
		if _, err := c.Import(file, 64, 64, 256, display.XRGB8888); !errors.Is(err, ErrNoImport) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMatch(t *testing.T) {
	for name, tt := range map[string]struct {
		can  [][]int
		n    int
		want []int
	}{
		"none":        {nil, 2, []int{}},
		"first":       {[][]int{{1, 0}}, 2, []int{1}},
		"both":        {[][]int{{0, 1}, {0}}, 2, []int{1, 0}},
		"chain":       {[][]int{{0, 1}, {0, 2}, {0}}, 3, []int{1, 2, 0}},
		"too many":    {[][]int{{0}, {0}, {}}, 1, []int{0, -1, -1}},
		"no encoders": {[][]int{nil}, 0, []int{-1}},
	} {
		got := match(tt.can, tt.n)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestConnectorName(t *testing.T) {
	for kind, want := range map[uint32]string{1: "VGA-3", 7: "LVDS-3", 11: "HDMI-A-3", 14: "eDP-3", 15: "Virtual-3", 99: "Unknown-3"} {
		if got := (&Connector{Type: kind, TypeID: 3}).Name(); got != want {
			t.Errorf("type %d: %q, want %q", kind, got, want)
		}
	}
}

// TestRun shows a guest on a card: compositor, monitors, events, all together.
func TestRun(t *testing.T) {
	kinds(t, func(t *testing.T, f *fake) {
		d := open(t, f, Options{})
		switched := make(chan string, 16)
		c := compose.New(compose.Config{OnSwitch: func(s compose.Switched) { switched <- s.Output }})
		ctx, cancel := context.WithCancel(t.Context())
		var heads sync.WaitGroup
		ran := make(chan error, 1)
		go func() {
			ran <- d.Run(ctx, func(s *Screen) {
				h, err := c.Add(s)
				if err != nil {
					t.Error(err)
					return
				}
				heads.Go(func() {
					if err := h.Run(ctx); err != nil {
						t.Error(err)
					}
				})
			})
		}()
		<-switched
		src := c.NewSource(trustbar.Guest{Name: "work", Slot: 1})
		size := compose.GuestSize(image.Pt(1024, 768))
		red := &display.Surface{Width: size.X, Height: size.Y, Stride: 4 * size.X, Format: display.XRGB8888}
		red.Pixels = slices.Repeat([]byte{1, 2, 3, 0}, size.X*size.Y)
		src.Scanout(red)
		c.Switch(src)
		if got := <-switched; got != "eDP-1" {
			t.Errorf("switched on %q", got)
		}
		pixel := func() (p [4]byte) {
			f.mu.Lock()
			defer f.mu.Unlock()
			copy(p[:], f.dumbs[f.fbs[f.crtcs[0].fb]][500*(1024*4+64):])
			return p
		}
		if got := pixel(); got != [4]byte{1, 2, 3, 0} {
			t.Errorf("on the monitor: %v", got)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		heads.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if len(f.dumbs) != 0 || len(f.fbs) != 1 || len(f.blobs) != 0 {
			t.Errorf("left: %d buffers, %d framebuffers, %d blobs", len(f.dumbs), len(f.fbs), len(f.blobs))
		}
	})
}

func TestAllocs(t *testing.T) {
	f := newFake()
	d := open(t, f, Options{})
	s := scan(t, d)[0]
	bufs := [2]*output.Buffer{buffer(t, s), buffer(t, s)}
	present(t, s, bufs[0])
	refresh(t, d, s)
	if err := s.SetCursor(&display.Cursor{Width: 1, Height: 1, Pixels: make([]byte, 4)}); err != nil {
		t.Fatal(err)
	}
	s.d.card.dev = &deaf{f}
	damage := []image.Rectangle{{image.Pt(1, 2), image.Pt(3, 4)}, {image.Pt(5, 6), image.Pt(7, 8)}}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		i++
		if err := s.Present(bufs[i%2], damage); err != nil {
			t.Fatal(err)
		}
		s.flipped(s.serial, output.Flip{})
		<-s.Flips()
		if err := s.MoveCursor(image.Pt(i, i)); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

// FuzzEvents reads what a kernel would never send.
func FuzzEvents(f *testing.F) {
	e := make([]byte, eventVBlank)
	binary.NativeEndian.PutUint32(e, eventFlipComplete)
	binary.NativeEndian.PutUint32(e[4:], eventVBlank)
	f.Add(e)
	f.Add(append(slices.Clone(e), e...))
	f.Add([]byte{2, 0, 0, 0, 8, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		if err := parseEvents(b, func(Event) { n++ }); n > len(b)/eventVBlank || err == nil && len(b)%4 != 0 && len(b) < eventSize {
			t.Errorf("%d events in %d bytes, %v", n, len(b), err)
		}
	})
}
