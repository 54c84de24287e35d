package ps2

import (
	"bufio"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/legacy"
)

// all yields every key that has a code.
func all(yield func(uint16) bool) {
	for code := range uint16(len(scans)) {
		if (scans[code] != scan{}) && !yield(code) {
			return
		}
	}
}

// What the controller makes of set 2, by its own table, is set 1.
func TestTranslation(t *testing.T) {
	n := 0
	for code := range all {
		name := hid.KeyName(code)
		translated, raw := newController(t), newKeyboard(t)
		write(raw, 0xf0, 1)
		read(raw)
		for _, v := range []int32{1, 0} {
			translated.keyboard.Send([]hid.Event{key(code, v)})
			raw.Send([]hid.Event{key(code, v)})
			if diff := cmp.Diff(read(raw), fmt.Sprintf("% x", translated.drain())); diff != "" {
				t.Errorf("%s %d (-set 1 +translated):\n%s", name, v, diff)
			}
		}
		n++
	}
	if n < 140 {
		t.Errorf("only %d keys", n)
	}
}

// atkbd reads what Linux's keyboard driver knows: keys by set and code.
func atkbd(t *testing.T) map[string]uint16 {
	t.Helper()
	f, err := os.Open("testdata/atkbd.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table := make(map[string]uint16)
	for s := bufio.NewScanner(f); s.Scan(); {
		var set, code string
		var key uint16
		if n, _ := fmt.Sscanf(s.Text(), "%s %s %d", &set, &code, &key); n == 3 {
			table[set+" "+code] = key
		}
	}
	return table
}

// Linux takes every code for the key that was pressed, or for another that means the same.
func TestLinux(t *testing.T) {
	other := map[uint16]uint16{
		hid.KeyMenu: hid.KeyCompose, hid.KeyWWW: hid.KeyHomePage, hid.KeyFile: hid.KeyComputer, hid.KeyEmail: hid.KeyMail,
		hid.KeyConfig: hid.KeyMedia, hid.KeyF24: hid.KeyZenkakuHankaku,
	}
	unknown := map[uint16]bool{ // to its table; F13 to F15 it knows by codes that no other system does
		hid.KeyHangeul: true, hid.KeyHanja: true,
		hid.KeyF13: true, hid.KeyF14: true, hid.KeyF15: true, hid.KeyF16: true, hid.KeyF17: true, hid.KeyF18: true,
		hid.KeyF19: true, hid.KeyF20: true, hid.KeyF21: true, hid.KeyF22: true, hid.KeyF23: true,
	}
	japanese := map[uint16]bool{hid.KeyRo: true, hid.KeyYen: true}     // in set 3 Linux has other keys there
	special := map[uint16]bool{hid.KeySysRq: true, hid.KeyPause: true} // in set 2, TestSequences
	table := atkbd(t)
	seen := make(map[uint16]bool)
	for code := range all {
		want := code
		if o, ok := other[code]; ok {
			want = o
		}
		s := scans[code]
		set2 := fmt.Sprintf("2 %02x", s.set2)
		if s.form == extended {
			set2 = fmt.Sprintf("2 e0%02x", s.set2)
		}
		if got := table[set2]; got != want && !unknown[code] && !special[code] {
			t.Errorf("%s is sent as %s, which is %s", hid.KeyName(code), set2, hid.KeyName(got))
		}
		if set3 := fmt.Sprintf("3 %02x", s.set3); s.set3 != 0 && table[set3] != want && !japanese[code] {
			t.Errorf("%s is sent as %s, which is %s", hid.KeyName(code), set3, hid.KeyName(table[set3]))
		}
		seen[want] = true
	}
	for code, k := range table {
		if code[0] == '2' && !seen[k] && k != hid.KeyMacro && (k < hid.KeyF13 || k > hid.KeyF15) {
			t.Errorf("%s, which Linux knows as %s, is not in the table", hid.KeyName(k), code)
		}
	}
}

// Set 3 has one code for a key.
func TestSet3(t *testing.T) {
	by := make(map[uint8]uint16)
	for code := range all {
		c := scans[code].set3
		if c == 0 || code == hid.KeyMenu {
			continue
		}
		if o, ok := by[c]; ok {
			t.Errorf("%s and %s both have %#x", hid.KeyName(o), hid.KeyName(code), c)
		}
		by[c] = code
		if int(c) >= len(keyTypes{}) {
			t.Errorf("%s has %#x, beyond the table of types", hid.KeyName(code), c)
		}
	}
}

// Firmware and drivers empty the controller by some reads: a person who types while a guest starts must not make them give up.
func TestTypingAhead(t *testing.T) {
	c := newController(t)
	for range 20 {
		keys(t, c.keyboard, "a -a b -b c -c")
	}
	if n := len(c.drain()); n > 15 {
		t.Errorf("%d bytes wait", n)
	}
	c.out(legacy.I8042Data, 0xf4)
	if got := fmt.Sprintf("% x", c.drain()); got != "fa" {
		t.Errorf("then the keyboard answers %s, want fa", got)
	}
}
