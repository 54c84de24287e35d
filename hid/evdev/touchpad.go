package evdev

import (
	"math"
	"time"

	"github.com/lodgehv/lodge/hid"
)

// The feel of a touchpad. Distances are in millimetres of the fingers' way.
const (
	tapTime     = 250 * time.Millisecond // from the first finger's touch to the last one's leaving
	tapDistance = 1.5                    // a finger that moves further does not tap
	palmSize    = 20.0                   // of a contact's longer axis
	palmEdge    = 5.0                    // what begins that near to the left or right edge of a large pad is a palm until it leaves
	largePad    = 70.0                   // width
	padWidth    = 70.0                   // of pads that do not tell
	padHeight   = 45.0
	quietTime   = 100 * time.Millisecond // for which a finger does not move the pointer after another has left

	pixels    = 12.0  // the pointer's way for a millimetre, slowly
	slow      = 30.0  // millimetres per second up to which that is so
	fast      = 300.0 // and from which it is fastest times as much
	fastest   = 3.5
	scroll    = notch / 4.0 // units of a wheel for a millimetre: four make a notch
	scrollOff = 5.0         // across the direction in which scrolling began, before it counts
)

// touchpad makes a mouse of a touchpad: one finger moves, two scroll, taps and clicks of one, two and three fingers are
// the left, right and middle button. It needs no clock: what happens, happens when a report arrives.
type touchpad struct {
	o        Options
	button   bool // the pad is a button (INPUT_PROP_BUTTONPAD): the fingers on it say which one
	multi    bool // it tells contacts apart
	x, y     unit
	size     unit // of contacts
	large    bool
	left     float64 // edges, in millimetres
	right    float64
	slot     int32
	contacts []contact
	touch    bool           // BTN_TOUCH: what is told apart does touch, and does not hover
	tools    int            // how many fingers the pad counts, if it says so
	pressed  uint16         // the button that a press of the pad has become; 0: none
	buttons  map[uint16]int // how many fingers each BTN_TOOL_ stands for

	fingers    int // in the last report
	tap        tap
	quiet      time.Duration // until then
	last       time.Duration // time of the last report with motion
	dx, dy     float64       // rests of pixels
	sx, sy     float64       // scrolled since two fingers are there, in millimetres
	restX      float64       // rests of wheel units
	restY      float64
	notX, notY int32 // units that are not yet a notch

	out []hid.Event
}

// contact is a finger, or what looks like one. Without slots, there is one.
type contact struct {
	down, fresh  bool // fresh: it has no way behind it yet
	x, y         float64
	wasX, wasY   float64 // in the last report
	fromX, fromY float64 // where it began
	palm, edge   bool
	finger       bool // it counted as one in the last report
}

// tap is a touch that may become one.
type tap struct {
	on      bool
	since   time.Duration
	fingers int
}

// unit converts an axis to millimetres.
type unit struct{ perMM float64 }

func (u unit) mm(v int32) float64 { return float64(v) / u.perMM }

func newUnit(a Axis, ifUnknown float64) unit {
	switch {
	case a.Resolution > 0:
		return unit{float64(a.Resolution)}
	case a.Max > a.Min:
		return unit{(float64(a.Max) - float64(a.Min)) / ifUnknown}
	}
	return unit{1}
}

func newTouchpad(info *Info, o Options) *touchpad {
	if o.PointerSpeed <= 0 {
		o.PointerSpeed = 1
	}
	t := &touchpad{
		o:        o,
		button:   info.Props.Has(hid.PropButtonPad),
		multi:    info.slots() > 0,
		contacts: make([]contact, max(1, info.slots())),
		touch:    !info.Keys.Has(hid.BtnTouch),
		buttons: map[uint16]int{hid.BtnToolFinger: 1, hid.BtnToolDoubleTap: 2, hid.BtnToolTripleTap: 3,
			hid.BtnToolQuadTap: 4, hid.BtnToolQuintTap: 5},
	}
	ax, ay := info.Axes[hid.AbsX], info.Axes[hid.AbsY]
	if t.multi {
		ax, ay = info.Axes[hid.AbsMTPositionX], info.Axes[hid.AbsMTPositionY]
	}
	t.x, t.y = newUnit(ax, padWidth), newUnit(ay, padHeight)
	t.size = t.x
	if a := info.Axes[hid.AbsMTTouchMajor]; a.Resolution > 0 {
		t.size = newUnit(a, 1)
	}
	t.left, t.right = t.x.mm(ax.Min), t.x.mm(ax.Max)
	t.large = t.right-t.left >= largePad
	return t
}

// report follows a report and sends what it leads to.
func (t *touchpad) report(r Report, send func(time.Duration, []hid.Event)) {
	t.out = t.out[:0]
	for i := range t.contacts {
		c := &t.contacts[i]
		c.wasX, c.wasY, c.fresh = c.x, c.y, false
	}
	for _, e := range r.Events {
		switch e.Type {
		case hid.EVAbs:
			t.abs(e)
		case hid.EVKey:
			t.key(e)
		case hid.EVRel: // of a pointing stick that shares the device
			t.out = append(t.out, e)
		}
	}
	for i := range t.contacts {
		t.judge(&t.contacts[i])
	}
	fingers := t.count()
	for _, e := range r.Events { // now that it is known how many fingers there are
		if e.Type == hid.EVKey {
			t.click(e, fingers)
		}
	}
	button := t.follow(r.At, fingers)
	t.motion(r.At, fingers)
	t.fingers = fingers
	if len(t.out) > 0 {
		send(r.At, t.out)
	}
	if button != 0 {
		for _, v := range []int32{1, 0} {
			t.out = append(t.out[:0], hid.Event{Type: hid.EVKey, Code: button, Value: v})
			send(r.At, t.out)
		}
	}
}

// abs follows a contact.
func (t *touchpad) abs(e hid.Event) {
	if e.Code == hid.AbsMTSlot {
		t.slot = e.Value
		return
	}
	if !t.multi {
		switch c := &t.contacts[0]; e.Code {
		case hid.AbsX:
			c.x = t.x.mm(e.Value)
		case hid.AbsY:
			c.y = t.y.mm(e.Value)
		}
		return
	}
	if t.slot < 0 || int(t.slot) >= len(t.contacts) {
		return
	}
	c := &t.contacts[t.slot]
	switch e.Code {
	case hid.AbsMTTrackingID:
		c.down = e.Value >= 0
		c.fresh, c.palm, c.edge = true, false, false
	case hid.AbsMTPositionX:
		c.x = t.x.mm(e.Value)
	case hid.AbsMTPositionY:
		c.y = t.y.mm(e.Value)
	case hid.AbsMTToolType:
		c.palm = c.palm || e.Value == mtToolPalm
	case hid.AbsMTTouchMajor:
		c.palm = c.palm || t.size.mm(e.Value) > palmSize
	}
}

// key follows what the pad says of touching and of the number of fingers.
func (t *touchpad) key(e hid.Event) {
	if e.Code == hid.BtnTouch {
		t.touch = e.Value != 0
		if !t.multi && t.contacts[0].down != t.touch {
			t.contacts[0] = contact{down: t.touch, fresh: true, x: t.contacts[0].x, y: t.contacts[0].y}
		}
	}
	n, ok := t.buttons[e.Code]
	switch {
	case !ok:
	case e.Value != 0:
		t.tools = n
	case t.tools == n:
		t.tools = 0
	}
}

// judge says where a new contact begins, and whether it is near the edge.
func (t *touchpad) judge(c *contact) {
	if !c.down {
		return
	}
	near := t.large && (c.x < t.left+palmEdge || c.x > t.right-palmEdge)
	if c.fresh {
		c.edge = near
	}
	if c.fresh || c.edge && !near {
		c.fresh, c.edge = true, near
		c.wasX, c.wasY, c.fromX, c.fromY = c.x, c.y, c.x, c.y
	}
}

// finger says whether a contact is one.
func (t *touchpad) finger(c *contact) bool { return c.down && t.touch && !c.palm && !c.edge }

// count returns how many fingers touch. Pads that follow two contacts may count up to five.
func (t *touchpad) count() (n int) {
	others := 0
	for i := range t.contacts {
		if c := &t.contacts[i]; t.finger(c) {
			n++
		} else if c.down {
			others++
		}
	}
	if n > 0 {
		n = max(n, t.tools-others)
	}
	return n
}

// follow watches for taps, and returns the button of one that has just ended.
func (t *touchpad) follow(at time.Duration, fingers int) (button uint16) {
	if fingers > 0 && t.fingers == 0 {
		t.tap = tap{on: !t.o.NoTap && t.pressed == 0, since: at}
	}
	for i := range t.contacts {
		c := &t.contacts[i]
		finger := t.finger(c)
		if finger && math.Hypot(c.x-c.fromX, c.y-c.fromY) > tapDistance || c.finger && c.palm {
			t.tap.on = false // it moves, or has turned out to be a palm
		}
		c.finger = finger
	}
	if at-t.tap.since > tapTime {
		t.tap.on = false
	}
	t.tap.fingers = max(t.tap.fingers, fingers)
	if fingers == 0 && t.tap.on {
		t.tap.on = false
		button = buttonOf(t.tap.fingers)
	}
	return button
}

// buttonOf returns the button of a click with some fingers, 0 if there is none.
func buttonOf(fingers int) uint16 {
	switch fingers {
	case 0, 1:
		return hid.BtnLeft
	case 2:
		return hid.BtnRight
	case 3:
		return hid.BtnMiddle
	}
	return 0
}

// click passes the pad's buttons on.
func (t *touchpad) click(e hid.Event, fingers int) {
	if e.Code >= hid.BtnToolPen && e.Code < buttonEnd {
		return
	}
	if e.Code == hid.BtnLeft && t.button && e.Value != 2 {
		if e.Value == 0 {
			e.Code, t.pressed = t.pressed, 0
		} else {
			e.Code = buttonOf(min(fingers, 3))
			t.pressed = e.Code
		}
	}
	if e.Code == 0 {
		return
	}
	t.tap.on = false
	t.out = append(t.out, e)
}

// motion moves the pointer or a wheel.
func (t *touchpad) motion(at time.Duration, fingers int) {
	since := at - t.last
	t.last = at
	if fingers != t.fingers {
		t.dx, t.dy, t.sx, t.sy, t.restX, t.restY, t.notX, t.notY = 0, 0, 0, 0, 0, 0, 0, 0
		if fingers > 0 && fingers < t.fingers {
			t.quiet = at + quietTime
		}
		return
	}
	if fingers == 0 || t.tap.on || at < t.quiet {
		return
	}
	// With a button held down, one finger may hold it and another move: the one that moves further.
	var sumX, sumY, mostX, mostY float64
	n := 0
	for i := range t.contacts {
		c := &t.contacts[i]
		if !t.finger(c) {
			continue
		}
		dx, dy := c.x-c.wasX, c.y-c.wasY
		sumX, sumY, n = sumX+dx, sumY+dy, n+1
		if math.Hypot(dx, dy) > math.Hypot(mostX, mostY) {
			mostX, mostY = dx, dy
		}
	}
	switch {
	case n == 0:
	case fingers == 1 || t.pressed != 0:
		t.move(mostX, mostY, since)
	case fingers == 2:
		t.scroll(sumX/float64(n), sumY/float64(n))
	}
}

// move moves the pointer, the faster the finger the further.
func (t *touchpad) move(dx, dy float64, since time.Duration) {
	// A report that comes late is of a finger that had rested.
	seconds := min(max(since.Seconds(), 0.001), 0.05)
	speed := math.Hypot(dx, dy) / seconds
	gain := 1 + (fastest-1)*min(max((speed-slow)/(fast-slow), 0), 1)
	gain *= pixels * t.o.PointerSpeed
	t.dx += dx * gain
	t.dy += dy * gain
	t.rel(hid.RelX, whole(&t.dx))
	t.rel(hid.RelY, whole(&t.dy))
}

// scroll turns the wheels. Fingers do not move in a straight line: what goes across is left out until it is much.
func (t *touchpad) scroll(dx, dy float64) {
	t.sx += dx
	t.sy += dy
	if math.Abs(t.sx) < min(math.Abs(t.sy), scrollOff) {
		dx = 0
	}
	if math.Abs(t.sy) < min(math.Abs(t.sx), scrollOff) {
		dy = 0
	}
	if t.o.NaturalScroll {
		dx, dy = -dx, -dy
	}
	t.restX += dx * scroll
	t.restY -= dy * scroll // a wheel that turns away from the person is positive
	t.wheel(hid.RelWheelHiRes, hid.RelWheel, whole(&t.restY), &t.notY)
	t.wheel(hid.RelHWheelHiRes, hid.RelHWheel, whole(&t.restX), &t.notX)
}

// wheel turns a wheel by v units, and tells each whole notch as well.
func (t *touchpad) wheel(fine, coarse uint16, v int32, rest *int32) {
	t.rel(fine, v)
	*rest += v
	t.rel(coarse, *rest/notch)
	*rest %= notch
}

func (t *touchpad) rel(code uint16, v int32) {
	if v != 0 {
		t.out = append(t.out, hid.Event{Type: hid.EVRel, Code: code, Value: v})
	}
}

// whole takes the whole part from v.
func whole(v *float64) int32 {
	w := math.Trunc(min(max(*v, -1<<20), 1<<20))
	*v -= w
	return int32(w)
}
