package display

import (
	"fmt"
	"image"
)

// Image returns a copy of what s shows. It is opaque: alpha says nothing on a screen. It fails if s is not what it must be.
func (s *Surface) Image() (*image.RGBA, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	order, ok := s.Format.order()
	if !ok {
		return nil, fmt.Errorf("surface of the unknown format %v", s.Format)
	}
	img := image.NewRGBA(image.Rect(0, 0, s.Width, s.Height))
	s.Mu.RLock()
	defer s.Mu.RUnlock()
	for y := range s.Height {
		from, to := s.Pixels[y*s.Stride:][:s.Width*BytesPerPixel], img.Pix[y*img.Stride:]
		for i := 0; i < len(from); i += BytesPerPixel {
			to[i], to[i+1], to[i+2], to[i+3] = from[i+order[0]], from[i+order[1]], from[i+order[2]], 0xff
		}
	}
	return img, nil
}

// order returns where in a pixel red, green and blue are.
func (f Format) order() (order [3]int, ok bool) {
	switch f {
	case XRGB8888, ARGB8888:
		return [3]int{2, 1, 0}, true
	case XBGR8888, ABGR8888:
		return [3]int{0, 1, 2}, true
	case RGBX8888, RGBA8888:
		return [3]int{3, 2, 1}, true
	case BGRX8888, BGRA8888:
		return [3]int{1, 2, 3}, true
	}
	return order, false
}
