package fbscreen

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"image"
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
	mu      sync.Mutex
	surface *display.Surface
	picture []byte // XRGB8888, without gaps
	pixels  int    // that were copied
}

func (v *viewer) Scanout(s *display.Surface) {
	v.mu.Lock()
	v.surface, v.picture = s, make([]byte, 4*s.Width*s.Height)
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
		copy(v.picture[4*(y*v.surface.Width+r.Min.X):], v.surface.Pixels[y*v.surface.Stride:][4*r.Min.X:4*r.Max.X])
	}
}

func (v *viewer) Cursor(*display.Cursor) {}
func (v *viewer) MoveCursor(image.Point) {}

// load reads a golden file as a viewer's picture.
func load(t *testing.T, file string) (picture []byte, size image.Point) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	rgba := image.NewRGBA(img.Bounds())
	draw.Draw(rgba, rgba.Rect, img, rgba.Rect.Min, draw.Src)
	return swapped(rgba.Pix), rgba.Rect.Size()
}

// swapped returns pixels with red and blue exchanged.
func swapped(p []byte) []byte {
	p = bytes.Clone(p)
	for i := 0; i < len(p); i += 4 {
		p[i], p[i+2] = p[i+2], p[i]
	}
	return p
}

// golden waits until the picture is that of a file.
func (v *viewer) golden(t *testing.T, file string) {
	t.Helper()
	if *update {
		time.Sleep(500 * time.Millisecond)
		v.mu.Lock()
		f, err := os.Create(file)
		if err == nil {
			img := &image.RGBA{Pix: swapped(v.picture), Stride: 4 * v.surface.Width, Rect: v.surface.Bounds()}
			err = errors.Join(png.Encode(f, img), f.Close())
		}
		v.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	want, size := load(t, file)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		v.mu.Lock()
		same := v.surface != nil && v.surface.Bounds().Size() == size && bytes.Equal(v.picture, want)
		v.mu.Unlock()
		if same {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the picture is not that of %s; look at the one that -update makes", file)
		}
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
	}{
		{"../../../docs/console.png", image.Pt(1024, 740)},
		{filepath.Join("testdata", "small.png"), image.Pt(640, 460)},
	} {
		t.Run(filepath.Base(tc.file), func(t *testing.T) {
			v := &viewer{}
			s := New(v)
			if err := s.Resize(tc.size); err != nil {
				t.Fatal(err)
			}
			run(t, s)
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
	if err := s.Resize(image.Pt(640, 460)); err != nil {
		t.Fatal(err)
	}
	cell := s.font.cell
	before := v.pixels
	s.Show()
	if v.pixels != before {
		t.Errorf("%d pixels without a change", v.pixels-before)
	}
	empty := bytes.Clone(v.picture)
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
		inside := bytes.Clone(s.surface.Pixels)
		for y := at.Y; y < at.Y+cell.Y; y++ {
			row := inside[y*s.surface.Stride:][4*at.X : 4*(at.X+n*cell.X)]
			copy(row, empty[y*s.surface.Stride+4*at.X:])
		}
		if !bytes.Equal(inside, empty) {
			t.Errorf("%q is drawn outside of its cell too", text)
		}
		if bytes.Equal(s.surface.Pixels, empty) {
			t.Errorf("%q is not drawn", text)
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
	for i := range 8 {
		if err := s.Resize(image.Pt(640+10*(i%5), 460)); err != nil {
			t.Fatal(err)
		}
		s.Post(tcell.NewEventKey(tcell.KeyDown, "", tcell.ModNone))
	}
	s.Post(tcell.NewEventKey(tcell.KeyHome, "", tcell.ModNone))
	if err := s.Resize(image.Pt(640, 460)); err != nil {
		t.Fatal(err)
	}
	v.golden(t, filepath.Join("testdata", "small.png"))
}
