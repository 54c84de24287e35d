package textui

import (
	"fmt"

	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/color"
)

// listView is the list of guests.
type listView struct {
	at  int // index of the selected guest when it was last there
	top int // of the first that is shown
}

func (l *listView) title(*App) string { return "guests" }
func (l *listView) refresh(*App)      {}

func (l *listView) hints(a *App) []hint {
	if a.guest() == nil {
		return nil
	}
	return append([]hint{{"Enter", "Details"}}, a.guestHints()...)
}

// column is a column of the list.
type column struct {
	title    string
	width    int
	below    int  // width of a screen below which it is left out
	right    bool // aligned
	fleeting bool // what it tells is soon another thing
	text     func(a *App, g *Guest) (string, tcell.Style)
}

// nameWidth is how many columns names have at least, if there is room.
const nameWidth = 16

func unstyled(f func(*Guest) string) func(*App, *Guest) (string, tcell.Style) {
	return func(_ *App, g *Guest) (string, tcell.Style) { return f(g), plain }
}

// columns returns the columns after the name's.
func (l *listView) columns() []column {
	return []column{
		{"Colour", 6, 60, false, false, func(_ *App, g *Guest) (string, tcell.Style) { return Line(g.Color), colorStyle(g.Color) }},
		{"State", 12, 0, false, true, state},
		{"CPU", 5, 46, true, true, unstyled(func(g *Guest) string { return percent(g.CPU) })},
		{"Memory", 13, 74, true, true, unstyled(memory)},
		{"Up", 6, 52, true, true, unstyled(func(g *Guest) string { return duration(g.Uptime) })},
		{"", 9, 80, false, true, unstyled(func(g *Guest) string {
			if g.OnScreen {
				return "on screen"
			}
			return ""
		})},
	}
}

// state says what a guest does, or what is being done to it.
func state(a *App, g *Guest) (string, tcell.Style) {
	if j := a.jobs[g.Name]; j != nil {
		text := commands[j.command].doing
		if p := j.progress.percent(); p >= 0 {
			text += fmt.Sprintf(" %d%%", p)
		}
		return text, bold
	}
	style := plain
	switch g.State {
	case Running:
		style = style.Foreground(color.Green)
	case Hung, Unknown:
		style = alarming
	case Paused, Starting, Saving:
		style = bold
	case Off, Saved:
		style = quiet
	}
	return g.State.String(), style
}

// colorStyle writes the name of a guest's colour in it, as far as a terminal has such colours and they can be read.
func colorStyle(name string) tcell.Style {
	c := map[string]color.Color{
		"red": color.Red, "orange": color.Orange, "yellow": color.Yellow, "green": color.Green,
		"blue": color.DodgerBlue, "purple": color.MediumPurple, "grey": color.Gray,
	}
	if v, ok := c[name]; ok {
		return plain.Foreground(v)
	}
	return plain
}

func (l *listView) draw(a *App, r area) {
	switch {
	case len(a.guests) == 0 && a.loaded && a.failed == "":
		a.put(r.x+1, r.y+1, r.w-2, "No guests here: add a table [[guest]] to the seat's file.", plain)
	case !a.loaded:
		a.put(r.x+1, r.y+1, r.w-2, "Looking ...", quiet)
	}
	if len(a.guests) == 0 {
		return
	}
	var cols []column
	name := r.w - 4
	for _, c := range l.columns() {
		if r.w >= c.below {
			cols = append(cols, c)
			name -= c.width + 1
		}
	}
	longest := nameWidth
	for i := range a.guests {
		longest = max(longest, width(Line(a.guests[i].Name)))
	}
	name = max(min(name, longest), 1)
	l.at = max(a.index(), 0)
	rows := area{r.x, r.y + 1, r.w, r.h - 2} // the last is for the note
	l.top = scroll(l.top, l.at, rows.h, len(a.guests))

	row := func(y int, slot, guest string, nameStyle, base tcell.Style, cell func(c column) (string, tcell.Style)) {
		a.put(r.x+1, y, 2, slot, base)
		x := r.x + 3
		a.put(x, y, name, guest, nameStyle)
		x += name + 1
		for _, c := range cols {
			text, style := cell(c)
			text = fit(text, c.width)
			at := x
			if c.right {
				at += c.width - width(text)
			}
			a.put(at, y, r.x+r.w-at, text, style)
			x += c.width + 1
		}
	}
	row(r.y, "", "Guest", bold, bold, func(c column) (string, tcell.Style) { return c.title, bold })
	for i := range min(rows.h, len(a.guests)-l.top) {
		g := &a.guests[l.top+i]
		base, y := plain, rows.y+i
		if g.Name == a.selected {
			base = reversed
			a.fill(area{r.x, y, r.w, 1}, base)
			a.put(r.x, y, 1, ">", base)
		}
		slot := ""
		if g.Slot > 0 {
			slot = fmt.Sprint(g.Slot)
		}
		row(y, slot, Line(g.Name), base.Bold(true), base, func(c column) (string, tcell.Style) {
			text, style := c.text(a, g)
			if a.stale && c.fleeting {
				text, style = "...", quiet
			}
			if g.Name == a.selected { // colours on a reversed row cannot be read everywhere
				style = base.Bold(style.HasBold())
			}
			return text, style
		})
	}
	more := ""
	switch below := len(a.guests) - l.top - rows.h; {
	case below > 0 && l.top > 0:
		more = fmt.Sprintf("%d above, %d below", l.top, below)
	case below > 0:
		more = fmt.Sprintf("%d below", below)
	case l.top > 0:
		more = fmt.Sprintf("%d above", l.top)
	}
	if g := a.guest(); g != nil && g.Note != "" && !a.stale {
		a.put(r.x+1, r.y+r.h-1, r.w-width(more)-4, Line(g.Note), bold)
	}
	a.put(r.x+r.w-1-width(more), r.y+r.h-1, width(more), more, quiet)
}

// index returns where the selected guest is, -1 if it is not there.
func (a *App) index() int {
	for i := range a.guests {
		if a.guests[i].Name == a.selected {
			return i
		}
	}
	return -1
}

// scroll returns which of n rows is to be the first of the h that are shown, so that the one at is among them.
func scroll(top, at, h, n int) int {
	top = min(max(top, at-h+1), at)
	return max(min(top, n-h), 0)
}

func (l *listView) key(a *App, key string) bool {
	if key == "enter" && a.guest() != nil {
		a.open(&detailsView{guest: a.selected})
		return true
	}
	_, h := a.scr.Size()
	to, ok := move(key, max(a.index(), 0), h-4-messageRows, len(a.guests))
	if ok && len(a.guests) > 0 {
		a.selected = a.guests[to].Name
		return true
	}
	return a.guestKey(key)
}

// move returns where a key moves from at, of n rows with page shown at a time.
func move(key string, at, page, n int) (to int, ok bool) {
	switch key {
	case "up", "k":
		at--
	case "down", "j":
		at++
	case "pgup":
		at -= max(page-1, 1)
	case "pgdn", " ":
		at += max(page-1, 1)
	case "home":
		at = 0
	case "end":
		at = n - 1
	default:
		return at, false
	}
	return max(min(at, n-1), 0), true
}
