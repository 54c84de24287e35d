package appliance

import (
	"fmt"
	"strings"

	"github.com/gdamore/tcell/v3"
)

// sheet is how pages on the kernel's console are laid out: a title, lines from the top, and what keys do at the bottom.
type sheet struct {
	s       tcell.Screen
	y, w, h int
}

var (
	plainStyle = tcell.StyleDefault
	boldStyle  = tcell.StyleDefault.Bold(true)
)

// newSheet clears a screen for a page with a title.
func newSheet(s tcell.Screen, title string) *sheet {
	t := &sheet{s: s}
	t.w, t.h = s.Size()
	s.Clear()
	t.put(boldStyle.Reverse(true), fmt.Sprintf("%-*s", t.w, " "+title))
	t.put(plainStyle, "")
	return t
}

// put adds a text, and breaks it into lines. What does not fit above the last line of the screen is not shown.
func (t *sheet) put(style tcell.Style, text string) {
	for _, l := range wrap(text, t.w) {
		if t.y < t.h-1 {
			t.s.PutStrStyled(0, t.y, l, style)
		}
		t.y++
	}
}

// rest returns how many lines are free.
func (t *sheet) rest() int { return max(0, t.h-t.y-2) }

// end says what keys do, and shows the page.
func (t *sheet) end(keys string) {
	t.s.PutStrStyled(0, t.h-1, cut(" "+keys, t.w), boldStyle)
	t.s.Show()
}

// cut returns the beginning of a line that fits into w columns.
func cut(line string, w int) string {
	r := []rune(line)
	return string(r[:min(len(r), w)])
}

// wrap breaks a text into lines of at most w columns, at spaces where there are some. An empty text is one empty line.
func wrap(text string, w int) []string {
	w = max(w, 1)
	r := []rune(strings.Map(printable, strings.ReplaceAll(text, "\n", " ")))
	var lines []string
	for len(r) > w {
		n := w
		for i := w; i > w/2; i-- {
			if r[i] == ' ' {
				n = i
				break
			}
		}
		lines = append(lines, string(r[:n]))
		r = []rune(strings.TrimLeft(string(r[n:]), " "))
	}
	return append(lines, string(r))
}
