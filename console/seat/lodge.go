package seat

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid"
)

// ownConsole is Lodge's own place on the seat: what the attention key opens. It lists the guests; a digit goes to a guest,
// Esc back to where one was.
type ownConsole struct {
	s      *Seat
	source *compose.Source
	keys   chan uint16 // pressed, for run: the router is locked when they come
	first  atomic.Bool // a guest was shown
}

func newOwnConsole(s *Seat) *ownConsole {
	return &ownConsole{
		s:      s,
		source: s.NewSource(trustbar.Guest{Name: ownName, Label: "the machine's own console", Color: trustbar.Lodge()}),
		keys:   make(chan uint16, 16),
	}
}

// Send implements hid.Sink. It is called with the router locked.
func (o *ownConsole) Send(batch []hid.Event) {
	for _, e := range batch {
		if e.Type == hid.EVKey && e.Value == 1 {
			select {
			case o.keys <- e.Code:
			default: // whoever types that fast does not mean it
			}
		}
	}
}

// run does what keys ask for, until ctx is done.
func (o *ownConsole) run(ctx context.Context) {
	defer o.source.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case code := <-o.keys:
			o.key(code)
		}
	}
}

func (o *ownConsole) key(code uint16) {
	if code == hid.KeyEsc {
		o.s.Router.LeaveConsole()
		return
	}
	if code < hid.Key1 || code > hid.Key9 {
		return
	}
	for _, g := range o.s.guests {
		if g.cfg.Slot == int(code-hid.Key1)+1 {
			_ = o.s.Router.SetFocus(g.cfg.Name) // one that is not there stays in the list as such
		}
	}
}

// show lists the guests.
func (o *ownConsole) show() {
	var on, off []string
	for _, g := range o.s.guests {
		entry := g.cfg.Name
		if g.cfg.Slot > 0 {
			entry = fmt.Sprintf("%d %s", g.cfg.Slot, g.cfg.Name)
		}
		if g.sender.Load() != nil {
			on = append(on, entry)
		} else {
			off = append(off, g.cfg.Name)
		}
	}
	var text []string
	if len(on) > 0 {
		text = append(text, strings.Join(on, " · "), "Press a guest's number to go to it, Esc to go back.")
	}
	if len(off) > 0 {
		text = append(text, "Switched off: "+strings.Join(off, ", "))
	}
	o.source.SetPlacard(&trustbar.Placard{Title: "Lodge", Text: strings.Join(text, "\n"), Color: trustbar.Lodge()}, "")
}
