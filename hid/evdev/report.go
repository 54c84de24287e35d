package evdev

import (
	"encoding/binary"
	"time"

	"github.com/lodgehv/lodge/hid"
)

// Report is what changed on a device at one moment.
type Report struct {
	At     time.Duration // CLOCK_MONOTONIC
	Events []hid.Event   // without EV_SYN; good until the next report is read
}

// maxReport bounds the events of a report. A touch screen with ten fingers needs about 100; the kernel's own queue is not
// much longer.
const maxReport = 1024

// assembler makes reports of the kernel's stream of events (struct input_event).
type assembler struct {
	events   []hid.Event
	dropping bool // until the next SYN_REPORT: what the kernel's queue held was lost (SYN_DROPPED), or is too much
}

// feed takes events from p, as many as are needed to complete a report, and returns how many bytes that were. Bytes behind
// the last whole event are not taken: the kernel does not write any.
//
// done says that a report is complete; its events are a.events, until the next call. lost says that it is not all: the
// state of the device has to be read instead.
func (a *assembler) feed(p []byte) (n int, at time.Duration, done, lost bool) {
	for ; len(p)-n >= sizeEvent; n += sizeEvent {
		e := p[n:]
		ev := hid.Event{
			Type:  binary.NativeEndian.Uint16(e[16:]),
			Code:  binary.NativeEndian.Uint16(e[18:]),
			Value: int32(binary.NativeEndian.Uint32(e[20:])),
		}
		switch {
		case ev.Type == hid.EVSyn && ev.Code == hid.SynReport:
			lost = a.dropping
			a.dropping = false
			return n + sizeEvent, stamp(e), true, lost
		case ev.Type == hid.EVSyn && ev.Code == hid.SynDropped, len(a.events) == maxReport:
			a.events, a.dropping = a.events[:0], true
		case ev.Type == hid.EVSyn, a.dropping: // SYN_CONFIG, SYN_MT_REPORT: protocol A is not supported
		default:
			a.events = append(a.events, ev)
		}
	}
	return n, 0, false, false
}

// next forgets the report that was complete.
func (a *assembler) next() { a.events = a.events[:0] }

// stamp returns the time of an event.
func stamp(e []byte) time.Duration {
	sec := time.Duration(binary.NativeEndian.Uint64(e[0:]))
	usec := time.Duration(binary.NativeEndian.Uint64(e[8:]))
	return sec*time.Second + usec*time.Microsecond
}

// putEvent writes an event as the kernel reads it: it stamps it itself.
func putEvent(p []byte, e hid.Event) []byte {
	p = append(p, make([]byte, 16)...)
	p = binary.NativeEndian.AppendUint16(p, e.Type)
	p = binary.NativeEndian.AppendUint16(p, e.Code)
	return binary.NativeEndian.AppendUint32(p, uint32(e.Value))
}
