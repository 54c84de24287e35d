package machine

import (
	"sync"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// ps2Echo answers each byte with its complement.
type ps2Echo struct {
	id    string
	ready func()

	mu   sync.Mutex
	sent []byte
}

func (e *ps2Echo) Write(b byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sent = append(e.sent, ^b)
}

func (e *ps2Echo) Next() (b byte, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.sent) == 0 {
		return 0, false
	}
	b, e.sent = e.sent[0], e.sent[1:]
	return b, true
}

// send has the device send a byte of its own accord.
func (e *ps2Echo) send(b byte) {
	e.Write(^b)
	e.ready()
}

func (e *ps2Echo) SnapID() string      { return e.id }
func (*ps2Echo) SnapVersion() uint16   { return 1 }
func (*ps2Echo) Pause() error          { return nil }
func (*ps2Echo) Resume() error         { return nil }
func (e *ps2Echo) State(c *snap.Codec) { c.Bytes(&e.sent, 16) }

// The guest talks to both devices at the keyboard controller, and a restored one gets what they had still to send.
func TestPS2(t *testing.T) {
	cfg := small(t, kvmtest.RemoteProgram())
	var devs [2]*ps2Echo // of the machine that was built last
	for i, id := range [2]string{"keyboard", "mouse"} {
		cfg.PS2[i] = func(ready func()) PS2Device {
			devs[i] = &ps2Echo{id: id, ready: ready}
			return devs[i]
		}
	}
	g := newGuest(t, cfg)
	const keyboard, mouse = 0x24, 0x25
	g.ioapic(legacy.KeyboardIRQ, keyboard, false)
	g.ioapic(legacy.MouseIRQ, mouse, false)
	g.Out8(legacy.I8042Command, 0x60) // interrupts of both, no translation
	g.Out8(legacy.I8042Data, 3)
	g.Sti()
	read := func(vector, want byte) {
		t.Helper()
		g.expect(vector)
		if got := g.In8(legacy.I8042Data); got != want {
			t.Errorf("read %#x, want %#x", got, want)
		}
		g.EndOfInterrupt()
	}
	g.Out8(legacy.I8042Data, 0xf4)
	read(keyboard, 0x0b)
	g.Out8(legacy.I8042Command, 0xd4)
	g.Out8(legacy.I8042Data, 0xf5)
	read(mouse, 0x0a)
	devs[legacy.PS2Keyboard].send(0x1c)
	read(keyboard, 0x1c)

	g.Cli()
	for _, b := range []byte{1, 2, 3} { // one is in the controller, two wait in the device
		devs[legacy.PS2Mouse].send(b)
	}
	dir := save(t, g.Machine, "")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	for way, opt := range ways {
		t.Run(way, func(t *testing.T) {
			g = attach(t, restore(t, cfg, dir, opt))
			g.Sti()
			for b := range byte(3) {
				read(mouse, b+1)
			}
		})
	}
}
