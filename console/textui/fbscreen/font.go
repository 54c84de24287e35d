package fbscreen

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"

	xfont "golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gomono"
	"golang.org/x/image/font/gofont/gomonobold"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"

	"github.com/lodgehv/lodge/vgpu/display"
)

// The least that is to have room on a screen, in characters, and the sizes of a font, in pixels of its em.
const (
	minColumns, minRows = 80, 25
	smallest, largest   = 8, 48
	comfortable         = 14 // not smaller than that, if there is room
)

// Of Go Mono, in ems: the width of a character, and the height of a row.
const advance, leading = 0.6, 1.16

// maxGlyphs bounds the glyphs that are remembered: names and logs may have any.
const maxGlyphs = 1024

// font draws characters of one size.
type font struct {
	cell   image.Point // size of a character, pixels
	base   int         // the text's baseline below the upper edge of a cell
	faces  [2]xfont.Face
	glyphs map[glyphKey]*image.Alpha
}

type glyphKey struct {
	r    rune
	bold bool
}

// newFont returns the font for a screen of the given size in pixels.
func newFont(screen image.Point) (*font, error) {
	fits := min(float64(screen.X)/minColumns/advance, float64(screen.Y)/minRows/leading)
	em := min(max(0.8*fits, min(comfortable, fits), smallest), largest)
	width := max(int(em*advance), 1)
	em = float64(width) / advance // so that characters are whole pixels wide, and lines of them have no gaps
	f := &font{glyphs: make(map[glyphKey]*image.Alpha)}
	for i, ttf := range [2][]byte{gomono.TTF, gomonobold.TTF} {
		parsed, err := opentype.Parse(ttf)
		if err != nil {
			return nil, fmt.Errorf("font: %w", err)
		}
		if f.faces[i], err = opentype.NewFace(parsed, &opentype.FaceOptions{Size: em, DPI: 72, Hinting: xfont.HintingNone}); err != nil {
			return nil, fmt.Errorf("font: %w", err)
		}
	}
	m := f.faces[0].Metrics()
	f.cell = image.Pt(width, max((m.Ascent+m.Descent).Round(), 1)) // as high as lines are, so that those have no gaps
	f.base = m.Ascent.Round()
	return f, nil
}

// glyph returns the picture of a character relative to the pen, nil for a space. What the font lacks is a box.
func (f *font) glyph(r rune, bold bool) *image.Alpha {
	k := glyphKey{r, bold}
	if g, ok := f.glyphs[k]; ok {
		return g
	}
	if len(f.glyphs) >= maxGlyphs {
		clear(f.glyphs)
	}
	face := f.faces[0]
	if bold {
		face = f.faces[1]
	}
	var g *image.Alpha
	if at, mask, from, _, ok := face.Glyph(fixed.Point26_6{}, r); ok && !at.Empty() {
		g = image.NewAlpha(at) // the rasterizer uses its mask again
		draw.Draw(g, at, mask, from, draw.Src)
	}
	f.glyphs[k] = g
	return g
}

// draw draws a character into a cell, which it does not leave.
func (f *font) draw(s *display.Surface, cell image.Rectangle, r rune, bold bool, fg, bg color.RGBA) {
	g := f.glyph(r, bold)
	if g == nil {
		return
	}
	at := image.Pt(cell.Min.X, cell.Min.Y+f.base)
	in := g.Rect.Add(at).Intersect(cell)
	for y := in.Min.Y; y < in.Max.Y; y++ {
		for x := in.Min.X; x < in.Max.X; x++ {
			if v := g.AlphaAt(x-at.X, y-at.Y).A; v > 0 {
				set(s, x, y, blend(fg, bg, v))
			}
		}
	}
}
