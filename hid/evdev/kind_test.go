package evdev

import (
	"testing"

	"github.com/lodgehv/lodge/hid"
)

func axes(codes ...uint16) map[uint16]Axis {
	m := make(map[uint16]Axis)
	for _, c := range codes {
		m[c] = Axis{Max: 1000}
	}
	return m
}

// The capabilities are those of real devices, as `evtest` lists them.
func TestKind(t *testing.T) {
	mouse := span(hid.BtnLeft, hid.BtnTask)
	pad := []uint16{hid.BtnLeft, hid.BtnToolFinger, hid.BtnToolDoubleTap, hid.BtnTouch}
	for _, tt := range []struct {
		name string
		info Info
		want string
	}{
		{"PC keyboard", Info{Keys: bitsOf(hid.EVKey, span(hid.KeyEsc, hid.KeyScale)...)}, "keyboard"},
		{"keyboard with a touchpad in one", Info{Keys: bitsOf(hid.EVKey, append(span(hid.KeyEsc, hid.KeyScale), mouse...)...),
			Rel: bitsOf(hid.EVRel, hid.RelX, hid.RelY, hid.RelWheel)}, "keyboard, mouse"},
		{"multimedia keys of a keyboard", Info{Keys: bitsOf(hid.EVKey, hid.KeyMute, hid.KeyVolumeUp, hid.KeyPower)}, "keys"},
		{"ACPI power button", Info{Keys: bitsOf(hid.EVKey, hid.KeyPower)}, "power button"},
		{"ACPI sleep button", Info{Keys: bitsOf(hid.EVKey, hid.KeySleep)}, "power button"},
		{"lid", Info{SW: bitsOf(hid.EVSW, 0)}, "switches"},
		{"hotkeys with a tablet switch", Info{SW: bitsOf(hid.EVSW, 1), Keys: bitsOf(hid.EVKey, hid.KeyVolumeUp)}, "keys, switches"},
		{"mouse", Info{Rel: bitsOf(hid.EVRel, hid.RelX, hid.RelY, hid.RelWheel), Keys: bitsOf(hid.EVKey, mouse...)}, "mouse"},
		{"TrackPoint", Info{Props: bitsOf(0, hid.PropPointer, hid.PropPointingStick), Rel: bitsOf(hid.EVRel, hid.RelX, hid.RelY),
			Keys: bitsOf(hid.EVKey, hid.BtnLeft)}, "mouse"},
		{"Synaptics touchpad", Info{Props: bitsOf(0, hid.PropPointer, hid.PropButtonPad), Keys: bitsOf(hid.EVKey, pad...),
			Axes: axes(hid.AbsX, hid.AbsY, hid.AbsMTSlot, hid.AbsMTPositionX, hid.AbsMTPositionY, hid.AbsMTTrackingID)}, "touchpad"},
		{"old touchpad", Info{Keys: bitsOf(hid.EVKey, pad...), Axes: axes(hid.AbsX, hid.AbsY, hid.AbsPressure)}, "touchpad"},
		{"touch screen", screen, "touchscreen"},
		{"single-touch screen", Info{Keys: bitsOf(hid.EVKey, hid.BtnTouch), Axes: axes(hid.AbsX, hid.AbsY)}, "touchscreen"},
		{"pen display", Info{Props: bitsOf(0, hid.PropDirect), Axes: axes(hid.AbsX, hid.AbsY, hid.AbsPressure, hid.AbsTiltX),
			Keys: bitsOf(hid.EVKey, hid.BtnToolPen, hid.BtnToolRubber, hid.BtnTouch, hid.BtnStylus)}, "tablet"},
		{"QEMU USB tablet", Info{Axes: axes(hid.AbsX, hid.AbsY), Rel: bitsOf(hid.EVRel, hid.RelWheel),
			Keys: bitsOf(hid.EVKey, hid.BtnLeft, hid.BtnRight, hid.BtnMiddle)}, "tablet"},
		{"gamepad", Info{Axes: axes(hid.AbsX, hid.AbsY, hid.AbsRX, hid.AbsHat0X), Keys: bitsOf(hid.EVKey, span(hid.BtnSouth, hid.BtnThumbR)...)}, "joystick"},
		{"accelerometer", Info{Props: bitsOf(0, hid.PropAccelerometer), Axes: axes(hid.AbsX, hid.AbsY, hid.AbsZ)}, "sensor"},
		{"PC speaker", Info{}, "other"},
	} {
		info := complete(tt.info)
		if got := info.Kind().String(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
