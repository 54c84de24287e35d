package compose

import (
	"encoding/binary"
	"image"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/vgpu/display"
)

// slot is a buffer and what was drawn into it.
type slot struct {
	head  *Head
	buf   *output.Buffer
	src   *Source       // whose picture it has; nil: nobody's
	dirty output.Region // what of the surface has changed since, in its pixels; under src.mu

	// These are the head's goroutine's.
	valid  bool             // it has all of a picture of src
	direct *display.Surface // the picture that the output shows over it from where it is, and which it has not; or nil
	look   look             // what it was drawn with
	cursor pointer          // the pointer in it
	bar    image.Rectangle  // what of the bar has changed
	drawn  output.Region    // where it was drawn into since it was presented
	used   uint64           // when, by the head's count of frames
}

// look is everything about a guest's picture save the pixels: when it changes all is drawn anew.
type look struct {
	size    image.Point // of the surface; zero: there is none
	at      place
	placard *trustbar.Picture // nil: none
}

// pointer is a pointer that is drawn into the picture.
type pointer struct {
	cursor *display.Cursor // nil: none
	rect   image.Rectangle // on the screen
	scale  int
}

// black is what is around a picture that is smaller than the screen.
const black = 0xff000000

// chunk is how many bytes are copied between two looks at whether another guest is wanted: about 50 µs.
const chunk = 256 << 10

// painter draws a guest's picture into a buffer, or a part of it.
type painter struct {
	area    image.Rectangle // of the guests, on the screen
	to      pixels
	from    pixels // the surface's
	format  display.Format
	picture image.Rectangle // where the surface is on the screen, cut off at the area
	look    look
	ground  uint32 // around the picture
	blank   []byte // a row of it
	pointer pointer
	placard image.Rectangle // on the screen
	line    []byte          // a row of the screen
	aborted func() bool
	copied  int // bytes since aborted was asked
}

// set prepares the painter for one picture in one buffer.
func (p *painter) set(buf *output.Buffer, snap *snapshot, l look, c pointer) {
	p.to = pixels{buf.Stride, buf.Pixels}
	p.look, p.pointer = l, c
	p.picture, p.placard = image.Rectangle{}, image.Rectangle{}
	ground := uint32(black)
	if snap.surface != nil {
		p.from = pixels{snap.surface.Stride, snap.surface.Pixels}
		p.format = snap.surface.Format
		p.picture = l.at.toScreen(snap.surface.Bounds()).Intersect(p.area)
	} else {
		ground = trustbar.Background()
	}
	if p.ground != ground || len(p.blank) != len(p.line) {
		p.ground, p.blank = ground, make([]byte, len(p.line))
		for i := 0; i < len(p.blank); i += 4 {
			binary.LittleEndian.PutUint32(p.blank[i:], ground)
		}
	}
	if l.placard != nil {
		size := l.placard.Bounds().Size()
		p.placard = l.placard.Bounds().Add(p.area.Min.Add(p.area.Size().Sub(size).Div(2))).Intersect(p.area)
	}
}

// paint draws the rectangles of todo, which lie in the area, and reports whether it was not aborted.
func (p *painter) paint(todo *output.Region) bool {
	p.copied = 0
	for _, r := range todo.Rects() {
		if !p.rect(r) {
			return false
		}
	}
	if p.pointer.cursor != nil && overlaps(todo, p.pointer.rect) {
		p.blend()
		todo.Add(p.pointer.rect.Intersect(p.area)) // where it is over a placard, that is drawn again
	}
	if p.look.placard != nil && overlaps(todo, p.placard) {
		from := pixels{p.look.placard.Stride, p.look.placard.Pixels}
		w := p.placard.Dx()
		for y := p.placard.Min.Y; y < p.placard.Max.Y; y++ {
			copy(p.to.row(y, p.placard.Min.X, p.placard.Max.X), from.row(y-p.placard.Min.Y, 0, w))
		}
	}
	return true
}

// overlaps reports whether r has pixels of g.
func overlaps(g *output.Region, r image.Rectangle) bool {
	for _, k := range g.Rects() {
		if k.Overlaps(r) {
			return true
		}
	}
	return false
}

// rect draws what is in r, without pointer and placard.
func (p *painter) rect(r image.Rectangle) bool {
	in := r.Intersect(p.picture)
	if in.Empty() {
		p.fill(r)
		return true
	}
	for _, k := range [4]image.Rectangle{
		{r.Min, image.Pt(r.Max.X, in.Min.Y)},
		{image.Pt(r.Min.X, in.Min.Y), image.Pt(in.Min.X, in.Max.Y)},
		{image.Pt(in.Max.X, in.Min.Y), image.Pt(r.Max.X, in.Max.Y)},
		{image.Pt(r.Min.X, in.Max.Y), r.Max},
	} {
		if !k.Empty() {
			p.fill(k)
		}
	}
	rows := max(chunk/(4*in.Dx()), 1)
	for y := in.Min.Y; y < in.Max.Y; y += rows {
		if p.copied > 0 && p.aborted != nil && p.aborted() {
			return false
		}
		part := image.Rect(in.Min.X, y, in.Max.X, min(y+rows, in.Max.Y))
		p.copy(part)
		p.copied += 4 * part.Dx() * part.Dy()
	}
	return true
}

// fill paints r as it is around the picture.
func (p *painter) fill(r image.Rectangle) {
	for y := r.Min.Y; y < r.Max.Y; y++ {
		copy(p.to.row(y, r.Min.X, r.Max.X), p.blank)
	}
}

// copy copies r, which lies in the picture.
func (p *painter) copy(r image.Rectangle) {
	if p.look.at.scale > 1 {
		p.enlarge(r)
		return
	}
	d := r.Min.Sub(p.look.at.origin)
	n := 4 * r.Dx()
	if n == p.to.stride && n == p.from.stride && (p.format == display.XRGB8888 || p.format == display.ARGB8888) {
		copy(p.to.data[r.Min.Y*n:r.Max.Y*n], p.from.data[d.Y*n:])
		return
	}
	for y := range r.Dy() {
		copyRow(p.to.row(r.Min.Y+y, r.Min.X, r.Max.X), p.from.row(d.Y+y, d.X, d.X+r.Dx()), p.format)
	}
}

// enlarge copies r, a picture's pixel to several of the screen's.
func (p *painter) enlarge(r image.Rectangle) {
	scale := p.look.at.scale
	line := p.line[:4*r.Dx()]
	last := -1
	for y := r.Min.Y; y < r.Max.Y; y++ {
		from := p.look.at.toPicture(image.Pt(r.Min.X, y))
		if from.Y != last {
			last = from.Y
			x, left := from.X, scale-(r.Min.X-p.look.at.origin.X)%scale
			v := p.pixel(x, from.Y)
			for i := 0; i < len(line); i += 4 {
				if left == 0 {
					x, left = x+1, scale
					v = p.pixel(x, from.Y)
				}
				binary.LittleEndian.PutUint32(line[i:], v)
				left--
			}
		}
		copy(p.to.row(y, r.Min.X, r.Max.X), line)
	}
}

// pixel returns a pixel of the surface.
func (p *painter) pixel(x, y int) uint32 {
	return toXRGB(binary.LittleEndian.Uint32(p.from.row(y, x, x+1)), p.format)
}

// blend draws the pointer over what the surface has below it: the buffer is never read.
func (p *painter) blend() {
	c, full := p.pointer.cursor, p.pointer.rect
	r := full.Intersect(p.area)
	line := p.line[:4*r.Dx()]
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			at := image.Pt(x, y)
			v := p.ground
			if at.In(p.picture) {
				q := p.look.at.toPicture(at)
				v = p.pixel(q.X, q.Y)
			}
			q := at.Sub(full.Min).Div(p.pointer.scale)
			v = over(binary.LittleEndian.Uint32(c.Pixels[4*(q.Y*c.Width+q.X):]), v)
			binary.LittleEndian.PutUint32(line[4*(x-r.Min.X):], v)
		}
		copy(p.to.row(y, r.Min.X, r.Max.X), line)
	}
}

// rectOf returns where a pointer's picture is on the screen.
func rectOf(c *display.Cursor, at image.Point, l look) image.Rectangle {
	return l.at.toScreen(image.Rect(0, 0, c.Width, c.Height).Add(at.Sub(c.Hot)))
}
