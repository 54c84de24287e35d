package route

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hid"
)

// world is a router with targets that watch what they get.
type world struct {
	r         *Router
	focus     string // by OnFocus
	guests    []string
	sinks     map[string]*watcher
	up        map[string]bool
	attention int
	locked    bool
	fail      func(format string, args ...any)

	devices  [3]hid.Keys // what is held on each
	triggers hid.Keys    // of chords that were pressed and are still held
}

// watcher is a target's sink. It holds the rules of a target.
type watcher struct {
	w        *world
	name     string
	down     hid.Keys
	contacts map[int32]bool
	slot     int32
	presses  int
}

func (k *watcher) Send(batch []hid.Event) {
	if len(batch) == 0 {
		k.w.fail("%s: an empty batch", k.name)
	}
	for _, e := range batch {
		switch {
		case e.Type == hid.EVKey:
			k.key(e)
		case e.Type == hid.EVAbs && e.Code == hid.AbsMTSlot:
			k.slot = e.Value
		case e.Type == hid.EVAbs && e.Code == hid.AbsMTTrackingID:
			if e.Value < 0 && !k.contacts[k.slot] {
				k.w.fail("%s: a contact ends that it has not got", k.name)
			}
			if e.Value >= 0 && k.w.focus != k.name {
				k.w.fail("%s: a contact begins without the focus", k.name)
			}
			k.contacts[k.slot] = e.Value >= 0
		case e.Type != hid.EVRel && e.Type != hid.EVAbs:
			k.w.fail("%s: got %v", k.name, e)
		}
	}
}

func (k *watcher) key(e hid.Event) {
	switch e.Value {
	case keyDown:
		if k.w.focus != k.name {
			k.w.fail("%s: press of %s without the focus, which %s has", k.name, hid.KeyName(e.Code), k.w.focus)
		}
		if k.down.Has(e.Code) {
			k.w.fail("%s: %s is pressed twice", k.name, hid.KeyName(e.Code))
		}
		if k.w.triggers.Has(e.Code) {
			k.w.fail("%s: gets the trigger %s of a chord", k.name, hid.KeyName(e.Code))
		}
		k.down.Set(e.Code, true)
		k.presses++
	case keyUp:
		if !k.down.Has(e.Code) {
			k.w.fail("%s: release of %s, which is not down", k.name, hid.KeyName(e.Code))
		}
		k.down.Set(e.Code, false)
	case keyRepeat:
		if k.w.focus != k.name || !k.down.Has(e.Code) {
			k.w.fail("%s: a repeat of %s that is not its", k.name, hid.KeyName(e.Code))
		}
	}
}

func newWorld(fail func(string, ...any), guests []string, cfg Config) *world {
	w := &world{sinks: make(map[string]*watcher), up: make(map[string]bool), focus: Console, guests: guests, fail: fail}
	cfg.Console = w.sink(Console)
	cfg.OnAttention = func(time.Duration) { w.attention++ }
	cfg.OnFocus = func(c Change) {
		if c.Old != w.focus || c.New == c.Old {
			w.fail("focus moves from %s to %s; %s had it", c.Old, c.New, w.focus)
		}
		if k := w.sinks[c.Old]; k.down != (hid.Keys{}) {
			w.fail("%s loses the focus with keys down", c.Old)
		}
		w.focus = c.New
	}
	var err error
	if w.r, err = New(cfg); err != nil {
		w.fail("%v", err)
	}
	for i, name := range guests {
		if err := w.r.Add(name, i+1, w.sink(name)); err != nil {
			w.fail("%v", err)
		}
		w.up[name] = true
	}
	return w
}

func (w *world) sink(name string) *watcher {
	w.sinks[name] = &watcher{w: w, name: name, contacts: make(map[int32]bool)}
	return w.sinks[name]
}

// held returns whether one of the keys is held on any device.
func (w *world) held(codes ...uint16) bool {
	for _, c := range codes {
		for i := range w.devices {
			if w.devices[i].Has(c) {
				return true
			}
		}
	}
	return false
}

// send gives the router a key event. It knows by itself what is a chord.
func (w *world) send(dev int, code uint16, value int32) {
	first := value == keyDown && !w.held(code)
	attention := w.held(hid.KeyLeftCtrl, hid.KeyRightCtrl) && w.held(hid.KeyLeftAlt, hid.KeyRightAlt)
	chord := attention && !w.held(hid.KeyLeftShift, hid.KeyRightShift, hid.KeyLeftMeta, hid.KeyRightMeta)
	attends := value == keyDown && !w.devices[dev].Has(code) && attention && code == hid.KeyEsc
	if attends || first && chord && (code >= hid.Key1 && code <= hid.Key9 || code == hid.KeyTab || code == hid.KeyLeft) {
		w.triggers.Set(code, true)
	}
	switch value {
	case keyDown:
		w.devices[dev].Set(code, true)
	case keyUp:
		w.devices[dev].Set(code, false)
	}
	before := w.attention
	w.r.Input(Device(dev), 0, []hid.Event{{Type: hid.EVKey, Code: code, Value: value}})
	if attends != (w.attention == before+1) {
		w.fail("attention key %v, attention %v", attends, w.attention-before)
	}
	if attends && w.focus != Console {
		w.fail("the attention key leaves the focus with %s", w.focus)
	}
	w.forget()
}

// forget drops the triggers that are up.
func (w *world) forget() {
	for code := range w.triggers.All() {
		if !w.held(code) {
			w.triggers.Set(code, false)
		}
	}
}

// unplug takes a device away.
func (w *world) unplug(dev int) {
	w.devices[dev] = hid.Keys{}
	w.r.Unplug(Device(dev))
	w.forget()
}

// check holds what is true between any two events.
func (w *world) check() {
	if f := w.r.Focus(); f != w.focus {
		w.fail("%s has the focus, OnFocus said %s", f, w.focus)
	}
	if w.focus != Console && (!w.up[w.focus] || w.locked) {
		w.fail("%s has the focus: up %v, locked %v", w.focus, w.up[w.focus], w.locked)
	}
	for name, k := range w.sinks {
		if name == w.focus {
			continue
		}
		if k.down != (hid.Keys{}) {
			w.fail("%s has keys down without the focus", name)
		}
		for slot, touched := range k.contacts {
			if touched {
				w.fail("%s has a contact in slot %d without the focus", name, slot)
			}
		}
	}
	for code := range uint16(hid.KeyMax + 1) {
		if w.sinks[w.focus].down.Has(code) && !w.held(code) {
			w.fail("%s has %s down, which nobody holds", w.focus, hid.KeyName(code))
		}
	}
}

var somekeys = []uint16{
	hid.KeyLeftCtrl, hid.KeyRightCtrl, hid.KeyLeftAlt, hid.KeyRightAlt, hid.KeyLeftShift, hid.KeyLeftMeta,
	hid.Key1, hid.Key2, hid.Key3, hid.Key4, hid.KeyEsc, hid.KeyTab, hid.KeyLeft, hid.KeyA, hid.KeyB, hid.BtnLeft, hid.BtnTouch,
}

// TestLeaks lets rapid look for an order of events that breaks a rule of the package comment.
func TestLeaks(t *testing.T) {
	for range 10 {
		rapid.Check(t, leaks)
	}
}

func leaks(t *rapid.T) {
	cfg := Config{
		Edge:                 Edge{Push: rapid.IntRange(0, 50).Draw(t, "push")},
		KeyboardFollowsMouse: rapid.Bool().Draw(t, "follows"),
	}
	w := newWorld(t.Fatalf, []string{"a", "b", "c"}, cfg)
	guest := rapid.SampledFrom(w.guests)
	code := rapid.SampledFrom(somekeys)
	dev := rapid.IntRange(0, len(w.devices)-1)
	known := func(t *rapid.T) string { // a guest that has not been removed
		name := guest.Draw(t, "guest")
		if _, ok := w.up[name]; !ok {
			t.Skip("removed")
		}
		return name
	}
	key := func(t *rapid.T) {
		w.send(dev.Draw(t, "device"), code.Draw(t, "key"), rapid.Int32Range(0, 2).Draw(t, "value"))
	}
	chord := func(t *rapid.T) {
		d, trigger := dev.Draw(t, "device"), code.Draw(t, "trigger")
		for _, c := range []uint16{hid.KeyLeftCtrl, hid.KeyRightAlt, trigger} {
			w.send(d, c, keyDown)
		}
		w.send(d, trigger, keyUp)
	}
	t.Repeat(map[string]func(*rapid.T){
		"":       func(*rapid.T) { w.check() },
		"key":    key,
		"key2":   key, // more often
		"chord":  chord,
		"unplug": func(t *rapid.T) { w.unplug(dev.Draw(t, "device")) },
		"report": func(t *rapid.T) { // several keys at once: not looked at by send
			var batch []hid.Event
			d := dev.Draw(t, "device")
			for range rapid.IntRange(1, 6).Draw(t, "keys") {
				e := hid.Event{Type: hid.EVKey, Code: code.Draw(t, "key"), Value: rapid.Int32Range(0, 1).Draw(t, "value")}
				if e.Value == keyDown {
					w.devices[d].Set(e.Code, true)
				} else {
					w.devices[d].Set(e.Code, false)
				}
				batch = append(batch, e)
			}
			w.triggers = hid.Keys{}
			w.r.Input(Device(d), 0, batch)
		},
		"motion": func(t *rapid.T) {
			w.r.Input(Device(dev.Draw(t, "device")), 0, []hid.Event{
				{Type: hid.EVRel, Code: hid.RelX, Value: rapid.Int32Range(-2000, 2000).Draw(t, "dx")}})
		},
		"touch": func(t *rapid.T) {
			w.r.Input(Device(dev.Draw(t, "device")), 0, []hid.Event{
				{Type: hid.EVAbs, Code: hid.AbsMTSlot, Value: rapid.Int32Range(-1, 33).Draw(t, "slot")},
				{Type: hid.EVAbs, Code: hid.AbsMTTrackingID, Value: rapid.Int32Range(-1, 1).Draw(t, "id")},
				{Type: hid.EVAbs, Code: hid.AbsMTPositionX, Value: 7}})
		},
		"down": func(t *rapid.T) {
			name := known(t)
			w.up[name] = false
			_ = w.r.Down(name, rapid.SampledFrom([]Reason{Died, Slept, Rebooting}).Draw(t, "why"))
		},
		"up": func(t *rapid.T) {
			name := known(t)
			w.up[name] = true
			var sink hid.Sink
			if rapid.Bool().Draw(t, "new") {
				old := w.sinks[name]
				sink = w.sink(name)
				w.sinks[name+", before"] = old
			}
			if w.r.Up(name, sink) != nil {
				t.Fatal("up")
			}
		},
		"remove": func(t *rapid.T) {
			name := known(t)
			delete(w.up, name)
			if w.r.Remove(name) != nil {
				t.Fatal("remove")
			}
		},
		"add": func(t *rapid.T) {
			name := guest.Draw(t, "guest")
			if _, ok := w.up[name]; ok {
				t.Skip("is there")
			}
			w.up[name] = true
			if err := w.r.Add(name, slices.Index(w.guests, name)+1, w.sink(name)); err != nil {
				t.Fatal(err)
			}
		},
		"focus":  func(t *rapid.T) { _ = w.r.SetFocus(rapid.SampledFrom(append(w.guests, Console)).Draw(t, "target")) },
		"leave":  func(*rapid.T) { w.r.LeaveConsole() },
		"lock":   func(*rapid.T) { w.locked = true; w.r.Lock() },
		"unlock": func(*rapid.T) { w.locked = false; w.r.Unlock() },
	})
}

// TestMillionKeys presses a million keys on three keyboards while the focus moves all the time.
func TestMillionKeys(t *testing.T) {
	const total = 1_000_000
	w := newWorld(t.Fatalf, []string{"a", "b", "c", "d", "e"}, Config{})
	if err := w.r.SetFocus("a"); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	switches := 0
	for pressed := 0; pressed < total; {
		code := uint16(hid.KeyQ + rnd.IntN(20))
		if rnd.IntN(16) == 0 {
			code = somekeys[rnd.IntN(len(somekeys))]
		}
		dev := rnd.IntN(len(w.devices))
		if i := slices.IndexFunc(w.devices[:], func(k hid.Keys) bool { return k.Has(code) }); i < 0 {
			pressed++
		} else if rnd.IntN(8) != 0 {
			dev = i // where it is held, so that it is released some day
		}
		value := int32(keyDown)
		if w.devices[dev].Has(code) {
			if value = keyUp; rnd.IntN(8) == 0 {
				value = keyRepeat
			}
		}
		before := w.focus
		w.send(dev, code, value)
		w.disturb(rnd, dev)
		if before != w.focus {
			switches++
		}
		if pressed%10000 == 0 {
			w.check()
		}
	}
	w.check()
	got := 0
	for _, k := range w.sinks {
		got += k.presses
	}
	t.Logf("%d keys pressed, %d presses delivered, %d switches", total, got, switches)
	if got > total || got < total*9/10 || switches < total/1000 {
		t.Error("that is no test")
	}
}

// disturb does, now and then, what is no key.
func (w *world) disturb(rnd *rand.Rand, dev int) {
	name := w.guests[rnd.IntN(len(w.guests))]
	switch rnd.IntN(400) {
	case 0:
		if w.up[name] = !w.up[name]; w.up[name] {
			_ = w.r.Up(name, nil)
		} else {
			_ = w.r.Down(name, []Reason{Died, Slept, Rebooting}[rnd.IntN(3)])
		}
	case 1:
		w.unplug(dev)
	case 2:
		if w.locked = !w.locked; w.locked {
			w.r.Lock()
		} else {
			w.r.Unlock()
		}
	case 3, 4, 5, 6, 7, 8:
		_ = w.r.SetFocus(name)
	case 9:
		w.r.LeaveConsole()
	}
}
