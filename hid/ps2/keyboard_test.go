package ps2

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

func TestKeyboardCommands(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []byte
		want string // the answers to all of it, each read before the next byte
	}{
		{"lights", []byte{0xed, 2}, "fa fa"},
		{"echo", []byte{0xee}, "ee"},
		{"identify", []byte{0xf2}, "fa ab 83"},
		{"which set", []byte{0xf0, 0}, "fa fa 02"},
		{"set 3", []byte{0xf0, 3, 0xf0, 0}, "fa fa fa fa 03"},
		{"set 4", []byte{0xf0, 4, 0xf0, 0}, "fa fe fa fa 02"},
		{"repetition", []byte{0xf3, 0x7f}, "fa fa"},
		{"bad repetition", []byte{0xf3, 0x80}, "fa fe"},
		{"enable and disable", []byte{0xf4, 0xf5, 0xf6}, "fa fa fa"},
		{"types of all keys", []byte{0xf7, 0xf8, 0xf9, 0xfa}, "fa fa fa fa"},
		{"types of some keys", []byte{0xfb, 0x1c, 0x1b, 0xfc, 0x8f, 0xfd, 0x90, 0xec, 0xf4}, "fa fa fa fa fa fa fa fa fa"},
		{"resend", []byte{0xf2, 0xfe, 0xfe}, "fa ab 83 83 83"},
		{"reset", []byte{0xf0, 3, 0xff, 0xf0, 0}, "fa fa fa aa fa fa 02"},
		{"a command in place of a parameter", []byte{0xed, 0xf2}, "fa fa ab 83"},
		{"unknown", []byte{0xef, 0xf1, 0x00, 0x55, 0xea}, "fe fe fe fe fe"},
		{"set 1 stays until the defaults", []byte{0xf0, 1, 0xf6, 0xf0, 0}, "fa fa fa fa fa 02"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKeyboard(t)
			var got string
			for _, b := range tc.in {
				k.Write(b)
				if got != "" {
					got += " "
				}
				got += read(k)
			}
			if got != tc.want {
				t.Errorf("% x is answered by %s, want %s", tc.in, got, tc.want)
			}
		})
	}
}

func TestSequences(t *testing.T) {
	for _, tc := range []struct{ name, keys, set1, set2, set3 string }{
		{"a key", "a -a", "1e 9e", "1c f0 1c", "1c f0 1c"},
		{"an extended key", "right -right", "e0 4d e0 cd", "e0 74 e0 f0 74", "6a f0 6a"},
		{"keypad", "kpenter -kpenter", "e0 1c e0 9c", "e0 5a e0 f0 5a", "79 f0 79"},
		{"pause", "pause -pause", "e1 1d 45 e1 9d c5", "e1 14 77 e1 f0 14 f0 77", "62 f0 62"},
		{"break", "rightctrl pause -pause", "e0 1d e0 46 e0 c6", "e0 14 e0 7e e0 f0 7e", "58 62 f0 62"},
		{"print screen", "sysrq -sysrq", "e0 2a e0 37 e0 b7 e0 aa", "e0 12 e0 7c e0 f0 7c e0 f0 12", "57 f0 57"},
		{"with shift", "leftshift sysrq -leftshift -sysrq", "2a e0 37 aa e0 b7", "12 e0 7c f0 12 e0 f0 7c", "12 57 f0 12 f0 57"},
		{"with alt", "leftalt sysrq -leftalt -sysrq", "38 54 b8 d4", "11 84 f0 11 f0 84", "19 57 f0 19 f0 57"},
		{"Korean", "hangeul -hangeul hanja -hanja", "f2 f1", "f2 f1", ""},
		{"Japanese", "henkan -henkan yen -yen", "79 f9 7d fd", "64 f0 64 6a f0 6a", "86 f0 86 5d f0 5d"},
		{"multimedia", "mute -mute", "e0 20 e0 a0", "e0 23 e0 f0 23", ""},
		{"no such key", "btn_left -btn_left macro1 0x0 camera", "", "", ""},
		{"repeated by the host", "a a", "1e", "1c", "1c"},
		{"released without a press", "-a", "", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for set, want := range map[byte]string{1: tc.set1, 2: tc.set2, 3: tc.set3} {
				k := newKeyboard(t)
				write(k, 0xf0, set, 0xfa)
				read(k)
				keys(t, k, tc.keys)
				if got := read(k); got != want {
					t.Errorf("set %d: %s, want %s", set, got, want)
				}
			}
		})
	}
}

// Set 3 after power-on: letters repeat and do not tell of their release, modifiers tell, other keys only that they were
// pressed; the guest changes it for all and for some.
func TestKeyTypes(t *testing.T) {
	k := newKeyboard(t)
	write(k, 0xf0, 3)
	read(k)
	for _, tc := range []struct {
		commands []byte
		want     string
	}{
		{nil, "12 1c f0 12 07"},
		{[]byte{0xf8}, "12 1c f0 12 f0 1c 07 f0 07"},
		{[]byte{0xfd, 0x12, 0x07, 0xf4}, "12 1c f0 1c 07"},
		{[]byte{0xf9}, "12 1c 07"},
		{[]byte{0xfc, 0x1c, 0xf4}, "12 1c f0 1c 07"},
	} {
		write(k, tc.commands...)
		k.reply.n = 0
		keys(t, k, "leftshift a -leftshift -a f1 -f1")
		if got := read(k); got != tc.want {
			t.Errorf("after % x: %s, want %s", tc.commands, got, tc.want)
		}
	}
}

func TestKeyboardLEDs(t *testing.T) {
	var got []hid.LEDs
	k := NewKeyboard(func() {}, func(l hid.LEDs) { got = append(got, l) })
	resume(t, k)
	write(k, 0xed, 1, 0xed, 2, 0xed, 4, 0xed, 4, 0xed, 7)
	state := saved(t, k)
	write(k, 0xff)
	if err := load(k, state); err != nil {
		t.Fatal(err)
	}
	resume(t, k)
	all := hid.LEDNum | hid.LEDCaps | hid.LEDScroll
	want := []hid.LEDs{hid.LEDScroll, hid.LEDNum, hid.LEDCaps, all, 0, all}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A held key is repeated as the guest has set it; the key that was pressed last is, until it is released.
func TestTypematic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyboard(t)
		count := func(d time.Duration, code string) (n int) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if got := read(k); got == code {
					n++
				} else if got != "" {
					t.Fatalf("read %s, want %s", got, code)
				}
			}
			return n
		}
		keys(t, k, "a")
		if n := count(499*time.Millisecond, "1c"); n != 1 {
			t.Errorf("sent %d times within the delay", n)
		}
		if n := count(time.Second, "1c"); n != 10 && n != 11 {
			t.Errorf("%d repetitions in a second, want 10.9", n)
		}
		write(k, 0xf3, 0) // 250 ms, 30 a second
		read(k)
		keys(t, k, "right")
		read(k)
		if n := count(249*time.Millisecond, "e0 74"); n != 0 {
			t.Errorf("%d repetitions within the delay", n)
		}
		if n := count(time.Second, "e0 74"); n < 29 || n > 31 {
			t.Errorf("%d repetitions in a second, want 30", n)
		}
		keys(t, k, "-a")
		read(k)
		if n := count(time.Second, "e0 74"); n < 29 {
			t.Errorf("%d repetitions after another key was released", n)
		}
		keys(t, k, "-right")
		read(k)
		if n := count(2*time.Second, "e0 74"); n != 0 {
			t.Errorf("%d repetitions of a key that is up", n)
		}
		keys(t, k, "pause") // the one that never is
		read(k)
		if n := count(2*time.Second, ""); n != 2000 {
			t.Error("Pause is repeated")
		}
		keys(t, k, "sysrq")
		read(k)
		if n := count(time.Second, "e0 7c"); n < 20 {
			t.Errorf("%d repetitions of Print Screen", n)
		}
		keys(t, k, "-sysrq b")
		read(k)
		time.Sleep(5 * time.Second) // a guest that does not look finds one
		if got := read(k); got != "32" {
			t.Errorf("after 5 s: %s, want 32", got)
		}
		k.Pause()
		time.Sleep(time.Second)
		if got := read(k); got != "" {
			t.Errorf("a paused keyboard sends %s", got)
		}
	})
}

// The buffer is full: presses are ignored, releases follow when there is room.
func TestKeyboardOverflow(t *testing.T) {
	k := newKeyboard(t)
	keys(t, k, "leftctrl leftalt a -a b -b c -c d e -d -e -leftalt f -f -leftctrl")
	if got, want := read(k), "14 11 1c f0 1c 32 f0 32 21 f0 21 23 24"+" f0 14 f0 11 f0 24 f0 23"; len(got) != len(want) {
		t.Errorf("read %s, want %s in some order", got, want)
	}
	keys(t, k, "f -f")
	if got := read(k); got != "2b f0 2b" {
		t.Errorf("read %s, want 2b f0 2b", got)
	}
}

// An answer goes before scan codes that wait, and a release that a command discards is sent again.
func TestAnswersFirst(t *testing.T) {
	k := newKeyboard(t)
	keys(t, k, "a b")
	write(k, 0xed)
	if got := read(k); got != "fa" {
		t.Errorf("read %s while a parameter is awaited", got)
	}
	write(k, 0)
	if got := read(k); got != "fa 1c 32" {
		t.Errorf("read %s, want fa 1c 32", got)
	}
	keys(t, k, "-a c")
	write(k, 0xf4)
	if got := read(k); got != "fa f0 1c" {
		t.Errorf("read %s, want fa f0 1c", got)
	}
	write(k, 0xf5)
	read(k)
	keys(t, k, "-b d") // disabled: b had been told of
	write(k, 0xf4)
	if got := read(k); got != "fa f0 21 f0 32" {
		t.Errorf("read %s, want fa f0 21 f0 32", got)
	}
}

func TestKeyboardReleaseAll(t *testing.T) {
	k := newKeyboard(t)
	keys(t, k, "leftalt tab")
	k.ReleaseAll()
	k.ReleaseAll()
	keys(t, k, "-leftalt x")
	if got := read(k); got != "11 0d f0 0d f0 11 22" {
		t.Errorf("read %s", got)
	}
}

// A restored guest hears that what was down is up, and what it had not read yet first.
func TestKeyboardRestore(t *testing.T) {
	k := newKeyboard(t)
	write(k, 0xf3, 0x10, 0xf0, 1, 0xed, 4)
	read(k)
	keys(t, k, "leftshift a")
	if err := k.Pause(); err != nil {
		t.Fatal(err)
	}
	keys(t, k, "-a b") // not for a paused guest
	l := NewKeyboard(func() {}, nil)
	again(t, k, l)
	resume(t, l)
	if got := read(l); got != "2a 1e 9e aa" {
		t.Errorf("read %s, want 2a 1e 9e aa", got)
	}
	refuses(t, saved(t, k), func() snap.Component { return NewKeyboard(func() {}, nil) }, func(c snap.Component) {
		k := c.(*Keyboard)
		resume(t, k)
		keys(t, k, "sysrq -sysrq pause a -a")
		write(k, 0xf2)
		if read(k) == "no end" {
			t.Error("sends without an end")
		}
	})
}

// guestKeys is a guest that reads scan codes of sets 1 and 2.
type guestKeys struct {
	set     byte
	ext, up bool
	down    map[string]bool
}

// use changes the set. A driver that does so forgets which keys are down, as their codes are others then.
func (g *guestKeys) use(set byte) {
	if set != g.set {
		g.set, g.down = set, make(map[string]bool)
	}
}

func (g *guestKeys) read(b byte) {
	switch {
	case b == 0xe0:
		g.ext = true
	case b == 0xf0 && g.set == 2:
		g.up = true
	default:
		if g.set == 1 {
			g.up, b = b&0x80 != 0, b&0x7f
		}
		code := fmt.Sprintf("%v %x", g.ext, b)
		if delete(g.down, code); !g.up {
			g.down[code] = true
		}
		g.ext, g.up = false, false
	}
}

// TestKeyboardNothingSticks: whatever the person and the guest do, a key that is up ends up in the guest too.
func TestKeyboardNothingSticks(t *testing.T) {
	names := []string{"leftctrl", "a", "right", "sysrq"}
	rapid.Check(t, func(rt *rapid.T) {
		k := NewKeyboard(func() {}, nil)
		k.Resume()
		defer k.Pause()
		held := make(map[string]bool)
		g := guestKeys{set: 2, down: make(map[string]bool)}
		command := func(bs ...byte) { // as a driver does: each byte is answered before the next
			if bs[0] != 0xed { // discards what waits, and so the rest of a sequence
				g.ext, g.up = false, false
			}
			for _, b := range bs {
				k.Write(b)
				if c, ok := k.Next(); !ok || c != ack {
					rt.Fatalf("command %#x: answer %#x, %v", b, c, ok)
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"key": func(rt *rapid.T) {
				name := rapid.SampledFrom(names).Draw(rt, "key")
				if held[name] = !held[name]; held[name] {
					keys(t, k, name)
				} else {
					keys(t, k, "-"+name)
				}
			},
			"type": func(*rapid.T) { keys(t, k, "x -x y -y z -z") },
			"read": func(rt *rapid.T) {
				for range rapid.IntRange(1, 12).Draw(rt, "bytes") {
					if b, ok := k.Next(); ok {
						g.read(b)
					}
				}
			},
			"lights":   func(*rapid.T) { command(0xed, 0) },
			"enable":   func(*rapid.T) { command(0xf4) },
			"disable":  func(*rapid.T) { command(0xf5); g.use(2) },
			"defaults": func(*rapid.T) { command(0xf6); g.use(2) },
			"set": func(rt *rapid.T) {
				set := byte(rapid.IntRange(1, 2).Draw(rt, "set"))
				command(0xf0, set)
				g.use(set)
			},
			"reset": func(*rapid.T) {
				command(0xff)
				k.Next()
				g.use(0)
				g.use(2)
			},
			"release all": func(*rapid.T) { k.ReleaseAll() },
			"pause":       func(*rapid.T) { k.Pause(); k.Resume() },
			"restore": func(*rapid.T) {
				k.Pause()
				l := NewKeyboard(func() {}, nil)
				again(t, k, l)
				k = l
				k.Resume()
			},
		})
		command(0xf4)
		for {
			b, ok := k.Next()
			if !ok {
				break
			}
			g.read(b)
		}
		want := make(map[string]bool)
		for name, down := range held {
			code, _ := hid.KeyByName(name)
			if s := scanOf(code); down {
				v := s.set2
				if g.set == 1 {
					v = s.set1
				}
				want[fmt.Sprintf("%v %x", s.form == extended, v)] = true
				if name == "sysrq" {
					want["true 12"], want["true 2a"], want["false 54"], want["false 4"] = true, true, true, true
				}
			}
		}
		for code := range g.down {
			if !want[code] {
				rt.Fatalf("%q is down in the guest, set %d, and not held", code, g.set)
			}
		}
	})
}

func TestKeyboardAllocs(t *testing.T) {
	k := newKeyboard(t)
	down, up := []hid.Event{key(hid.KeyRight, 1), key(hid.KeySysRq, 1)}, []hid.Event{key(hid.KeyRight, 0), key(hid.KeySysRq, 0)}
	drain := func() {
		for {
			if _, ok := k.Next(); !ok {
				return
			}
		}
	}
	if n := testing.AllocsPerRun(1000, func() {
		k.Send(down)
		drain()
		k.Send(up)
		drain()
		k.Write(0xf4)
		drain()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkKeyboard(b *testing.B) {
	c := newController(b)
	down, up := []hid.Event{key(hid.KeyA, 1)}, []hid.Event{key(hid.KeyA, 0)}
	b.ReportAllocs()
	for b.Loop() {
		c.keyboard.Send(down)
		c.in(0x60)
		down, up = up, down
	}
}
