package output

import (
	"image"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRegion(t *testing.T) {
	for name, tt := range map[string]struct{ add, want []image.Rectangle }{
		"nothing":  {},
		"empty":    {add: []image.Rectangle{image.Rect(5, 5, 5, 9)}},
		"one":      {[]image.Rectangle{image.Rect(0, 0, 2, 2)}, []image.Rectangle{image.Rect(0, 0, 2, 2)}},
		"inside":   {[]image.Rectangle{image.Rect(0, 0, 9, 9), image.Rect(3, 3, 4, 4)}, []image.Rectangle{image.Rect(0, 0, 9, 9)}},
		"around":   {[]image.Rectangle{image.Rect(3, 3, 4, 4), image.Rect(0, 0, 9, 9)}, []image.Rectangle{image.Rect(0, 0, 9, 9)}},
		"beside":   {[]image.Rectangle{image.Rect(0, 0, 4, 4), image.Rect(4, 0, 8, 4)}, []image.Rectangle{image.Rect(0, 0, 8, 4)}},
		"far away": {[]image.Rectangle{image.Rect(0, 0, 1, 1), image.Rect(8, 8, 9, 9)}, []image.Rectangle{image.Rect(0, 0, 1, 1), image.Rect(8, 8, 9, 9)}},
		"one joins two": {
			[]image.Rectangle{image.Rect(0, 0, 4, 4), image.Rect(8, 0, 12, 4), image.Rect(4, 0, 8, 4)},
			[]image.Rectangle{image.Rect(0, 0, 12, 4)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r Region
			for _, a := range tt.add {
				r.Add(a)
			}
			if diff := cmp.Diff(tt.want, append([]image.Rectangle(nil), r.Rects()...)); diff != "" {
				t.Errorf("rectangles (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRegionCovers adds anything: every pixel that was added stays covered, and nothing outside of all that was added is.
func TestRegionCovers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 32
		var r Region
		var all image.Rectangle
		var want [size][size]bool
		for range rapid.IntRange(0, 40).Draw(t, "n") {
			x, y := rapid.IntRange(0, size-1).Draw(t, "x"), rapid.IntRange(0, size-1).Draw(t, "y")
			a := image.Rect(x, y, rapid.IntRange(x, size).Draw(t, "x1"), rapid.IntRange(y, size).Draw(t, "y1"))
			r.Add(a)
			all = all.Union(a)
			for y := a.Min.Y; y < a.Max.Y; y++ {
				for x := a.Min.X; x < a.Max.X; x++ {
					want[y][x] = true
				}
			}
		}
		for _, k := range r.Rects() {
			if !k.In(all) || k.Empty() {
				t.Fatalf("rectangle %v, all that was added is in %v", k, all)
			}
			for y := k.Min.Y; y < k.Max.Y; y++ {
				for x := k.Min.X; x < k.Max.X; x++ {
					want[y][x] = false
				}
			}
		}
		for y := range want {
			for x, missing := range want[y] {
				if missing {
					t.Fatalf("(%d, %d) was added and is in none of %v", x, y, r.Rects())
				}
			}
		}
	})
}

func TestRegionAllocs(t *testing.T) {
	var r Region
	if n := testing.AllocsPerRun(100, func() {
		r.Clear()
		for i := range 40 {
			r.Add(image.Rect(i*7%31, i*11%29, i*7%31+3, i*11%29+3))
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
