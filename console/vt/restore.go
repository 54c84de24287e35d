package vt

import "errors"

// restore is how a terminal is put back.
type restore struct {
	n      int // /dev/tty<n>
	before int // the terminal to go back to
	kbMode int // of the keyboard
}

// do does it. All is tried, whatever fails.
func (r restore) do(t terminal) error {
	err := errors.Join(
		t.set("KDSKBMODE", nrKDSKBMode, r.kbMode),
		t.set("KDSETMODE", nrKDSetMode, kdText),
		t.setMode(mode{mode: vtAuto}),
	)
	// Only now, when nobody is asked any more whether the terminals may change.
	s, e := t.state()
	if e == nil && int(s.active) == r.n && r.before != r.n && r.before > 0 {
		e = t.set("VT_ACTIVATE", nrActivate, r.before)
	}
	return errors.Join(err, e)
}
