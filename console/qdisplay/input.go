package qdisplay

import (
	"math"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
)

// Codes of events (Linux, include/uapi/linux/input-event-codes.h).
const (
	keyMax = 0x2ff

	btnLeft   = 0x110
	btnRight  = 0x111
	btnMiddle = 0x112
	btnSide   = 0x113
	btnExtra  = 0x114
	btnTouch  = 0x14a

	relX      = 0x00
	relY      = 0x01
	relHWheel = 0x06
	relWheel  = 0x08

	absX            = 0x00
	absY            = 0x01
	absMTSlot       = 0x2f
	absMTPositionX  = 0x35
	absMTPositionY  = 0x36
	absMTTrackingID = 0x39
)

// Buttons of Mouse (QEMU, qapi/ui.json, InputButton): the wheels are buttons too.
const (
	buttonLeft = iota
	buttonMiddle
	buttonRight
	buttonWheelUp
	buttonWheelDown
	buttonSide
	buttonExtra
	buttonWheelLeft
	buttonWheelRight
)

// buttonCode returns the evdev code of a button, 0 if it is none that is held.
func buttonCode(button uint32) uint16 {
	switch button {
	case buttonLeft:
		return btnLeft
	case buttonMiddle:
		return btnMiddle
	case buttonRight:
		return btnRight
	case buttonSide:
		return btnSide
	case buttonExtra:
		return btnExtra
	}
	return 0
}

// keySet is a set of evdev's keys and buttons.
type keySet [(keyMax + 1 + 63) / 64]uint64

func (s *keySet) has(code uint16) bool { return code <= keyMax && s[code/64]>>(code%64)&1 != 0 }
func (s *keySet) add(code uint16)      { s[code/64] |= 1 << (code % 64) }
func (s *keySet) remove(code uint16)   { s[code/64] &^= 1 << (code % 64) }

// input turns a client's calls into batches. It knows what the client holds: that is released when the client goes.
type input struct {
	server *Server
	held   keySet
	slots  [maxSlots]bool // fingers on the screen
	serial int32          // of fingers
	batch  [6]hid.Event
}

// send passes a batch on, of at most len(in.batch) events.
func (in *input) send(events ...hid.Event) {
	if in.server.cfg.Input == nil {
		return
	}
	n := copy(in.batch[:], events)
	in.server.inputMu.Lock()
	defer in.server.inputMu.Unlock()
	in.server.cfg.Input.Send(in.batch[:n])
}

// hold presses or releases a key or button. One that is held already repeats.
func (in *input) hold(code uint16, down bool) {
	e := hid.Event{Type: hid.EVKey, Code: code}
	switch held := in.held.has(code); {
	case down && held:
		e.Value = 2
	case down:
		e.Value = 1
		in.held.add(code)
	case held:
		in.held.remove(code)
	default:
		return
	}
	in.send(e)
}

// releaseAll lets go of what is held.
func (in *input) releaseAll() {
	for code := range uint16(keyMax + 1) {
		if in.held.has(code) && code != btnTouch {
			in.hold(code, false)
		}
	}
	for slot := range in.slots {
		in.lift(slot)
	}
}

// key is Press and Release of Keyboard.
func (in *input) key(d *peer.Decoder, down bool) error {
	n := d.Uint32()
	if err := d.End(); err != nil {
		return err
	}
	code, ok := keyOfQnum(n)
	if !ok {
		return failf(errInvalid, "there is no key %d", n)
	}
	in.hold(code, down)
	return nil
}

// button is Press and Release of Mouse. A wheel turns when it is pressed.
func (in *input) button(d *peer.Decoder, down bool) error {
	n := d.Uint32()
	if err := d.End(); err != nil {
		return err
	}
	wheel := hid.Event{Type: hid.EVRel}
	switch n {
	case buttonWheelUp:
		wheel.Code, wheel.Value = relWheel, 1
	case buttonWheelDown:
		wheel.Code, wheel.Value = relWheel, -1
	case buttonWheelLeft:
		wheel.Code, wheel.Value = relHWheel, -1
	case buttonWheelRight:
		wheel.Code, wheel.Value = relHWheel, 1
	default:
		code := buttonCode(n)
		if code == 0 {
			return failf(errInvalid, "there is no button %d", n)
		}
		in.hold(code, down)
		return nil
	}
	if down {
		in.send(wheel)
	}
	return nil
}

// position is SetAbsPosition.
func (in *input) position(con *console, d *peer.Decoder) error {
	x, y := d.Uint32(), d.Uint32()
	if err := d.End(); err != nil {
		return err
	}
	if !in.server.absolute() {
		return failf(errInvalid, "the mouse is not absolute")
	}
	w, h := con.dimensions()
	if x >= w || y >= h {
		return failf(errInvalid, "the position %d, %d is outside of %d×%d", x, y, w, h)
	}
	in.send(
		hid.Event{Type: hid.EVAbs, Code: absX, Value: toAbs(float64(x), w)},
		hid.Event{Type: hid.EVAbs, Code: absY, Value: toAbs(float64(y), h)})
	return nil
}

// motion is RelMotion.
func (in *input) motion(d *peer.Decoder) error {
	dx, dy := d.Int32(), d.Int32()
	if err := d.End(); err != nil {
		return err
	}
	if in.server.pointer != nil && in.server.absolute() {
		return failf(errInvalid, "the mouse is not relative")
	}
	x, y := hid.Event{Type: hid.EVRel, Code: relX, Value: dx}, hid.Event{Type: hid.EVRel, Code: relY, Value: dy}
	switch {
	case dx != 0 && dy != 0:
		in.send(x, y)
	case dx != 0:
		in.send(x)
	case dy != 0:
		in.send(y)
	}
	return nil
}

// touch is SendEvent.
func (in *input) touch(con *console, d *peer.Decoder) error {
	kind, slot, x, y := d.Uint32(), d.Uint64(), d.Double(), d.Double()
	if err := d.End(); err != nil {
		return err
	}
	if slot >= maxSlots {
		return failf(errInvalid, "there is no slot %d", slot)
	}
	w, h := con.dimensions()
	if inside := x >= 0 && x < float64(w) && y >= 0 && y < float64(h); !inside && (kind == touchBegin || kind == touchUpdate) {
		return failf(errInvalid, "the position %g, %g is outside of %d×%d", x, y, w, h)
	}
	events := []hid.Event{
		{Type: hid.EVAbs, Code: absMTSlot, Value: int32(slot)},
		{Type: hid.EVAbs, Code: absMTPositionX, Value: toAbs(x, w)},
		{Type: hid.EVAbs, Code: absMTPositionY, Value: toAbs(y, h)},
	}
	switch {
	case kind == touchBegin && !in.slots[slot]:
		in.serial = (in.serial + 1) & 0xffff
		events = append(events, hid.Event{Type: hid.EVAbs, Code: absMTTrackingID, Value: in.serial})
		if !in.touching() {
			events = append(events, hid.Event{Type: hid.EVKey, Code: btnTouch, Value: 1})
		}
		in.slots[slot] = true
		in.send(events...)
	case (kind == touchBegin || kind == touchUpdate) && in.slots[slot]:
		in.send(events...)
	case kind == touchEnd || kind == touchCancel:
		in.lift(int(slot))
	default:
		return failf(errInvalid, "an event of kind %d in slot %d", kind, slot)
	}
	return nil
}

// lift takes a finger off the screen.
func (in *input) lift(slot int) {
	if !in.slots[slot] {
		return
	}
	in.slots[slot] = false
	events := []hid.Event{
		{Type: hid.EVAbs, Code: absMTSlot, Value: int32(slot)},
		{Type: hid.EVAbs, Code: absMTTrackingID, Value: -1},
	}
	if !in.touching() {
		events = append(events, hid.Event{Type: hid.EVKey, Code: btnTouch, Value: 0})
	}
	in.send(events...)
}

// touching says whether a finger is on the screen.
func (in *input) touching() bool {
	for _, on := range in.slots {
		if on {
			return true
		}
	}
	return false
}

// toAbs scales a pixel of a screen that has so many to hid.AbsMax: the first is 0, the last AbsMax.
func toAbs(pixel float64, pixels uint32) int32 {
	if pixels < 2 || !(pixel > 0) {
		return 0
	}
	return int32(math.Round(min(pixel/float64(pixels-1), 1) * hid.AbsMax))
}

// toPixel is the inverse of toAbs.
func toPixel(abs int32, pixels uint32) uint32 {
	if pixels < 2 || abs <= 0 {
		return 0
	}
	return uint32(math.Round(float64(min(abs, hid.AbsMax)) / hid.AbsMax * float64(pixels-1)))
}
