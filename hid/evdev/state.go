package evdev

import (
	"encoding/binary"
	"fmt"

	"github.com/lodgehv/lodge/hid"
)

// state is where everything on a device is: what its reader has been told, or what the kernel knows.
type state struct {
	keys, sw Bits
	abs      [roomAbs * 8]int32
	slot     int32 // whose contact the next events are about
	slots    []contactState
}

// contactState has the axes of a contact, from ABS_MT_TOUCH_MAJOR on.
type contactState [hid.AbsMTToolY - hid.AbsMTTouchMajor + 1]int32

const trackingID = hid.AbsMTTrackingID - hid.AbsMTTouchMajor

func isContactAxis(code uint16) bool { return code >= hid.AbsMTTouchMajor && code <= hid.AbsMTToolY }

// newState is that of a device on which nothing is touched.
func newState(info *Info) *state {
	s := &state{keys: make(Bits, roomKeys), sw: make(Bits, roomSmall), slots: make([]contactState, info.slots())}
	for i := range s.slots {
		s.slots[i][trackingID] = -1
	}
	return s
}

// readState asks a device where everything is. By asking for keys the kernel drops the changes of keys that are in its
// queue: what is read is never contradicted by something older.
func readState(n node, info *Info) (*state, error) {
	s := newState(info)
	if _, err := n.ioctl(evioCGKey(roomKeys), s.keys); err != nil {
		return nil, fmt.Errorf("EVIOCGKEY: %w", err)
	}
	if _, err := n.ioctl(evioCGSW(roomSmall), s.sw); err != nil {
		return nil, fmt.Errorf("EVIOCGSW: %w", err)
	}
	for code := range info.Axes {
		switch {
		case isContactAxis(code):
			if len(s.slots) == 0 {
				continue
			}
			buf := make([]byte, 4+4*len(s.slots)) // struct input_mt_request_layout
			binary.NativeEndian.PutUint32(buf, uint32(code))
			if _, err := n.ioctl(evioCGMTSlots(len(buf)), buf); err != nil {
				return nil, fmt.Errorf("EVIOCGMTSLOTS(%#x): %w", code, err)
			}
			for i := range s.slots {
				s.slots[i][code-hid.AbsMTTouchMajor] = int32(binary.NativeEndian.Uint32(buf[4+4*i:]))
			}
		default:
			a, err := readAxis(n, code)
			if err != nil {
				return nil, err
			}
			if code == hid.AbsMTSlot {
				s.slot = a.Value
			} else {
				s.abs[code] = a.Value
			}
		}
	}
	return s, nil
}

// contact returns the contact that events are about, nil if it is none of those that are told apart.
func (s *state) contact() *contactState {
	if s.slot < 0 || int(s.slot) >= len(s.slots) {
		return nil
	}
	return &s.slots[s.slot]
}

// apply follows a report, and drops from it what says nothing new of a key.
func (s *state) apply(events []hid.Event) []hid.Event {
	kept := events[:0]
	for _, e := range events {
		switch {
		case e.Type == hid.EVKey && e.Code <= hid.KeyMax:
			if down := s.keys.Has(e.Code); down == (e.Value == 1) {
				continue // a press of what is down, a release or repeat of what is up
			}
			s.keys.set(e.Code, e.Value != 0)
		case e.Type == hid.EVSW && int(e.Code) < len(s.sw)*8:
			s.sw.set(e.Code, e.Value != 0)
		case e.Type == hid.EVAbs && e.Code == hid.AbsMTSlot:
			s.slot = e.Value
		case e.Type == hid.EVAbs && isContactAxis(e.Code):
			if c := s.contact(); c != nil {
				c[e.Code-hid.AbsMTTouchMajor] = e.Value
			}
		case e.Type == hid.EVAbs && int(e.Code) < len(s.abs):
			s.abs[e.Code] = e.Value
		}
		kept = append(kept, e)
	}
	return kept
}

// diff adds to events what leads from s to now: what has to be told after events were lost. Motion that was lost stays so.
func (s *state) diff(now *state, events []hid.Event) []hid.Event {
	for code := range uint16(hid.KeyMax + 1) {
		if down := now.keys.Has(code); down != s.keys.Has(code) {
			events = append(events, hid.Event{Type: hid.EVKey, Code: code, Value: bit(down)})
		}
	}
	for code := range uint16(roomSmall * 8) {
		if on := now.sw.Has(code); on != s.sw.Has(code) {
			events = append(events, hid.Event{Type: hid.EVSW, Code: code, Value: bit(on)})
		}
	}
	for code, v := range now.abs {
		if v != s.abs[code] {
			events = append(events, hid.Event{Type: hid.EVAbs, Code: uint16(code), Value: v})
		}
	}
	slot := s.slot
	choose := func(to int32) {
		if slot != to {
			slot = to
			events = append(events, hid.Event{Type: hid.EVAbs, Code: hid.AbsMTSlot, Value: to})
		}
	}
	for i := range now.slots {
		was, is := &s.slots[i], &now.slots[i]
		if was[trackingID] != is[trackingID] { // first: it begins or ends a contact
			choose(int32(i))
			events = append(events, hid.Event{Type: hid.EVAbs, Code: hid.AbsMTTrackingID, Value: is[trackingID]})
		}
		for axis, v := range is {
			if axis != trackingID && v != was[axis] {
				choose(int32(i))
				events = append(events, hid.Event{Type: hid.EVAbs, Code: hid.AbsMTTouchMajor + uint16(axis), Value: v})
			}
		}
	}
	choose(now.slot)
	return events
}

func bit(b bool) int32 {
	if b {
		return 1
	}
	return 0
}
