package virtioinput

import "github.com/lodgehv/lodge/hid"

// fifoSize is how many events wait for the driver's buffers. It holds the release of every key of a keyboard.
const fifoSize = 1024

// maxReport is how many events a report may have, with EV_SYN at its end: Linux gives the driver as many buffers.
const maxReport = 64

// fifo holds reports that wait. Each ends with an event of type EVSyn.
type fifo struct {
	events [fifoSize]hid.Event
	n      int
	begun  bool // the first report has been delivered in part
}

func (f *fifo) clear() { f.n, f.begun = 0, false }

// first returns what is left of the first report; it is empty if there is none.
func (f *fifo) first() []hid.Event {
	for i, e := range f.events[:f.n] {
		if e.Type == hid.EVSyn {
			return f.events[:i+1]
		}
	}
	return nil
}

// drop removes the first n events, which have been delivered.
func (f *fifo) drop(n int) {
	f.begun = f.events[n-1].Type != hid.EVSyn
	copy(f.events[:], f.events[n:f.n])
	f.n -= n
}

// add appends a report and its EV_SYN. If there is no room, it drops motion, from the oldest on, and returns false if that
// is not enough.
func (f *fifo) add(report []hid.Event) bool {
	if need := len(report) + 1; f.n+need > fifoSize && !f.shed(need) {
		return false
	}
	f.n += copy(f.events[f.n:], report)
	f.events[f.n] = hid.Event{Type: hid.EVSyn}
	f.n++
	return true
}

// shed removes reports without a press or a release until there is room for need events.
func (f *fifo) shed(need int) bool {
	keep := 0
	for at := 0; at < f.n; {
		end := at
		for f.events[end].Type != hid.EVSyn {
			end++
		}
		end++
		room := fifoSize - keep - (f.n - at)
		if room >= need || at == 0 && f.begun || presses(f.events[at:end]) {
			keep += copy(f.events[keep:], f.events[at:end])
		}
		at = end
	}
	f.n = keep
	return f.n+need <= fifoSize
}

// presses reports whether a key, a button or a contact changes in a report.
func presses(report []hid.Event) bool {
	for _, e := range report {
		if e.Type == hid.EVKey || e.Type == hid.EVAbs && e.Code == hid.AbsMTTrackingID {
			return true
		}
	}
	return false
}

// pressed is what is down after a number of reports.
type pressed struct {
	keys     hid.Keys
	contacts uint16 // a bit for each slot
	slot     int32  // that the last AbsMTSlot named
}

func (p *pressed) apply(e hid.Event) {
	switch {
	case e.Type == hid.EVKey:
		p.keys.Set(e.Code, e.Value != 0)
	case e.Type == hid.EVAbs && e.Code == hid.AbsMTSlot:
		p.slot = e.Value
	case e.Type == hid.EVAbs && e.Code == hid.AbsMTTrackingID && e.Value >= 0:
		p.contacts |= 1 << p.slot
	case e.Type == hid.EVAbs && e.Code == hid.AbsMTTrackingID:
		p.contacts &^= 1 << p.slot
	}
}

// touches reports whether there is a contact in a slot.
func (p *pressed) touches(slot int32) bool { return p.contacts>>slot&1 != 0 }

// report is a report that is being made.
type report struct {
	events  [maxReport - 1]hid.Event
	n       int
	slotSet bool // it has named its slot: the report before it may be dropped
}

// take makes reports of a batch and puts them into the FIFO.
func (d *Device) take(batch []hid.Event) {
	r := &d.report
	r.n, r.slotSet = 0, false
	for _, e := range batch {
		switch e.Type {
		case hid.EVKey:
			d.takeKey(e)
		case hid.EVRel:
			if d.hasRel(e.Code) && e.Value != 0 {
				d.put(e)
			}
		case hid.EVAbs:
			d.takeAbs(e)
		}
	}
	if touch := d.taken.contacts != 0; d.kind == Touch && touch != d.taken.keys.Has(hid.BtnTouch) {
		d.put(hid.Event{Type: hid.EVKey, Code: hid.BtnTouch, Value: value(touch)})
	}
	d.finish()
}

func value(down bool) int32 {
	if down {
		return 1
	}
	return 0
}

// takeKey takes the press of a key that is up and the release of one that is down. The driver repeats keys itself.
func (d *Device) takeKey(e hid.Event) {
	if e.Value == 0 || e.Value == 1 {
		// BtnTouch follows from the contacts.
		if e.Code != hid.BtnTouch && kinds[d.kind].hasKey(e.Code) && d.taken.keys.Has(e.Code) != (e.Value == 1) {
			d.put(e)
		}
	}
}

func (d *Device) hasRel(code uint16) bool {
	for _, c := range kinds[d.kind].rel {
		if c == code {
			return true
		}
	}
	return false
}

// takeAbs takes a position. What is about a contact is preceded by its slot, and of a contact whose beginning the driver
// was not told it is told nothing.
func (d *Device) takeAbs(e hid.Event) {
	a, ok := kinds[d.kind].axis(e.Code)
	switch {
	case !ok:
		return
	case e.Code == hid.AbsMTSlot:
		d.slot = e.Value
		return
	case e.Code == hid.AbsMTTrackingID && e.Value < 0:
		e.Value = -1
	default:
		e.Value = min(max(e.Value, 0), a.max)
	}
	if d.kind == Touch {
		begins := e.Code == hid.AbsMTTrackingID && e.Value >= 0
		if d.slot < 0 || d.slot >= Slots || !begins && !d.taken.touches(d.slot) {
			return
		}
		if d.report.n+2 > len(d.report.events) {
			d.finish() // the slot stays with what is about it
		}
		if !d.report.slotSet || d.taken.slot != d.slot {
			d.put(hid.Event{Type: hid.EVAbs, Code: hid.AbsMTSlot, Value: d.slot})
			d.report.slotSet = true
		}
	}
	d.put(e)
}

// put adds an event to the report, and begins another one if it is full.
func (d *Device) put(e hid.Event) {
	r := &d.report
	if r.n == len(r.events) {
		d.finish()
	}
	r.events[r.n] = e
	r.n++
	d.taken.apply(e)
}

// finish puts the report into the FIFO. If it finds no room there, the driver has not taken hundreds of presses and releases:
// then it learns of none of them, but that everything is up.
func (d *Device) finish() {
	r := &d.report
	if r.n > 0 && !d.fifo.add(r.events[:r.n]) {
		d.fifo.clear()
		d.taken = d.seen
		d.release()
	}
	r.n, r.slotSet = 0, false
}

// release lets go of everything that is down. An empty FIFO has room for it.
func (d *Device) release() {
	r := &d.report
	r.n, r.slotSet = 0, false
	for slot := range int32(Slots) {
		if d.taken.touches(slot) {
			d.put(hid.Event{Type: hid.EVAbs, Code: hid.AbsMTSlot, Value: slot})
			d.put(hid.Event{Type: hid.EVAbs, Code: hid.AbsMTTrackingID, Value: -1})
		}
	}
	for code := range d.taken.keys.All() {
		d.put(hid.Event{Type: hid.EVKey, Code: code})
	}
	d.finish()
}
