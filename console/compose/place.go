package compose

import "image"

// place is where a picture is on a screen.
type place struct {
	origin image.Point // of the picture's upper left pixel; within the area
	scale  int         // screen pixels for one of the picture's, 1 at least
}

// fit places a picture of the given size in area: in its middle if it is smaller, else at its upper left corner, and cut off.
// With integer scale it is as many times larger as fits.
func fit(size image.Point, area image.Rectangle, integerScale bool) place {
	p := place{area.Min, 1}
	if integerScale && size.X > 0 && size.Y > 0 {
		p.scale = max(min(area.Dx()/size.X, area.Dy()/size.Y), 1)
	}
	p.origin.X += max(area.Dx()-size.X*p.scale, 0) / 2
	p.origin.Y += max(area.Dy()-size.Y*p.scale, 0) / 2
	return p
}

// toScreen returns where a rectangle of the picture is on the screen.
func (p place) toScreen(r image.Rectangle) image.Rectangle {
	return image.Rectangle{r.Min.Mul(p.scale).Add(p.origin), r.Max.Mul(p.scale).Add(p.origin)}
}

// toPicture returns the picture's pixel that is at a place of the screen, which may lie outside of it.
func (p place) toPicture(at image.Point) image.Point {
	d := at.Sub(p.origin)
	return image.Pt(floorDiv(d.X, p.scale), floorDiv(d.Y, p.scale))
}

func floorDiv(a, b int) int {
	if a < 0 {
		return -((b - 1 - a) / b)
	}
	return a / b
}
