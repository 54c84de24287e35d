package seat

import (
	"github.com/gdamore/tcell/v3"

	"github.com/lodgehv/lodge/hid"
)

// keyboard makes of the events of a US keyboard what a terminal's program reads.
type keyboard struct{ held hid.Keys }

// event returns the key that e is, nil if it is none. Keys that move repeat, and others do not: what is held a moment too long
// is not meant twice.
func (k *keyboard) event(e hid.Event) *tcell.EventKey {
	if e.Type != hid.EVKey {
		return nil
	}
	k.held.Set(e.Code, e.Value != 0)
	if e.Value == 0 {
		return nil
	}
	var mod tcell.ModMask
	shift := k.held.Has(hid.KeyLeftShift) || k.held.Has(hid.KeyRightShift)
	if k.held.Has(hid.KeyLeftCtrl) || k.held.Has(hid.KeyRightCtrl) {
		mod |= tcell.ModCtrl
	}
	if k.held.Has(hid.KeyLeftAlt) || k.held.Has(hid.KeyRightAlt) {
		mod |= tcell.ModAlt
	}
	if key, repeats := named(e.Code); key != tcell.KeyRune {
		if e.Value > 1 && !repeats {
			return nil
		}
		if shift {
			mod |= tcell.ModShift
		}
		return tcell.NewEventKey(key, "", mod)
	}
	plain, shifted, ok := hid.US(e.Code)
	if !ok || e.Value > 1 {
		return nil
	}
	if shift {
		plain = shifted
	}
	return tcell.NewEventKey(tcell.KeyRune, string(plain), mod)
}

// named returns the key that has a name and no character, tcell.KeyRune if it is none.
func named(code uint16) (key tcell.Key, repeats bool) {
	switch code {
	case hid.KeyEsc:
		return tcell.KeyEsc, false
	case hid.KeyEnter, hid.KeyKPEnter:
		return tcell.KeyEnter, false
	case hid.KeyTab:
		return tcell.KeyTab, false
	case hid.KeyBackspace:
		return tcell.KeyBackspace, false
	case hid.KeyUp:
		return tcell.KeyUp, true
	case hid.KeyDown:
		return tcell.KeyDown, true
	case hid.KeyLeft:
		return tcell.KeyLeft, false
	case hid.KeyRight:
		return tcell.KeyRight, false
	case hid.KeyPageUp:
		return tcell.KeyPgUp, true
	case hid.KeyPageDown:
		return tcell.KeyPgDn, true
	case hid.KeyHome:
		return tcell.KeyHome, false
	case hid.KeyEnd:
		return tcell.KeyEnd, false
	}
	return tcell.KeyRune, false
}
