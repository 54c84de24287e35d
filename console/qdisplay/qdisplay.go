// Package qdisplay is the display and the input of a guest over D-Bus, as QEMU does it with -display dbus: the
// org.qemu.Display1 interfaces, from one process to another over a Unix socket. Server is the VMM's side; Client is that of
// who shows the guest and types into it, be the guest one of QEMU's or ours.
//
//	VMM                                                        seat
//	display.Screen ─▶ listener ──Scanout, Update…──▶ Receiver ─▶ display.Sink
//	hid.Sink ◀─ session ◀────────Press, RelMotion…── Sender ◀─── hid.Sink
//
// A listener has a socket of its own, which the client makes and hands over. Frames travel as shared memory, of which only
// the damage is told: a memfd or, where devices can read the guest's own memory, a dmabuf; or as bytes if one of the sides
// cannot do that.
//
// The interfaces are described in QEMU's ui/dbus-display1.xml and at
// https://www.qemu.org/docs/master/interop/dbus-display.html. Left out are the clipboard, audio and character devices.
// Of DMABUFs those are taken that lie as pictures in memory do: rows from top to bottom, one behind the other.
//
// Each side takes the other for hostile: see package peer for what bounds there are on messages.
package qdisplay

import (
	"fmt"

	"github.com/lodgehv/lodge/hid"
)

// Paths of objects.
const (
	pathRoot     = "/org/qemu/Display1"
	pathVM       = "/org/qemu/Display1/VM"
	pathListener = "/org/qemu/Display1/Listener"
)

// consolePath returns the path of a console.
func consolePath(id uint32) string { return fmt.Sprintf("%s/Console_%d", pathRoot, id) }

// Names of interfaces.
const (
	ifaceVM         = "org.qemu.Display1.VM"
	ifaceConsole    = "org.qemu.Display1.Console"
	ifaceKeyboard   = "org.qemu.Display1.Keyboard"
	ifaceMouse      = "org.qemu.Display1.Mouse"
	ifaceMultiTouch = "org.qemu.Display1.MultiTouch"
	ifaceListener   = "org.qemu.Display1.Listener"
	ifaceMap        = "org.qemu.Display1.Listener.Unix.Map"

	ifaceProperties     = "org.freedesktop.DBus.Properties"
	ifaceIntrospectable = "org.freedesktop.DBus.Introspectable"
	ifaceObjectManager  = "org.freedesktop.DBus.ObjectManager"
)

// Names of errors.
const (
	errFailed      = "org.qemu.Display1.Error.Failed"
	errInvalid     = "org.qemu.Display1.Error.Invalid"
	errUnsupported = "org.qemu.Display1.Error.Unsupported"
)

// Bits of Keyboard's Modifiers.
const (
	modScroll = 1 << iota
	modNum
	modCaps
)

// modifiers returns lights as Modifiers has them.
func modifiers(l hid.LEDs) uint32 {
	var m uint32
	if l&hid.LEDScroll != 0 {
		m |= modScroll
	}
	if l&hid.LEDNum != 0 {
		m |= modNum
	}
	if l&hid.LEDCaps != 0 {
		m |= modCaps
	}
	return m
}

// lights is the inverse of modifiers.
func lights(m uint32) hid.LEDs {
	var l hid.LEDs
	if m&modScroll != 0 {
		l |= hid.LEDScroll
	}
	if m&modNum != 0 {
		l |= hid.LEDNum
	}
	if m&modCaps != 0 {
		l |= hid.LEDCaps
	}
	return l
}

// maxSlots is how many fingers MultiTouch tells apart.
const maxSlots = 10

// Kinds of MultiTouch's events.
const (
	touchBegin = iota
	touchUpdate
	touchEnd
	touchCancel
)

// maxBlob is how many bytes an array may have (D-Bus specification, "Message Format"): what is longer can be shown as shared
// memory only.
const maxBlob = 64 << 20
