package ps2

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

func TestMouseCommands(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []byte
		want string // the answers to all of it, each read before the next byte
	}{
		{"reset", []byte{0xff}, "fa aa 00"},
		{"identify", []byte{0xf2}, "fa 00"},
		{"status after a reset", []byte{0xff, 0xe9}, "fa aa 00 fa 00 02 64"},
		{"status", []byte{0xe8, 3, 0xe7, 0xf3, 40, 0xf4, 0xe9}, "fa fa fa fa fa fa fa 30 03 28"},
		{"scaling", []byte{0xe7, 0xe6, 0xe9}, "fa fa fa 00 02 64"},
		{"remote", []byte{0xf0, 0xe9, 0xea, 0xe9}, "fa fa 40 02 64 fa fa 00 02 64"},
		{"read without motion", []byte{0xeb}, "fa 08 00 00"},
		{"wrap", []byte{0xee, 0xf2, 0xfe, 0x12, 0xec, 0xf2}, "fa f2 fe 12 fa fa 00"},
		{"reset in wrap mode", []byte{0xee, 0xff, 0xf2}, "fa fa aa 00 fa 00"},
		{"defaults", []byte{0xf4, 0xe8, 0, 0xf3, 10, 0xe7, 0xf6, 0xe9}, "fa fa fa fa fa fa fa fa 00 02 64"},
		{"resend", []byte{0xe9, 0xfe, 0xfe}, "fa 00 02 64 fa 00 02 64 fa 00 02 64"},
		{"IntelliMouse", []byte{0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf2, 0xeb}, "fa fa fa fa fa fa fa 03 fa 08 00 00 00"},
		{"Explorer", []byte{0xf3, 200, 0xf3, 200, 0xf3, 80, 0xf2}, "fa fa fa fa fa fa fa 04"},
		{"Explorer, as Linux asks", []byte{0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf2, 0xf3, 200, 0xf3, 200, 0xf3, 80, 0xf2},
			"fa fa fa fa fa fa fa 03 fa fa fa fa fa fa fa 04"},
		{"no knock", []byte{0xf3, 200, 0xf3, 80, 0xf3, 100, 0xf2}, "fa fa fa fa fa fa fa 00"},
		{"reset forgets the identity", []byte{0xf3, 200, 0xf3, 100, 0xf3, 80, 0xff, 0xf2}, "fa fa fa fa fa fa fa aa 00 fa 00"},
		{"defaults keep the identity", []byte{0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf6, 0xf2}, "fa fa fa fa fa fa fa fa 03"},
		{"unknown", []byte{0x12, 0x34, 0xf2, 0xe1}, "fe fc fa 00 fe"},
		{"impossible rate", []byte{0xf3, 11, 40, 0xe9}, "fa fe fa fa 00 02 28"},
		{"impossible resolution twice", []byte{0xe8, 4, 9, 0xe9}, "fa fe fc fa 00 02 64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := NewMouse(func() {}, nil)
			resume(t, m)
			var got string
			for _, b := range tc.in {
				m.Write(b)
				if got != "" {
					got += " "
				}
				got += read(m)
			}
			if got != tc.want {
				t.Errorf("% x is answered by %s, want %s", tc.in, got, tc.want)
			}
		})
	}
}

func TestPackets(t *testing.T) {
	for _, tc := range []struct {
		name    string
		id      uint8
		setup   []byte
		batches [][]hid.Event
		want    string
	}{
		{"right and down", 0, nil, [][]hid.Event{{rel(hid.RelX, 3), rel(hid.RelY, 5)}}, "28 03 fb"},
		{"left and up", 0, nil, [][]hid.Event{{rel(hid.RelX, -3), rel(hid.RelY, -5)}}, "18 fd 05"},
		{"motion adds up", 0, nil, [][]hid.Event{{rel(hid.RelX, 1)}, {rel(hid.RelX, 2)}, {rel(hid.RelY, -1)}}, "08 03 01"},
		{"and may come to nothing", 0, nil, [][]hid.Event{{rel(hid.RelX, 1)}, {rel(hid.RelX, -1)}}, "08 00 00"},
		{"buttons", 0, nil, [][]hid.Event{{key(hid.BtnLeft, 1)}, {key(hid.BtnRight, 1)}, {key(hid.BtnMiddle, 1)}, {key(hid.BtnLeft, 0)}},
			"09 00 00 0b 00 00 0f 00 00 0e 00 00"},
		{"double click", 0, nil, [][]hid.Event{{key(hid.BtnLeft, 1)}, {key(hid.BtnLeft, 0)}, {key(hid.BtnLeft, 1)}, {key(hid.BtnLeft, 0)}},
			"09 00 00 08 00 00 09 00 00 08 00 00"},
		{"drag", 0, nil, [][]hid.Event{{key(hid.BtnLeft, 1)}, {rel(hid.RelX, 1)}, {rel(hid.RelX, 1)}, {key(hid.BtnLeft, 0)}}, "09 02 00 08 00 00"},
		{"a large movement", 0, nil, [][]hid.Event{{rel(hid.RelX, 600), rel(hid.RelY, -300)}}, "08 ff ff 08 ff 2d 08 5a 00"},
		{"to the left", 0, nil, [][]hid.Event{{rel(hid.RelX, -256)}}, "18 01 00 18 ff 00"},
		{"no wheel, three buttons", 0, nil, [][]hid.Event{{rel(hid.RelWheel, 1)}, {key(hid.BtnSide, 1)}, {key(hid.KeyA, 1)}, {}}, ""},

		{"wheel away", idIntelliMouse, nil, [][]hid.Event{{rel(hid.RelWheel, 1), rel(hid.RelWheelHiRes, 120)}}, "08 00 00 ff"},
		{"wheel towards", idIntelliMouse, nil, [][]hid.Event{{rel(hid.RelWheel, -200)}}, "08 00 00 7f 08 00 00 49"},
		{"three buttons", idIntelliMouse, nil, [][]hid.Event{{key(hid.BtnExtra, 1)}, {key(hid.BtnMiddle, 1)}}, "0c 00 00 00"},

		{"five buttons", idExplorer, nil, [][]hid.Event{{key(hid.BtnSide, 1)}, {key(hid.BtnExtra, 1)}, {key(hid.BtnSide, 0)}}, "08 00 00 10 08 00 00 30 08 00 00 20"},
		{"small wheel", idExplorer, nil, [][]hid.Event{{rel(hid.RelWheel, 9), key(hid.BtnForward, 1)}}, "08 00 00 29 08 00 00 2e"},

		{"2:1", 0, []byte{0xe7}, [][]hid.Event{{rel(hid.RelX, 3), rel(hid.RelY, -5)}}, "08 03 09"},
		{"2:1, a large movement", 0, []byte{0xe7}, [][]hid.Event{{rel(hid.RelX, -130)}}, "18 02 00 18 fd 00"},
		{"disabled", 0, []byte{0xf5}, [][]hid.Event{{rel(hid.RelX, 3), key(hid.BtnLeft, 1)}}, ""},
		{"wrap mode", 0, []byte{0xee}, [][]hid.Event{{rel(hid.RelX, 3), key(hid.BtnLeft, 1)}}, ""},
		{"remote mode", 0, []byte{0xf0}, [][]hid.Event{{rel(hid.RelX, 3), key(hid.BtnLeft, 1)}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMouse(t, tc.id)
			write(m, tc.setup...)
			read(m)
			for _, b := range tc.batches {
				m.Send(b)
			}
			if got := read(m); got != tc.want {
				t.Errorf("read %s, want %s", got, tc.want)
			}
		})
	}
}

// In remote mode, the guest asks for each packet.
func TestRemote(t *testing.T) {
	m := newMouse(t, 0)
	write(m, 0xf0)
	read(m)
	m.Send([]hid.Event{rel(hid.RelX, 300), key(hid.BtnRight, 1)})
	for _, want := range []string{"fa 0a ff 00", "fa 0a 2d 00", "fa 0a 00 00"} {
		write(m, 0xeb)
		if got := read(m); got != want {
			t.Errorf("read %s, want %s", got, want)
		}
	}
}

// A packet that was begun goes on after the answer to a command, unless that stops it.
func TestAnswerWithinPacket(t *testing.T) {
	m := newMouse(t, 0)
	m.Send([]hid.Event{rel(hid.RelX, 1), rel(hid.RelY, -2)})
	m.Next()
	write(m, 0xe6)
	if got := read(m); got != "fa 01 02" {
		t.Errorf("read %s, want fa 01 02", got)
	}
	m.Send([]hid.Event{rel(hid.RelX, 1), key(hid.BtnLeft, 1)})
	m.Next()
	write(m, 0xf4)
	if got := read(m); got != "fa" {
		t.Errorf("read %s, want fa", got)
	}
	m.Send([]hid.Event{rel(hid.RelX, 1)})
	write(m, 0xfe) // of what was made last, the packet is older than the answer
	if got := read(m); got != "fa 09 01 00" {
		t.Errorf("read %s, want fa 09 01 00", got)
	}
	write(m, 0xfe)
	if got := read(m); got != "09 01 00" {
		t.Errorf("read %s, want 09 01 00", got)
	}
}

// A guest that does not read for long loses clicks, but neither motion nor the state of the buttons.
func TestMouseOverflow(t *testing.T) {
	m := newMouse(t, 0)
	for range 20 {
		m.Send([]hid.Event{rel(hid.RelX, 1), key(hid.BtnLeft, 1)})
		m.Send([]hid.Event{rel(hid.RelX, 1), key(hid.BtnLeft, 0)})
	}
	want := "09 01 00 08 01 00 09 01 00 08 01 00 09 01 00 08 01 00 09 01 00 08 21 00"
	if got := read(m); got != want {
		t.Errorf("read  %s\nwant %s", got, want)
	}
	for range 100 {
		m.Send([]hid.Event{rel(hid.RelX, 1<<31-1), rel(hid.RelY, -1<<31)})
	}
	n := 0
	for x := 0; ; n++ {
		_, ok := m.Next()
		if !ok {
			if x != moveMax {
				t.Errorf("moved by %d, want %d", x, moveMax)
			}
			break
		}
		b, _ := m.Next()
		x += int(b)
		m.Next()
	}
	if want := moveMax/255 + 1; n != want {
		t.Errorf("%d packets, want %d", n, want)
	}
}

func TestMouseReleaseAll(t *testing.T) {
	m := newMouse(t, 0)
	m.Send([]hid.Event{key(hid.BtnLeft, 1)})
	m.ReleaseAll()
	m.ReleaseAll()
	m.Send([]hid.Event{key(hid.BtnLeft, 0)})
	if got := read(m); got != "09 00 00 08 00 00" {
		t.Errorf("read %s", got)
	}
	// Let go of while the guest has switched the mouse off.
	m.Send([]hid.Event{key(hid.BtnRight, 1)})
	read(m)
	write(m, 0xf5)
	m.Send([]hid.Event{key(hid.BtnRight, 0)})
	m.Send([]hid.Event{key(hid.BtnLeft, 1)})
	write(m, 0xf4)
	if got := read(m); got != "fa 08 00 00" {
		t.Errorf("read %s, want fa 08 00 00", got)
	}
}

func TestMouseActive(t *testing.T) {
	var got []bool
	var m *Mouse
	m = NewMouse(func() {}, func() { got = append(got, m.Active()) })
	resume(t, m)
	write(m, 0xf4, 0xf4, 0xf5, 0xf0, 0xee, 0xec, 0xea, 0xf4, 0xff)
	if diff := cmp.Diff([]bool{false, true, false, true, false, true, false, true, false}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMouseRestore(t *testing.T) {
	m := newMouse(t, idExplorer)
	m.Send([]hid.Event{key(hid.BtnLeft, 1), rel(hid.RelX, 300)})
	m.Next()
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	m.Send([]hid.Event{key(hid.BtnLeft, 0), rel(hid.RelX, 300)}) // not for a paused guest
	n := NewMouse(func() {}, nil)
	again(t, m, n)
	resume(t, n)
	if got := read(n); got != "ff 00 00 09 2d 00 00 08 00 00 00" {
		t.Errorf("read %s", got)
	}
	refuses(t, saved(t, m), func() snap.Component { return NewMouse(func() {}, nil) }, func(c snap.Component) {
		m := c.(*Mouse)
		resume(t, m)
		m.Send([]hid.Event{rel(hid.RelX, 1), rel(hid.RelWheel, 1), key(hid.BtnSide, 1)})
		write(m, 0xeb, 0xe9)
		if read(m) == "no end" {
			t.Error("sends without an end")
		}
	})
}

// TestMouseNothingSticks: whatever the person and the guest do, a button that is up ends up in the guest too.
func TestMouseNothingSticks(t *testing.T) {
	buttons := []uint16{hid.BtnLeft, hid.BtnRight, hid.BtnSide}
	rapid.Check(t, func(rt *rapid.T) {
		m := NewMouse(func() {}, nil)
		m.Resume()
		defer m.Pause()
		var held hid.Keys
		command := func(bs ...byte) {
			for _, b := range bs {
				m.Write(b)
				if c, ok := m.Next(); !ok || c != ack {
					rt.Fatalf("command %#x: answer %#x, %v", b, c, ok)
				}
			}
		}
		var down uint8
		packet := func() bool {
			b, ok := m.Next()
			if !ok {
				return false
			}
			if b&packetAlways == 0 || b&0xc0 != 0 {
				rt.Fatalf("%#x begins a packet", b)
			}
			m.Next()
			m.Next()
			down = b & 7
			switch m.id {
			case idIntelliMouse:
				m.Next()
			case idExplorer:
				b, _ := m.Next()
				down |= b >> 1 & explorerButtons
			}
			return true
		}
		command(0xf4)
		rt.Repeat(map[string]func(*rapid.T){
			"button": func(rt *rapid.T) {
				b := rapid.SampledFrom(buttons).Draw(rt, "button")
				v := int32(1)
				if held.Has(b) {
					v = 0
				}
				held.Set(b, v == 1)
				m.Send([]hid.Event{key(b, v), rel(hid.RelX, int32(rapid.IntRange(-300, 300).Draw(rt, "x")))})
			},
			"packet":      func(*rapid.T) { packet() },
			"enable":      func(*rapid.T) { command(0xf4) },
			"disable":     func(*rapid.T) { command(0xf5) },
			"defaults":    func(*rapid.T) { command(0xf6) },
			"wrap":        func(*rapid.T) { command(0xee, 0xec) },
			"Explorer":    func(*rapid.T) { command(0xf3, 200, 0xf3, 200, 0xf3, 80) },
			"reset":       func(*rapid.T) { command(0xff); m.Next(); m.Next(); down = 0 },
			"release all": func(*rapid.T) { m.ReleaseAll() },
			"pause":       func(*rapid.T) { m.Pause(); m.Resume() },
			"restore": func(*rapid.T) {
				m.Pause()
				n := NewMouse(func() {}, nil)
				again(t, m, n)
				m = n
				m.Resume()
			},
		})
		command(0xea, 0xf4)
		for packet() {
		}
		for _, b := range buttons {
			if down&button(b) != 0 && !held.Has(b) {
				rt.Fatalf("%s sticks", hid.KeyName(b))
			}
		}
	})
}

func TestMouseAllocs(t *testing.T) {
	m := newMouse(t, idExplorer)
	batch := []hid.Event{rel(hid.RelX, 300), rel(hid.RelY, -1), rel(hid.RelWheel, 1)}
	if n := testing.AllocsPerRun(1000, func() {
		m.Send(batch)
		for ok := true; ok; {
			_, ok = m.Next()
		}
		m.Write(0xe9)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMouse(b *testing.B) {
	c := newController(b)
	c.out(legacy.I8042Command, 0xd4)
	c.out(legacy.I8042Data, 0xf4)
	c.drain()
	batch := []hid.Event{rel(hid.RelX, 1), rel(hid.RelY, -1)}
	b.ReportAllocs()
	for b.Loop() {
		c.mouse.Send(batch)
		for range 3 {
			c.in(legacy.I8042Data)
		}
	}
}

// FuzzPS2 has a guest write to keyboard, mouse and controller what the fuzzer thinks up, and read, while a person types and
// moves. Then all is saved and restored, and the guest resets both devices and finds them well.
func FuzzPS2(f *testing.F) {
	f.Add([]byte{0, 0xed, 0, 7, 1, 0xf4, 2, 30, 3, 5, 4, 9})
	f.Add([]byte{1, 0xf3, 1, 200, 1, 0xf3, 1, 200, 1, 0xf3, 1, 80, 1, 0xf4, 3, 200, 2, 99, 4, 20})
	f.Add([]byte{0, 0xf0, 0, 3, 0, 0xfb, 0, 0x1c, 5, 0xad, 6, 0, 0, 0xfe, 1, 0xeb, 1, 0xee, 1, 0xfe})
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newController(t)
		for i := 0; i+1 < len(data); i += 2 {
			b := data[i+1]
			switch data[i] % 8 {
			case 0:
				c.out(legacy.I8042Data, b)
			case 1:
				c.out(legacy.I8042Command, 0xd4)
				c.out(legacy.I8042Data, b)
			case 2:
				c.keyboard.Send([]hid.Event{key(uint16(b), 1), key(uint16(b), int32(b%3))})
			case 3:
				c.mouse.Send([]hid.Event{rel(uint16(b%13), int32(b)-128), key(hid.BtnLeft+uint16(b%8), int32(b>>7))})
			case 4:
				for range b % 32 {
					c.in(legacy.I8042Data)
				}
			case 5:
				c.out(legacy.I8042Command, b)
			case 6:
				c.keyboard.ReleaseAll()
				c.mouse.ReleaseAll()
			case 7:
				for _, d := range []snap.Component{c.keyboard, c.mouse} {
					d.Pause()
					d.Resume()
				}
			}
		}
		d := newController(t)
		again(t, c.I8042, d.I8042)
		again(t, c.keyboard, d.keyboard)
		again(t, c.mouse, d.mouse)
		d.out(legacy.I8042Command, 0x60)
		d.out(legacy.I8042Data, 0)
		d.drain()
		d.out(legacy.I8042Data, 0xff)
		if got := fmt.Sprintf("% x", d.drain()); got != "fa aa" {
			t.Errorf("the keyboard answers a reset by %s", got)
		}
		d.out(legacy.I8042Command, 0xd4)
		d.out(legacy.I8042Data, 0xff)
		if got := fmt.Sprintf("% x", d.drain()); got != "fa aa 00" {
			t.Errorf("the mouse answers a reset by %s", got)
		}
	})
}
