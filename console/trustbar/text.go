package trustbar

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// fonts are the faces that one size of bar or placard is written with.
type fonts struct{ regular, bold, title *face }

// newFonts returns faces of size pixels, the title's larger.
func newFonts(size float64) (*fonts, error) {
	var f fonts
	for _, k := range []struct {
		face **face
		ttf  []byte
		size float64
	}{
		{&f.regular, goregular.TTF, size},
		{&f.bold, gobold.TTF, size},
		{&f.title, gobold.TTF, size * 1.7},
	} {
		parsed, err := opentype.Parse(k.ttf)
		if err != nil {
			return nil, fmt.Errorf("font of the trust bar: %w", err)
		}
		// At 72 dots an inch a point is a pixel.
		raster, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: k.size, DPI: 72, Hinting: font.HintingNone})
		if err != nil {
			return nil, fmt.Errorf("font of the trust bar: %w", err)
		}
		*k.face = newFace(raster)
	}
	return &f, nil
}

// subpixels is how many horizontal positions within a pixel a glyph is drawn at: letters keep their distances.
const subpixels = 4

// maxGlyphs bounds the glyphs that a face remembers: labels may have any.
const maxGlyphs = 1024

// face draws text and remembers glyphs, which are slow to make.
type face struct {
	raster font.Face
	glyphs map[glyphKey]glyph
	ascent int // height of a capital letter, in pixels
}

type glyphKey struct {
	r   rune
	sub uint8
}

// glyph is a rune's picture. Its mask's rectangle is where it goes, relative to the pen.
type glyph struct {
	mask    *image.Alpha // nil for a space
	advance fixed.Int26_6
}

func newFace(raster font.Face) *face {
	f := &face{raster: raster, glyphs: make(map[glyphKey]glyph)}
	b, _, _ := raster.GlyphBounds('H')
	f.ascent = (-b.Min.Y).Round()
	return f
}

// glyph returns the picture of r at the given position within a pixel.
func (f *face) glyph(r rune, sub uint8) glyph {
	k := glyphKey{r, sub}
	if g, ok := f.glyphs[k]; ok {
		return g
	}
	if len(f.glyphs) >= maxGlyphs {
		clear(f.glyphs)
	}
	var g glyph
	dot := fixed.Point26_6{X: fixed.Int26_6(sub) * (64 / subpixels)}
	at, mask, from, advance, ok := f.raster.Glyph(dot, r)
	if ok {
		g.advance = advance
		if !at.Empty() {
			// The rasterizer uses its mask again for the next glyph.
			g.mask = image.NewAlpha(at)
			draw.Draw(g.mask, at, mask, from, draw.Src)
		}
	}
	f.glyphs[k] = g
	return g
}

// width returns the width of s in pixels.
func (f *face) width(s string) int {
	var x fixed.Int26_6
	for _, r := range s {
		x += f.glyph(r, 0).advance
	}
	return x.Ceil()
}

// fit returns s if it is at most width pixels wide, else its beginning and an ellipsis; "" if not even that has room.
func (f *face) fit(s string, width int) string {
	if f.width(s) <= width {
		return s
	}
	room := fixed.I(width) - f.glyph('…', 0).advance
	for i, r := range s {
		if room -= f.glyph(r, 0).advance; room < 0 {
			if i == 0 {
				return ""
			}
			return s[:i] + ellipsis
		}
	}
	return s
}

// draw writes s with its left edge at x and its baseline at y, and returns where it ends.
func (f *face) draw(dst *image.RGBA, x, y int, s string, c color.Color) int {
	ink := image.NewUniform(c)
	pen := fixed.I(x)
	for _, r := range s {
		sub := uint8(pen & 63 / (64 / subpixels))
		g := f.glyph(r, sub)
		if g.mask != nil {
			at := image.Pt(pen.Floor(), y)
			draw.DrawMask(dst, g.mask.Rect.Add(at), ink, image.Point{}, g.mask, g.mask.Rect.Min, draw.Over)
		}
		pen += g.advance
	}
	return pen.Ceil()
}
