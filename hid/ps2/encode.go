package ps2

import (
	"slices"

	"github.com/lodgehv/lodge/hid"
)

// maxScan is the longest sequence that a key sends: Pause in set 2.
const maxScan = 8

// keyTypes says, by codes of set 3, what a key of that set sends.
type keyTypes [0x90]keyType

type keyType = uint8

const (
	typeMake      keyType = 0
	typeBreak     keyType = 1 << 0 // a code when it is released too
	typeTypematic keyType = 1 << 1 // repeated while it is held
)

// typeOf returns what one of the commands from kbdAllTypematic to kbdKeyMake asks for.
func typeOf(command byte) keyType {
	switch command {
	case kbdAllTypematic, kbdKeyTypematic:
		return typeTypematic
	case kbdAllMakeBreak, kbdKeyMakeBreak:
		return typeBreak
	case kbdAllBoth:
		return typeBreak | typeTypematic
	}
	return typeMake
}

func (t *keyTypes) all(v keyType) {
	for i := range t {
		t[i] = v
	}
}

// The keys that do not repeat in set 3 after power-on: modifiers, which tell of their release, and those that do not.
const (
	set3MakeBreak = "\x11\x12\x14\x19\x59"
	set3Make      = "\x07\x08\x0f\x17\x1f\x27\x2f\x37\x39\x3f\x47\x4f\x56\x57\x58\x5e\x5f\x62\x65\x67\x69\x6b\x6c\x6d\x6e\x6f" +
		"\x70\x71\x72\x73\x74\x75\x76\x77\x79\x7a\x7d\x7e\x84\x8b\x8c\x8d"
)

func (t *keyTypes) defaults() {
	t.all(typeTypematic)
	for _, c := range []byte(set3MakeBreak) {
		t[c] = typeBreak
	}
	for _, c := range []byte(set3Make) {
		t[c] = typeMake
	}
}

// printForm is how Print Screen was pressed, which its release has to match.
type printForm uint8

const (
	printPlain   printForm = iota // with a Shift around it, so that the oldest programs take it for Shift and keypad *
	printShifted                  // with Shift or Ctrl, which serve for that
	printAlt                      // with Alt: SysRq
)

func (k *Keyboard) printForm() printForm {
	switch {
	case k.anyDown(hid.KeyLeftAlt, hid.KeyRightAlt):
		return printAlt
	case k.anyDown(hid.KeyLeftShift, hid.KeyRightShift, hid.KeyLeftCtrl, hid.KeyRightCtrl):
		return printShifted
	}
	return printPlain
}

func (k *Keyboard) anyDown(keys ...uint16) bool { return slices.ContainsFunc(keys, k.down.Has) }

// repeats reports whether a key is repeated while it is held.
func (k *Keyboard) repeats(key uint16) bool {
	s := scanOf(key)
	if k.set == 3 {
		return k.types[s.set3]&typeTypematic != 0
	}
	return s.form != makeOnly && key != hid.KeyPause
}

// encodeRepeat writes what a key that is held sends, and returns how many bytes that are.
func (k *Keyboard) encodeRepeat(p []byte, key uint16) int {
	if key == hid.KeySysRq && k.print == printPlain {
		k.print = printShifted // without the Shift that was sent
		n := k.encode(p, key, true)
		k.print = printPlain
		return n
	}
	return k.encode(p, key, true)
}

// encode writes what a key sends when it is pressed or released, and returns how many bytes that are: none if it has no
// code.
func (k *Keyboard) encode(p []byte, key uint16, down bool) int {
	s := scanOf(key)
	if k.set == 3 {
		switch {
		case s.set3 == 0, !down && k.types[s.set3]&typeBreak == 0:
			return 0
		case down:
			return copy(p, []byte{s.set3})
		}
		return copy(p, []byte{scanBreak, s.set3})
	}
	switch {
	case key == hid.KeyPause:
		return k.encodePause(p, down)
	case key == hid.KeySysRq:
		return k.encodePrint(p, down)
	case s.set1 == 0, !down && s.form == makeOnly:
		return 0
	}
	return k.code(p, s.set1, s.set2, s.form == extended, down)
}

// code writes one code of set 1 or 2.
func (k *Keyboard) code(p []byte, set1, set2 uint8, ext, down bool) (n int) {
	if ext {
		n += copy(p, []byte{scanExtended})
	}
	switch {
	case k.set == 2 && !down:
		n += copy(p[n:], []byte{scanBreak, set2})
	case k.set == 2:
		n += copy(p[n:], []byte{set2})
	case down:
		n += copy(p[n:], []byte{set1})
	default:
		n += copy(p[n:], []byte{set1 | scanBreakBit})
	}
	return n
}

// encodePause writes Pause, or Break if Ctrl is down: both send all when they are pressed.
func (k *Keyboard) encodePause(p []byte, down bool) (n int) {
	if !down {
		return 0
	}
	if k.anyDown(hid.KeyLeftCtrl, hid.KeyRightCtrl) {
		n = k.code(p, 0x46, 0x7e, true, true)
		return n + k.code(p[n:], 0x46, 0x7e, true, false)
	}
	for _, down := range []bool{true, false} { // Ctrl and Num Lock, after one prefix
		n += copy(p[n:], []byte{scanPause})
		n += k.code(p[n:], 0x1d, 0x14, false, down)
		n += k.code(p[n:], 0x45, 0x77, false, down)
	}
	return n
}

// encodePrint writes Print Screen.
func (k *Keyboard) encodePrint(p []byte, down bool) (n int) {
	switch {
	case k.print == printAlt:
		return k.code(p, 0x54, 0x84, false, down)
	case k.print == printShifted:
		return k.code(p, 0x37, 0x7c, true, down)
	case down:
		n = k.code(p, 0x2a, 0x12, true, true)
		return n + k.code(p[n:], 0x37, 0x7c, true, true)
	}
	n = k.code(p, 0x37, 0x7c, true, false)
	return n + k.code(p[n:], 0x2a, 0x12, true, false)
}
