package legacy

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/snap"
)

// testPort is a device that sends what it is told, and keeps what it gets.
type testPort struct {
	k         *I8042
	sent, got []byte
}

func (p *testPort) Write(b byte) { p.got = append(p.got, b) }

func (p *testPort) Next() (b byte, ok bool) {
	if len(p.sent) == 0 {
		return 0, false
	}
	b, p.sent = p.sent[0], p.sent[1:]
	return b, true
}

func (p *testPort) send(b ...byte) {
	p.sent = append(p.sent, b...)
	p.k.Ready()
}

// testKBC is a keyboard controller with its lines, and short forms of access.
type testKBC struct {
	*I8042
	kbd, aux *testLine
	resets   int
}

func newTestKBC() *testKBC {
	k := &testKBC{kbd: new(testLine), aux: new(testLine)}
	k.I8042 = NewI8042(k.kbd, k.aux, func() { k.resets++ })
	return k
}

func (k *testKBC) command(b byte) { out(k.I8042, I8042Command, 0, 1, uint64(b)) }
func (k *testKBC) send(b byte)    { out(k.I8042, I8042Data, 0, 1, uint64(b)) }
func (k *testKBC) stat() byte     { return byte(in(k.I8042, I8042Command, 0, 1)) }
func (k *testKBC) recv() byte     { return byte(in(k.I8042, I8042Data, 0, 1)) }

// attach puts devices at both ports.
func (k *testKBC) attach() (keyboard, mouse *testPort) {
	keyboard, mouse = &testPort{k: k.I8042}, &testPort{k: k.I8042}
	k.Attach(PS2Keyboard, keyboard)
	k.Attach(PS2Mouse, mouse)
	return keyboard, mouse
}

// drain returns what the output buffer gives until it is empty, each byte after the name of its port.
func (k *testKBC) drain() (got []string) {
	for k.stat()&kbcOBF != 0 && len(got) < 1000 {
		from := "kbd"
		if k.stat()&kbcAUX != 0 {
			from = "aux"
		}
		if k.stat()&kbcTO != 0 {
			from += " timeout"
		}
		got = append(got, fmt.Sprintf("%s %02x", from, k.recv()))
	}
	return got
}

func TestI8042Commands(t *testing.T) {
	for _, tc := range []struct {
		name    string
		command byte
		data    []byte
		want    []string
	}{
		{"self-test", kbcSelfTest, nil, []string{"kbd 55"}},
		{"test keyboard port", kbcTestKbd, nil, []string{"kbd 00"}},
		{"test auxiliary port", kbcTestAux, nil, []string{"kbd 00"}},
		{"read command byte", kbcReadRAM, nil, []string{"kbd 47"}},
		{"read input port", kbcReadInput, nil, []string{"kbd 80"}},
		{"read output port", kbcReadOutput, nil, []string{"kbd 03"}},
		{"echo keyboard", kbcEchoKbd, []byte{0xa5}, []string{"kbd a5"}},
		{"echo auxiliary", kbcEchoAux, []byte{0x5a}, []string{"aux 5a"}}, // what Linux looks for
		{"nothing at the auxiliary port", kbcWriteAux, []byte{0xf2}, []string{"aux timeout fe"}},
		{"nothing at the keyboard port", kbcEnableKbd, []byte{0xff}, []string{"kbd timeout fe"}},
		{"unknown", 0x99, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newTestKBC()
			k.command(tc.command)
			for _, b := range tc.data {
				k.send(b)
			}
			if diff := cmp.Diff(tc.want, k.drain()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestI8042CommandByte(t *testing.T) {
	k := newTestKBC()
	read := func() byte {
		k.command(kbcReadRAM)
		return k.recv()
	}
	for _, tc := range []struct{ command, want byte }{
		{kbcDisableAux, 0x67}, {kbcDisableKbd, 0x77}, {kbcEnableAux, 0x57}, {kbcEnableKbd, 0x47},
	} {
		k.command(tc.command)
		if got := read(); got != tc.want {
			t.Errorf("after %#x: %#x, want %#x", tc.command, got, tc.want)
		}
	}
	k.command(kbcWriteRAM)
	k.send(0x30)
	if got := read(); got != 0x30 || k.stat()&kbcSYS != 0 {
		t.Errorf("wrote 0x30: reads %#x, status %#x", got, k.stat())
	}
	k.command(kbcWriteRAM + 0x1f)
	k.send(0x77)
	k.command(kbcReadRAM + 0x1f)
	if got := k.recv(); got != 0x77 {
		t.Errorf("RAM reads %#x", got)
	}
}

func TestI8042Interrupts(t *testing.T) {
	k := newTestKBC()
	keyboard, mouse := k.attach()
	keyboard.send(0x1c, 0xf0, 0x1c) // A pressed and released, in set 2
	mouse.send(0x08)
	for _, tc := range []struct {
		kbd, aux bool
		data     byte
	}{{true, false, 0x1e}, {true, false, 0x9e}, {false, true, 0x08}, {false, false, 0x08}} {
		if kbd, aux := k.kbd.level.Load(), k.aux.level.Load(); kbd != tc.kbd || aux != tc.aux {
			t.Errorf("lines %v, %v before byte %#x", kbd, aux, tc.data)
		}
		if got := k.recv(); got != tc.data {
			t.Errorf("byte %#x, want %#x", got, tc.data)
		}
	}
	if n := k.kbd.edges.Load(); n != 2 {
		t.Errorf("%d edges of the keyboard's line, want one a byte", n)
	}
	k.command(kbcWriteRAM)
	k.send(kbcIntKbd) // no translation
	mouse.send(0x09)
	if k.aux.level.Load() || k.stat()&(kbcOBF|kbcAUX) != kbcOBF|kbcAUX {
		t.Error("the mouse interrupts although that is disabled, or its byte is not there")
	}
	k.recv()
	k.command(kbcDisableKbd)
	keyboard.send(0xf0, 0x1c)
	if k.stat()&kbcOBF != 0 {
		t.Error("the keyboard sends although its clock is held")
	}
	k.command(kbcEnableKbd)
	if diff := cmp.Diff([]string{"kbd f0", "kbd 1c"}, k.drain()); diff != "" {
		t.Errorf("untranslated (-want +got):\n%s", diff)
	}
}

func TestI8042Reset(t *testing.T) {
	for _, tc := range []struct {
		command byte
		data    []byte
		want    int
	}{{0xfe, nil, 1}, {0xf0, nil, 1}, {0xff, nil, 0}, {0xfd, nil, 0}, {kbcWriteOutput, []byte{2}, 1}, {kbcWriteOutput, []byte{3}, 0}} {
		k := newTestKBC()
		k.command(tc.command)
		for _, b := range tc.data {
			k.send(b)
		}
		if k.resets != tc.want {
			t.Errorf("%#x %v: %d resets, want %d", tc.command, tc.data, k.resets, tc.want)
		}
	}
}

func TestI8042A20(t *testing.T) {
	k := newTestKBC()
	for _, tc := range []struct{ command, want byte }{{kbcDisableA20, 0}, {kbcEnableA20, kbcOutA20}} {
		k.command(tc.command)
		k.command(kbcReadOutput)
		if got := k.recv() & kbcOutA20; got != tc.want {
			t.Errorf("after %#x: A20 reads %#x, want %#x", tc.command, got, tc.want)
		}
	}
}

// What the guest sends arrives, and the answer is there when the write has returned.
func TestI8042Devices(t *testing.T) {
	k := newTestKBC()
	keyboard, mouse := k.attach()
	keyboard.sent = []byte{0xfa}
	k.send(0xed)
	k.command(kbcWriteAux)
	k.send(0xf4)
	if diff := cmp.Diff([]string{"kbd fa"}, k.drain()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([2][]byte{{0xed}, {0xf4}}, [2][]byte{keyboard.got, mouse.got}); diff != "" {
		t.Errorf("keyboard and mouse got (-want +got):\n%s", diff)
	}
}

// TestI8042Order has two devices send while the guest reads now and then: each one's bytes keep their order.
func TestI8042Order(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		k := newTestKBC()
		var dev [2]*testPort
		dev[PS2Keyboard], dev[PS2Mouse] = k.attach()
		k.command(kbcWriteRAM)
		k.send(0)
		var want, got [2][]byte
		read := func() {
			port := PS2Keyboard
			if k.stat()&kbcAUX != 0 {
				port = PS2Mouse
			}
			got[port] = append(got[port], k.recv())
		}
		rt.Repeat(map[string]func(*rapid.T){
			"send": func(rt *rapid.T) {
				port := rapid.IntRange(0, 1).Draw(rt, "port")
				p := rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(rt, "bytes")
				dev[port].send(p...)
				want[port] = append(want[port], p...)
			},
			"read": func(*rapid.T) {
				if k.stat()&kbcOBF != 0 {
					read()
				}
			},
		})
		for k.stat()&kbcOBF != 0 {
			read()
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("bytes by port (-sent +read):\n%s", diff)
		}
	})
}

// A state of the first version, in which the controller kept the bytes that no device sent.
func TestI8042FirstVersion(t *testing.T) {
	old := make([]byte, 32+5+2*(1+4)+4)
	old[0], old[34] = 0x65, kbcINH
	k := newTestKBC()
	d := snap.NewDecoder(old, 1)
	k.State(d)
	if d.Done(); d.Err() != nil {
		t.Fatal(d.Err())
	}
	k.command(kbcReadRAM)
	if got := k.recv(); got != 0x65 {
		t.Errorf("command byte %#x, want 0x65", got)
	}
}

func TestTranslateScan(t *testing.T) {
	for _, tc := range []struct {
		set2    byte
		release bool
		set1    byte
	}{
		{0x76, false, 0x01}, {0x5a, false, 0x1c}, {0x29, true, 0xb9}, {0x83, false, 0x41}, {0x84, true, 0xd4}, // Esc, Enter, Space, F7, SysRq
		{0x07, false, 0x58}, {0x66, false, 0x0e}, {0x7e, false, 0x46}, // F12, Backspace, Scroll Lock
		{0xe0, false, 0xe0}, {0xfa, false, 0xfa}, {0xaa, false, 0xaa},
	} {
		if got := translateScan(tc.set2, tc.release); got != tc.set1 {
			t.Errorf("%#x, release %v: %#x, want %#x", tc.set2, tc.release, got, tc.set1)
		}
	}
	seen := map[byte]byte{}
	for b := range len(scanSet1) { // the table maps no two codes to one
		v := translateScan(byte(b), false)
		if other, ok := seen[v]; ok {
			t.Errorf("%#x and %#x both become %#x", other, b, v)
		}
		seen[v] = byte(b)
	}
}
