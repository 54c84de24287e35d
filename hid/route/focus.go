package route

import (
	"slices"
	"time"

	"github.com/lodgehv/lodge/hid"
)

// wanted returns who is to have the focus. It follows from what the user has chosen and from who is up: there is nothing
// to remember when a target goes and comes back.
func (r *Router) wanted() *target {
	if r.locked || r.atConsole {
		return r.console
	}
	for _, t := range r.order {
		if !t.used {
			break
		}
		if t.up {
			return t
		}
	}
	return r.console
}

// settle gives the focus to whom it belongs.
func (r *Router) settle(why Reason) {
	t, old := r.wanted(), r.focus
	if t == old {
		return
	}
	r.release()
	r.focus = t
	if r.cfg.OnFocus != nil {
		r.cfg.OnFocus(Change{Old: old.name, New: t.name, Why: why, At: r.time(why)})
	}
	r.shine()
	if r.pointer != old { // it was elsewhere, by itself
		r.aim(t)
	}
	r.pointer = t
	r.push = push{}
}

// choose is the user's wish to have t, which is up, in the focus.
func (r *Router) choose(t *target, why Reason) {
	r.atConsole = t == r.console
	if !r.atConsole {
		r.first(t)
	}
	if t == r.focus && r.pointer != t {
		r.aim(t)
	}
	r.settle(why)
}

// first makes a guest the one that had the focus last.
func (r *Router) first(t *target) {
	t.used = true
	i := slices.Index(r.order, t)
	copy(r.order[1:i+1], r.order[:i])
	r.order[0] = t
}

// stay is the user's wish to be where the focus is: there is typing or clicking. If it is there only until another guest
// comes back, that one does not get it any more, or it could choose the moment when a password is typed.
func (r *Router) stay() {
	switch {
	case r.locked:
	case r.focus == r.console:
		r.atConsole = true
	default:
		r.first(r.focus)
	}
}

// aim lets t have the motion.
func (r *Router) aim(t *target) {
	if r.pointer == t {
		return
	}
	old := r.pointer
	r.pointer = t
	if r.cfg.OnPointer != nil {
		r.cfg.OnPointer(old.name, t.name)
	}
}

// time returns when it is that something happens for a reason.
func (r *Router) time(why Reason) time.Duration {
	if why > ByClick && r.cfg.Now != nil {
		return r.cfg.Now()
	}
	return r.now
}

// release delivers what is pending, and then releases in the focus, in one batch, all that is held there. What is still
// held is nobody's from then on.
func (r *Router) release() {
	r.flush()
	inOrder(r.sent, func(code uint16) { r.out = append(r.out, hid.Event{Type: hid.EVKey, Code: code}) })
	r.sent = hid.Keys{}
	r.lift()
	r.flush()
}

// flush sends what is pending to the focus.
func (r *Router) flush() { r.flushTo(r.focus) }

func (r *Router) flushTo(t *target) {
	if len(r.out) > 0 {
		t.sink.Send(r.out)
		r.out = r.out[:0]
	}
}

// shine lets the keyboards show the lights of the focus.
func (r *Router) shine() {
	if r.lights == r.focus.leds {
		return
	}
	r.lights = r.focus.leds
	if r.cfg.OnLEDs != nil {
		r.cfg.OnLEDs(r.lights)
	}
}

// act does what a chord is for. Whether it moves the focus or not: its modifiers, which the focus has got, are released
// there, and nothing that is held now goes anywhere any more.
func (r *Router) act(do action) {
	r.release()
	if do == attend {
		if !r.locked {
			r.choose(r.console, ByAttention)
		}
		if r.cfg.OnAttention != nil {
			r.cfg.OnAttention(r.now)
		}
		return
	}
	if r.locked {
		return
	}
	var t *target
	switch do {
	case left:
		t = r.neighbour(r.focus, -1, true)
	case right:
		t = r.neighbour(r.focus, +1, true)
	case last:
		t = r.last()
	default:
		n := int(do - slot)
		if t = r.slots[n]; t == nil || !t.up {
			r.absent(n, t)
			return
		}
	}
	if t != nil {
		r.choose(t, ByChord)
	}
}

// absent tells that the user wants what is not there.
func (r *Router) absent(slot int, t *target) {
	if r.cfg.OnAbsent == nil {
		return
	}
	if t == nil {
		r.cfg.OnAbsent(slot, "")
	} else {
		r.cfg.OnAbsent(slot, t.name)
	}
}

// neighbour returns the next guest that is up to the left (-1) or right (+1) of t, nil if there is none. wrap says that the
// row is a ring. The console stands before the first and behind the last.
func (r *Router) neighbour(t *target, step int, wrap bool) *target {
	i := slices.Index(r.row, t) // -1: the console
	if i < 0 && step < 0 {
		i = len(r.row)
	}
	for range r.row {
		i += step
		switch {
		case i >= 0 && i < len(r.row):
		case wrap:
			i = (i + len(r.row)) % len(r.row)
		default:
			return nil
		}
		if u := r.row[i]; u == t {
			return nil
		} else if u.up {
			return u
		}
	}
	return nil
}

// last returns the guest that had the focus before the one that has it, or one that has never had it, nil if there is no
// other guest.
func (r *Router) last() *target {
	for _, t := range r.order {
		if t.up && t != r.focus {
			return t
		}
	}
	return nil
}
