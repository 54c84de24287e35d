package trustbar

import (
	"fmt"
	"image"
	"image/color"
	"strconv"
	"time"
)

// Guest is what is shown of a guest. Its texts may be anything.
type Guest struct {
	Name  string
	Label string // a few words about it
	Slot  int    // of the chord that switches to it, 1 to 9; 0 is none
	Color Color
}

// Battery is the state of the notebook's batteries together.
type Battery struct {
	Present  bool
	Percent  int // 0 to 100
	Charging bool
}

// News is that another guest has become ready, and how to get there. Without a guest's name there is none.
type News struct {
	Guest Guest
	Chord string // "Ctrl+Alt+2", or "" if there is none
}

// State is what a bar shows. A bar is drawn anew when it is another.
type State struct {
	Guest   Guest  // whose picture is below
	Input   Guest  // who gets keys and pointer; without a name nobody does
	Note    string // what is wrong with the guest: "not responding"
	News    News
	Hint    string // how to get to Lodge's console: "Ctrl+Alt+Esc"
	Battery Battery
	Clock   string // "14:05"; "" is none
}

// Clock returns a time as a bar shows it, and how long it is right.
func Clock(now time.Time) (text string, next time.Duration) {
	return now.Format("15:04"), now.Truncate(time.Minute).Add(time.Minute).Sub(now)
}

// Height returns the height in pixels of the bar on a screen of the given size: 28 on one of 1024×768, and somewhat more on
// larger ones.
func Height(screen image.Point) int {
	h := 28 + (screen.Y-768)/48
	return min(max(h&^1, 20), 64)
}

// Bar is the bar of one screen. It is not safe for concurrent use.
type Bar struct {
	height  int
	fonts   *fonts
	state   State
	drawn   bool
	scratch *image.RGBA
	picture *Picture
}

// Fonts are what bars of one height are written with. Those of one goroutine share them.
type Fonts struct {
	height int
	fonts  *fonts
}

// NewFonts returns the fonts for bars on screens of the given size.
func NewFonts(screen image.Point) (*Fonts, error) {
	h := Height(screen)
	f, err := newFonts(float64(h) * 0.5)
	if err != nil {
		return nil, err
	}
	return &Fonts{h, f}, nil
}

// New returns a bar of the given width in pixels. It is blank until it is Set.
func (f *Fonts) New(width int) *Bar {
	return &Bar{
		height:  f.height,
		fonts:   f.fonts,
		scratch: image.NewRGBA(image.Rect(0, 0, width, f.height)),
		picture: newPicture(width, f.height),
	}
}

// Picture returns the bar's picture, which changes in Set alone.
func (b *Bar) Picture() *Picture { return b.picture }

// Set draws s, if it is not what the bar shows, and returns where the picture has changed.
func (b *Bar) Set(s State) (changed image.Rectangle) {
	if b.drawn && s == b.state {
		return image.Rectangle{}
	}
	b.state, b.drawn = s, true
	b.draw()
	return b.picture.take(b.scratch)
}

// pen is where a bar is being drawn.
type pen struct {
	*Bar
	gap         int // between things, in pixels
	strip       int // height of the coloured line along the lower edge
	base        int // the text's baseline
	left, right int // what is still free
}

func (b *Bar) draw() {
	p := &pen{Bar: b, gap: b.height * 3 / 7, strip: max(b.height/9, 2)}
	p.right = b.picture.Width - p.gap
	p.base = (b.height - p.strip + b.fonts.regular.ascent + 1) / 2
	th := b.state.Guest.Color.theme()
	fill(b.scratch, b.scratch.Rect, ground)
	fill(b.scratch, image.Rect(0, b.height-p.strip, b.picture.Width, b.height), th.field)
	if th.field == (color.RGBA{A: 0xff}) { // black on a dark bar: with an edge it is seen as a colour
		fill(b.scratch, image.Rect(0, b.height-p.strip, b.picture.Width, b.height-p.strip+1), quiet)
	}
	p.clock()
	p.battery()
	p.input()
	p.guest(th)
	p.note()
	p.news()
	p.hint()
	p.label()
}

// guest draws the field with slot and name. A long name leaves room for the note.
func (p *pen) guest(th theme) {
	bold := p.fonts.bold
	slot := ""
	if n := p.state.Guest.Slot; n > 0 {
		slot = strconv.Itoa(n)
	}
	name := Clean(p.state.Guest.Name)
	if name == "" {
		name = "no guest"
	}
	x := p.gap
	if slot != "" {
		x += bold.width(slot) + 2*p.gap - 1
	}
	name = bold.fit(name, min(p.right-x-2*p.gap, p.picture.Width*2/5))
	end := min(x+bold.width(name)+p.gap, p.right)
	fill(p.scratch, image.Rect(0, 0, end, p.height), th.field)
	if th.field == (color.RGBA{A: 0xff}) {
		fill(p.scratch, image.Rect(end-1, 0, end, p.height-p.strip+1), quiet)
	}
	bold.draw(p.scratch, x, p.base, name, th.ink)
	if slot != "" {
		x = bold.draw(p.scratch, p.gap, p.base, slot, th.ink) + p.gap - 1
		faint := th.ink
		faint.A = 0x70
		fillRound(p.scratch, image.Rect(x, p.height/5, x+1, p.height-p.strip-p.height/7), 0, premultiplied(faint))
	}
	p.left = end + p.gap
}

// note draws what is wrong, as a badge.
func (p *pen) note() {
	s := Clean(p.state.Note)
	if s == "" {
		return
	}
	s = p.fonts.bold.fit(s, p.right-p.left-2*p.gap)
	if s == "" {
		return
	}
	w := p.fonts.bold.width(s) + p.gap*4/3
	fillRound(p.scratch, p.pill(p.left, w), float32(p.height)/6, alert)
	p.fonts.bold.draw(p.scratch, p.left+p.gap*2/3, p.base, s, black)
	p.left += w + p.gap
}

// news draws that another guest is ready, as a badge in its colour; if there is little room, without the chord.
func (p *pen) news() {
	n := p.state.News
	name := Clean(n.Guest.Name)
	if name == "" {
		return
	}
	f, th, pad := p.fonts, n.Guest.Color.theme(), p.gap*2/3
	name = f.bold.fit(name, p.picture.Width/5)
	const ready = " is ready"
	chord := Clean(n.Chord)
	if chord != "" {
		chord = "  " + chord
	}
	width := func() int { return f.bold.width(name) + f.regular.width(ready+chord) + 2*pad }
	if width() > p.right-p.left-p.gap {
		chord = ""
	}
	w := width()
	if w > p.right-p.left-p.gap {
		return
	}
	fillRound(p.scratch, p.pill(p.left, w), float32(p.height)/6, th.field)
	x := f.bold.draw(p.scratch, p.left+pad, p.base, name, th.ink)
	f.regular.draw(p.scratch, x, p.base, ready+chord, th.ink)
	p.left += w + p.gap
}

// pill returns the rectangle of a badge.
func (p *pen) pill(x, width int) image.Rectangle {
	return image.Rect(x, p.height/9, x+width, p.height-p.strip-p.height/9+1)
}

// label draws the guest's label, as much of it as there is room for.
func (p *pen) label() {
	if s := p.fonts.regular.fit(Clean(p.state.Guest.Label), p.right-p.left-p.gap); len([]rune(s)) > 3 {
		p.fonts.regular.draw(p.scratch, p.left, p.base, s, quiet)
	}
}

// clock draws the time at the right edge.
func (p *pen) clock() {
	s := Clean(p.state.Clock)
	if s == "" {
		return
	}
	p.right -= p.fonts.bold.width(s)
	p.fonts.bold.draw(p.scratch, p.right, p.base, s, text)
	p.right -= p.gap
}

// battery draws the battery, left of the clock.
func (p *pen) battery() {
	b := p.state.Battery
	if !b.Present || p.right < p.picture.Width/2 {
		return
	}
	b.Percent = min(max(b.Percent, 0), 100)
	c := text
	if b.Percent <= 10 && !b.Charging {
		c = low
	}
	s := fmt.Sprintf("%d%%", b.Percent)
	p.right -= p.fonts.regular.width(s)
	p.fonts.regular.draw(p.scratch, p.right, p.base, s, c)
	h := p.fonts.regular.ascent + 1
	p.right -= h*2 + p.gap/2
	battery(p.scratch, image.Rect(p.right, p.base-h, p.right+h*2, p.base), b, c, ground)
	p.separator()
}

// separator draws a line left of what is there.
func (p *pen) separator() {
	p.right -= p.gap
	fill(p.scratch, image.Rect(p.right, p.height/5, p.right+1, p.height-p.strip-p.height/7), line)
	p.right -= p.gap
}

// input draws where the keys go: quietly if to the guest on screen, loudly if elsewhere.
func (p *pen) input() {
	f := p.fonts
	in := p.state.Input
	name, c, ground := Clean(in.Name), text, ground
	elsewhere := in.Name != p.state.Guest.Name || in.Slot != p.state.Guest.Slot
	if name == "" {
		name, elsewhere = "nobody", p.state.Guest.Name != ""
	}
	if elsewhere {
		c, ground = black, alert
	}
	name = f.bold.fit(name, p.picture.Width/5)
	const verb = "input goes to "
	h := f.regular.ascent + 1
	icon := h * 5 / 3
	w := icon + p.gap*2/3 + f.regular.width(verb) + f.bold.width(name)
	p.right -= w
	if elsewhere {
		p.right -= p.gap * 2 / 3
		fillRound(p.scratch, p.pill(p.right-p.gap*2/3, w+p.gap*4/3), float32(p.height)/6, alert)
	}
	x := p.right
	keyboard(p.scratch, image.Rect(x, p.base-h, x+icon, p.base+1), c, ground)
	x = f.regular.draw(p.scratch, x+icon+p.gap*2/3, p.base, verb, c)
	f.bold.draw(p.scratch, x, p.base, name, c)
	if elsewhere {
		p.right -= p.gap * 2 / 3
	}
	p.separator()
}

// hint draws how to get to Lodge, if there is much room.
func (p *pen) hint() {
	s := Clean(p.state.Hint)
	if s == "" {
		return
	}
	const what = " Lodge"
	f := p.fonts
	w := f.bold.width(s) + f.regular.width(what)
	if p.right-p.left < w+8*p.gap {
		return
	}
	p.right -= w
	x := f.regular.draw(p.scratch, p.right, p.base, s, quiet)
	f.bold.draw(p.scratch, x, p.base, what, quiet)
	p.separator()
}

// premultiplied returns c with its alpha multiplied in.
func premultiplied(c color.RGBA) color.RGBA {
	m := func(v uint8) uint8 { return uint8(uint16(v) * uint16(c.A) / 0xff) }
	return color.RGBA{m(c.R), m(c.G), m(c.B), c.A}
}
