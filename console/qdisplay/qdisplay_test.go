package qdisplay

import (
	"fmt"
	"image"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

func TestProperties(t *testing.T) {
	g := newGuest(t)
	g.screen.Scanout(newSurface(t, 800, 600, false))
	c := g.client(t, ClientConfig{})
	vm, err := c.VM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(VM{Name: "work", UUID: "6f1c2ae6-0d0f-4f4c-9f5b-2f3ab3f3a2d1", ConsoleIDs: []uint32{0}}, vm); diff != "" {
		t.Error(diff)
	}
	info, err := c.Console(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	want := ConsoleInfo{
		Label: "Screen 1", Type: "Graphic", DeviceAddress: "pci/0000/01.0", Width: 800, Height: 600,
		Interfaces: []string{ifaceKeyboard, ifaceMouse, ifaceMultiTouch}, IsAbsolute: true, MaxSlots: 10,
	}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Error(diff)
	}
	if _, err := c.Console(t.Context(), 1); err == nil {
		t.Error("a console that is not there has properties")
	}
}

// A guest with two heads, over a socket that has a name.
func TestDial(t *testing.T) {
	screens := []*display.Screen{display.NewScreen(display.Monitor{}), display.NewScreen(display.Monitor{})}
	server := NewServer(Config{Screens: screens})
	path := tempSocket(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	c, err := Dial(path, ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	vm, err := c.VM(t.Context())
	if err != nil || !slices.Equal(vm.ConsoleIDs, []uint32{0, 1}) {
		t.Errorf("%+v, %v", vm, err)
	}
	for i := range screens {
		surface := newSurface(t, 16, 16, i == 0)
		paint(surface, surface.Bounds(), uint32(i+1))
		screens[i].Scanout(surface)
		s := &shown{}
		r, err := c.Listen(t.Context(), uint32(i), s, ReceiverConfig{})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the picture of each head", func() bool { return s.pixel(3, 3) == uint32(i+1) })
		r.Close()
	}
	if _, err := c.Listen(t.Context(), 2, &shown{}, ReceiverConfig{}); err == nil {
		t.Error("there is a third head")
	}
	server.Close()
	if err := receive(t, served); err != nil {
		t.Error(err)
	}
	receive(t, c.Done())
	if err := c.Err(); err != nil {
		t.Error(err)
	}
	if _, err := Dial(path+"x", ClientConfig{}); err == nil {
		t.Error("a socket that is not there is connected to")
	}
	a, _ := socketpair(t)
	server.ServeConn(a) // returns
	if err := server.Serve(l); err == nil {
		t.Error("a closed server serves")
	}
}

// All ways of a picture from the device to the sink.
func TestFrames(t *testing.T) {
	for _, shared := range []bool{false, true} {
		for _, noMap := range []bool{false, true} {
			t.Run(fmt.Sprintf("shared=%v,map=%v", shared, !noMap), func(t *testing.T) {
				g := newGuest(t)
				surface := newSurface(t, 640, 480, shared)
				paint(surface, surface.Bounds(), 0x102030)
				g.screen.Scanout(surface)
				s, r := g.listen(t, ReceiverConfig{NoMap: noMap})
				eventually(t, "the first picture", func() bool { return s.pixel(639, 479) == 0x102030 })
				if mapped := s.surface.File != nil; mapped != (shared && !noMap) {
					t.Errorf("mapped: %v", mapped)
				}

				part := image.Rect(100, 50, 300, 90)
				paint(surface, part, 0xff0000)
				g.screen.Update(part)
				eventually(t, "damage", func() bool { return s.pixel(299, 89) == 0xff0000 })
				if s.pixel(300, 89) != 0x102030 || s.pixel(99, 50) != 0x102030 || s.pixel(100, 49) != 0x102030 {
					t.Error("more than the damage has changed")
				}

				other := newSurface(t, 800, 600, shared)
				paint(other, other.Bounds(), 0x00ff00)
				g.screen.Scanout(other)
				eventually(t, "another surface", func() bool { return s.pixel(799, 599) == 0x00ff00 })

				g.screen.Cursor(&display.Cursor{Width: 2, Height: 1, Hot: image.Pt(1, 0), Pixels: []byte("12345678")})
				g.screen.MoveCursor(image.Pt(-3, 7))
				eventually(t, "the pointer", func() bool {
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.cursor != nil && string(s.cursor.Pixels) == "12345678" && s.cursor.Hot == image.Pt(1, 0) && s.at == image.Pt(-3, 7)
				})
				g.screen.Cursor(nil)
				eventually(t, "no pointer", func() bool {
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.cursor == nil
				})

				g.screen.Scanout(nil)
				eventually(t, "the screen off", s.off)
				g.screen.Scanout(surface)
				eventually(t, "the screen on", func() bool { return s.pixel(0, 0) == 0x102030 })
				g.server.Close()
				<-r.Done()
				if r.Err() != nil || !s.off() {
					t.Errorf("at the end: %v, off %v", r.Err(), s.off())
				}
			})
		}
	}
}

// A guest that draws into two surfaces in turn has both of them mapped all the time; mappings do not add up.
func TestFlip(t *testing.T) {
	g := newGuest(t)
	s, r := g.listen(t, ReceiverConfig{})
	front, back := newSurface(t, 64, 64, true), newSurface(t, 64, 64, true)
	var seen [2]*display.Surface
	for i := range 20 {
		paint(back, back.Bounds(), uint32(i+1))
		g.screen.Scanout(back)
		eventually(t, "a flip", func() bool { return s.pixel(1, 1) == uint32(i+1) })
		s.mu.Lock()
		if i >= 2 && seen[i%2] != s.surface {
			t.Errorf("flip %d has a surface of its own", i)
		}
		seen[i%2] = s.surface
		s.mu.Unlock()
		front, back = back, front
	}
	for range 20 {
		next := newSurface(t, 64, 64, true)
		paint(next, next.Bounds(), 0xabcdef)
		s.mu.Lock()
		before := s.scanouts
		s.mu.Unlock()
		g.screen.Scanout(next)
		eventually(t, "a surface", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.scanouts > before
		})
	}
	r.Close()
	if n := len(r.mappings); n != 0 {
		t.Errorf("%d mappings are left", n)
	}
}

// Keys, pointer and fingers, from the seat's events to the guest's: the same, but for what the protocol cannot say.
func TestInput(t *testing.T) {
	key := func(code uint16, value int32) hid.Event { return hid.Event{Type: hid.EVKey, Code: code, Value: value} }
	rel := func(code uint16, value int32) hid.Event { return hid.Event{Type: hid.EVRel, Code: code, Value: value} }
	abs := func(code uint16, value int32) hid.Event { return hid.Event{Type: hid.EVAbs, Code: code, Value: value} }
	type batch = []hid.Event
	tests := map[string]struct {
		relative bool
		send     []batch
		want     []batch
	}{
		"keys": {
			send: []batch{{key(30, 1)}, {key(30, 2)}, {key(42, 1), key(31, 1)}, {key(30, 0), key(31, 0), key(42, 0)}},
			want: []batch{{key(30, 1)}, {key(30, 2)}, {key(42, 1)}, {key(31, 1)}, {key(30, 0)}, {key(31, 0)}, {key(42, 0)}},
		},
		"press and release in one batch": {
			send: []batch{{key(30, 1), key(30, 0), key(30, 1), key(30, 0)}},
			want: []batch{{key(30, 1)}, {key(30, 0)}, {key(30, 1)}, {key(30, 0)}},
		},
		"what is not held is not released": {
			send: []batch{{key(30, 0)}, {key(31, 2)}, {key(32, 1)}, {key(32, 0)}, {key(32, 0)}},
			want: []batch{{key(32, 1)}, {key(32, 0)}},
		},
		"keys without a number": {
			send: []batch{{key(0x1d0, 1)}, {key(248, 1)}, {key(1, 1)}},
			want: []batch{{key(1, 1)}, {key(1, 0)}}, // it is released at the end
		},
		"buttons": {
			send: []batch{{key(hid.BtnLeft, 1)}, {key(hid.BtnLeft, 0)}, {key(hid.BtnMiddle, 1)}, {key(hid.BtnMiddle, 0)}, {key(hid.BtnRight, 1)}, {key(hid.BtnRight, 0)},
				{key(hid.BtnSide, 1)}, {key(hid.BtnSide, 0)}, {key(hid.BtnExtra, 1)}, {key(hid.BtnExtra, 0)}},
			want: []batch{{key(hid.BtnLeft, 1)}, {key(hid.BtnLeft, 0)}, {key(hid.BtnMiddle, 1)}, {key(hid.BtnMiddle, 0)}, {key(hid.BtnRight, 1)}, {key(hid.BtnRight, 0)},
				{key(hid.BtnSide, 1)}, {key(hid.BtnSide, 0)}, {key(hid.BtnExtra, 1)}, {key(hid.BtnExtra, 0)}},
		},
		"wheels": {
			send: []batch{{rel(hid.RelWheel, 2)}, {rel(hid.RelWheel, -1)}, {rel(hid.RelHWheel, 1)}, {rel(hid.RelHWheel, -1)}},
			want: []batch{{rel(hid.RelWheel, 1)}, {rel(hid.RelWheel, 1)}, {rel(hid.RelWheel, -1)}, {rel(hid.RelHWheel, 1)}, {rel(hid.RelHWheel, -1)}},
		},
		"a relative movement": {
			relative: true,
			send:     []batch{{rel(hid.RelX, 5), rel(hid.RelY, -7), key(hid.BtnLeft, 1)}, {key(hid.BtnLeft, 0)}},
			want:     []batch{{rel(hid.RelX, 5), rel(hid.RelY, -7)}, {key(hid.BtnLeft, 1)}, {key(hid.BtnLeft, 0)}},
		},
		"an absolute position before the click": {
			send: []batch{{key(hid.BtnLeft, 1), abs(hid.AbsX, hid.AbsMax), abs(hid.AbsY, 0)}, {key(hid.BtnLeft, 0)}},
			want: []batch{{abs(hid.AbsX, hid.AbsMax), abs(hid.AbsY, 0)}, {key(hid.BtnLeft, 1)}, {key(hid.BtnLeft, 0)}},
		},
		"the wrong movements": {
			send: []batch{{rel(hid.RelX, 5)}, {key(30, 1)}, {key(30, 0)}},
			want: []batch{{key(30, 1)}, {key(30, 0)}},
		},
		"fingers": {
			send: []batch{
				{abs(hid.AbsMTSlot, 0), abs(hid.AbsMTTrackingID, 77), abs(hid.AbsMTPositionX, 0), abs(hid.AbsMTPositionY, hid.AbsMax)},
				{abs(hid.AbsMTSlot, 3), abs(hid.AbsMTTrackingID, 78), abs(hid.AbsMTPositionX, hid.AbsMax), abs(hid.AbsMTPositionY, 0)},
				{abs(hid.AbsMTPositionX, 0)},
				{abs(hid.AbsMTSlot, 0), abs(hid.AbsMTTrackingID, -1), abs(hid.AbsMTSlot, 3), abs(hid.AbsMTTrackingID, -1)},
				{abs(hid.AbsMTSlot, 99), abs(hid.AbsMTTrackingID, 4)},
			},
			want: []batch{
				{abs(hid.AbsMTSlot, 0), abs(hid.AbsMTPositionX, 0), abs(hid.AbsMTPositionY, hid.AbsMax), abs(hid.AbsMTTrackingID, 1), key(hid.BtnTouch, 1)},
				{abs(hid.AbsMTSlot, 3), abs(hid.AbsMTPositionX, hid.AbsMax), abs(hid.AbsMTPositionY, 0), abs(hid.AbsMTTrackingID, 2)},
				{abs(hid.AbsMTSlot, 3), abs(hid.AbsMTPositionX, 0), abs(hid.AbsMTPositionY, 0)},
				{abs(hid.AbsMTSlot, 0), abs(hid.AbsMTTrackingID, -1)},
				{abs(hid.AbsMTSlot, 3), abs(hid.AbsMTTrackingID, -1), key(hid.BtnTouch, 0)},
			},
		},
		"held when the seat goes": {
			send: []batch{{key(30, 1)}, {key(hid.BtnLeft, 1)}, {abs(hid.AbsMTSlot, 1), abs(hid.AbsMTTrackingID, 7)}},
			want: []batch{{key(30, 1)}, {key(hid.BtnLeft, 1)},
				{abs(hid.AbsMTSlot, 1), abs(hid.AbsMTPositionX, 0), abs(hid.AbsMTPositionY, 0), abs(hid.AbsMTTrackingID, 1), key(hid.BtnTouch, 1)},
				{key(30, 0)}, {key(hid.BtnLeft, 0)},
				{abs(hid.AbsMTSlot, 1), abs(hid.AbsMTTrackingID, -1), key(hid.BtnTouch, 0)}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			g.screen.Scanout(newSurface(t, 1920, 1080, false))
			g.input.absolute = !tt.relative
			c := g.client(t, ClientConfig{})
			if _, err := c.Console(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			in := c.Sender(0)
			for _, b := range tt.send {
				in.Send(b)
				eventually(t, "an empty queue", func() bool {
					in.mu.Lock()
					defer in.mu.Unlock()
					return len(in.queue) == 0
				})
			}
			if _, err := c.VM(t.Context()); err != nil { // answered after the input
				t.Fatal(err)
			}
			c.Close()
			g.server.Close()
			if diff := cmp.Diff(tt.want, g.input.taken(), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// queued has what s would send in s.out, of a Sender without a goroutine.
func queued(s *Sender) bool {
	more := s.next()
	s.idle = false
	return more
}

// A queue that is full drops batches, but no key stays pressed.
func TestSenderOverflow(t *testing.T) {
	c := &Client{done: make(chan struct{}), sizes: map[uint32]size{0: {100, 100}}, closing: true} // sends nothing
	s := c.Sender(0)
	key := func(code uint16, value int32) []hid.Event {
		return []hid.Event{{Type: hid.EVKey, Code: code, Value: value}}
	}
	s.Send(key(30, 1))
	for range maxActions {
		s.Send(key(31, 1))
		s.Send(key(31, 0))
	}
	s.Send(key(30, 0)) // dropped
	s.Send(key(32, 1)) // dropped, and its release too
	s.Send(key(32, 0))
	down := hid.Keys{}
	for queued(s) {
		for _, a := range s.out {
			if a.kind == keyPress {
				down.Set(code(a), true)
			} else {
				if !down.Has(code(a)) {
					t.Errorf("key %d is released and was not pressed", code(a))
				}
				down.Set(code(a), false)
			}
		}
	}
	if down != (hid.Keys{}) {
		t.Errorf("keys stay pressed: %x", down)
	}
	s.Send(key(33, 1))
	if queued(s); len(s.out) != 1 || code(s.out[0]) != 33 {
		t.Errorf("afterwards %v is sent", s.out)
	}
	// Movements that cannot be sent yet are joined.
	for range 10 * maxActions {
		s.Send([]hid.Event{{Type: hid.EVRel, Code: hid.RelX, Value: 1}})
	}
	if queued(s); len(s.out) != 1 || s.out[0].a != 10*maxActions {
		t.Errorf("the movement is %v", s.out)
	}
}

func TestSignals(t *testing.T) {
	g := newGuest(t)
	leds := make(chan hid.LEDs, 10)
	mode := make(chan bool, 10)
	c := g.client(t, ClientConfig{
		OnLEDs:     func(_ uint32, l hid.LEDs) { leds <- l },
		OnAbsolute: func(_ uint32, on bool) { mode <- on },
	})
	if _, err := c.Console(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	g.input.set(hid.LEDCaps|hid.LEDNum, false)
	if got := receive(t, leds); got != hid.LEDCaps|hid.LEDNum {
		t.Errorf("lights %v", got)
	}
	if receive(t, mode) {
		t.Error("absolute")
	}
	g.screen.Scanout(newSurface(t, 320, 200, false))
	eventually(t, "the size", func() bool { return c.size(0) == size{320, 200} })
	info, err := c.Console(t.Context(), 0)
	if err != nil || info.LEDs != hid.LEDCaps|hid.LEDNum || info.IsAbsolute {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestModifiers(t *testing.T) {
	for l := range hid.LEDs(8) {
		if got := lights(modifiers(l)); got != l {
			t.Errorf("%b becomes %b", l, got)
		}
	}
	if m := modifiers(hid.LEDScroll); m != 1 {
		t.Errorf("scroll lock is %b", m)
	}
}

func TestSetMonitor(t *testing.T) {
	g := newGuest(t)
	c := g.client(t, ClientConfig{})
	m := display.Monitor{Connected: true, Width: 2560, Height: 1440, WidthMM: 600, HeightMM: 340, X: 1920, Y: -10}
	if err := c.SetMonitor(t.Context(), 0, m); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, g.screen.Monitor()); diff != "" {
		t.Error(diff)
	}
	if err := c.SetMonitor(t.Context(), 0, display.Monitor{Connected: true, Width: 20000, Height: 10}); err == nil {
		t.Error("a monitor of 20000 pixels is taken")
	}
	if err := c.SetMonitor(t.Context(), 0, display.Monitor{Width: 1, Height: 1}); err != nil {
		t.Fatal(err)
	}
	m.Connected = false
	if diff := cmp.Diff(m, g.screen.Monitor()); diff != "" {
		t.Error(diff)
	}
}

func TestQnum(t *testing.T) {
	for key := range uint16(hid.KeyMax + 1) {
		n, ok := qnumOfKey(key)
		if !ok {
			continue
		}
		if back, ok := keyOfQnum(n); !ok || back != key {
			t.Errorf("key %d is %#x, which is %d", key, n, back)
		}
	}
	for n, want := range map[uint32]uint16{
		0x01: 1, 0x1c: 28, 0x54: 99, 0xb7: 99, 0x9c: 96, 0x9d: 97, 0xb8: 100, 0xc6: 119, 0xc8: 103, 0xdb: 125, 0x56: 86, 0x73: 89,
		0: 0, 0xff: 0, 0x100: 0, 1 << 31: 0,
	} {
		if got, ok := keyOfQnum(n); got != want || ok != (want != 0) {
			t.Errorf("%#x is key %d, want %d", n, got, want)
		}
	}
	if n := len(slices.DeleteFunc(slices.Clone(qnumToKey[:]), func(k uint16) bool { return k == 0 })); n != 236 {
		t.Errorf("%d key numbers, want 236", n)
	}
}

func TestFormats(t *testing.T) {
	// PIXMAN_x8r8g8b8 and so on, as pixman.h computes them.
	for code, want := range map[uint32]display.Format{
		0x20020888: display.XRGB8888, 0x20028888: display.ARGB8888, 0x20030888: display.XBGR8888, 0x20038888: display.ABGR8888,
		0x20080888: display.BGRX8888, 0x20088888: display.BGRA8888, 0x20090888: display.RGBX8888, 0x20098888: display.RGBA8888,
	} {
		if f, ok := formatOf(code); !ok || f != want || pixmanCode(want) != code {
			t.Errorf("%#x is %v, want %v, which is %#x", code, f, want, pixmanCode(want))
		}
	}
	if f, ok := formatOf(0x10020565); ok {
		t.Errorf("r5g6b5 is %v", f)
	}
}

func TestScale(t *testing.T) {
	for _, n := range []uint32{1, 2, 640, 1920, 16384} {
		for _, x := range []uint32{0, 1, n / 2, n - 1} {
			if x >= n {
				continue
			}
			abs := toAbs(float64(x), n)
			if back := toPixel(abs, n); back != x || abs < 0 || abs > hid.AbsMax {
				t.Errorf("pixel %d of %d is %d, which is pixel %d", x, n, abs, back)
			}
		}
	}
	if toAbs(639, 640) != hid.AbsMax || toPixel(hid.AbsMax+5, 640) != 639 || toPixel(-1, 640) != 0 {
		t.Error("an edge is not at the edge")
	}
}

// A server without listeners does not have the device draw.
func TestNobodyLooks(t *testing.T) {
	g := newGuest(t)
	var watched atomic.Bool
	t.Cleanup(g.screen.OnWatch(watched.Store, func() {}))
	c := g.client(t, ClientConfig{})
	if _, err := c.Console(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if watched.Load() {
		t.Error("the device draws for a client that does not look")
	}
	r, err := c.Listen(t.Context(), 0, &shown{}, ReceiverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device draws for a listener", watched.Load)
	r.Close()
	eventually(t, "it does not any more", func() bool { return !watched.Load() })
}
