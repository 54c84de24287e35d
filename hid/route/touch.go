package route

import "github.com/lodgehv/lodge/hid"

// contacts are the fingers on a touch screen whose beginning the focus has got: multi-touch protocol B, Linux's
// Documentation/input/multi-touch-protocol.rst. Targets have one touch screen: while there are fingers on one of the
// host's, what happens on another goes nowhere.
type contacts struct {
	dev  *device
	sent uint32 // a bit for each slot
}

// maxSlots is how many fingers are told apart on a touch screen.
const maxSlots = 32

// touch routes an event of a contact.
func (r *Router) touch(d *device, e hid.Event) {
	if e.Code == hid.AbsMTSlot {
		d.slot = e.Value
		return
	}
	if d.slot < 0 || d.slot >= maxSlots {
		return
	}
	c := &r.contacts
	if c.sent == 0 {
		c.dev = d
	}
	if c.dev != d {
		return
	}
	bit := uint32(1) << d.slot
	begins := e.Code == hid.AbsMTTrackingID && e.Value >= 0
	if begins && r.pointer != r.focus {
		r.flushTo(r.pointer)
		r.choose(r.focus, ByClick)
	}
	if !begins && c.sent&bit == 0 {
		return // it has begun elsewhere
	}
	c.sent |= bit
	if e.Code == hid.AbsMTTrackingID && e.Value < 0 {
		c.sent &^= bit
	}
	r.contact(d.slot, e)
}

// contact adds an event of a contact to what is pending, after its slot if the target has got another one last.
func (r *Router) contact(slot int32, e hid.Event) {
	if r.focus.slotSent != slot {
		r.focus.slotSent = slot
		r.out = append(r.out, hid.Event{Type: hid.EVAbs, Code: hid.AbsMTSlot, Value: slot})
	}
	r.out = append(r.out, e)
}

// lift adds the end of all contacts to what is pending. The fingers that still touch are nobody's from then on.
func (r *Router) lift() {
	for slot := int32(0); r.contacts.sent != 0; slot++ {
		if r.contacts.sent&1 != 0 {
			r.contact(slot, hid.Event{Type: hid.EVAbs, Code: hid.AbsMTTrackingID, Value: -1})
		}
		r.contacts.sent >>= 1
	}
	r.contacts = contacts{}
}
