package route

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hid"
)

func TestParseChord(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Chord
		text string // as String writes it
	}{
		{"ctrl+alt+1", Chord{Ctrl | Alt, hid.Key1}, "ctrl+alt+1"},
		{" Alt + CONTROL + Esc ", Chord{Ctrl | Alt, hid.KeyEsc}, "ctrl+alt+esc"},
		{"super+tab", Chord{Meta, hid.KeyTab}, "meta+tab"},
		{"win+shift+left", Chord{Shift | Meta, hid.KeyLeft}, "shift+meta+left"},
		{"scrolllock", Chord{0, hid.KeyScrollLock}, "scrolllock"},
		{"alt+btn_side", Chord{Alt, hid.BtnSide}, "alt+btn_side"},
		{"ctrl+KEY_F12", Chord{Ctrl, hid.KeyF12}, "ctrl+f12"},
		{"ctrl+0x2fe", Chord{Ctrl, 0x2fe}, "ctrl+0x2fe"},
	} {
		got, err := ParseChord(tt.in)
		if err != nil || got != tt.want || got.String() != tt.text {
			t.Errorf("ParseChord(%q) = %+v (%v), %v; want %+v (%s)", tt.in, got, got, err, tt.want, tt.text)
		}
	}
}

func TestParseChordErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                  `chord "": there is no key "": keys have names such as esc, tab, 1, f1, left`,
		"ctrl+alt":          `chord "ctrl+alt": ends with a modifier: add the key that triggers it`,
		"ctrl+leftalt":      `chord "ctrl+leftalt": ends with a modifier: add the key that triggers it`,
		"alt+":              `chord "alt+": there is no key "": keys have names such as esc, tab, 1, f1, left`,
		"alt+banana":        `chord "alt+banana": there is no key "banana": keys have names such as esc, tab, 1, f1, left`,
		"alt+reserved":      `chord "alt+reserved": there is no key "reserved": keys have names such as esc, tab, 1, f1, left`,
		"alt+0x0":           `chord "alt+0x0": there is no key "0x0": keys have names such as esc, tab, 1, f1, left`,
		"a+b":               `chord "a+b": "a" is no modifier: write ctrl, alt, shift or meta before the key`,
		"ctrl+alt+ctrl+esc": `chord "ctrl+alt+ctrl+esc": has ctrl twice`,
	} {
		if c, err := ParseChord(in); err == nil || err.Error() != want {
			t.Errorf("ParseChord(%q) = %v, %v; want %s", in, c, err, want)
		}
	}
}

func TestChordsConfig(t *testing.T) {
	var c Chords
	if err := json.Unmarshal([]byte(`{"Left": "meta+left", "Slots": ["meta+1", "meta+2"], "Last": ""}`), &c); err != nil {
		t.Fatal(err)
	}
	got, err := c.bindings()
	if err != nil {
		t.Fatal(err)
	}
	want := []binding{
		{Chord{Ctrl | Alt, hid.KeyEsc}, attend}, // is always there
		{Chord{Meta, hid.KeyLeft}, left},
		{Chord{Meta, hid.Key1}, slot + 1},
		{Chord{Meta, hid.Key2}, slot + 2},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(binding{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := json.Unmarshal([]byte(`{"Left": "left+meta"}`), &c); err == nil {
		t.Error("a wrong chord is taken")
	}
	for want, change := range map[string]func(*Chords){
		"router: chord ctrl+alt+esc is for attention and for slot 3: change one of them": func(c *Chords) { c.Slots[2] = Chord{Ctrl | Alt, hid.KeyEsc} },
		"router: chord ctrl+alt+shift+esc is for attention and for left: change one of them": func(c *Chords) {
			c.Left = Chord{Ctrl | Alt | Shift, hid.KeyEsc}
		},
		"router: chord ctrl+alt+tab is for right and for last: change one of them": func(c *Chords) { c.Right = c.Last },
		"router: chord for left: its key is a modifier, or none at all":            func(c *Chords) { c.Left.Key = hid.KeyLeftShift },
		"router: chord for attention: its key is a modifier, or none at all":       func(c *Chords) { c.Attention.Key = 0xffff },
	} {
		c := DefaultChords()
		change(&c)
		if _, err := New(Config{Console: &counter{}, Chords: c}); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a router without a console is possible")
	}
}

func FuzzChord(f *testing.F) {
	for _, s := range []string{"ctrl+alt+1", "super + Tab", "ctrl+ctrl+a", "alt+0x2ff", "++", "KEY_F1", "shift+leftshift"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseChord(s)
		if err != nil {
			if c != (Chord{}) {
				t.Errorf("%q: a chord and the error %v", s, err)
			}
			return
		}
		if c.Key == hid.KeyReserved || c.Key > hid.KeyMax || modifier(c.Key) != 0 {
			t.Errorf("%q: the trigger is %#x", s, c.Key)
		}
		if again, err := ParseChord(c.String()); err != nil || again != c {
			t.Errorf("%q is written as %q, which reads as %v, %v", s, c, again, err)
		}
	})
}
