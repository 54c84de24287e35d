package textui

import (
	"strings"

	"github.com/gdamore/tcell/v3"
)

// keyOf returns a key's name: "up", "enter", "ctrl-l", or the character in lower case, as Caps Lock is no reason not to be
// understood. It is "" for what the console has no use for.
func keyOf(ev *tcell.EventKey) string {
	if !ev.Pressed() {
		return ""
	}
	switch ev.Key() {
	case tcell.KeyUp:
		return "up"
	case tcell.KeyDown:
		return "down"
	case tcell.KeyPgUp:
		return "pgup"
	case tcell.KeyPgDn:
		return "pgdn"
	case tcell.KeyHome:
		return "home"
	case tcell.KeyEnd:
		return "end"
	case tcell.KeyEnter:
		return "enter"
	case tcell.KeyEsc, tcell.KeyBackspace:
		return "esc"
	case tcell.KeyTab, tcell.KeyRight:
		return "tab"
	case tcell.KeyBacktab, tcell.KeyLeft:
		return "backtab"
	case tcell.KeyCtrlC:
		return "ctrl-c"
	case tcell.KeyCtrlL:
		return "ctrl-l"
	case tcell.KeyRune:
		s := strings.ToLower(ev.Str())
		switch ev.Modifiers() &^ tcell.ModShift {
		case tcell.ModNone:
			return s
		case tcell.ModCtrl:
			if s == "c" || s == "l" {
				return "ctrl-" + s
			}
		}
	}
	return ""
}

// key does what a key asks for. Digits go to guests, wherever one is.
func (a *App) key(key string) {
	if key == "" {
		return
	}
	a.dirty, a.said, a.wanted = true, "", 0
	if len(key) == 1 && key[0] >= '1' && key[0] <= '9' {
		a.dialog = nil
		a.toSlot(int(key[0] - '0'))
		return
	}
	switch {
	case key == "ctrl-l":
		a.draw()
		a.scr.Sync()
	case key == "ctrl-c" && a.opt.Quit:
		a.quit()
	case a.dialog != nil:
		a.dialog.key(a, key)
	case a.top().key(a, key):
	case key == "m":
		if _, there := a.top().(*messagesView); !there {
			a.open(&messagesView{})
		}
	case key == "q" && a.opt.Quit:
		a.quit()
	case key == "esc" && len(a.views) > 0:
		a.views = a.views[:len(a.views)-1]
	case key == "esc" && a.opt.Back != nil:
		a.opt.Back()
	}
}

// top returns the view that is shown.
func (a *App) top() view {
	if n := len(a.views); n > 0 {
		return a.views[n-1]
	}
	return &a.list
}

func (a *App) open(v view) {
	a.views = append(a.views, v)
	v.refresh(a)
}

// toSlot goes to the guest in a slot, as soon as it is known which guests there are.
func (a *App) toSlot(slot int) {
	if !a.loaded {
		a.wanted = slot
		return
	}
	for _, g := range a.guests {
		if g.Slot == slot {
			a.selected = g.Name
			a.switchTo(g.Name)
			return
		}
	}
	a.say(true, "no guest has slot %d", slot)
}

// quit ends the console, and asks before it cuts something short.
func (a *App) quit() {
	for name, j := range a.jobs {
		if j.command == Save {
			a.dialog = &dialog{
				title: Line(name) + " is being saved", text: []string{"To leave now ends that, and nothing is saved."},
				choices: []choice{{"l", "Leave", func(a *App) { a.ended = true }}},
			}
			return
		}
	}
	a.ended = true
}

// guestKey does what a key does to the selected guest.
func (a *App) guestKey(key string) bool {
	g := a.guest()
	if g == nil {
		return false
	}
	name := g.Name
	whether := func(c Command) {
		if c.possible(g.State) {
			a.do(name, c)
		} else {
			a.say(true, "%s: %s: not possible: it is %s", name, c, g.State)
		}
	}
	switch key {
	case "g":
		a.switchTo(name)
	case "s":
		whether(Start)
	case "p":
		if g.State == Paused {
			whether(Resume)
		} else {
			whether(Pause)
		}
	case "v":
		whether(Save)
	case "x":
		a.askStop(g)
	case "d":
		if !Discard.possible(g.State) {
			whether(Discard)
			break
		}
		a.dialog = &dialog{
			title:   "Discard the saved state of " + Line(name) + "?",
			text:    []string{"It then starts anew, as a computer that lost power while it ran.", "What was not on its disks is lost."},
			choices: []choice{{"d", "Discard", func(a *App) { a.do(name, Discard) }}},
		}
	case "l":
		a.open(newLogView(name))
	default:
		return false
	}
	return true
}

// askStop asks how to stop a guest.
func (a *App) askStop(g *Guest) {
	name := g.Name
	if !ForceOff.possible(g.State) {
		a.say(true, "%s: not possible to stop it: it is %s", name, g.State)
		return
	}
	d := &dialog{title: "Stop " + Line(name) + "?"}
	if PowerButton.possible(g.State) {
		d.text = []string{"Its power button asks it to shut down. By force is as pulling the plug:"}
		d.choices = append(d.choices, choice{"b", "Power button", func(a *App) { a.do(name, PowerButton) }})
	} else {
		d.text = []string{"It is " + g.State.String() + ": only force stops it now, as pulling the plug:"}
	}
	d.text = append(d.text, "what it has not written to its disks is lost.")
	d.choices = append(d.choices, choice{"f", "Force off", func(a *App) { a.do(name, ForceOff) }})
	a.dialog = d
}

// guestHints returns the keys that make sense for the selected guest now.
func (a *App) guestHints() (h []hint) {
	g := a.guest()
	if g == nil {
		return nil
	}
	if ForceOff.possible(g.State) { // it has a screen
		h = append(h, hint{"g", "Go to"})
	}
	for _, k := range []struct {
		c         Command
		key, does string
	}{
		{Start, "s", "Start"}, {ForceOff, "x", "Stop"}, {Pause, "p", "Pause"}, {Resume, "p", "Resume"}, {Save, "v", "Save"},
		{Discard, "d", "Discard"},
	} {
		if k.c.possible(g.State) {
			h = append(h, hint{k.key, k.does})
		}
	}
	return append(h, hint{"l", "Log"})
}

// dialog is a question. Only a choice's key answers it; Esc takes it back.
type dialog struct {
	title   string
	text    []string
	choices []choice
}

type choice struct {
	key, label string
	do         func(*App)
}

func (d *dialog) key(a *App, key string) {
	if key == "esc" {
		a.dialog = nil
		return
	}
	for _, c := range d.choices {
		if c.key == key {
			a.dialog = nil
			c.do(a)
			return
		}
	}
}
