package hid

import "testing"

func TestUS(t *testing.T) {
	for _, c := range []struct {
		code           uint16
		plain, shifted rune
	}{
		{Key1, '1', '!'}, {Key0, '0', ')'}, {KeyEqual, '=', '+'}, {KeyQ, 'q', 'Q'}, {KeyRightBrace, ']', '}'}, {KeyA, 'a', 'A'},
		{KeyL, 'l', 'L'}, {KeyGrave, '`', '~'}, {KeyBackslash, '\\', '|'}, {KeyZ, 'z', 'Z'}, {KeySlash, '/', '?'}, {KeySpace, ' ', ' '},
		{KeyKP1, '1', '1'}, {KeyKPDot, '.', '.'}, {KeyKPPlus, '+', '+'}, {KeyKPAsterisk, '*', '*'},
	} {
		if p, s, ok := US(c.code); p != c.plain || s != c.shifted || !ok {
			t.Errorf("%s: %q %q %v, want %q %q", KeyName(c.code), p, s, ok, c.plain, c.shifted)
		}
	}
	seen := make(map[rune]bool)
	for code := range uint16(KeyMax) {
		p, s, ok := US(code)
		if !ok {
			continue
		}
		if code < KeyKP7 && code != KeyKPAsterisk {
			if seen[p] || seen[s] && s != p {
				t.Errorf("%s: %q or %q is on another key too", KeyName(code), p, s)
			}
			seen[p], seen[s] = true, true
		}
	}
	for r := ' '; r <= '~'; r++ {
		if !seen[r] {
			t.Errorf("no key has %q", r)
		}
	}
	for _, code := range []uint16{KeyEsc, KeyEnter, KeyLeftShift, KeyF1, KeyUp, KeyMax, 0} {
		if _, _, ok := US(code); ok {
			t.Errorf("%s has a character", KeyName(code))
		}
	}
}
