package qdisplay

import (
	"image"
	"testing"

	"pgregory.net/rapid"
)

// However damage is joined, all of it is covered, in a few rectangles, and nothing outside of its bounds.
func TestDamage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d damage
		var all []image.Rectangle
		bounds := image.Rectangle{}
		for range rapid.IntRange(1, 100).Draw(t, "n") {
			x, y := rapid.IntRange(0, 2000).Draw(t, "x"), rapid.IntRange(0, 2000).Draw(t, "y")
			w, h := rapid.IntRange(1, 300).Draw(t, "w"), rapid.IntRange(1, 300).Draw(t, "h")
			r := image.Rect(x, y, x+w, y+h)
			d.add(r)
			all = append(all, r)
			bounds = bounds.Union(r)
			if d.n < 1 || d.n > maxRects {
				t.Fatalf("%d rectangles", d.n)
			}
		}
		for _, r := range all {
			// Rectangles only ever grow, so one of them has the whole of r.
			covered := false
			for _, have := range d.rects[:d.n] {
				covered = covered || r.In(have)
			}
			if !covered {
				t.Fatalf("%v is not in %v", r, d.rects[:d.n])
			}
		}
		for _, have := range d.rects[:d.n] {
			if !have.In(bounds) {
				t.Fatalf("%v is outside of %v", have, bounds)
			}
		}
	})
}

// What lies far apart stays apart; what is near is joined.
func TestDamageJoins(t *testing.T) {
	var d damage
	for i := range 4 {
		d.add(image.Rect(i*500, i*200, i*500+300, i*200+100))
	}
	if d.n != 4 {
		t.Errorf("4 distant rectangles became %d", d.n)
	}
	d.n = 0
	for i := range 100 {
		d.add(image.Rect(0, i*10, 640, i*10+10))
	}
	if d.n != 1 || d.rects[0] != image.Rect(0, 0, 640, 1000) {
		t.Errorf("100 stripes became %v", d.rects[:d.n])
	}
}

func BenchmarkDamage(b *testing.B) {
	b.ReportAllocs()
	var d damage
	for i := 0; b.Loop(); i++ {
		x, y := i*97%1800, i*61%1000
		d.add(image.Rect(x, y, x+64, y+64))
	}
}
