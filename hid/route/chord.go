package route

import (
	"fmt"
	"strings"

	"github.com/lodgehv/lodge/hid"
)

// Mods is a set of modifiers. Left and right keys are the same modifier.
type Mods uint8

// The modifiers, in the order in which a Chord is written.
const (
	Ctrl  Mods = 1 << iota
	Alt        // AltGr too
	Shift      //
	Meta       // the key with a logo on it
)

// modifiers are the names of each modifier, the one that is written first, and its keys.
var modifiers = [...]struct {
	mod         Mods
	names       []string
	left, right uint16
}{
	{Ctrl, []string{"ctrl", "control"}, hid.KeyLeftCtrl, hid.KeyRightCtrl},
	{Alt, []string{"alt"}, hid.KeyLeftAlt, hid.KeyRightAlt},
	{Shift, []string{"shift"}, hid.KeyLeftShift, hid.KeyRightShift},
	{Meta, []string{"meta", "super", "win"}, hid.KeyLeftMeta, hid.KeyRightMeta},
}

// modifier returns the modifier that a key is, 0 if it is none.
func modifier(code uint16) Mods {
	for i := range modifiers {
		if m := &modifiers[i]; code == m.left || code == m.right {
			return m.mod
		}
	}
	return 0
}

// Chord is a key that is pressed while certain modifiers, and no others, are held. The zero Chord is never pressed. For the
// attention key other modifiers may be held too: a keyboard on which one is stuck must not keep a person from it.
type Chord struct {
	Mods Mods
	Key  uint16 // the trigger: a key that is no modifier, or a button
}

// ParseChord reads a chord as people write it: modifiers (ctrl, alt, shift, meta) and then the trigger, by its name in
// hid.KeyByName, with "+" between them: "ctrl+alt+esc". Upper and lower case are the same.
func ParseChord(s string) (Chord, error) {
	var c Chord
	words := strings.Split(s, "+")
	for i, w := range words {
		words[i] = strings.ToLower(strings.TrimSpace(w))
	}
	last := len(words) - 1
	for _, w := range words[:last] {
		m := modifierByName(w)
		if m == 0 {
			return Chord{}, fmt.Errorf("chord %q: %q is no modifier: write ctrl, alt, shift or meta before the key", s, w)
		}
		if c.Mods&m != 0 {
			return Chord{}, fmt.Errorf("chord %q: has %s twice", s, w)
		}
		c.Mods |= m
	}
	key, ok := hid.KeyByName(words[last])
	switch {
	case modifierByName(words[last]) != 0, ok && modifier(key) != 0:
		return Chord{}, fmt.Errorf("chord %q: ends with a modifier: add the key that triggers it", s)
	case !ok || key == hid.KeyReserved:
		return Chord{}, fmt.Errorf("chord %q: there is no key %q: keys have names such as esc, tab, 1, f1, left", s, words[last])
	}
	c.Key = key
	return c, nil
}

func modifierByName(name string) Mods {
	for _, m := range modifiers {
		for _, n := range m.names {
			if n == name {
				return m.mod
			}
		}
	}
	return 0
}

// String returns the chord as ParseChord reads it, "" for the zero Chord.
func (c Chord) String() string {
	if c.Key == hid.KeyReserved {
		return ""
	}
	var b strings.Builder
	for _, m := range modifiers {
		if c.Mods&m.mod != 0 {
			b.WriteString(m.names[0] + "+")
		}
	}
	return b.String() + hid.KeyName(c.Key)
}

// MarshalText implements encoding.TextMarshaler.
func (c Chord) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: a chord, or nothing for none.
func (c *Chord) UnmarshalText(text []byte) (err error) {
	*c = Chord{}
	if len(text) > 0 {
		*c, err = ParseChord(string(text))
	}
	return err
}

// Chords says what each chord does. The zero Chord leaves its action without one.
type Chords struct {
	Attention   Chord    // calls the console, whatever else goes on; the zero Chord stands for Ctrl+Alt+Esc here
	Slots       [9]Chord // the focus goes to the target in slot 1, 2 …
	Left, Right Chord    // to its neighbour
	Last        Chord    // to the target that had it before
}

// DefaultChords returns Ctrl+Alt with Esc, 1 to 9, Left, Right and Tab.
func DefaultChords() Chords {
	const mods = Ctrl | Alt
	c := Chords{
		Attention: Chord{mods, hid.KeyEsc},
		Left:      Chord{mods, hid.KeyLeft},
		Right:     Chord{mods, hid.KeyRight},
		Last:      Chord{mods, hid.KeyTab},
	}
	for i := range c.Slots {
		c.Slots[i] = Chord{mods, hid.Key1 + uint16(i)}
	}
	return c
}

// action is what a chord does.
type action uint8

const (
	attend action = iota
	left
	right
	last
	slot // and the slots 1 to 9 after it: slot+1 …
)

func (a action) String() string {
	switch a {
	case attend:
		return "attention"
	case left:
		return "left"
	case right:
		return "right"
	case last:
		return "last"
	}
	return fmt.Sprintf("slot %d", a-slot)
}

// binding is a chord and its action.
type binding struct {
	Chord
	do action
}

// pressed reports whether its trigger is the chord's while held are the modifiers.
func (b *binding) pressed(held Mods) bool {
	if b.do == attend {
		held &= b.Mods
	}
	return held == b.Mods
}

// bindings returns the chords that there are, the attention key first.
func (c *Chords) bindings() ([]binding, error) {
	attention := c.Attention
	if attention.Key == hid.KeyReserved {
		attention = DefaultChords().Attention
	}
	all := []binding{{attention, attend}, {c.Left, left}, {c.Right, right}, {c.Last, last}}
	for i, s := range c.Slots {
		all = append(all, binding{s, slot + 1 + action(i)})
	}
	var have []binding
	for _, b := range all {
		if b.Key == hid.KeyReserved {
			continue
		}
		if b.Key > hid.KeyMax || modifier(b.Key) != 0 {
			return nil, fmt.Errorf("chord for %v: its key is a modifier, or none at all", b.do)
		}
		for _, h := range have {
			if h.Key == b.Key && h.pressed(b.Mods) {
				return nil, fmt.Errorf("chord %v is for %v and for %v: change one of them", b.Chord, h.do, b.do)
			}
		}
		have = append(have, b)
	}
	return have, nil
}
