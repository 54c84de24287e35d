package display

import (
	"image/color"
	"testing"
)

func TestImage(t *testing.T) {
	want := color.RGBA{1, 2, 3, 0xff}
	for f, pixel := range map[Format][4]byte{
		XRGB8888: {3, 2, 1, 9}, ARGB8888: {3, 2, 1, 9}, XBGR8888: {1, 2, 3, 9}, ABGR8888: {1, 2, 3, 9},
		RGBX8888: {9, 3, 2, 1}, RGBA8888: {9, 3, 2, 1}, BGRX8888: {9, 1, 2, 3}, BGRA8888: {9, 1, 2, 3},
	} {
		s := &Surface{Width: 2, Height: 2, Stride: 12, Format: f, Pixels: make([]byte, 12+8)}
		copy(s.Pixels[12+4:], pixel[:])
		img, err := s.Image()
		if err != nil {
			t.Fatal(err)
		}
		if got := img.At(1, 1); got != want {
			t.Errorf("%v: %v, want %v", f, got, want)
		}
		if got := img.At(0, 0); got != (color.RGBA{0, 0, 0, 0xff}) {
			t.Errorf("%v: the first pixel is %v", f, got)
		}
	}
	for _, s := range []*Surface{{Width: 2, Height: 2, Stride: 8, Format: 1, Pixels: make([]byte, 16)}, {Width: 2, Height: 2, Stride: 8, Format: XRGB8888}} {
		if _, err := s.Image(); err == nil {
			t.Errorf("%v of %d bytes was accepted", s.Format, len(s.Pixels))
		}
	}
}
