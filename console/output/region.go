package output

import "image"

// maxRects is how many rectangles a Region tells apart. More are merged: a screen's damage is a few windows and a pointer,
// and a bound makes adding cheap.
const maxRects = 16

// Region is a set of pixels, by rectangles that cover it and perhaps a little more. Its zero value is empty. Nothing of it
// allocates.
type Region struct {
	n     int
	rects [maxRects]image.Rectangle
}

// Empty reports whether no pixel is in r.
func (r *Region) Empty() bool { return r.n == 0 }

// Clear empties r.
func (r *Region) Clear() { r.n = 0 }

// Rects returns rectangles that cover r, not empty, which may overlap. They alias r and hold until it is changed.
func (r *Region) Rects() []image.Rectangle { return r.rects[:r.n] }

// Area returns the number of pixels of Rects.
func (r *Region) Area() (n int) {
	for _, k := range r.rects[:r.n] {
		n += area(k)
	}
	return n
}

// Add adds a rectangle.
func (r *Region) Add(a image.Rectangle) {
	if a.Empty() {
		return
	}
	for {
		// A rectangle that costs no more together than apart is one: what lies inside, beside, or overlaps much.
		best, waste := -1, 0
		for i := 0; i < r.n; i++ {
			k := r.rects[i]
			if a.In(k) {
				return
			}
			w := area(a.Union(k)) - area(a) - area(k)
			if best < 0 || w < waste {
				best, waste = i, w
			}
		}
		if best < 0 || waste > 0 && r.n < maxRects {
			r.rects[r.n] = a
			r.n++
			return
		}
		a = a.Union(r.rects[best])
		r.n--
		r.rects[best] = r.rects[r.n]
	}
}

// AddAll adds all of s.
func (r *Region) AddAll(s *Region) {
	for _, k := range s.rects[:s.n] {
		r.Add(k)
	}
}

// Covers reports whether one of the rectangles has all of a.
func (r *Region) Covers(a image.Rectangle) bool {
	for _, k := range r.rects[:r.n] {
		if a.In(k) {
			return true
		}
	}
	return false
}

func area(r image.Rectangle) int { return r.Dx() * r.Dy() }
