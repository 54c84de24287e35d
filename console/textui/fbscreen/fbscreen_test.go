package fbscreen

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3"

	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/vgpu/display"
)

var update = flag.Bool("update", false, "write the golden files anew")

// viewer is a sink that copies what it is shown, as the seat does: what is not told is not seen.
type viewer struct {
	mu       sync.Mutex
	surface  *display.Surface
	picture  *image.RGBA
	scanouts int
	pixels   int // that were copied
}

func (v *viewer) Scanout(s *display.Surface) {
	v.mu.Lock()
	v.surface, v.picture = s, image.NewRGBA(s.Bounds())
	v.scanouts++
	v.mu.Unlock()
	v.Update(s.Bounds())
}

func (v *viewer) Update(r image.Rectangle) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.surface.Mu.RLock()
	defer v.surface.Mu.RUnlock()
	v.pixels += r.Dx() * r.Dy()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			p := v.surface.Pixels[y*v.surface.Stride+4*x:]
			v.picture.SetRGBA(x, y, color.RGBA{p[2], p[1], p[0], p[3]})
		}
	}
}

func (v *viewer) Cursor(*display.Cursor) {}
func (v *viewer) MoveCursor(image.Point) {}

// is compares the picture with a file's.
func (v *viewer) is(file string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		return err
	}
	want := image.NewRGBA(img.Bounds())
	draw.Draw(want, want.Rect, img, img.Bounds().Min, draw.Src)
	if v.picture == nil || v.picture.Rect != want.Rect {
		return fmt.Errorf("the picture has another size than %v", want.Rect)
	}
	for y := range want.Rect.Dy() {
		for x := range want.Rect.Dx() {
			if g, w := v.picture.RGBAAt(x, y), want.RGBAAt(x, y); g != w {
				return fmt.Errorf("(%d, %d) is %v, want %v; look at the picture that -update makes", x, y, g, w)
			}
		}
	}
	return nil
}

func (v *viewer) golden(t *testing.T, file string) {
	t.Helper()
	if *update {
		time.Sleep(500 * time.Millisecond)
		v.mu.Lock()
		f, err := os.Create(file)
		if err == nil {
			err = errors.Join(png.Encode(f, v.picture), f.Close())
		}
		v.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	err := v.is(file)
	for deadline := time.Now().Add(20 * time.Second); err != nil; err = v.is(file) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", file, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// nobody looks.
type nobody struct{}

func (nobody) Scanout(*display.Surface) {}
func (nobody) Update(image.Rectangle)   {}
func (nobody) Cursor(*display.Cursor)   {}
func (nobody) MoveCursor(image.Point)   {}

// guests is a System that never changes.
type guests struct{}

func (guests) Guests(context.Context) ([]textui.Guest, error) {
	return []textui.Guest{
		{Name: "work", Color: "blue", Slot: 1, State: textui.Running, CPU: 12.4, CPUs: 2, Memory: 1 << 30, Resident: 212 << 20, Uptime: 2*time.Hour + 5*time.Minute},
		{Name: "home", Color: "green", Slot: 2, State: textui.Paused, CPUs: 1, Memory: 512 << 20, Resident: 300 << 20, Uptime: 42 * time.Second},
		{Name: "bank", Color: "yellow", Slot: 3, State: textui.Saved, CPU: -1, CPUs: 1, Memory: 512 << 20},
		{Name: "old-windows", Color: "red", Slot: 4, State: textui.Off, CPU: -1, CPUs: 1, Memory: 256 << 20},
	}, nil
}

func (guests) Details(context.Context, string) (textui.Details, error)                 { return textui.Details{}, nil }
func (guests) Log(context.Context, string, string, int) ([]byte, error)                { return nil, nil }
func (guests) Switch(context.Context, string) error                                    { return nil }
func (guests) Changed() <-chan struct{}                                                { return nil }
func (guests) Do(context.Context, string, textui.Command, func(textui.Progress)) error { return nil }

// run runs a console on a screen.
func run(t *testing.T, s *Screen) {
	t.Helper()
	app := textui.New(guests{}, s, textui.Options{Back: func() {}, Every: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- app.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestGolden shows the console on two screens, one of which is in the documentation: a screen of 1024×768 below the bar.
func TestGolden(t *testing.T) {
	for _, tc := range []struct {
		file string
		size image.Point
		keys []tcell.Key
	}{
		{"../../../docs/console.png", image.Pt(1024, 740), nil},
		{filepath.Join("testdata", "small.png"), image.Pt(640, 460), []tcell.Key{tcell.KeyDown}},
	} {
		t.Run(filepath.Base(tc.file), func(t *testing.T) {
			v := &viewer{}
			s := New(v)
			if err := s.Resize(tc.size); err != nil {
				t.Fatal(err)
			}
			run(t, s)
			for _, k := range tc.keys {
				s.Post(tcell.NewEventKey(k, "", tcell.ModNone))
			}
			v.golden(t, tc.file)
		})
	}
}

// There is room for 80×25 characters on any screen on which they can be read, and for more on large ones.
func TestSize(t *testing.T) {
	for _, tc := range []struct{ w, h, minW, minH, maxW int }{
		{640, 452, 80, 25, 200}, {800, 572, 80, 25, 120}, {1024, 740, 80, 25, 120}, {1366, 740, 80, 25, 170}, {1920, 1046, 80, 25, 140},
		{3840, 2096, 80, 25, 200}, {320, 200, 1, 1, 80}, {1, 1, 0, 0, 0},
	} {
		s := New(nobody{})
		if err := s.Resize(image.Pt(tc.w, tc.h)); err != nil {
			t.Fatal(err)
		}
		w, h := s.Size()
		t.Logf("%d×%d pixels: %d×%d characters of %v", tc.w, tc.h, w, h, s.font.cell)
		if w < tc.minW || h < tc.minH || w > tc.maxW {
			t.Errorf("%d×%d pixels have room for %d×%d characters", tc.w, tc.h, w, h)
		}
		s.Fill('#', tcell.StyleDefault)
		s.Show()
	}
	s := New(nobody{})
	for _, p := range []image.Point{{}, {-1, 5}, {5, -1}, {1 << 30, 1}, {1 << 20, 1 << 20}} {
		if err := s.Resize(p); err == nil && p != (image.Point{}) {
			t.Errorf("%v is a size", p)
		}
	}
	if w, h := s.Size(); w != 0 || h != 0 {
		t.Errorf("%d×%d characters", w, h)
	}
	s.Show() // to nobody
	s.Sync()
}

// Only what changes is drawn, and a character never leaves its cell.
func TestDamage(t *testing.T) {
	v := &viewer{}
	s := New(v)
	if err := s.Resize(image.Pt(800, 600)); err != nil {
		t.Fatal(err)
	}
	cell := s.font.cell
	before := v.pixels
	s.Show()
	if v.pixels != before {
		t.Errorf("%d pixels without a change", v.pixels-before)
	}
	for _, text := range []string{"W", "j", "g", "█", "世", "\U0001F600", "\u0301"} {
		s.Fill(' ', tcell.StyleDefault)
		s.Show()
		before := v.pixels
		_, n := s.Put(10, 10, text, tcell.StyleDefault.Bold(true).Reverse(true))
		s.Show()
		n = max(n, 1)
		if got := v.pixels - before; got != n*cell.X*cell.Y {
			t.Errorf("%q: %d pixels, want %d of %v", text, got, n, cell)
		}
		at := s.origin.Add(image.Pt(10*cell.X, 10*cell.Y))
		r := image.Rectangle{at, at.Add(image.Pt(n*cell.X, cell.Y))}
		for y := range 600 {
			for x := range 800 {
				p := s.surface.Pixels[y*s.surface.Stride+4*x:]
				if p := (color.RGBA{p[2], p[1], p[0], p[3]}); p != ground && !image.Pt(x, y).In(r) {
					t.Fatalf("%q: (%d, %d) is drawn, outside of %v", text, x, y, r)
				}
			}
		}
	}
	before = v.pixels
	s.Sync()
	if w, h := s.Size(); v.pixels-before != w*h*cell.X*cell.Y {
		t.Errorf("all was to be drawn anew, and %d pixels were", v.pixels-before)
	}
}

// A console that takes no events holds nobody up.
func TestPost(t *testing.T) {
	s := New(&viewer{})
	for range 10 * queueSize {
		s.Post(tcell.NewEventKey(tcell.KeyEnter, "", tcell.ModNone))
	}
	if n := len(s.events); n != queueSize {
		t.Errorf("%d events wait", n)
	}
}

// A screen that is resized while the console draws on it is whole afterwards.
func TestResizeWhileDrawing(t *testing.T) {
	v := &viewer{}
	s := New(v)
	run(t, s)
	for i := range 20 {
		if err := s.Resize(image.Pt(640+10*(i%5), 460)); err != nil {
			t.Fatal(err)
		}
		s.Post(tcell.NewEventKey(tcell.KeyDown, "", tcell.ModNone))
	}
	s.Post(tcell.NewEventKey(tcell.KeyHome, "", tcell.ModNone))
	s.Post(tcell.NewEventKey(tcell.KeyDown, "", tcell.ModNone))
	if err := s.Resize(image.Pt(640, 460)); err != nil {
		t.Fatal(err)
	}
	v.golden(t, filepath.Join("testdata", "small.png"))
}
