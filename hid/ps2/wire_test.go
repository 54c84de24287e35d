package ps2

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

var (
	_ hid.Sink       = (*Keyboard)(nil)
	_ hid.Sink       = (*Mouse)(nil)
	_ legacy.PS2Port = (*Keyboard)(nil)
	_ legacy.PS2Port = (*Mouse)(nil)
	_ snap.Component = (*Keyboard)(nil)
	_ snap.Component = (*Mouse)(nil)
)

// newKeyboard returns a running keyboard without a controller.
func newKeyboard(t testing.TB) *Keyboard {
	t.Helper()
	k := NewKeyboard(func() {}, nil)
	resume(t, k)
	return k
}

// newMouse returns a running mouse that the guest has enabled, with the given identity.
func newMouse(t testing.TB, id uint8) *Mouse {
	t.Helper()
	m := NewMouse(func() {}, nil)
	resume(t, m)
	switch id {
	case idIntelliMouse:
		write(m, 0xf3, 200, 0xf3, 100, 0xf3, 80)
	case idExplorer:
		write(m, 0xf3, 200, 0xf3, 200, 0xf3, 80)
	}
	write(m, 0xf4)
	read(m)
	return m
}

func resume(t testing.TB, c snap.Component) {
	t.Helper()
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Pause() })
}

func write(p legacy.PS2Port, bs ...byte) {
	for _, b := range bs {
		p.Write(b)
	}
}

// read returns all that a device has to send, in hexadecimal.
func read(p legacy.PS2Port) string {
	var b []byte
	for {
		c, ok := p.Next()
		if !ok {
			return fmt.Sprintf("% x", b)
		}
		if b = append(b, c); len(b) > 10000 {
			return "no end"
		}
	}
}

func key(code uint16, v int32) hid.Event { return hid.Event{Type: hid.EVKey, Code: code, Value: v} }
func rel(code uint16, v int32) hid.Event { return hid.Event{Type: hid.EVRel, Code: code, Value: v} }

// keys sends a batch for each key, which is released if it has a minus in front: "leftctrl c -c -leftctrl".
func keys(t testing.TB, s hid.Sink, names string) {
	t.Helper()
	for _, name := range strings.Fields(names) {
		name, up := strings.CutPrefix(name, "-")
		code, ok := hid.KeyByName(name)
		if !ok {
			t.Fatalf("no key %q", name)
		}
		v := int32(1)
		if up {
			v = 0
		}
		s.Send([]hid.Event{key(code, v)})
	}
}

// controller is an i8042 with both devices.
type controller struct {
	*legacy.I8042
	keyboard *Keyboard
	mouse    *Mouse
}

type noLine struct{}

func (noLine) Set(bool) error { return nil }

func newController(t testing.TB) *controller {
	t.Helper()
	c := &controller{I8042: legacy.NewI8042(noLine{}, noLine{}, func() {})}
	c.keyboard, c.mouse = NewKeyboard(c.Ready, nil), NewMouse(c.Ready, nil)
	c.Attach(legacy.PS2Keyboard, c.keyboard)
	c.Attach(legacy.PS2Mouse, c.mouse)
	resume(t, c.keyboard)
	resume(t, c.mouse)
	return c
}

func (c *controller) in(port uint64) byte {
	var b [1]byte
	c.Read(bus.Access{Addr: port}, b[:])
	return b[0]
}

func (c *controller) out(port uint64, b byte) { c.Write(bus.Access{Addr: port}, []byte{b}) }

// drain returns what the guest reads until the output buffer is empty.
func (c *controller) drain() (b []byte) {
	for c.in(legacy.I8042Command)&1 != 0 && len(b) < 10000 {
		b = append(b, c.in(legacy.I8042Data))
	}
	return b
}

// saved returns the state of a component.
func saved(t testing.TB, c snap.Component) []byte {
	t.Helper()
	e := snap.NewEncoder(c.SnapVersion())
	if c.State(e); e.Err() != nil {
		t.Fatal(e.Err())
	}
	return e.Data()
}

func load(c snap.Component, b []byte) error {
	d := snap.NewDecoder(b, c.SnapVersion())
	c.State(d)
	d.Done()
	return d.Err()
}

// again saves from and loads into to, which then has the same state.
func again(t testing.TB, from, to snap.Component) {
	t.Helper()
	state := saved(t, from)
	if err := load(to, state); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(saved(t, to), state) {
		t.Errorf("%s: the state differs after a restore", from.SnapID())
	}
}

// refuses checks that no state that was cut is taken, and that one with a garbled byte is refused, or saved again as the
// same and makes no device panic.
func refuses(t *testing.T, state []byte, fresh func() snap.Component, use func(snap.Component)) {
	for n := range state {
		if load(fresh(), state[:n]) == nil {
			t.Fatalf("took %d of %d bytes", n, len(state))
		}
	}
	for i := range state {
		for _, v := range []byte{0, 1, 0x7f, 0xff} {
			b := bytes.Clone(state)
			b[i] = v
			if c := fresh(); load(c, b) == nil {
				if !bytes.Equal(saved(t, c), b) {
					t.Errorf("byte %d is %#x: saved again it is another state", i, v)
				}
				use(c)
			}
		}
	}
}
