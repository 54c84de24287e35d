package textui

import (
	"fmt"
	"strings"
	"time"

	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/color"
)

// The styles. Each means something without colours too: by bold or reverse, or because the words say it.
var (
	plain    = tcell.StyleDefault
	bold     = plain.Bold(true)
	quiet    = plain.Dim(true)
	reversed = plain.Reverse(true)
	alarming = bold.Foreground(color.Red)
)

// area is a part of the screen: columns from x, rows from y.
type area struct{ x, y, w, h int }

// minWidth and minHeight are the smallest screen on which there is anything to see, in characters.
const minWidth, minHeight = 24, 8

// put writes s at a place, up to columns of it, and returns where it ends. All that is written goes through here, and is cleaned
// here if it was not before.
func (a *App) put(x, y, columns int, s string, style tcell.Style) int {
	for s = fit(clean(s), columns); s != ""; {
		rest, n := a.scr.Put(x, y, s, style)
		if n == 0 || len(rest) >= len(s) {
			break
		}
		s = rest
		x += n
	}
	return x
}

// fill writes spaces.
func (a *App) fill(r area, style tcell.Style) {
	for y := r.y; y < r.y+r.h; y++ {
		for x := r.x; x < r.x+r.w; x++ {
			a.scr.Put(x, y, " ", style)
		}
	}
}

// messageRows is how many rows messages have.
const messageRows = 2

// draw draws everything.
func (a *App) draw() {
	w, h := a.scr.Size()
	a.scr.Fill(' ', plain)
	if w < minWidth || h < minHeight {
		a.put(0, 0, w, "screen too small", plain)
		return
	}
	v := a.top()
	a.fill(area{0, 0, w, 1}, reversed)
	right := a.count()
	a.put(1, 0, w-len(right)-4, "Lodge - "+v.title(a), reversed.Bold(true))
	a.put(w-1-len(right), 0, len(right), right, reversed)
	v.draw(a, area{0, 1, w, h - 2 - messageRows})
	a.drawMessages(area{0, h - 1 - messageRows, w, messageRows})
	a.drawHelp(area{0, h - 1, w, 1}, v)
	if a.dialog != nil {
		a.drawDialog(area{0, 1, w, h - 2})
	}
}

// count says how many guests run.
func (a *App) count() string {
	if a.stale {
		return ""
	}
	n := 0
	for _, g := range a.guests {
		if ForceOff.possible(g.State) {
			n++
		}
	}
	return fmt.Sprintf("%d of %d on", n, len(a.guests))
}

// drawMessages shows what was said last, or what is wrong with the list.
func (a *App) drawMessages(r area) {
	text, style := a.said, plain
	switch {
	case text != "":
	case a.unread > 0:
		text, style = "! "+a.lastBad(), alarming
		if a.unread > 1 {
			text += fmt.Sprintf(" (%d more: m)", a.unread-1)
		}
	case a.failed != "":
		text, style = "! "+a.failed, alarming
	}
	rows := wrap(text, r.w-2)
	if len(rows) > r.h { // all of it is in the view of messages
		rows[r.h-1] = fit(rows[r.h-1]+"~~", r.w-2)
		rows = rows[:r.h]
	}
	for i, s := range rows {
		a.put(r.x+1, r.y+i, r.w-2, s, style)
	}
}

// lastBad returns the last message that was bad.
func (a *App) lastBad() string {
	for i := len(a.messages) - 1; i >= 0; i-- {
		if a.messages[i].bad {
			return a.messages[i].text
		}
	}
	return ""
}

// drawHelp shows the keys: those of the view, and those that are there always.
func (a *App) drawHelp(r area, v view) {
	hints := v.hints(a)
	if a.dialog != nil {
		hints = nil
		for _, c := range a.dialog.choices {
			hints = append(hints, hint{c.key, c.label})
		}
		hints = append(hints, hint{"Esc", "Cancel"})
	} else {
		if _, there := v.(*messagesView); !there && len(a.messages) > 0 {
			hints = append(hints, hint{"m", "Messages"})
		}
		switch {
		case len(a.views) > 0:
			hints = append(hints, hint{"Esc", "Back"})
		case a.opt.Back != nil:
			hints = append(hints, hint{"Esc", "Leave"})
		}
		if a.opt.Quit {
			hints = append(hints, hint{"q", "Quit"})
		}
	}
	a.fill(r, reversed)
	x := r.x + 1
	for _, k := range hints {
		if x+width(k.key)+1+width(k.does) > r.x+r.w {
			break
		}
		x = a.put(x, r.y, r.w, k.key, reversed.Bold(true))
		x = a.put(x+1, r.y, r.w, k.does, reversed) + 2
	}
}

// drawDialog draws the question in the middle.
func (a *App) drawDialog(r area) {
	d := a.dialog
	w := width(d.title)
	var text []string
	for _, s := range d.text {
		text = append(text, wrap(s, max(r.w-6, 1))...)
	}
	for _, s := range text {
		w = max(w, width(s))
	}
	for _, c := range d.choices {
		w = max(w, width(c.key)+2+width(c.label))
	}
	w = min(w+4, r.w-2)
	h := min(len(text)+len(d.choices)+6, r.h)
	box := area{r.x + (r.w-w)/2, r.y + (r.h-h)/2, w, h}
	a.fill(box, plain)
	a.frame(box)
	y := box.y + 1
	row := func(s string, style tcell.Style) {
		if y < box.y+box.h-1 {
			a.put(box.x+2, y, box.w-4, s, style)
		}
		y++
	}
	row(d.title, bold)
	for _, s := range text {
		row(s, plain)
	}
	y++
	for _, c := range d.choices {
		row(c.key+"  "+c.label, plain)
	}
	row("Esc  Cancel", plain)
}

// frame draws the edge of a box.
func (a *App) frame(r area) {
	line := func(y int, left, right string) {
		a.put(r.x, y, r.w, left+strings.Repeat("─", r.w-2)+right, plain)
	}
	line(r.y, "┌", "┐")
	for y := r.y + 1; y < r.y+r.h-1; y++ {
		a.put(r.x, y, 1, "│", plain)
		a.put(r.x+r.w-1, y, 1, "│", plain)
	}
	line(r.y+r.h-1, "└", "┘")
}

// size writes a number of bytes in five characters at most: "512M", "1.5G".
func size(n uint64) string {
	const units = "BKMGTPE"
	v, i := float64(n), 0
	for v >= 999.5 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if i > 0 && v < 9.95 && v != float64(int(v)) {
		return fmt.Sprintf("%.1f%c", v, units[i])
	}
	return fmt.Sprintf("%.0f%c", v, units[i])
}

// memory says how much of the host's memory a guest has, and how much it may have.
func memory(g *Guest) string {
	switch {
	case g.Memory == 0 && g.Resident == 0:
		return ""
	case g.Resident == 0:
		return size(g.Memory)
	case g.Memory == 0:
		return size(g.Resident)
	}
	return size(g.Resident) + " of " + size(g.Memory)
}

// duration writes a time in six characters at most: "42s", "12m", "2h05m", "3d04h".
func duration(d time.Duration) string {
	switch s := int(d.Seconds()); {
	case s <= 0:
		return ""
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm", s/60)
	case s < 24*3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	case s < 100*24*3600:
		return fmt.Sprintf("%dd%02dh", s/(24*3600), s/3600%24)
	default:
		return fmt.Sprintf("%dd", s/(24*3600))
	}
}

// percent writes a share of a processor.
func percent(v float64) string {
	if v < 0 {
		return ""
	}
	return fmt.Sprintf("%.0f%%", min(v, 99999))
}
