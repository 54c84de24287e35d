package headless

import "github.com/lodgehv/lodge/hid"

// Key codes of Linux's evdev (include/uapi/linux/input-event-codes.h) that keysyms stand for.
const (
	keyEsc        = 1
	key1          = 2 // the first that has a character
	keyBackspace  = 14
	keyTab        = 15
	keyEnter      = 28
	keyLeftCtrl   = 29
	keyLeftShift  = 42
	keyRightShift = 54
	keyKPAsterisk = 55
	keyLeftAlt    = 56
	keySpace      = 57
	keyCapsLock   = 58
	keyF1         = 59 // to keyF10 = 68
	keyNumLock    = 69
	keyScrollLock = 70
	keyKP7        = 71
	keyKP8        = 72
	keyKP9        = 73
	keyKPMinus    = 74
	keyKP4        = 75
	keyKP5        = 76
	keyKP6        = 77
	keyKPPlus     = 78
	keyKP1        = 79
	keyKP2        = 80
	keyKP3        = 81
	keyKP0        = 82
	keyKPDot      = 83
	keyF11        = 87
	keyF12        = 88
	keyKPEnter    = 96
	keyRightCtrl  = 97
	keyKPSlash    = 98
	keySysRq      = 99
	keyRightAlt   = 100
	keyHome       = 102
	keyUp         = 103
	keyPageUp     = 104
	keyLeft       = 105
	keyRight      = 106
	keyEnd        = 107
	keyDown       = 108
	keyPageDown   = 109
	keyInsert     = 110
	keyDelete     = 111
	keyMute       = 113
	keyVolumeDown = 114
	keyVolumeUp   = 115
	keyKPEqual    = 117
	keyPause      = 119
	keyLeftMeta   = 125
	keyRightMeta  = 126
	keyCompose    = 127
)

// Keysyms (X11's keysymdef.h) of modifiers.
const (
	symShiftL = 0xffe1
	symShiftR = 0xffe2
)

// shift says what a keysym wants of the Shift keys on a US keyboard.
type shift uint8

const (
	shiftAny shift = iota // letters: Caps Lock counts too; and keys without a second character
	shiftUp
	shiftDown
)

// lookup returns the key of a US keyboard that a keysym is on, and 0 if there is none.
func lookup(sym uint32) (code uint16, s shift) {
	switch {
	case sym >= 0xffbe && sym <= 0xffc7: // F1 to F10
		return keyF1 + uint16(sym-0xffbe), shiftAny
	case sym < 0x80:
		return symbol(rune(sym))
	default:
		return special(sym), shiftAny
	}
}

// symbol returns the key of a character, which is not on the keypad.
func symbol(sym rune) (uint16, shift) {
	for code := uint16(key1); code <= keySpace; code++ {
		up, down, ok := hid.US(code)
		switch {
		case !ok || code == keyKPAsterisk || sym != up && sym != down:
		case up == down || down-up == 'A'-'a': // a space or a letter
			return code, shiftAny
		case sym == up:
			return code, shiftUp
		default:
			return code, shiftDown
		}
	}
	return 0, shiftAny
}

// special returns the key of a keysym that is no character of ASCII.
func special(sym uint32) uint16 {
	switch sym {
	case 0xff08:
		return keyBackspace
	case 0xff09, 0xfe20: // Tab, ISO_Left_Tab
		return keyTab
	case 0xff0d:
		return keyEnter
	case 0xff13:
		return keyPause
	case 0xff14:
		return keyScrollLock
	case 0xff15, 0xff61: // Sys_Req, Print
		return keySysRq
	case 0xff1b:
		return keyEsc
	case 0xff50:
		return keyHome
	case 0xff51:
		return keyLeft
	case 0xff52:
		return keyUp
	case 0xff53:
		return keyRight
	case 0xff54:
		return keyDown
	case 0xff55:
		return keyPageUp
	case 0xff56:
		return keyPageDown
	case 0xff57:
		return keyEnd
	case 0xff63:
		return keyInsert
	case 0xff67:
		return keyCompose
	case 0xff7f:
		return keyNumLock
	case 0xff8d:
		return keyKPEnter
	case 0xff95, 0xffb7: // the keypad's keys, without and with Num Lock
		return keyKP7
	case 0xff97, 0xffb8:
		return keyKP8
	case 0xff9a, 0xffb9:
		return keyKP9
	case 0xff96, 0xffb4:
		return keyKP4
	case 0xff9d, 0xffb5:
		return keyKP5
	case 0xff98, 0xffb6:
		return keyKP6
	case 0xff9c, 0xffb1:
		return keyKP1
	case 0xff99, 0xffb2:
		return keyKP2
	case 0xff9b, 0xffb3:
		return keyKP3
	case 0xff9e, 0xffb0:
		return keyKP0
	case 0xff9f, 0xffae, 0xffac: // Delete, Decimal, Separator
		return keyKPDot
	case 0xffaa:
		return keyKPAsterisk
	case 0xffab:
		return keyKPPlus
	case 0xffad:
		return keyKPMinus
	case 0xffaf:
		return keyKPSlash
	case 0xffbd:
		return keyKPEqual
	case 0xffc8:
		return keyF11
	case 0xffc9:
		return keyF12
	case symShiftL:
		return keyLeftShift
	case symShiftR:
		return keyRightShift
	case 0xffe3:
		return keyLeftCtrl
	case 0xffe4:
		return keyRightCtrl
	case 0xffe5:
		return keyCapsLock
	case 0xffe7, 0xffeb: // Meta_L, Super_L
		return keyLeftMeta
	case 0xffe8, 0xffec:
		return keyRightMeta
	case 0xffe9:
		return keyLeftAlt
	case 0xffea, 0xfe03, 0xff7e: // Alt_R, ISO_Level3_Shift, Mode_switch
		return keyRightAlt
	case 0xffff:
		return keyDelete
	case 0x1008ff11:
		return keyVolumeDown
	case 0x1008ff12:
		return keyMute
	case 0x1008ff13:
		return keyVolumeUp
	}
	return 0
}
