package appliance

import (
	"bytes"
	"context"
	"strings"

	"github.com/gdamore/tcell/v3"
)

// maxPassphrase is how long a passphrase may be, bytes: cryptsetup(8) takes no more.
const maxPassphrase = 512

// question is a page that asks for a passphrase.
type question struct {
	title, text string
	fields      []string                      // what is to be typed: of several, each the same
	keys        string                        // what keys do
	try         func(passphrase []byte) error // its error is shown, and the question asked again

	typed   [][]byte
	problem string
	busy    bool
}

// show asks on a screen. It reports whether an answer was tried with success, as opposed to that none is to be given, or that ctx is done.
func (q *question) show(ctx context.Context, s tcell.Screen) bool {
	q.typed = [][]byte{nil}
	for {
		q.draw(s)
		select {
		case <-ctx.Done():
			return false
		case e, ok := <-s.EventQ():
			if !ok {
				return false
			}
			switch e := e.(type) {
			case *tcell.EventResize:
				s.Sync()
			case *tcell.EventKey:
				if e.Key() == tcell.KeyEscape {
					return false
				}
				if answer := q.key(e); answer != nil {
					q.busy, q.problem = true, ""
					q.draw(s)
					err := q.try(answer)
					clear(answer)
					if err == nil {
						return true
					}
					q.busy, q.problem = false, err.Error()
				}
			}
		}
	}
}

// key takes a key, and returns the answer when it is whole.
func (q *question) key(e *tcell.EventKey) (answer []byte) {
	last := len(q.typed) - 1
	text := q.typed[last]
	switch {
	case e.Key() == tcell.KeyEnter:
		switch {
		case len(text) == 0:
		case last > 0 && !bytes.Equal(text, q.typed[0]):
			q.problem = "The two differ: type both again."
			q.typed = [][]byte{nil}
		case len(q.typed) < len(q.fields):
			q.typed = append(q.typed, nil)
		default:
			q.typed = [][]byte{nil}
			return text
		}
	case e.Key() == tcell.KeyBackspace:
		r := []rune(string(text))
		q.typed[last] = []byte(string(r[:max(0, len(r)-1)]))
	case e.Key() == tcell.KeyCtrlU:
		q.typed[last] = nil
	case e.Key() == tcell.KeyRune && e.Modifiers()&(tcell.ModCtrl|tcell.ModAlt) == 0 && len(text)+len(e.Str()) <= maxPassphrase:
		q.typed[last] = append(text, e.Str()...)
	}
	return nil
}

// draw draws the page. Of what is typed only the length is seen.
func (q *question) draw(s tcell.Screen) {
	t := newSheet(s, q.title)
	t.put(plainStyle, q.text)
	t.put(plainStyle, "")
	t.put(plainStyle, "Keys are those of a US keyboard.")
	t.put(plainStyle, "")
	if q.busy {
		t.put(boldStyle, "One moment ...")
	} else {
		for i, typed := range q.typed {
			t.put(boldStyle, q.fields[i]+": "+strings.Repeat("*", len([]rune(string(typed))))+"_")
		}
	}
	t.put(plainStyle, "")
	t.put(boldStyle, q.problem)
	t.end(q.keys)
}
