package headless

import (
	"image"
	"slices"

	"github.com/lodgehv/lodge/hid"
)

// person turns what one client does into events. What it holds down is let go when it leaves.
type person struct {
	sink    hid.Sink
	held    []uint16 // keys and buttons that are down, in order
	buttons uint8    // of the last PointerEvent
}

func (p *person) send(batch ...hid.Event) {
	if p.sink != nil {
		p.sink.Send(batch)
	}
}

// key presses or releases the key of a keysym.
func (p *person) key(sym uint32, down bool) {
	code, want := lookup(sym)
	if code == 0 {
		return
	}
	if !down {
		p.release(code)
		return
	}
	if slices.Contains(p.held, code) {
		p.send(hid.Event{Type: hid.EVKey, Code: code, Value: 2})
		return
	}
	// The client's keyboard may have the character elsewhere, or may have none: as long as the key goes down, Shift is what
	// the character needs on ours. A chord is left alone.
	var shifts []uint16
	chord := false
	for _, k := range p.held {
		switch k {
		case keyLeftShift, keyRightShift:
			shifts = append(shifts, k)
		case keyLeftCtrl, keyRightCtrl, keyLeftAlt, keyLeftMeta, keyRightMeta:
			chord = true
		}
	}
	switch {
	case !chord && want == shiftDown && len(shifts) == 0:
		p.send(key(keyLeftShift, 1))
		defer p.send(key(keyLeftShift, 0))
	case !chord && want == shiftUp && len(shifts) > 0:
		for _, k := range shifts {
			p.send(key(k, 0))
			defer p.send(key(k, 1))
		}
	}
	p.held = append(p.held, code)
	p.send(key(code, 1))
}

func key(code uint16, value int32) hid.Event {
	return hid.Event{Type: hid.EVKey, Code: code, Value: value}
}

// release lets a key or a button go, if it is held.
func (p *person) release(code uint16) {
	if i := slices.Index(p.held, code); i >= 0 {
		p.held = slices.Delete(p.held, i, i+1)
		p.send(key(code, 0))
	}
}

// leave lets everything go.
func (p *person) leave() {
	for len(p.held) > 0 {
		p.release(p.held[len(p.held)-1])
	}
}

// pointer moves to a place on a screen of the given size, with a mask of buttons (RFC 6143 §7.5.5). Turns of the wheel are
// presses of the buttons 4 to 7.
func (p *person) pointer(at image.Point, size image.Point, buttons uint8) {
	batch := []hid.Event{
		{Type: hid.EVAbs, Code: hid.AbsX, Value: scale(at.X, size.X)},
		{Type: hid.EVAbs, Code: hid.AbsY, Value: scale(at.Y, size.Y)},
	}
	pressed, changed := buttons&^p.buttons, buttons^p.buttons
	for i, code := range []uint16{hid.BtnLeft, hid.BtnMiddle, hid.BtnRight} {
		switch bit := uint8(1) << i; {
		case pressed&bit != 0:
			p.held = append(p.held, code)
			batch = append(batch, key(code, 1))
		case changed&bit != 0:
			p.held = slices.DeleteFunc(p.held, func(k uint16) bool { return k == code })
			batch = append(batch, key(code, 0))
		}
	}
	for i, e := range []hid.Event{
		{Type: hid.EVRel, Code: hid.RelWheel, Value: 1}, {Type: hid.EVRel, Code: hid.RelWheel, Value: -1},
		{Type: hid.EVRel, Code: hid.RelHWheel, Value: -1}, {Type: hid.EVRel, Code: hid.RelHWheel, Value: 1},
	} {
		if pressed&(1<<(3+i)) != 0 {
			batch = append(batch, e)
		}
	}
	p.buttons = buttons
	p.send(batch...)
}

// scale returns a pixel's place on an axis of n pixels as that of an absolute axis.
func scale(v, n int) int32 {
	if n < 2 {
		return 0
	}
	return int32(min(max(v, 0), n-1) * hid.AbsMax / (n - 1))
}
