package route

import (
	"time"

	"github.com/lodgehv/lodge/hid"
)

// maxSize is the largest width and height of a screen, in pixels.
const maxSize = 1 << 15

// move routes what a report says of motion, wheels and touch. It goes before the report's buttons: a click is meant for
// where the pointer is now.
func (r *Router) move(d *device, batch []hid.Event) {
	var dx, dy int64
	var x, y int32 = -1, -1
	for _, e := range batch {
		switch e.Type {
		case hid.EVRel:
			switch e.Code {
			case hid.RelX:
				dx += int64(e.Value)
			case hid.RelY:
				dy += int64(e.Value)
			default:
				r.out = append(r.out, e)
			}
		case hid.EVAbs:
			switch {
			case e.Code == hid.AbsX:
				x = min(max(e.Value, 0), hid.AbsMax)
			case e.Code == hid.AbsY:
				y = min(max(e.Value, 0), hid.AbsMax)
			case e.Code >= hid.AbsMTSlot && e.Code <= hid.AbsMTToolY:
				r.touch(d, e)
			default:
				r.out = append(r.out, e)
			}
		}
	}
	if dx != 0 || dy != 0 {
		if r.pushed(dx) {
			r.cross(sign(dx))
		} else {
			r.relative(clamp(dx, 1<<20), clamp(dy, 1<<20))
		}
	}
	if x >= 0 || y >= 0 {
		r.absolute(x, y)
	}
	if r.pointer != r.focus {
		r.flushTo(r.pointer)
	}
}

// relative moves the pointer by a distance.
func (r *Router) relative(dx, dy int32) {
	t := r.pointer
	t.x = min(max(t.x+dx, 0), t.w-1)
	t.y = min(max(t.y+dy, 0), t.h-1)
	if t.abs != nil && t.abs.WantsAbsolute() {
		r.place(t)
	} else {
		r.distance(dx, dy)
	}
}

// absolute moves the pointer to a position, in parts of hid.AbsMax; -1 is where it is.
func (r *Router) absolute(x, y int32) {
	t := r.pointer
	oldX, oldY := t.x, t.y
	if x >= 0 {
		t.x = scale(x, hid.AbsMax, t.w-1)
	}
	if y >= 0 {
		t.y = scale(y, hid.AbsMax, t.h-1)
	}
	if t.abs != nil && !t.abs.WantsAbsolute() {
		r.distance(t.x-oldX, t.y-oldY)
		return
	}
	if x >= 0 {
		r.out = append(r.out, hid.Event{Type: hid.EVAbs, Code: hid.AbsX, Value: x})
	}
	if y >= 0 {
		r.out = append(r.out, hid.Event{Type: hid.EVAbs, Code: hid.AbsY, Value: y})
	}
}

// distance adds relative motion to what is pending.
func (r *Router) distance(dx, dy int32) {
	if dx != 0 {
		r.out = append(r.out, hid.Event{Type: hid.EVRel, Code: hid.RelX, Value: dx})
	}
	if dy != 0 {
		r.out = append(r.out, hid.Event{Type: hid.EVRel, Code: hid.RelY, Value: dy})
	}
}

// place adds the position of t's pointer to what is pending.
func (r *Router) place(t *target) {
	r.out = append(r.out,
		hid.Event{Type: hid.EVAbs, Code: hid.AbsX, Value: scale(t.x, t.w-1, hid.AbsMax)},
		hid.Event{Type: hid.EVAbs, Code: hid.AbsY, Value: scale(t.y, t.h-1, hid.AbsMax)})
}

// resize changes the screen's size and leaves the pointer where it is on it.
func (t *target) resize(w, h int32) {
	t.x, t.y = scale(t.x, t.w-1, w-1), scale(t.y, t.h-1, h-1)
	t.w, t.h = w, h
}

// push is how far the mouse has been moved beyond an edge.
type push struct {
	dir   int64 // -1 left, +1 right
	far   int64 // pixels
	since time.Duration
}

// pushed says whether a move by dx is the one that goes through the edge.
func (r *Router) pushed(dx int64) bool {
	t := r.pointer
	over := min(int64(t.x)+dx, 0) + max(int64(t.x)+dx-int64(t.w-1), 0)
	if over == 0 || r.cfg.Edge.Push <= 0 || t == r.console || anyButton(&r.sent) || r.contacts.sent != 0 {
		r.push = push{}
		return false
	}
	dir := int64(sign(over))
	if r.push.dir != dir || r.now-r.push.since > r.cfg.Edge.Within {
		r.push = push{dir: dir, since: r.now}
	}
	r.push.far += over * dir
	return r.push.far >= int64(r.cfg.Edge.Push)
}

// cross moves the pointer to the neighbour's screen, to the edge that it comes in by, at the same height.
func (r *Router) cross(dir int) {
	r.push = push{}
	old := r.pointer
	t := r.neighbour(old, dir, false)
	if t == nil {
		return
	}
	r.flushTo(old)
	t.x, t.y = 0, scale(old.y, old.h-1, t.h-1)
	if dir < 0 {
		t.x = t.w - 1
	}
	switch {
	case r.cfg.KeyboardFollowsMouse || t == r.focus:
		r.choose(t, ByEdge)
	default:
		r.aim(t)
	}
	if t.abs != nil && t.abs.WantsAbsolute() {
		r.place(t)
	}
}

// scale maps v, of 0 to from, to 0 to to, rounded.
func scale(v, from, to int32) int32 {
	if from <= 0 {
		return 0
	}
	return int32((int64(v)*int64(to) + int64(from)/2) / int64(from))
}

func clamp(v, limit int64) int32 { return int32(min(max(v, -limit), limit)) }

func sign(v int64) int {
	if v < 0 {
		return -1
	}
	return 1
}
