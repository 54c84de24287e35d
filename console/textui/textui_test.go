package textui

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3/vt"
)

func TestGolden(t *testing.T) {
	many := func(n int) (list []Guest) {
		for i := range n {
			list = append(list, Guest{Name: fmt.Sprintf("guest%02d", i), Slot: max(0, 9-i) % 10, Color: "red", State: State(i % 8), CPU: float64(i)})
		}
		return list
	}
	noted := three()
	noted[2].State, noted[2].Note = Unknown, "bank.toml:3: no memory: set it to a size such as \"512M\""
	opt := Options{Quit: true}
	for name, tc := range map[string]struct {
		sys  *fakeSystem
		w, h int
		opt  Options
		keys []string
	}{
		"list":        {sys: furnished()},
		"list-80x24":  {sys: furnished(), h: 24},
		"narrow":      {sys: furnished(), w: 40, h: 15},
		"tiny":        {sys: furnished(), w: 20, h: 5},
		"large":       {sys: furnished(), w: 132, h: 43},
		"none":        {sys: newSystem()},
		"forty":       {sys: newSystem(many(40)...), keys: []string{"pgdn", "down"}},
		"forty-end":   {sys: newSystem(many(40)...), keys: []string{"end"}},
		"seat":        {sys: furnished(), opt: Options{Back: func() {}}, keys: []string{"down"}},
		"note":        {sys: newSystem(noted...), keys: []string{"end"}},
		"details":     {sys: furnished(), keys: []string{"enter"}},
		"details-bad": {sys: furnished(), keys: []string{"down", "enter"}},
		"log":         {sys: furnished(), keys: []string{"l"}},
		"log-serial":  {sys: furnished(), keys: []string{"l", "tab"}},
		"stop":        {sys: furnished(), keys: []string{"x"}},
		"stop-paused": {sys: furnished(), keys: []string{"down", "x"}},
		"stop-narrow": {sys: furnished(), w: 30, h: 12, keys: []string{"x"}},
		"discard":     {sys: furnished(), keys: []string{"end", "d"}},
		"impossible":  {sys: furnished(), keys: []string{"s", "9"}},
		"messages":    {sys: furnished(), keys: []string{"s", "9", "m"}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.w == 0 {
				tc.w = 80
			}
			if tc.h == 0 {
				tc.h = 25
			}
			if tc.opt.Back == nil {
				tc.opt = opt
			}
			r := newRig(t, tc.sys, terminal{w: tc.w, h: tc.h}, tc.opt)
			if tc.h > minHeight {
				r.shows(fmt.Sprintf(" of %d on", len(tc.sys.guests)))
				if n := len(tc.sys.guests); n > 0 {
					r.shows(">")
				}
			}
			for _, k := range tc.keys {
				r.press(k)
				if k == "l" || k == "enter" {
					r.shows("work")
					waitLoaded(r)
				}
			}
			r.golden(name)
		})
	}
}

// waitLoaded waits until nothing is being looked at.
func waitLoaded(r *rig) {
	r.t.Helper()
	eventually(r.t, "looked", func() error {
		if got := r.text(); strings.Contains(got, "Looking") || strings.Contains(got, "Lodge - guests") {
			return errors.New(got)
		}
		return nil
	})
}

// On a terminal without colours everything is there too; what is selected is seen by a mark and by being reversed.
func TestMonochrome(t *testing.T) {
	for _, term := range []string{"vt100", "linux"} {
		t.Run(term, func(t *testing.T) {
			r := newRig(t, furnished(), terminal{w: 80, h: 25, term: term}, Options{Quit: true})
			r.golden("list")
			for y := range vt.Row(25) {
				if c := r.term.GetCell(vt.Coord{X: 4, Y: y}); (y == 0 || y == 2 || y == 24) != (c.S.Attr()&vt.Reverse != 0) {
					t.Errorf("row %d: reversed is %v", y, c.S.Attr()&vt.Reverse != 0)
				}
			}
			r.term.mu.Lock()
			defer r.term.mu.Unlock()
			for _, color := range []string{"\x1b[3", "\x1b[4", ";3", ";4"} {
				for _, seq := range bytes.Split(r.term.written, []byte("\x1b"))[1:] {
					if seq = append([]byte("\x1b"), seq...); bytes.HasPrefix(seq, []byte(color)) && bytes.IndexByte(seq, 'm') == len(color)+1 {
						t.Errorf("a colour on a terminal without: %q", seq)
					}
				}
			}
		})
	}
}

// What guests call themselves, log and say cannot command the terminal.
func TestHostile(t *testing.T) {
	const evil = "\x1b]0;pwned\x07\x1b[2J\x1b[31mred\x1b[0m\u009b5m\u202egnp.exe\x07\b\b\b\x00\x7fe\u0301\u0301\x1bP+q544e\x1b\\\x1b(0\x0eq"
	g := three()
	g[0].Name, g[0].Color, g[0].Note = "wo"+evil+"rk", evil, evil
	s := newSystem(g...)
	s.details[g[0].Name] = Details{Sections: []Section{{evil, []Fact{{evil, evil + strings.Repeat("x", 5000)}}}}, Logs: []string{evil, "b"}}
	s.logs[g[0].Name+"/"+evil] = strings.Repeat(evil+"\r\n"+strings.Repeat("世", 100)+"\n", 400)
	s.switched = errors.New("switch: " + evil)
	s.do = func(context.Context, string, Command, func(Progress)) error {
		return errors.New("do: " + evil + "\nand " + evil)
	}
	r := newRig(t, s, terminal{w: 80, h: 25}, Options{Quit: true})
	r.shows("wored")
	r.press("enter")
	r.shows("xxxxx")
	r.press("esc", "l")
	r.shows("世世")
	r.press("home", "tab", "esc", "g")
	r.shows("! switch: ")
	r.press("p")
	r.shows("pause: do: ")
	r.press("m")
	r.shows("messages")
	r.press("esc", "x")
	r.shows("Stop wo")
	if n := r.term.Bells(); n != 0 {
		t.Errorf("the bell rang %d times", n)
	}
	if title := r.term.GetTitle(); title != "" {
		t.Errorf("the window's title is %q", title)
	}
	r.term.mu.Lock()
	defer r.term.mu.Unlock()
	for _, bad := range []string{"pwned", "\u009b", "\u202e", "\x07", "\b\b\b", "\u0301", "+q544e", "\x1b[31mred"} {
		if bytes.Contains(r.term.written, []byte(bad)) {
			t.Errorf("the terminal got %q", bad)
		}
	}
}

// Each key does what its hint says, and where a question comes first nothing happens before it is answered.
func TestKeys(t *testing.T) {
	for _, tc := range []struct {
		keys string
		want []string
	}{
		{"s", nil}, // it runs
		{"p", []string{"pause work"}},
		{"down p", []string{"resume home"}},
		{"v", []string{"save work"}},
		{"down v", []string{"save home"}},
		{"end s", []string{"start bank"}},
		{"end home g", []string{"switch work"}},
		{"2", []string{"switch home"}},
		{"5", nil},
		{"x", nil},
		{"x enter y esc", nil},
		{"x b", []string{"power button work"}},
		{"x f", []string{"force off work"}},
		{"down x b", nil}, // it is paused, and would not notice
		{"down x f", []string{"force off home"}},
		{"end x f", nil},
		{"d d", nil},
		{"end d d", []string{"discard saved state bank"}},
		{"end d esc d", nil},
		{"x 3", []string{"switch bank"}}, // which takes the question back
		{"enter p", []string{"pause work"}},
		{"enter x f", []string{"force off work"}},
		{"l p x f", nil}, // a log takes no commands
		{"l esc p", []string{"pause work"}},
		{"j k P", []string{"pause work"}},
		{"m m esc p", []string{"pause work"}},
	} {
		t.Run(tc.keys, func(t *testing.T) {
			s := furnished()
			r := newRig(t, s, terminal{w: 80, h: 25}, Options{Quit: true})
			r.shows(">1")
			r.press(strings.Fields(tc.keys)...)
			if tc.want != nil {
				s.asked(t, tc.want...)
			}
			r.press("esc", "esc", "1") // it has taken the keys before when it takes this one
			s.asked(t, "switch work")
		})
	}
}

// A command that takes long shows how far it is, holds nothing up, and can be overruled by force alone.
func TestProgress(t *testing.T) {
	s := furnished()
	next := make(chan Progress)
	s.do = func(ctx context.Context, _ string, c Command, progress func(Progress)) error {
		if c != Save {
			return nil
		}
		for {
			select {
			case p, ok := <-next:
				if !ok {
					return errors.New("the disk is full: free some of it")
				}
				progress(p)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	r := newRig(t, s, terminal{w: 80, h: 25}, Options{Quit: true})
	r.shows(">1")
	r.press("v")
	r.shows("saving")
	next <- Progress{42, 100}
	r.shows("saving 42%")
	next <- Progress{1 << 63, 1} // whoever says so
	r.shows("saving 100%")
	r.press("p")
	r.shows("work: save is under way: wait for it")
	r.press("q")
	r.shows("work is being saved")
	r.press("esc")
	close(next)
	r.shows("! work: save: the disk is full: free some of it")
	r.press("down", "up", "enter", "esc")
	r.shows("! work: save: the disk is full: free some of it (1 more: m)")
	r.press("m")
	r.shows("14:05:01 ! work: save is under way")
	r.press("esc")
	eventually(t, "the message is read", func() error {
		if strings.Contains(r.text(), "disk is full") {
			return errors.New(r.text())
		}
		return nil
	})

	next = make(chan Progress)
	r.press("v")
	r.shows("saving")
	r.press("x", "f")
	s.asked(t, "save work", "save work", "force off work")
	r.shows("running")
	if strings.Contains(r.text(), "context canceled") {
		t.Errorf("what was overruled is told:\n%s", r.text())
	}
}

// The list is looked at again when something has changed, with what was selected still so, and when the system fails.
func TestChanges(t *testing.T) {
	s := furnished()
	r := newRig(t, s, terminal{w: 80, h: 25}, Options{Quit: true})
	r.shows(">1")
	r.press("down")
	r.shows(">2")
	s.set(func() { s.guests = append([]Guest{{Name: "new", State: Off, CPU: -1}}, s.guests...) })
	r.shows("new")
	r.shows(">2")
	s.set(func() { s.guests = s.guests[:2] })
	r.shows(">1 work")
	s.set(func() { s.err = errors.New("the manager is gone: start it") })
	r.shows("! the manager is gone: start it")
	r.shows(">1 work") // as it was last
	s.set(func() { s.err, s.guests = nil, nil })
	r.shows("No guests here")
	r.press("enter", "x", "p", "l", "1")
	r.shows("no guest has slot 1")
}

// A log that is read further up stays where it is; at its end it follows.
func TestFollow(t *testing.T) {
	s := furnished()
	r := newRig(t, s, terminal{w: 80, h: 25}, Options{Quit: true, Every: 20 * time.Millisecond})
	r.shows(">1")
	r.press("l")
	r.shows("guest reboots")
	r.press("tab")
	r.shows("and ends")
	s.set(func() { s.logs["work/serial port"] += "one more\n" })
	r.shows("one more")
	r.press("pgup")
	r.shows("(held)")
	held := r.settled()
	s.set(func() { s.logs["work/serial port"] += "and another\n" })
	time.Sleep(100 * time.Millisecond) // several looks
	if got := r.text(); got != held {
		t.Errorf("it has moved:\n%s", got)
	}
	r.press("end")
	r.shows("and another")
	s.set(func() { delete(s.details, "work") })
	r.shows("! no details of work: write its definition")
}

// Nobody is asked for anything, and nothing is drawn, while nobody looks.
func TestHidden(t *testing.T) {
	s := furnished()
	r := newRig(t, s, terminal{w: 80, h: 25}, Options{Quit: true, Every: time.Millisecond})
	r.shows(">1")
	r.app.SetVisible(false)
	looks := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.looks
	}
	eventually(t, "no look is under way", func() error {
		loading := make(chan bool, 1)
		r.app.post(t.Context(), func() { loading <- r.app.loading })
		if <-loading {
			return errors.New("one is")
		}
		return nil
	})
	last := looks()
	s.set(func() { s.guests[0].Name = "renamed" })
	time.Sleep(20 * time.Millisecond)
	if n := looks(); n != last {
		t.Errorf("%d looks while it is hidden", n-last)
	}
	r.app.SetVisible(true)
	r.shows("renamed")
}

// When the console comes back it does not show as true what guests did when it was seen last.
func TestStale(t *testing.T) {
	s := furnished()
	r := newRig(t, s, terminal{w: 80, h: 25}, Options{Quit: true})
	r.shows("running")
	r.app.SetVisible(false)
	r.shows("...")
	answer := make(chan struct{})
	s.set(func() { s.hold = answer })
	r.app.SetVisible(true)
	r.shows("...")
	if text := r.text(); strings.Contains(text, "running") || strings.Contains(text, " on ") {
		t.Errorf("it shows\n%s", text)
	}
	close(answer)
	r.shows("running")
}

// A system that does not answer holds up no key.
func TestStuckSystem(t *testing.T) {
	s := &stuckSystem{fakeSystem: furnished()}
	var left atomic.Bool
	r := newRig(t, s, terminal{w: 80, h: 25}, Options{Quit: true, Back: func() { left.Store(true) }})
	r.shows(">1")
	r.press("enter")
	r.shows("Looking")
	r.press("esc", "g", "p", "l")
	r.shows("Looking")
	r.press("esc", "esc")
	eventually(t, "left", func() error {
		if !left.Load() {
			return errors.New("no")
		}
		return nil
	})
}

// stuckSystem answers nothing.
type stuckSystem struct{ *fakeSystem }

func (*stuckSystem) Details(ctx context.Context, _ string) (Details, error) {
	<-ctx.Done()
	return Details{}, ctx.Err()
}

func (*stuckSystem) Switch(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }

func (*stuckSystem) Do(ctx context.Context, _ string, _ Command, _ func(Progress)) error {
	<-ctx.Done()
	return ctx.Err()
}

// A digit that is pressed before the console knows who is there goes to the guest all the same, if no other key follows.
func TestDigitBeforeGuests(t *testing.T) {
	for _, c := range []struct {
		keys, want []string
	}{
		{[]string{"2"}, []string{"switch home"}},
		{[]string{"2", "1"}, []string{"switch work"}},
		{[]string{"2", "down"}, nil},
	} {
		s := &slowSystem{newSystem(Guest{Name: "work", Slot: 1}, Guest{Name: "home", Slot: 2}), make(chan struct{})}
		r := newRig(t, s, terminal{w: 80, h: 25}, Options{})
		r.press(c.keys...)
		eventually(t, "the keys are taken", func() error {
			if n := len(r.scr.EventQ()); n > 0 {
				return fmt.Errorf("%d wait", n)
			}
			return nil
		})
		r.app.updates <- func() { close(s.answer) } // and done
		r.shows("home")
		s.asked(t, c.want...)
	}
}

// slowSystem tells which guests there are when answer is closed.
type slowSystem struct {
	*fakeSystem
	answer chan struct{}
}

func (s *slowSystem) Guests(ctx context.Context) ([]Guest, error) {
	<-s.answer
	return s.fakeSystem.Guests(ctx)
}

func TestQuit(t *testing.T) {
	for _, key := range []string{"q", "ctrl-c"} {
		r := newRig(t, furnished(), terminal{w: 80, h: 25}, Options{Quit: true})
		r.shows(">1")
		r.press(key)
		select {
		case err := <-r.done:
			r.done <- err
		case <-time.After(20 * time.Second):
			t.Fatalf("%s does not end it", key)
		}
	}
}

// The screen follows the terminal's size.
func TestResize(t *testing.T) {
	r := newRig(t, furnished(), terminal{w: 80, h: 25}, Options{Quit: true})
	r.golden("list")
	r.term.SetSize(vt.Coord{X: 40, Y: 15})
	r.golden("narrow")
	r.term.SetSize(vt.Coord{X: 20, Y: 5})
	r.golden("tiny")
	r.term.SetSize(vt.Coord{X: 80, Y: 25})
	r.golden("list")
}
