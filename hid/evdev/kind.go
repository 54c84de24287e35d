package evdev

import (
	"strings"

	"github.com/lodgehv/lodge/hid"
)

// Kind is what a device is used for, which may be several things.
type Kind uint16

// The kinds.
const (
	Keyboard    Kind = 1 << iota // one to type on
	Keys                         // keys, but too few to type: volume, hotkeys, remote controls
	PowerButton                  // power or sleep, and nothing to type with
	Mouse                        // relative motion: also a trackball and a pointing stick
	Touchpad                     // fingers beside the screen
	Touchscreen                  // fingers on the screen
	Tablet                       // absolute positions: pens, and the mice of virtual machines
	Switches                     // lid, tablet mode, headphones
	Joystick                     // with gamepads
	Sensor                       // accelerometers
)

// forGuests are the kinds whose input is for whoever has the focus.
const forGuests = Keyboard | Keys | Mouse | Touchpad | Touchscreen | Tablet

var kindNames = []string{"keyboard", "keys", "power button", "mouse", "touchpad", "touchscreen", "tablet", "switches",
	"joystick", "sensor"}

// String returns the kinds' names, "other" if there is none.
func (k Kind) String() string {
	var names []string
	for i, n := range kindNames {
		if k>>i&1 != 0 {
			names = append(names, n)
		}
	}
	if names == nil {
		return "other"
	}
	return strings.Join(names, ", ")
}

// Kind tells from what a device has what it is. The kernel does not say so in words; the rules are those that drivers keep
// to for udev's.
func (i *Info) Kind() (k Kind) {
	if i.Props.Has(hid.PropAccelerometer) {
		return Sensor
	}
	if i.SW.any(0, roomSmall*8-1) {
		k |= Switches
	}
	return k | i.keyKind() | i.pointerKind()
}

func (i *Info) keyKind() Kind {
	// Esc, the digits, the letters to D: what a keyboard has that one can type on.
	if i.Keys.all(hid.KeyEsc, 31) {
		return Keyboard
	}
	keys, power := false, false
	for c := uint16(hid.KeyEsc); c <= hid.KeyMax; c++ {
		switch {
		case !i.Keys.Has(c) || c >= hid.BtnMisc && c < buttonEnd || c >= btnDpadUp && c <= btnDpadRight ||
			c >= btnTriggerHappy:
		case c == hid.KeyPower || c == hid.KeySleep || c == hid.KeyWakeUp:
			power = true
		default:
			keys = true
		}
	}
	switch {
	case keys:
		return Keys
	case power:
		return PowerButton
	}
	return 0
}

// Buttons among the keys.
const (
	buttonEnd       = 0x160
	btnDpadUp       = 0x220
	btnDpadRight    = 0x223
	btnTriggerHappy = 0x2c0 // 40 more buttons of joysticks, at the end
)

func (i *Info) pointerKind() (k Kind) {
	_, x := i.Axes[hid.AbsX]
	_, y := i.Axes[hid.AbsY]
	_, mtX := i.Axes[hid.AbsMTPositionX]
	_, mtY := i.Axes[hid.AbsMTPositionY]
	single, multi := x && y, mtX && mtY
	pen := i.Keys.Has(hid.BtnToolPen) || i.Keys.Has(hid.BtnStylus)
	switch {
	case i.Props.Has(hid.PropPointingStick) && i.Rel.Has(hid.RelX):
		k = Mouse
	case (single || multi) && i.Keys.Has(hid.BtnToolFinger) && !pen && !i.Props.Has(hid.PropDirect):
		k = Touchpad
	case single && pen:
		k = Tablet
	case (single || multi) && i.Keys.Has(hid.BtnTouch), multi:
		k = Touchscreen
	case single && i.Keys.Has(hid.BtnLeft):
		k = Tablet
	case single && i.Keys.any(hid.BtnTrigger, hid.BtnThumbR):
		return Joystick
	}
	if i.Rel.Has(hid.RelX) && i.Rel.Has(hid.RelY) && i.Keys.Has(hid.BtnLeft) {
		k |= Mouse
	}
	return k
}
