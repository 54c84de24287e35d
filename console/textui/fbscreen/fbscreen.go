// Package fbscreen is a screen of characters that is drawn into a picture: where Lodge's console is on the seat's own monitors
// and no terminal is there to draw it. It is a textui.Screen, and shows its picture to a display.Sink.
package fbscreen

import (
	"fmt"
	"image"
	"image/color"
	"sync"
	"unicode/utf8"

	"github.com/gdamore/tcell/v3"

	"github.com/lodgehv/lodge/vgpu/display"
)

// The colours of what has none, and of what is around the characters.
var (
	ink    = color.RGBA{0xd8, 0xdc, 0xe0, 0xff}
	ground = color.RGBA{0x12, 0x14, 0x17, 0xff}
)

// queueSize is how many events wait for the console. More keys than that nobody has typed on purpose.
const queueSize = 64

// Screen is the screen. Its methods may be called by any goroutine; none waits for the console or for who shows the picture.
type Screen struct {
	to     display.Sink
	events chan tcell.Event

	mu      sync.Mutex
	size    image.Point // of the picture, pixels
	font    *font
	cells   tcell.CellBuffer
	surface *display.Surface
	origin  image.Point // of the characters in the picture
}

// New returns a screen of no size, which shows nothing until it is resized.
func New(to display.Sink) *Screen { return &Screen{to: to, events: make(chan tcell.Event, queueSize)} }

// Resize makes the picture one of the given size in pixels. It chooses the characters' size, so that 80×25 of them have room if
// that is possible, and more on a large screen.
func (s *Screen) Resize(size image.Point) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size == s.size {
		return nil
	}
	f := &display.Surface{Width: size.X, Height: size.Y, Stride: 4 * size.X, Format: display.XRGB8888}
	if size.X > 0 && size.Y > 0 && size.X <= display.MaxSize && size.Y <= display.MaxSize {
		f.Pixels = make([]byte, f.Stride*size.Y)
	}
	if err := f.Check(); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	font, err := newFont(size)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	columns, rows := size.X/font.cell.X, size.Y/font.cell.Y
	s.size, s.font, s.surface = size, font, f
	s.origin = image.Pt((size.X-columns*font.cell.X)/2, (size.Y-rows*font.cell.Y)/2)
	s.cells.Resize(columns, rows)
	s.cells.Invalidate()
	fill(f, f.Bounds(), ground)
	s.paint()
	s.to.Scanout(f)
	s.Post(tcell.NewEventResize(columns, rows))
	return nil
}

// Post queues an event for the console. If the console does not take them, it is lost.
func (s *Screen) Post(ev tcell.Event) {
	select {
	case s.events <- ev:
	default:
	}
}

// EventQ gives the events that were posted.
func (s *Screen) EventQ() chan tcell.Event { return s.events }

// Size returns the width and height in characters.
func (s *Screen) Size() (width, height int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cells.Size()
}

// Put writes the first grapheme of text and returns the rest, and how many columns it took.
func (s *Screen) Put(x, y int, text string, style tcell.Style) (rest string, columns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cells.Put(x, y, text, style)
}

// Fill writes r everywhere.
func (s *Screen) Fill(r rune, style tcell.Style) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cells.Fill(r, style)
}

// Show draws what has changed.
func (s *Screen) Show() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.surface == nil {
		return
	}
	s.surface.Mu.Lock()
	changed := s.paint()
	s.surface.Mu.Unlock()
	for _, r := range changed {
		s.to.Update(r)
	}
}

// Sync draws everything anew.
func (s *Screen) Sync() {
	s.mu.Lock()
	s.cells.Invalidate()
	s.mu.Unlock()
	s.Show()
}

// paint draws the cells that have changed, and returns where: a rectangle for each row.
func (s *Screen) paint() (changed []image.Rectangle) {
	columns, rows := s.cells.Size()
	for y := range rows {
		var row image.Rectangle
		for x := 0; x < columns; {
			text, style, width := s.cells.Get(x, y)
			width = min(max(width, 1), columns-x)
			if s.cells.Dirty(x, y) {
				row = row.Union(s.cell(x, y, width, text, style))
				s.cells.SetDirty(x, y, false)
				for i := 1; i < width; i++ {
					s.cells.SetDirty(x+i, y, true) // it is drawn over, and drawn when nothing wide is there any more
				}
			}
			x += width
		}
		if !row.Empty() {
			changed = append(changed, row)
		}
	}
	return changed
}

// cell draws a character in as many columns as it has.
func (s *Screen) cell(x, y, width int, text string, style tcell.Style) image.Rectangle {
	at := s.origin.Add(image.Pt(x*s.font.cell.X, y*s.font.cell.Y))
	r := image.Rectangle{at, at.Add(image.Pt(width*s.font.cell.X, s.font.cell.Y))}
	fg, bg := rgb(style.GetForeground(), ink), rgb(style.GetBackground(), ground)
	if style.HasDim() {
		fg = mix(fg, bg)
	}
	if style.HasReverse() {
		fg, bg = bg, fg
	}
	fill(s.surface, r, bg)
	c, _ := utf8.DecodeRuneInString(text)
	s.font.draw(s.surface, r, c, style.HasBold(), fg, bg)
	if style.HasUnderline() {
		line := r
		line.Min.Y = at.Y + s.font.base + s.font.cell.Y/12 + 1
		line.Max.Y = line.Min.Y + max(s.font.cell.Y/16, 1)
		fill(s.surface, line.Intersect(r), fg)
	}
	return r
}

// rgb returns a colour of tcell's, or otherwise if it is none.
func rgb(c tcell.Color, otherwise color.RGBA) color.RGBA {
	r, g, b := c.RGB()
	if !c.Valid() || r < 0 {
		return otherwise
	}
	return brighten(color.RGBA{uint8(r), uint8(g), uint8(b), 0xff})
}

// brighten makes the dark ones of the 16 colours readable on the dark ground.
func brighten(c color.RGBA) color.RGBA {
	up := func(v uint8) uint8 { return uint8(0x50 + int(v)*(0xff-0x50)/0xff) }
	return color.RGBA{up(c.R), up(c.G), up(c.B), 0xff}
}

// mix returns what is between two colours.
func mix(a, b color.RGBA) color.RGBA { return blend(a, b, 0xa8) }

// blend returns a over b, a as thick as alpha says.
func blend(a, b color.RGBA, alpha uint8) color.RGBA {
	k := func(a, b uint8) uint8 { return uint8((int(a)*int(alpha) + int(b)*(0xff-int(alpha)) + 0x7f) / 0xff) }
	return color.RGBA{k(a.R, b.R), k(a.G, b.G), k(a.B, b.B), 0xff}
}

// fill paints a rectangle of a surface.
func fill(s *display.Surface, r image.Rectangle, c color.RGBA) {
	if r.Empty() {
		return
	}
	for x := r.Min.X; x < r.Max.X; x++ {
		set(s, x, r.Min.Y, c)
	}
	first := s.Pixels[r.Min.Y*s.Stride:][4*r.Min.X : 4*r.Max.X]
	for y := r.Min.Y + 1; y < r.Max.Y; y++ {
		copy(s.Pixels[y*s.Stride+4*r.Min.X:], first)
	}
}

// set writes a pixel.
func set(s *display.Surface, x, y int, c color.RGBA) {
	p := s.Pixels[y*s.Stride+4*x:][:4]
	p[0], p[1], p[2], p[3] = c.B, c.G, c.R, 0xff
}
