package route

import (
	"time"

	"github.com/lodgehv/lodge/hid"
)

// Input routes a report of a device: what changed at one moment. at is that moment by CLOCK_MONOTONIC, as the kernel
// stamps reports on request; the router takes the word of its callers that it does not run backwards. The batch is not
// kept.
//
// Keys, buttons, motion and touch are passed on. The rest is not for guests: scan codes would give chords away, switches
// and repeat settings are the host's.
func (r *Router) Input(dev Device, at time.Duration, batch []hid.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = at
	d := r.devices[dev]
	if d == nil {
		d = &device{}
		r.devices[dev] = d
	}
	r.move(d, batch)
	for _, e := range batch {
		if e.Type == hid.EVKey && e.Code <= hid.KeyMax {
			r.key(d, e)
		}
	}
	r.flush()
}

// Plug says that a device is there, before its first Input, and which keys are held on it already. Nobody has got their
// presses, nor will get their releases, but they are the modifiers of chords: who comes back from another terminal by
// Ctrl+Alt+F2 need not let go before the next chord.
func (r *Router) Plug(dev Device, held hid.Keys) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.devices[dev] != nil {
		return
	}
	r.devices[dev] = &device{held: held}
	for code := range held.All() {
		r.down[code]++
	}
}

// Unplug says that a device is gone: what is held on it is released.
func (r *Router) Unplug(dev Device) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.devices[dev]
	if d == nil {
		return
	}
	delete(r.devices, dev)
	inOrder(d.held, func(code uint16) { r.key(d, hid.Event{Type: hid.EVKey, Code: code}) })
	if r.contacts.dev == d {
		r.lift()
	}
	r.flush()
}

// key is a key's or button's change on a device. A device that says the same twice is not believed the second time.
func (r *Router) key(d *device, e hid.Event) {
	held := d.held.Has(e.Code)
	switch {
	case e.Value == keyDown && !held:
		d.held.Set(e.Code, true)
		r.down[e.Code]++
		do, ok := r.bound(e.Code)
		switch {
		case ok && do == attend: // also if another keyboard holds its key down, perhaps for good
			r.act(attend)
		case r.down[e.Code] > 1:
		case ok:
			r.act(do)
		default:
			r.press(e.Code)
		}
	case e.Value == keyUp && held:
		d.held.Set(e.Code, false)
		r.down[e.Code]--
		if r.down[e.Code] == 0 && r.sent.Has(e.Code) {
			r.sent.Set(e.Code, false)
			r.out = append(r.out, e)
		}
	case e.Value == keyRepeat && held && r.sent.Has(e.Code):
		r.out = append(r.out, e)
	}
}

// Values of EVKey events.
const (
	keyUp     = 0
	keyDown   = 1
	keyRepeat = 2
)

// bound returns what a key is the trigger of, with the modifiers that are held.
func (r *Router) bound(code uint16) (do action, ok bool) {
	if modifier(code) != 0 {
		return 0, false
	}
	held := r.modifiers()
	for i := range r.bindings {
		if b := &r.bindings[i]; b.Key == code && b.pressed(held) {
			return b.do, true
		}
	}
	return 0, false
}

// press is a key that was held nowhere, and now is, and no chord's trigger.
func (r *Router) press(code uint16) {
	if isButton(code) && r.pointer != r.focus {
		r.choose(r.pointer, ByClick)
	}
	if modifier(code) == 0 {
		r.stay()
	}
	r.sent.Set(code, true)
	r.out = append(r.out, hid.Event{Type: hid.EVKey, Code: code, Value: keyDown})
}

// modifiers returns the modifiers that are held, on whatever keyboards.
func (r *Router) modifiers() (held Mods) {
	for i := range modifiers {
		if m := &modifiers[i]; r.down[m.left]+r.down[m.right] > 0 {
			held |= m.mod
		}
	}
	return held
}
