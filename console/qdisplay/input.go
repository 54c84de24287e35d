package qdisplay

import (
	"math"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
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
		return hid.BtnLeft
	case buttonMiddle:
		return hid.BtnMiddle
	case buttonRight:
		return hid.BtnRight
	case buttonSide:
		return hid.BtnSide
	case buttonExtra:
		return hid.BtnExtra
	}
	return 0
}

// input turns a client's calls into batches. It knows what the client holds: that is released when the client goes.
type input struct {
	server *Server
	held   hid.Keys
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
	switch held := in.held.Has(code); {
	case down && held:
		e.Value = 2
	case down:
		e.Value = 1
		in.held.Set(code, true)
	case held:
		in.held.Set(code, false)
	default:
		return
	}
	in.send(e)
}

// releaseAll lets go of what is held.
func (in *input) releaseAll() {
	for code := range in.held.All() {
		if code != hid.BtnTouch {
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
		wheel.Code, wheel.Value = hid.RelWheel, 1
	case buttonWheelDown:
		wheel.Code, wheel.Value = hid.RelWheel, -1
	case buttonWheelLeft:
		wheel.Code, wheel.Value = hid.RelHWheel, -1
	case buttonWheelRight:
		wheel.Code, wheel.Value = hid.RelHWheel, 1
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
		hid.Event{Type: hid.EVAbs, Code: hid.AbsX, Value: toAbs(float64(x), w)},
		hid.Event{Type: hid.EVAbs, Code: hid.AbsY, Value: toAbs(float64(y), h)})
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
	x, y := hid.Event{Type: hid.EVRel, Code: hid.RelX, Value: dx}, hid.Event{Type: hid.EVRel, Code: hid.RelY, Value: dy}
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
		{Type: hid.EVAbs, Code: hid.AbsMTSlot, Value: int32(slot)},
		{Type: hid.EVAbs, Code: hid.AbsMTPositionX, Value: toAbs(x, w)},
		{Type: hid.EVAbs, Code: hid.AbsMTPositionY, Value: toAbs(y, h)},
	}
	switch {
	case kind == touchBegin && !in.slots[slot]:
		in.serial = (in.serial + 1) & 0xffff
		events = append(events, hid.Event{Type: hid.EVAbs, Code: hid.AbsMTTrackingID, Value: in.serial})
		if !in.touching() {
			events = append(events, hid.Event{Type: hid.EVKey, Code: hid.BtnTouch, Value: 1})
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
		{Type: hid.EVAbs, Code: hid.AbsMTSlot, Value: int32(slot)},
		{Type: hid.EVAbs, Code: hid.AbsMTTrackingID, Value: -1},
	}
	if !in.touching() {
		events = append(events, hid.Event{Type: hid.EVKey, Code: hid.BtnTouch, Value: 0})
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
