package vga

import (
	"bytes"
	"encoding/binary"
	"image"

	"github.com/lodgehv/lodge/vgpu/display"
)

// picture is what the Screen shows, and what is needed to see what has changed in it.
type picture struct {
	surface *display.Surface // nil: none
	direct  bool             // it lies in video memory
	retire  func()           // frees it; nil if there is nothing to free

	mode   mode
	colour palette
	line   []byte // scratch: a row of pixels
	row    []byte // scratch: the memory of a row that wraps around
	text   text   // of a text mode
	blinks bool   // something on it does
}

// inVideo returns the surface that is shown if it lies in video memory.
func (p *picture) inVideo() *display.Surface {
	if p.direct {
		return p.surface
	}
	return nil
}

// adopt makes the surface one for m. changed says that it is another one than before, which retire, if not nil, frees
// once the Screen has it.
func (c *Card) adopt(m *mode) (changed bool, retire func()) {
	p := &c.picture
	if !p.suits(m) {
		changed, retire = true, p.retire
		p.surface, p.direct, p.retire = nil, false, nil
		switch m.kind {
		case kindOff:
		case kindDirect:
			p.surface, p.direct = c.direct(m), true
		default:
			var err error
			if p.surface, p.retire, err = c.newSurface(m.width, m.height); err != nil {
				c.warn("no picture", err)
				m.kind = kindOff
			}
			p.line = make([]byte, display.BytesPerPixel*(m.width+linePad))
		}
	}
	return changed, retire
}

// suits reports whether the surface can be m's.
func (p *picture) suits(m *mode) bool {
	if p.surface == nil || m.kind == kindOff {
		return p.surface == nil && m.kind == kindOff
	}
	if p.direct || m.kind == kindDirect {
		return *m == p.mode
	}
	return p.surface.Width == m.width && p.surface.Height == m.height
}

// direct returns a surface that is video memory.
func (c *Card) direct(m *mode) *display.Surface {
	s := &display.Surface{
		Width: m.width, Height: m.height, Stride: m.pitch, Format: display.XRGB8888,
		Pixels: c.video.memory[m.start:], File: c.video.file, Offset: int64(m.start),
	}
	if m.bigEndian {
		s.Format = display.BGRX8888
	}
	return s
}

// newSurface returns a black surface, and what frees it.
func (c *Card) newSurface(w, h int) (*display.Surface, func(), error) {
	s := &display.Surface{Width: w, Height: h, Stride: display.BytesPerPixel * w, Format: display.XRGB8888}
	if c.video.file == nil {
		s.Pixels = make([]byte, s.Stride*h)
		return s, nil, nil
	}
	f, b, err := newMemory("vga-picture", s.Stride*h)
	if err != nil {
		return nil, nil, err
	}
	s.Pixels, s.File = b, f
	return s, func() {
		if err := freeMemory(f, b); err != nil {
			c.warn("picture", err)
		}
	}, nil
}

// linePad is how many pixels a line may have beside those that are shown: what is panned out, and a unit's rest.
const linePad = 64

// blit makes the row at y that of line, and returns from where to where it was another, in pixels.
func blit(s *display.Surface, y int, line []byte) (x0, x1 int) {
	row := s.Pixels[y*s.Stride:][:s.Width*display.BytesPerPixel]
	line = line[:len(row)]
	if bytes.Equal(row, line) {
		return 0, 0
	}
	const n, many = display.BytesPerPixel, 16
	for x0+many <= s.Width && bytes.Equal(row[n*x0:n*(x0+many)], line[n*x0:n*(x0+many)]) {
		x0 += many
	}
	for pixel(row, x0) == pixel(line, x0) {
		x0++
	}
	x1 = s.Width
	for x1 >= many && bytes.Equal(row[n*(x1-many):n*x1], line[n*(x1-many):n*x1]) {
		x1 -= many
	}
	for pixel(row, x1-1) == pixel(line, x1-1) {
		x1--
	}
	copy(row[n*x0:n*x1], line[n*x0:])
	return x0, x1
}

func pixel(row []byte, x int) uint32 {
	return binary.LittleEndian.Uint32(row[x*display.BytesPerPixel:])
}

func setPixel(row []byte, x int, colour uint32) {
	binary.LittleEndian.PutUint32(row[x*display.BytesPerPixel:], colour)
}

// damage collects what has changed, from top to bottom, in few rectangles.
type damage struct {
	rects [16]image.Rectangle
	n     int
}

// damageGap is how many rows that have not changed are told along with those around them.
const damageGap = 8

func (d *damage) add(r image.Rectangle) {
	if r.Empty() {
		return
	}
	if d.n > 0 {
		last := &d.rects[d.n-1]
		if d.n == len(d.rects) || r.Min.Y <= last.Max.Y+damageGap {
			*last = last.Union(r)
			return
		}
	}
	d.rects[d.n] = r
	d.n++
}
