package compose

import (
	"errors"
	"image"
	"os"
	"slices"
	"testing"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/vgpu/display"
)

// planes is a screen that can show a guest's picture where it is.
type planes struct {
	*screen
	no      error // of PresentDirect
	over    *output.Direct
	directs int
}

func (p *planes) PresentDirect(b *output.Buffer, damage []image.Rectangle, d output.Direct) error {
	if p.no != nil {
		return p.no
	}
	if err := p.screen.Present(b, damage); err != nil {
		return err
	}
	d.Damage = slices.Clone(d.Damage)
	p.over = &d
	p.directs++
	return nil
}

func (p *planes) Present(b *output.Buffer, damage []image.Rectangle) error {
	err := p.screen.Present(b, damage)
	if err == nil {
		p.over = nil
	}
	return err
}

// directRig is a rig whose output can show pictures where they are, with a guest on it whose memory drivers can read.
func newDirectRig(t *testing.T) (r *rig, out *planes, src *Source, f *display.Surface) {
	t.Helper()
	out = &planes{screen: newScreen(320, 240)}
	r = &rig{t: t, c: New(Config{}), out: out.screen}
	var err error
	if r.h, err = r.c.Add(out); err != nil {
		t.Fatal(err)
	}
	src = r.c.NewSource(trustbar.Guest{Name: "direct"})
	f = dmabufSurface(t, GuestSize(image.Pt(320, 240)), 0x112233)
	src.Scanout(f)
	r.c.Switch(src)
	r.settle()
	return r, out, src, f
}

// dmabufSurface returns a surface of one colour. That its file is no dmabuf nobody here finds out.
func dmabufSurface(t *testing.T, size image.Point, c uint32) *display.Surface {
	t.Helper()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	f := &display.Surface{Width: size.X, Height: size.Y, Stride: 4 * size.X, Format: display.XRGB8888, DMABuf: file}
	f.Pixels = make([]byte, f.Stride*f.Height)
	for i := 0; i < len(f.Pixels); i += 4 {
		f.Pixels[i], f.Pixels[i+1], f.Pixels[i+2] = byte(c), byte(c>>8), byte(c>>16)
	}
	return f
}

func TestDirect(t *testing.T) {
	r, out, src, f := newDirectRig(t)
	area := image.Rect(0, 240-f.Height, 320, 240)
	if out.over == nil || out.over.Surface != f || out.over.Rect != area {
		t.Fatalf("the picture is not shown where it is: %d frames", out.directs)
	}
	if got := r.out.pixel(160, 200); got == 0x112233 {
		t.Error("it was copied as well")
	}
	n := out.directs
	r.settle()
	if out.directs != n {
		t.Errorf("%d frames without a change", out.directs-n)
	}
	src.Update(image.Rect(5, 6, 15, 16)) // one update, one frame, and what has changed
	r.settle()
	if want := []image.Rectangle{image.Rect(5, 6, 15, 16).Add(area.Min)}; out.directs != n+1 || !slices.Equal(out.over.Damage, want) {
		t.Errorf("%d frames for an update; damage %v, want %v", out.directs-n, out.over.Damage, want)
	}
	next := dmabufSurface(t, f.Bounds().Max, 0x445566) // the guest turns to its other buffer
	src.Scanout(next)
	r.settle()
	if out.over == nil || out.over.Surface != next || len(out.over.Damage) != 0 {
		t.Errorf("the other buffer: %+v", out.over != nil)
	}

	// A placard over it, and it is copied; then it is direct again.
	src.SetPlacard(&trustbar.Placard{Title: "wait"}, "")
	r.settle()
	if out.over != nil {
		t.Error("a placard is below the guest's picture")
	}
	if got := r.out.pixel(3, 235); got != 0x445566 {
		t.Errorf("around the placard is %#x", got)
	}
	src.SetPlacard(nil, "")
	r.settle()
	if out.over == nil {
		t.Error("it stays copied")
	}

	// Another guest, whose memory drivers cannot read, and back.
	other := r.c.NewSource(trustbar.Guest{Name: "other"})
	g := dmabufSurface(t, f.Bounds().Max, 0x777777)
	g.DMABuf = nil
	other.Scanout(g)
	r.c.Switch(other)
	r.settle()
	if got := r.out.pixel(160, 200); out.over != nil || got != 0x777777 {
		t.Errorf("the other guest: %#x, below a picture: %t", got, out.over != nil)
	}
	r.c.Switch(src)
	r.settle()
	if out.over == nil || out.over.Surface != next {
		t.Error("it is not direct when it comes back")
	}
	src.Close()
	r.settle()
	if out.over != nil {
		t.Error("the picture of a guest that is gone")
	}
}

// What the output refuses, and pictures that there is something to draw over or around, are copied, whole and with what has
// changed meanwhile.
func TestDirectRefused(t *testing.T) {
	small := func(f *display.Surface) *display.Surface {
		return &display.Surface{Width: f.Width, Height: f.Height - 1, Stride: f.Stride, Format: f.Format, Pixels: f.Pixels, DMABuf: f.DMABuf}
	}
	for name, change := range map[string]func(out *planes, src *Source, f *display.Surface){
		"refused":           func(out *planes, _ *Source, _ *display.Surface) { out.no = output.ErrNoDirect },
		"smaller":           func(_ *planes, src *Source, f *display.Surface) { src.Scanout(small(f)) },
		"a pointer is over": func(_ *planes, src *Source, _ *display.Surface) { src.MoveCursor(image.Pt(9, 9)); src.Cursor(arrow()) },
	} {
		t.Run(name, func(t *testing.T) {
			r, out, src, f := newDirectRig(t)
			change(out, src, f)
			for i := range f.Pixels[:4*320] {
				f.Pixels[i] = 0x99
			}
			src.Update(image.Rect(0, 0, 320, 1))
			r.settle()
			top := 240 - f.Height
			if out.over != nil || r.out.pixel(100, top) != 0x999999 || r.out.pixel(100, 200) != 0x112233 {
				t.Errorf("over it: %t; the pixels are %#x and %#x", out.over != nil, r.out.pixel(100, top), r.out.pixel(100, 200))
			}
			n := r.out.presents
			r.settle()
			if r.out.presents != n {
				t.Errorf("%d frames without a change", r.out.presents-n)
			}
		})
	}
	r, out, src, _ := newDirectRig(t)
	out.no = errors.New("the cable is on fire")
	src.Update(image.Rect(0, 0, 1, 1))
	if wait := r.step(); wait != retryAfter {
		t.Errorf("after an error it waits %v", wait)
	}
}

// arrow is a pointer that no hardware here shows.
func arrow() *display.Cursor {
	return &display.Cursor{Width: 2, Height: 2, Pixels: make([]byte, 16)}
}
