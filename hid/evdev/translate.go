package evdev

import (
	"time"

	"github.com/lodgehv/lodge/hid"
)

// Options are a person's wishes. The zero value has none.
type Options struct {
	NoTap         bool    // touchpads: only a button clicks, not a finger that touches for a moment
	NaturalScroll bool    // touchpads: the page goes with the fingers
	PointerSpeed  float64 // touchpads: a factor; 0 stands for 1
}

// Translator turns the reports of a device into what guests take: positions on hid.AbsMax, pens and single fingers as a
// mouse with positions, touchpads as mice, wheels in both resolutions. What is not for guests it leaves out.
type Translator struct {
	info  *Info
	multi bool // contacts are passed on as such
	point bool // a pen or finger is passed on as a mouse
	hiRes map[uint16]uint16
	pad   *touchpad
	out   []hid.Event
}

// NewTranslator returns the translator for a device.
func NewTranslator(info *Info, o Options) *Translator {
	t := &Translator{info: info, hiRes: make(map[uint16]uint16)}
	// Guests whose mouse can tell parts of a notch listen to nothing else.
	for wheel, fine := range map[uint16]uint16{hid.RelWheel: hid.RelWheelHiRes, hid.RelHWheel: hid.RelHWheelHiRes} {
		if info.Rel.Has(wheel) && !info.Rel.Has(fine) {
			t.hiRes[wheel] = fine
		}
	}
	switch k := info.Kind(); {
	case k&Touchpad != 0:
		t.pad = newTouchpad(info, o)
	case k&Touchscreen != 0:
		t.multi = info.slots() > 0
		t.point = !t.multi
	case k&Tablet != 0:
		t.point = true
	}
	return t
}

// Translate calls send for each batch that a report leads to, of which there may be none or several: a tap is a press
// and a release. A batch is good until send returns.
func (t *Translator) Translate(r Report, send func(at time.Duration, batch []hid.Event)) {
	if t.pad != nil {
		t.pad.report(r, send)
		return
	}
	t.out = t.out[:0]
	for _, e := range r.Events {
		switch e.Type {
		case hid.EVKey:
			t.key(e)
		case hid.EVRel:
			t.out = append(t.out, e)
			if fine, ok := t.hiRes[e.Code]; ok {
				t.out = append(t.out, hid.Event{Type: hid.EVRel, Code: fine, Value: clampNotch(e.Value) * notch})
			}
		case hid.EVAbs:
			t.abs(e)
		}
	}
	if len(t.out) > 0 {
		send(r.At, t.out)
	}
}

// notch is a notch of a wheel in units of REL_WHEEL_HI_RES.
const notch = 120

func clampNotch(v int32) int32 { return min(max(v, -1<<20), 1<<20) }

func (t *Translator) key(e hid.Event) {
	if e.Code < hid.BtnToolPen || e.Code >= hid.BtnGearDown {
		t.out = append(t.out, e)
		return
	}
	switch e.Code { // what says which tool it is, is of no use to a guest
	case hid.BtnTouch:
		if t.point {
			e.Code = hid.BtnLeft
		}
	case hid.BtnStylus:
		e.Code = hid.BtnRight
	case hid.BtnStylus2:
		e.Code = hid.BtnMiddle
	default:
		return
	}
	t.out = append(t.out, e)
}

func (t *Translator) abs(e hid.Event) {
	switch e.Code {
	case hid.AbsX, hid.AbsY:
		if !t.point {
			return // the kernel's imitation of a mouse by a touch screen, or a joystick's
		}
		e.Value = onScreen(e.Value, t.info.Axes[e.Code])
	case hid.AbsMTPositionX, hid.AbsMTPositionY:
		if !t.multi {
			return
		}
		e.Value = onScreen(e.Value, t.info.Axes[e.Code])
	case hid.AbsMTSlot, hid.AbsMTTrackingID:
		if !t.multi {
			return
		}
	default:
		return
	}
	t.out = append(t.out, e)
}

// onScreen scales a position to hid.AbsMax.
func onScreen(v int32, a Axis) int32 {
	size := int64(a.Max) - int64(a.Min)
	if size <= 0 {
		return 0
	}
	at := min(max(int64(v)-int64(a.Min), 0), size)
	return int32((at*hid.AbsMax + size/2) / size)
}
