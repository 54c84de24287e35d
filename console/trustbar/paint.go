package trustbar

import (
	"image"
	"image/color"
	"image/draw"

	"golang.org/x/image/vector"
)

// fill paints a rectangle.
func fill(dst *image.RGBA, r image.Rectangle, c color.RGBA) {
	draw.Draw(dst, r, &image.Uniform{c}, image.Point{}, draw.Src)
}

// curve is how far a Bézier curve's control points are from its ends, by the radius of the quarter circle that it draws.
const curve = 0.5523

// fillRound paints a rectangle with round corners.
func fillRound(dst *image.RGBA, r image.Rectangle, radius float32, c color.RGBA) {
	if r.Empty() {
		return
	}
	w, h := float32(r.Dx()), float32(r.Dy())
	radius = min(radius, w/2, h/2)
	k := radius * (1 - curve)
	path := vector.NewRasterizer(r.Dx(), r.Dy())
	path.MoveTo(radius, 0)
	path.LineTo(w-radius, 0)
	path.CubeTo(w-k, 0, w, k, w, radius)
	path.LineTo(w, h-radius)
	path.CubeTo(w, h-k, w-k, h, w-radius, h)
	path.LineTo(radius, h)
	path.CubeTo(k, h, 0, h-k, 0, h-radius)
	path.LineTo(0, radius)
	path.CubeTo(0, k, k, 0, radius, 0)
	path.ClosePath()
	rasterize(dst, path, r, c)
}

// rasterize paints a path, what there is room for. The rasterizer itself does not clip: it fails beyond the picture.
func rasterize(dst *image.RGBA, path *vector.Rasterizer, r image.Rectangle, c color.RGBA) {
	if r.In(dst.Rect) {
		path.Draw(dst, r, &image.Uniform{c}, image.Point{})
		return
	}
	whole := image.NewRGBA(r)
	path.Draw(whole, r, &image.Uniform{c}, image.Point{})
	draw.Draw(dst, r, whole, r.Min, draw.Over)
}

// outlineRound paints a rectangle with round corners, its edge of the given width in another colour.
func outlineRound(dst *image.RGBA, r image.Rectangle, radius float32, width int, edge, inside color.RGBA) {
	fillRound(dst, r, radius, edge)
	fillRound(dst, r.Inset(width), radius-float32(width), inside)
}

// fillShape paints a polygon, its corners in units of r's size.
func fillShape(dst *image.RGBA, r image.Rectangle, c color.RGBA, corners ...[2]float32) {
	if r.Empty() {
		return
	}
	w, h := float32(r.Dx()), float32(r.Dy())
	path := vector.NewRasterizer(r.Dx(), r.Dy())
	for i, k := range corners {
		if i == 0 {
			path.MoveTo(k[0]*w, k[1]*h)
		} else {
			path.LineTo(k[0]*w, k[1]*h)
		}
	}
	path.ClosePath()
	rasterize(dst, path, r, c)
}

// keyboard paints a keyboard.
func keyboard(dst *image.RGBA, r image.Rectangle, c, ground color.RGBA) {
	fillRound(dst, r, float32(r.Dy())/6, c)
	key := max(r.Dy()/7, 1)
	for row := range 2 {
		y := r.Min.Y + r.Dy()*(2+3*row)/10
		for x := r.Min.X + 2*key; x+key <= r.Max.X-key; x += 2 * key {
			fill(dst, image.Rect(x, y, x+key, y+key), ground)
		}
	}
	y := r.Min.Y + r.Dy()*7/10 + 1
	fill(dst, image.Rect(r.Min.X+4*key, y, r.Max.X-4*key, y+key), ground)
}

// battery paints a battery and how full it is.
func battery(dst *image.RGBA, r image.Rectangle, b Battery, c, ground color.RGBA) {
	nub := max(r.Dx()/10, 2)
	body := image.Rect(r.Min.X, r.Min.Y, r.Max.X-nub, r.Max.Y)
	edge := max(r.Dy()/8, 1)
	outlineRound(dst, body, float32(edge)*1.6, edge, c, ground)
	fill(dst, image.Rect(body.Max.X, r.Min.Y+r.Dy()/3, r.Max.X, r.Max.Y-r.Dy()/3), c)
	level := c
	switch {
	case b.Charging:
		level = full
	case b.Percent <= 10:
		level = low
	}
	in := body.Inset(2 * edge)
	in.Max.X = in.Min.X + (in.Dx()*b.Percent+99)/100
	fill(dst, in, level)
	if b.Charging {
		at := image.Rect(0, 0, body.Dy(), body.Dy()).Add(image.Pt(body.Min.X+(body.Dx()-body.Dy())/2, body.Min.Y))
		bolt := [][2]float32{{0.62, 0.02}, {0.2, 0.58}, {0.48, 0.58}, {0.38, 0.98}, {0.8, 0.42}, {0.52, 0.42}}
		fillShape(dst, at.Inset(-1), ground, bolt...)
		fillShape(dst, at, text, bolt...)
	}
}
