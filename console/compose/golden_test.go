package compose

import (
	"flag"
	"image"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/vgpu/display"
)

var update = flag.Bool("update", false, "write the golden files anew")

// desktop returns a guest's screen: a picture, and at its top a bar that looks like ours and names another guest.
func desktop(t *testing.T, size image.Point) *display.Surface {
	t.Helper()
	s := plain(size.X, size.Y, 0)
	for y := range size.Y {
		for x := range size.X {
			copy(s.Pixels[y*s.Stride+4*x:], []byte{byte(120 + 80*y/size.Y), byte(60 + 90*x/size.X), byte(40 + 50*y/size.Y)})
		}
	}
	fonts, err := trustbar.NewFonts(size)
	if err != nil {
		t.Fatal(err)
	}
	bar := fonts.New(size.X)
	bank := guest("bank", 3, "green")
	bar.Set(trustbar.State{Guest: bank, Input: bank, Clock: "14:05"})
	p := bar.Picture()
	for y := range p.Height {
		copy(s.Pixels[y*s.Stride:], p.Pixels[y*p.Stride:][:4*size.X])
	}
	return s
}

// TestGolden compares whole screens with testdata/*.png.
func TestGolden(t *testing.T) {
	arrow := &display.Cursor{Width: 12, Height: 12}
	for y := range 12 {
		for x := range 12 {
			switch {
			case x > y || x+y > 16:
				arrow.Pixels = append(arrow.Pixels, 0, 0, 0, 0)
			case x == 0 || x == y || x+y == 16 || y == 11:
				arrow.Pixels = append(arrow.Pixels, 0, 0, 0, 255)
			default:
				arrow.Pixels = append(arrow.Pixels, 255, 255, 255, 255)
			}
		}
	}
	work := guest("work", 1, "blue")
	work.Label = "Company notebook"
	hung := trustbar.NotResponding(work, "Ctrl+Alt+Esc")
	for name, show := range map[string]func(r *rig, s *Source){
		"guest": func(r *rig, s *Source) {
			s.Scanout(desktop(t, r.h.GuestSize()))
			s.Cursor(arrow)
			s.MoveCursor(image.Pt(300, 200))
		},
		"not-responding": func(r *rig, s *Source) {
			s.Scanout(desktop(t, r.h.GuestSize()))
			s.SetPlacard(&hung, "not responding")
		},
		"small": func(_ *rig, s *Source) {
			s.Scanout(desktop(t, image.Pt(320, 200)))
			s.Cursor(arrow)
		},
		"starting": func(*rig, *Source) {},
		"no-guest": func(r *rig, _ *Source) { r.c.Switch(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{}, 800, 600)
			r.c.SetStatus(Status{Battery: trustbar.Battery{Present: true, Percent: 87}, Clock: "14:05", Hint: "Ctrl+Alt+Esc"})
			s := r.c.NewSource(work)
			r.c.Switch(s)
			show(r, s)
			r.settle()
			got := r.h.screenshot()
			for y := range 600 { // it is what is on the screen
				for x := range 800 {
					c := got.RGBAAt(x, y)
					if v := r.out.pixel(x, y); v != uint32(c.R)<<16|uint32(c.G)<<8|uint32(c.B) {
						t.Fatalf("(%d, %d) is %06x on the screen, %v in the screenshot", x, y, v, c)
					}
				}
			}
			compareGolden(t, filepath.Join("testdata", name+".png"), got)
		})
	}
}

func compareGolden(t *testing.T, file string, got *image.RGBA) {
	t.Helper()
	if *update {
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := png.Encode(f, got); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	want := image.NewRGBA(got.Rect)
	draw.Draw(want, want.Rect, img, image.Point{}, draw.Src)
	for y := range got.Rect.Dy() {
		for x := range got.Rect.Dx() {
			if g, w := got.RGBAAt(x, y), want.RGBAAt(x, y); g != w {
				t.Fatalf("%s: (%d, %d) is %v, want %v; look at the pictures that -update makes", file, x, y, g, w)
			}
		}
	}
}
