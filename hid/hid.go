// Package hid is the seam between what a person touches and what a guest is touched by: events in the form of Linux's
// evdev (include/uapi/linux/input-event-codes.h), and the Sink that takes them. Input devices of guests are sinks; the
// seat's router is who sends.
package hid

// Event is one change: a key, a movement, a contact.
type Event struct {
	Type  uint16 // EVKey and so on
	Code  uint16 // of the type: KEY_*, BTN_*, REL_*, ABS_*
	Value int32  // key: 0 up, 1 down, 2 repeat; relative: distance; absolute: position
}

// Types of events.
const (
	EVSyn = 0x00
	EVKey = 0x01
	EVRel = 0x02
	EVAbs = 0x03
	EVMsc = 0x04
	EVSW  = 0x05
	EVLED = 0x11
	EVRep = 0x14
)

// AbsMax is the largest position on each absolute axis of a guest's tablet: 0 is the left or upper edge of its screen,
// AbsMax the right or lower one. What sends absolute events has scaled them.
const AbsMax = 0x7fff

// Sink takes what a person does. A batch is one report: what changed at one moment. It has no EV_SYN event; the end of the
// batch is its synchronisation. The sink does not keep the slice, does not block, and drops what its guest does not take:
// whole batches, but never the release of a key whose press it has taken.
type Sink interface{ Send(batch []Event) }

// LEDs are the lock lights of a keyboard, one bit each.
type LEDs uint8

// The lights, at the bits of their evdev codes LED_NUML, LED_CAPSL and LED_SCROLLL.
const (
	LEDNum LEDs = 1 << iota
	LEDCaps
	LEDScroll
)
