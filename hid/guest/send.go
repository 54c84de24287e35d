package guest

import "github.com/lodgehv/lodge/hid"

// hiRes is what a notch of a wheel is in its high-resolution code.
const hiRes = 120

// wheel adds up what a high-resolution wheel has turned since its last notch.
type wheel struct {
	notches, fine       int32 // of a batch
	hasNotches, hasFine bool
	rest                int32 // since the last notch
	told                bool  // the sender tells notches beside the fine motion: it counts them
}

// Send implements hid.Sink. It hands each device its part of the batch, if there is any, as a batch.
func (g *Input) Send(batch []hid.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.out {
		g.out[p] = g.out[p][:0]
	}
	g.aim(batch)
	for _, e := range batch {
		switch e.Type {
		case hid.EVKey:
			g.key(e)
		case hid.EVRel:
			g.rel(e)
		case hid.EVAbs:
			g.abs(e)
		}
	}
	g.turn(&g.wheels[0], hid.RelWheel, hid.RelWheelHiRes)
	g.turn(&g.wheels[1], hid.RelHWheel, hid.RelHWheelHiRes)
	for p, part := range g.out {
		if d := g.devices[p]; d != nil && len(part) > 0 {
			d.Send(part)
		}
	}
}

func (g *Input) put(p place, e hid.Event) { g.out[p] = append(g.out[p], e) }

// aim decides where buttons and wheels of a batch go to.
func (g *Input) aim(batch []hid.Event) {
	for _, e := range batch {
		switch {
		case e.Type == hid.EVAbs && e.Code <= hid.AbsY && g.tablet != nowhere:
			g.pointer = g.tablet
			return
		case e.Code <= hid.RelY && (e.Type == hid.EVRel || e.Type == hid.EVAbs):
			g.pointer = g.mouse
			return
		}
	}
	if g.pointer == nowhere || g.pointer != g.tablet && g.pointer != g.mouse { // which is not what it was
		if g.pointer = g.tablet; g.tablet == nowhere {
			g.pointer = g.mouse
		}
	}
}

// key sends a press to the device that it is for, and a release to the one that had the press.
func (g *Input) key(e hid.Event) {
	if e.Code > hid.KeyMax {
		return
	}
	h := &g.holder[e.Code]
	switch {
	case e.Value == 0 && *h != nowhere:
		g.put(*h, e)
		*h = nowhere
	case e.Value == 1 && *h == nowhere:
		switch {
		case e.Code >= hid.BtnLeft && e.Code <= hid.BtnTask:
			*h = g.pointer
		case e.Code < hid.BtnMisc, e.Code > hid.BtnGearUp:
			*h = g.keyboard
		default: // BtnTouch follows from the contacts; there are no joysticks
			return
		}
		g.put(*h, e)
	}
}

func (g *Input) rel(e hid.Event) {
	w := &g.wheels[0]
	switch e.Code {
	case hid.RelX, hid.RelY:
		g.put(g.mouse, e)
	case hid.RelHWheel, hid.RelHWheelHiRes:
		w = &g.wheels[1]
		fallthrough
	case hid.RelWheel, hid.RelWheelHiRes:
		if e.Code == hid.RelHWheel || e.Code == hid.RelWheel {
			w.notches, w.hasNotches = w.notches+e.Value, true
		} else {
			w.fine, w.hasFine = w.fine+e.Value, true
		}
	}
}

// turn sends what a wheel has turned, in both codes: a guest looks at one of them. What the sender has in one alone is
// completed. Linux tells fine motion in each report, and a notch in those in which one is full by its own count, which forgets
// what it has after a while: from the first such report on nothing is added, or notches would be counted twice.
func (g *Input) turn(w *wheel, notches, fine uint16) {
	switch {
	case !w.hasNotches && !w.hasFine:
		return
	case !w.hasFine:
		w.fine = w.notches * hiRes
	case w.hasNotches:
		w.told, w.rest = true, 0
	case !w.told:
		if w.rest > 0 != (w.fine > 0) {
			w.rest = 0 // the other way: the next notch is a whole one
		}
		w.rest += w.fine
		w.notches = w.rest / hiRes
		w.rest -= w.notches * hiRes
	}
	if w.notches != 0 {
		g.put(g.pointer, hid.Event{Type: hid.EVRel, Code: notches, Value: w.notches})
	}
	if w.fine != 0 {
		g.put(g.pointer, hid.Event{Type: hid.EVRel, Code: fine, Value: w.fine})
	}
	*w = wheel{rest: w.rest, told: w.told}
}

// The screen of a guest that has not been said to be of another size, in pixels.
const (
	defaultWidth  = 1024
	defaultHeight = 768
)

// abs sends a position. Without a tablet, it is the way from the last one; the first only says where that begins.
func (g *Input) abs(e hid.Event) {
	switch {
	case e.Code >= hid.AbsMTSlot:
		g.put(g.touch, e)
	case e.Code > hid.AbsY:
	case g.tablet != nowhere:
		g.put(g.tablet, e)
	default:
		size := int64(defaultWidth)
		switch {
		case e.Code == hid.AbsX && g.width > 0:
			size = int64(g.width)
		case e.Code == hid.AbsY && g.height > 0:
			size = int64(g.height)
		case e.Code == hid.AbsY:
			size = defaultHeight
		}
		at := int32(int64(min(max(e.Value, 0), hid.AbsMax)) * size / (hid.AbsMax + 1))
		if g.atKnown[e.Code] && at != g.at[e.Code] {
			g.put(g.mouse, hid.Event{Type: hid.EVRel, Code: e.Code, Value: at - g.at[e.Code]}) // RelX is AbsX, RelY AbsY
		}
		g.at[e.Code], g.atKnown[e.Code] = at, true
	}
}
