package trustbar

import "image"

// Picture is an opaque picture in memory, XRGB8888, its top row first.
type Picture struct {
	Width, Height int
	Stride        int // bytes from one row to the next
	Pixels        []byte
}

func newPicture(width, height int) *Picture {
	return &Picture{width, height, 4 * width, make([]byte, 4*width*height)}
}

// Bounds returns the rectangle from the origin to Width and Height.
func (p *Picture) Bounds() image.Rectangle { return image.Rect(0, 0, p.Width, p.Height) }

// take copies src, of the same size, and returns the smallest rectangle in which it differed.
func (p *Picture) take(src *image.RGBA) (changed image.Rectangle) {
	for y := range p.Height {
		from, to := src.Pix[y*src.Stride:][:4*p.Width], p.Pixels[y*p.Stride:][:4*p.Width]
		first, last := -1, -1
		for x := 0; x < len(to); x += 4 {
			r, g, b := from[x], from[x+1], from[x+2]
			if to[x] == b && to[x+1] == g && to[x+2] == r && to[x+3] == 0xff {
				continue
			}
			to[x], to[x+1], to[x+2], to[x+3] = b, g, r, 0xff
			if last = x / 4; first < 0 {
				first = last
			}
		}
		if first >= 0 {
			changed = changed.Union(image.Rect(first, y, last+1, y+1))
		}
	}
	return changed
}
