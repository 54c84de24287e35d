package textui

import (
	"bytes"
	"context"
	"reflect"
	"slices"
	"strings"
)

// row is a row of a text that can be scrolled through.
type row struct {
	text  string
	strip string // what the row begins with, in bold
}

// pager shows rows, from one on.
type pager struct {
	top  int // first row that is shown
	page int // how many were shown
	n    int // of how many
}

func (p *pager) draw(a *App, r area, rows []row) {
	p.page, p.n = r.h, len(rows)
	p.top = max(min(p.top, p.n-p.page), 0)
	for i := range min(r.h, p.n-p.top) {
		k := rows[p.top+i]
		x := a.put(r.x+1, r.y+i, r.w-2, k.strip, bold)
		a.put(x, r.y+i, r.x+r.w-1-x, k.text, plain)
	}
}

// key scrolls.
func (p *pager) key(key string) bool {
	switch key {
	case "end":
		p.top = max(p.n-p.page, 0)
		return true
	case "pgup", "pgdn", "up", "down", "j", "k", " ", "home":
		to, _ := move(key, p.top, p.page, p.n)
		p.top = max(min(to, p.n-p.page), 0)
		return true
	}
	return false
}

// atEnd reports whether the last row is shown.
func (p *pager) atEnd() bool { return p.top >= p.n-p.page }

// detailsView shows a guest's devices.
type detailsView struct {
	guest   string
	pager   pager
	details Details
	failed  string
	loaded  bool
	loading bool
}

func (v *detailsView) title(*App) string { return Line(v.guest) }

func (v *detailsView) hints(a *App) []hint { return a.guestHints() }

func (v *detailsView) key(a *App, key string) bool { return v.pager.key(key) || a.guestKey(key) }

func (v *detailsView) refresh(a *App) {
	if v.loading {
		return
	}
	v.loading = true
	a.start(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		d, err := a.sys.Details(ctx, v.guest)
		return func() {
			failed := ""
			if err != nil {
				failed, d = err.Error(), v.details
			}
			a.dirty = a.dirty || !v.loaded || failed != v.failed || !reflect.DeepEqual(d, v.details)
			v.loading, v.loaded, v.failed, v.details = false, true, failed, d
		}
	})
}

// labelWidth is how many columns the name of a fact has.
const labelWidth = 14

func (v *detailsView) draw(a *App, r area) {
	var rows []row
	add := func(name, text string) {
		name = fit(Line(name), labelWidth)
		strip := "  " + name + strings.Repeat(" ", labelWidth+1-width(name))
		for _, s := range wrap(Line(text), max(r.w-2-width(strip), 10)) {
			rows = append(rows, row{s, strip})
			strip = strings.Repeat(" ", labelWidth+3)
		}
	}
	if g := a.named(v.guest); g != nil {
		text, _ := state(a, g)
		if g.OnScreen {
			text += ", on screen"
		}
		add("state", text)
		for _, f := range [...]Fact{{"note", g.Note}, {"CPU", percent(g.CPU)}, {"memory", memory(g)}, {"up", duration(g.Uptime)}} {
			if f.Text != "" {
				add(f.Name, f.Text)
			}
		}
	}
	for _, s := range v.details.Sections {
		rows = append(rows, row{}, row{strip: Line(s.Title)})
		for _, f := range s.Facts {
			add(f.Name, f.Text)
		}
	}
	switch {
	case v.failed != "":
		rows = append(rows, row{})
		for line := range strings.Lines(v.failed) {
			add("problem", line)
		}
	case !v.loaded:
		rows = append(rows, row{}, row{text: "Looking ..."})
	}
	v.pager.draw(a, r, rows)
}

// logLimit is how much of the end of a log is shown, in bytes.
const logLimit = 64 << 10

// logView shows the end of a guest's logs, one at a time. While its last line is on screen it follows what is written.
type logView struct {
	guest   string
	names   []string // of the logs
	at      int
	loaded  bool
	loading bool
	failed  string
	raw     []byte
	lines   []string
	pager   pager
	follow  bool
}

func newLogView(guest string) *logView { return &logView{guest: guest, follow: true} }

func (v *logView) title(*App) string {
	s := "log of " + Line(v.guest)
	if v.at < len(v.names) {
		s += ": " + Line(v.names[v.at])
	}
	if !v.follow {
		s += " (held)"
	}
	return s
}

func (v *logView) hints(*App) []hint {
	h := []hint{{"Up Down PgUp PgDn", "Scroll"}}
	if len(v.names) > 1 {
		h = append(h, hint{"Tab", "Next log"})
	}
	return append(h, hint{"End", "Follow"})
}

func (v *logView) key(a *App, key string) bool {
	switch n := len(v.names); {
	case n > 1 && (key == "tab" || key == "backtab"):
		step := 1
		if key == "backtab" {
			step = n - 1
		}
		v.at = (v.at + step) % n
		v.raw, v.lines, v.loaded, v.loading, v.follow = nil, nil, false, false, true
		v.refresh(a)
		return true
	case v.pager.key(key):
		if v.follow = v.pager.atEnd(); v.follow {
			v.refresh(a)
		}
		return true
	}
	return false
}

// refresh reads the log anew. Where somebody reads further up, it stays as it is: it would move away below them.
func (v *logView) refresh(a *App) {
	if v.loading || !v.follow && v.loaded {
		return
	}
	v.loading = true
	at, names := v.at, v.names
	a.start(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		var text []byte
		d, err := a.sys.Details(ctx, v.guest)
		if err == nil {
			names = d.Logs
			if at < len(names) {
				text, err = a.sys.Log(ctx, v.guest, names[at], logLimit)
			}
		}
		return func() {
			if v.at == at {
				v.have(a, names, text, err)
			}
		}
	})
}

func (v *logView) have(a *App, names []string, text []byte, err error) {
	failed := ""
	if err != nil {
		failed = Line(err.Error())
	}
	v.loading = false
	if v.loaded && failed == v.failed && bytes.Equal(text, v.raw) && slices.Equal(names, v.names) {
		return
	}
	v.loaded, v.failed, v.raw, v.names, a.dirty = true, failed, text, names, true
	v.lines = Lines(text, len(text) >= logLimit)
}

func (v *logView) draw(a *App, r area) {
	var rows []row
	switch {
	case v.failed != "":
		rows = append(rows, row{text: "! " + v.failed})
	case !v.loaded:
		rows = append(rows, row{text: "Looking ..."})
	case len(v.names) == 0:
		rows = append(rows, row{text: "It has no logs: see its definition's tables [serial] and [debug_console]."})
	case len(v.lines) == 0:
		rows = append(rows, row{text: "Nothing was written yet."})
	}
	for _, s := range v.lines {
		for _, part := range wrap(s, r.w-2) {
			rows = append(rows, row{text: part})
		}
	}
	if v.follow {
		v.pager.top = len(rows)
	}
	v.pager.draw(a, r, rows)
}

// messagesView shows all that the console had to say, the last at the end.
type messagesView struct {
	pager pager
	seen  int
}

func (v *messagesView) title(*App) string           { return "messages" }
func (v *messagesView) refresh(*App)                {}
func (v *messagesView) hints(*App) []hint           { return []hint{{"Up Down", "Scroll"}} }
func (v *messagesView) key(_ *App, key string) bool { return v.pager.key(key) }

func (v *messagesView) draw(a *App, r area) {
	a.unread = 0
	var rows []row
	for _, m := range a.messages {
		strip := m.at.Format("15:04:05 ")
		if m.bad {
			strip += "! "
		}
		for _, s := range wrap(m.text, max(r.w-2-width(strip), 10)) {
			rows = append(rows, row{s, strip})
			strip = strings.Repeat(" ", width(strip))
		}
	}
	if len(a.messages) != v.seen {
		v.seen, v.pager.top = len(a.messages), len(rows)
	}
	v.pager.draw(a, r, rows)
}
