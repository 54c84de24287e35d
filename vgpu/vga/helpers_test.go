package vga

import (
	"image"
	"image/color"

	"github.com/lodgehv/lodge/vgpu/display"
)

// picturePNG copies a surface.
func picturePNG(s *display.Surface) *image.RGBA {
	img := image.NewRGBA(s.Bounds())
	s.Mu.RLock()
	defer s.Mu.RUnlock()
	for y := range s.Height {
		for x := range s.Width {
			v := pixel(s.Pixels[y*s.Stride:], x)
			if s.Format == display.BGRX8888 {
				v = v>>24 | v>>8&0xff00 | v<<8&0xff0000
			}
			img.SetRGBA(x, y, color.RGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), 0xff})
		}
	}
	return img
}
