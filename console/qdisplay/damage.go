package qdisplay

import "image"

const (
	// maxRects is how many rectangles are kept apart.
	maxRects = 8
	// messageArea is how many pixels one may tell too many to save a message: what it costs to copy them is about that.
	messageArea = 64 * 64
)

// damage is what has changed in a picture: a few rectangles that cover it.
type damage struct {
	rects [maxRects]image.Rectangle
	n     int
}

// add adds a rectangle. It joins rectangles if that costs little, or if there are too many.
func (d *damage) add(r image.Rectangle) {
	for {
		best, least := -1, 0
		for i, have := range d.rects[:d.n] {
			more := area(r.Union(have)) - area(r) - area(have)
			if best < 0 || more < least {
				best, least = i, more
			}
		}
		if best < 0 || least > messageArea && d.n < maxRects {
			break
		}
		r = r.Union(d.rects[best]) // which may now be near to another one
		d.n--
		d.rects[best] = d.rects[d.n]
	}
	d.rects[d.n] = r
	d.n++
}

// area returns the number of pixels of a rectangle.
func area(r image.Rectangle) int { return r.Dx() * r.Dy() }
