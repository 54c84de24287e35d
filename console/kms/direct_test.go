package kms

import (
	"errors"
	"image"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/vgpu/display"
)

// picture returns a guest's picture. To the fake every file is a dmabuf.
func picture(t testing.TB, w, h int) *display.Surface {
	t.Helper()
	fd, err := unix.MemfdCreate("picture", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "picture")
	t.Cleanup(func() { f.Close() })
	return &display.Surface{Width: w, Height: h, Stride: 4 * w, Format: display.ARGB8888, DMABuf: f}
}

// directRig is a screen on which a frame was shown, with the mode.
func directRig(t testing.TB, f *fake) (d *Display, s *Screen, b *output.Buffer) {
	t.Helper()
	f.prime = true
	d = open(t, f, Options{})
	s = scan(t, d)[0]
	b = buffer(t, s)
	if err := s.PresentDirect(b, nil, output.Direct{Surface: picture(t, 1024, 740), Rect: image.Rect(0, 28, 1024, 768)}); !errors.Is(err, output.ErrNoDirect) {
		t.Errorf("before the mode is set: %v", err)
	}
	present(t, s, b)
	refresh(t, d, s)
	return d, s, b
}

// area is where guests are.
var area = image.Rect(0, 28, 1024, 768)

func TestPresentDirect(t *testing.T) {
	f := newFake()
	d, s, b := directRig(t, f)
	p := picture(t, 1024, 740)
	show := func(p *display.Surface, damage ...image.Rectangle) {
		t.Helper()
		if err := s.PresentDirect(b, nil, output.Direct{Surface: p, Rect: area, Damage: damage}); err != nil {
			t.Fatal(err)
		}
		refresh(t, d, s)
	}
	show(p)
	want := fakePlane{fb: f.over.fb, crtc: 51, src: [4]uint32{0, 0, 1024, 740}, dst: [4]uint32{0, 28, 1024, 740}}
	if diff := cmp.Diff(want, f.over, cmp.AllowUnexported(fakePlane{}, modeRect{})); diff != "" || f.over.fb == 0 {
		t.Error(diff)
	}
	if f.crtcs[0].fb != b.ID || f.tests != 1 || len(f.handles) != 0 {
		t.Errorf("the buffer is %d, want %d; %d commits were tried; handles %v", f.crtcs[0].fb, b.ID, f.tests, f.handles)
	}
	show(p, image.Rect(10, 30, 20, 50)) // the same one is imported and tried once
	if f.over.fb != want.fb || f.tests != 1 || len(f.over.damage) != 1 || f.over.damage[0] != (modeRect{10, 2, 20, 22}) {
		t.Errorf("again: %+v, %d commits were tried", f.over, f.tests)
	}
	other := picture(t, 1100, 800) // of which the upper left part is seen
	show(other)
	if f.over.fb == want.fb || f.over.src != want.src || f.tests != 2 {
		t.Errorf("another: %+v, %d commits were tried", f.over, f.tests)
	}
	for range 20 { // many come, and the host does not keep them all
		show(picture(t, 1024, 740))
	}
	if n := len(f.fbs); n > maxImports+2 { // the text console's and ours
		t.Errorf("%d framebuffers", n)
	}

	// A copy ends it, and with the next one nothing of the guest's is kept.
	present(t, s, b)
	refresh(t, d, s)
	if f.over.fb != 0 || f.over.crtc != 0 {
		t.Errorf("still over it: %+v", f.over)
	}
	present(t, s, b)
	refresh(t, d, s)
	if n := len(f.fbs); n != 2 {
		t.Errorf("%d framebuffers", n)
	}
	show(p)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := len(f.fbs); n != 1 || len(f.blobs) != 0 {
		t.Errorf("%d framebuffers and %d blobs are left", n, len(f.blobs))
	}
}

// Wherever it cannot be done the picture has to be copied, and is not tried at each frame.
func TestNoDirect(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(f *fake)
		rect   image.Rectangle
		p      *display.Surface
	}{
		"no import":      {func(f *fake) { f.noImport = true }, area, picture(t, 1024, 740)},
		"no PRIME":       {func(f *fake) { f.prime = false }, area, picture(t, 1024, 740)},
		"no overlay":     {func(f *fake) { f.noOverlay = true }, area, picture(t, 1024, 740)},
		"legacy":         {func(f *fake) { f.noAtomic = true }, area, picture(t, 1024, 740)},
		"refused":        {func(f *fake) { f.refuses = true }, area, picture(t, 1024, 740)},
		"small":          {func(*fake) {}, area, picture(t, 1023, 740)},
		"nothing":        {func(*fake) {}, image.Rect(5, 5, 5, 5), picture(t, 1024, 740)},
		"off the screen": {func(*fake) {}, area.Add(image.Pt(1, 0)), picture(t, 1024, 740)},
		"no dmabuf":      {func(*fake) {}, area, &display.Surface{Width: 1024, Height: 740, Stride: 4096, Format: display.XRGB8888}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.noOverlay, f.noAtomic = name == "no overlay", name == "legacy"
			d, s, b := directRig(t, f)
			tt.change(f)
			for range 3 {
				if err := s.PresentDirect(b, nil, output.Direct{Surface: tt.p, Rect: tt.rect}); !errors.Is(err, output.ErrNoDirect) {
					t.Errorf("%v", err)
				}
				present(t, s, b) // a copy
				refresh(t, d, s)
			}
			if f.over.fb != 0 || len(f.fbs) != 2 || len(f.handles) != 0 {
				t.Errorf("%+v, %d framebuffers, handles %v", f.over, len(f.fbs), f.handles)
			}
		})
	}
}

// Another program has the screen for a while, and leaves its own picture in the plane.
func TestDirectReleased(t *testing.T) {
	f := newFake()
	d, s, b := directRig(t, f)
	p := output.Direct{Surface: picture(t, 1024, 740), Rect: area}
	if err := s.PresentDirect(b, nil, p); err != nil {
		t.Fatal(err)
	}
	if err := s.PresentDirect(b, nil, p); !errors.Is(err, output.ErrBusy) {
		t.Errorf("while a frame is on its way: %v", err)
	}
	refresh(t, d, s)
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	if err := s.PresentDirect(b, nil, p); !errors.Is(err, output.ErrInactive) {
		t.Errorf("without the card: %v", err)
	}
	f.over = fakePlane{fb: 7, crtc: 51}
	if err := d.Acquire(); err != nil {
		t.Fatal(err)
	}
	present(t, s, b)
	refresh(t, d, s)
	if f.over.fb != 0 {
		t.Errorf("the other program's picture is still there: %+v", f.over)
	}
}
