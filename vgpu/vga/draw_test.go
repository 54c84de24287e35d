package vga

import (
	"errors"
	"image"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/vgpu/display"
)

// What changes is told, and little more than that.
func TestDamage(t *testing.T) {
	for _, c := range []struct {
		name   string
		set    func(r *rig)
		change func(r *rig)
		want   []image.Rectangle
	}{
		{"a character", func(r *rig) { textScreen(r, mode03) },
			func(r *rig) { r.print(80*20+10, 7, "x") }, []image.Rectangle{image.Rect(90, 320, 99, 336)}},
		{"two lines of text", func(r *rig) { textScreen(r, mode03) },
			func(r *rig) { r.print(1, 7, "x"); r.print(80*20+10, 7, "xyz") },
			[]image.Rectangle{image.Rect(9, 0, 18, 16), image.Rect(90, 320, 117, 336)}},
		{"the same text again", func(r *rig) { textScreen(r, mode03) }, func(r *rig) { r.print(80*20, 2, "line 20") }, nil},
		{"the cursor moves", func(r *rig) { textScreen(r, mode03) },
			func(r *rig) { r.indexed(portCRTCIndex, crtcCursorLow, 80*5%256+4) }, []image.Rectangle{image.Rect(27, 80, 45, 96)}},
		{"scrolling", func(r *rig) { textScreen(r, mode03) },
			func(r *rig) { r.indexed(portCRTCIndex, crtcStartLow, 80) }, []image.Rectangle{image.Rect(0, 0, 720, 400)}},
		{"a glyph", func(r *rig) { textScreen(r, mode03) },
			func(r *rig) { r.loadFont(0, 16, func(c, l int) uint8 { return barcode(c, l) &^ 1 }) },
			[]image.Rectangle{image.Rect(0, 0, 720, 400)}},
		{"eight pixels", func(r *rig) { r.set(mode12) },
			func(r *rig) { r.poke(windowBase+80*100+10, 0xff) }, []image.Rectangle{image.Rect(80, 100, 88, 101)}},
		{"the same pixels again", func(r *rig) { r.set(mode12) }, func(r *rig) { r.poke(windowBase+80*100+10, 0) }, nil},
		{"a wide pixel", func(r *rig) { r.set(mode13) },
			func(r *rig) { r.poke(windowBase+320*100+10, 1) }, []image.Rectangle{image.Rect(20, 200, 22, 202)}},
		{"a colour", func(r *rig) { r.set(mode13); r.poke(windowBase+320*100+10, 1) },
			func(r *rig) {
				r.out8(portDACWrite, 1)
				r.out8(portDACData, 9)
				r.out8(portDACData, 9)
				r.out8(portDACData, 9)
			},
			[]image.Rectangle{image.Rect(20, 200, 22, 202)}},
		{"a page of 32-bit pixels", func(r *rig) { r.vbeMode(512, 512, 32) },
			func(r *rig) { r.poke(lfbBase+2048*101, 1) }, []image.Rectangle{image.Rect(0, 100, 512, 102)}},
		{"far from each other", func(r *rig) { r.vbeMode(1024, 768, 32) },
			func(r *rig) { r.poke(lfbBase+4096*10, 1); r.poke(lfbBase+4096*14, 1); r.poke(lfbBase+4096*700, 1) },
			[]image.Rectangle{image.Rect(0, 10, 1024, 15), image.Rect(0, 700, 1024, 701)}},
		{"outside", func(r *rig) { r.vbeMode(512, 512, 32) }, func(r *rig) { r.poke(lfbBase+2048*512, 1) }, nil},
		{"everywhere", func(r *rig) { r.vbeMode(1024, 768, 16) }, func(r *rig) {
			for y := 0; y < 768; y += 20 {
				r.poke(lfbBase+2048*uint64(y)+uint64(2*y), 1)
			}
		}, func() (rs []image.Rectangle) { // as many as fit; the last has the rest
			for y := range 15 {
				rs = append(rs, image.Rect(20*y, 20*y, 20*y+1, 20*y+1))
			}
			return append(rs, image.Rect(300, 300, 761, 761))
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			sink := new(recorder)
			defer r.screen.Attach(sink)()
			c.set(r)
			r.card.draw()
			if changed, _ := r.card.draw(); changed || len(sink.updates) > 0 {
				t.Fatalf("nothing has changed, but %v", sink.updates)
			}
			c.change(r)
			scanouts := sink.scanout
			changed, _ := r.card.draw()
			if diff := cmp.Diff(c.want, sink.updates); diff != "" || changed != (c.want != nil) || sink.scanout != scanouts {
				t.Errorf("changed: %v (-want +got)\n%s", changed, diff)
			}
		})
	}
}

// guestMemory is a bus.Mapper whose guest writes where the test says.
type guestMemory struct {
	mu     sync.Mutex
	base   uint64 // 0: not mapped
	memory []byte
	wrote  []int // pages
	asked  int   // how often for the log
	fail   bool
}

func (g *guestMemory) Map(base uint64, memory []byte) (bus.Mapping, error) {
	if g.fail {
		return nil, errors.New("there is RAM")
	}
	g.base, g.memory = base, memory
	return g, nil
}

func (g *guestMemory) Dirty(pages []uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(pages)
	for _, i := range g.wrote {
		pages[i/64] |= 1 << (i % 64)
	}
	g.wrote = nil
	g.asked++
	if g.fail {
		return errors.New("no log")
	}
	return nil
}

func (g *guestMemory) Unmap() error { g.base = 0; return nil }

func (g *guestMemory) write(off int, v byte) {
	g.memory[off] = v
	g.mark(off)
}

// mark is write for a test in which the card draws at any time, which the race detector would see.
func (g *guestMemory) mark(off int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wrote = append(g.wrote, off/pageSize)
}

func (g *guestMemory) logs() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked
}

// Video memory is the guest's where its register is, and what the guest writes there is drawn.
func TestMapped(t *testing.T) {
	g := new(guestMemory)
	r := newRig(t, func(c *Config) { c.Mapper = g })
	sink := new(recorder)
	defer r.screen.Attach(sink)()
	if g.base != lfbBase {
		t.Fatalf("mapped at %#x", g.base)
	}
	r.vbeMode(1024, 768, 32)
	r.card.draw()
	g.write(4096*7, 1)
	r.card.draw()
	if diff := cmp.Diff([]image.Rectangle{image.Rect(0, 7, 1024, 8)}, sink.updates); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	r.vbeMode(1024, 768, 16)
	r.card.draw()
	g.write(2048*9+2, 0xff)
	r.card.draw()
	if diff := cmp.Diff([]image.Rectangle{image.Rect(1, 9, 2, 10)}, sink.updates); diff != "" {
		t.Errorf("16 bits (-want +got)\n%s", diff)
	}
	// What was written before a move is not lost with the log.
	g.write(2048*100, 0xff)
	r.card.WriteConfig(pci.BAR0, []byte{0, 0, 0, 0xd0})
	if g.base != 0xd0000000 {
		t.Errorf("moved to %#x", g.base)
	}
	sink.updates = nil
	r.card.draw()
	if diff := cmp.Diff([]image.Rectangle{image.Rect(0, 100, 1, 101)}, sink.updates); diff != "" {
		t.Errorf("after a move (-want +got)\n%s", diff)
	}
	r.card.WriteConfig(pci.Command, []byte{0, 0})
	if g.base != 0 {
		t.Errorf("decoding is off, but it is at %#x", g.base)
	}
	// Where it cannot be, accesses exit; without a log, all may have changed.
	r.card.WriteConfig(pci.Command, []byte{pci.CommandMemory, 0})
	g.fail = true
	sink.updates = nil
	g.memory[2048*200] = 1
	r.card.draw()
	if diff := cmp.Diff([]image.Rectangle{image.Rect(0, 200, 1, 201)}, sink.updates); diff != "" {
		t.Errorf("without a log (-want +got)\n%s", diff)
	}
	r.card.WriteConfig(pci.BAR0, []byte{0, 0, 0, 0xe0})
	r.poke(lfbBase, 0x34)
	if v := r.peek(lfbBase); v != 0x34 {
		t.Errorf("by exits: %#x", v)
	}
}

// The card draws while somebody looks, when there is something to draw, and never faster than frames pass.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guestMemory)
		r := newRig(t, func(c *Config) { c.Mapper = g })
		c := r.card
		c.now = func() time.Duration { return time.Since(c.start) }
		if err := c.Resume(); err != nil {
			t.Fatal(err)
		}
		// draws lets time pass and returns how often the card has drawn.
		last := 0
		draws := func(d time.Duration) int {
			time.Sleep(d)
			synctest.Wait()
			n := g.logs()
			defer func() { last = n }()
			return n - last
		}
		between := func(what string, n, least, most int) {
			t.Helper()
			if n < least || n > most {
				t.Errorf("%s: %d drawings, want %d to %d", what, n, least, most)
			}
		}
		textScreen(r, mode03)
		between("nobody looks", draws(time.Hour), 0, 0)
		sink := new(recorder)
		detach := r.screen.Attach(sink)
		between("the cursor blinks", draws(10*time.Second), 36, 40)
		r.indexed(portCRTCIndex, crtcCursorStart, cursorOff)
		r.attr(attrVideo|attrMode, 0x04)
		draws(time.Second)
		between("nothing changes", draws(time.Hour), 0, 0)
		for i := range 1000 {
			r.print(i, 7, "x")
			time.Sleep(time.Millisecond)
		}
		between("a write each millisecond", draws(time.Second), 55, 63)

		r.vbeMode(640, 480, 32)
		draws(0)
		for i := range 100 {
			g.mark(2560 * i)
			time.Sleep(10 * time.Millisecond)
		}
		between("the guest draws", draws(0), 55, 63)
		draws(10 * time.Second)
		between("the guest does not draw", draws(10*time.Second), 70, 80)
		sink.updates = nil
		g.mark(0)
		between("the guest draws after a while", draws(150*time.Millisecond), 1, 10)
		if len(sink.updates) != 1 {
			t.Errorf("updates %v", sink.updates)
		}
		if err := c.Pause(); err != nil {
			t.Fatal(err)
		}
		draws(0)
		between("paused", draws(time.Hour), 0, 0)
		if err := c.Resume(); err != nil {
			t.Fatal(err)
		}
		between("resumed", draws(100*time.Millisecond), 2, 10)
		detach()
		draws(time.Second)
		between("nobody looks any more", draws(time.Hour), 0, 0)
		r.close()
	})
}

// A card that is closed shows nothing, and is silent.
func TestClose(t *testing.T) {
	screen := display.NewScreen(display.Monitor{})
	sink := new(recorder)
	defer screen.Attach(sink)()
	c, err := New(Config{Name: "vga", Screen: screen, Memory: MinMemory})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	for i, v := range []uint16{vbeXRes: 64, vbeYRes: 64, vbeBPP: 16, vbeEnable: vbeEnabled} {
		mmio{c}.Write(bus.Access{Off: vbeOff + 2*uint64(i)}, []byte{byte(v), byte(v >> 8)})
	}
	mmio{c}.Write(bus.Access{Off: portsOff}, []byte{attrVideo})
	if err := c.Pause(); err != nil {
		t.Fatal(err)
	}
	s := sink.surface
	if s == nil || s.File == nil || s.Width != 64 {
		t.Fatalf("surface %+v", s)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if sink.surface != nil {
		t.Error("still shown")
	}
	screen.SetMonitor(display.Monitor{Connected: true})
	screen.Snapshot(func(s *display.Surface) {
		if s != nil {
			t.Error("shown again")
		}
	})
	// An access that was under way.
	window{c}.Write(bus.Access{}, []byte{1})
	frameBuffer{c}.Write(bus.Access{}, []byte{1})
	mmio{c}.Write(bus.Access{Off: vbeOff + 2*vbeEnable}, []byte{1, 0})
}

// A port, the window and a picture in which little or nothing changes allocate nothing.
func TestAllocations(t *testing.T) {
	for name, set := range map[string]func(r *rig){
		"text":   func(r *rig) { textScreen(r, mode03) },
		"planar": func(r *rig) { r.set(mode12) },
		"16":     func(r *rig) { r.vbeMode(640, 480, 16) },
		"32":     func(r *rig) { r.vbeMode(640, 480, 32) },
	} {
		r := newRig(t)
		set(r)
		r.card.draw()
		p, n := []byte{0}, uint8(0)
		if got := testing.AllocsPerRun(100, func() {
			n++
			p[0] = n
			r.ports.Write(0, portSeqIndex, p)
			r.ports.Read(0, portStatus1, p)
			p[0] = n
			r.mmio.Write(0, windowBase+0x18000, p)
			r.mmio.Read(0, windowBase+0x18000, p)
			r.mmio.Write(0, lfbBase+200, p)
			r.card.draw()
		}); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}
