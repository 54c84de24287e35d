package evdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hid"
)

// The expected numbers were printed by a C program that includes linux/input.h.
func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"EVIOCGID", evioCGID(), 0x80084502},
		{"EVIOCGNAME(256)", evioCGName(256), 0x81004506},
		{"EVIOCGPHYS(256)", evioCGPhys(256), 0x81004507},
		{"EVIOCGUNIQ(256)", evioCGUniq(256), 0x81004508},
		{"EVIOCGPROP(4)", evioCGProp(4), 0x80044509},
		{"EVIOCGMTSLOTS(44)", evioCGMTSlots(44), 0x802c450a},
		{"EVIOCGKEY(96)", evioCGKey(96), 0x80604518},
		{"EVIOCGLED(8)", evioCGLED(8), 0x80084519},
		{"EVIOCGSW(8)", evioCGSW(8), 0x8008451b},
		{"EVIOCGBIT(0, 8)", evioCGBit(0, 8), 0x80084520},
		{"EVIOCGBIT(EV_KEY, 96)", evioCGBit(hid.EVKey, 96), 0x80604521},
		{"EVIOCGABS(ABS_MT_POSITION_X)", evioCGAbs(hid.AbsMTPositionX), 0x80184575},
		{"EVIOCGRAB", evioCGrab(), 0x40044590},
		{"EVIOCREVOKE", evioCRevoke(), 0x40044591},
		{"EVIOCSMASK", evioCSMask(), 0x40104593},
		{"EVIOCSCLOCKID", evioCSClockID(), 0x400445a0},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, the kernel's is %#x", c.name, c.got, c.want)
		}
	}
}

var keyboard = Info{
	Path: "/dev/input/event7", Name: "AT Translated Set 2 keyboard", Phys: "isa0060/serio0/input0",
	ID:   ID{Bus: 0x11, Vendor: 1, Product: 1, Version: 0xab41},
	Keys: bitsOf(hid.EVKey, span(hid.KeyEsc, hid.KeyF10)...),
	LEDs: bitsOf(hid.EVLED, hid.LEDNumL, hid.LEDCapsL),
}

var screen = Info{
	Path: "/dev/input/event7", Name: "Touch Screen",
	Props: bitsOf(0, hid.PropDirect),
	Keys:  bitsOf(hid.EVKey, hid.BtnTouch),
	Axes: map[uint16]Axis{
		hid.AbsX: {Max: 4095}, hid.AbsY: {Max: 4095}, hid.AbsMTSlot: {Max: 9}, hid.AbsMTTrackingID: {Max: 65535},
		hid.AbsMTPositionX: {Min: -100, Max: 4095, Resolution: 12}, hid.AbsMTPositionY: {Max: 4095},
	},
}

func TestInfo(t *testing.T) {
	for _, want := range []Info{keyboard, screen} {
		f := newFake(t, want)
		d := f.start(t)
		if diff := cmp.Diff(complete(want), *d.Info()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if f.clock != unix.CLOCK_MONOTONIC {
			t.Errorf("clock %d", f.clock)
		}
		masks := map[uint16]Bits{hid.EVMsc: make(Bits, roomSmall), hid.EVLED: make(Bits, roomSmall)}
		if diff := cmp.Diff(masks, f.masks); diff != "" {
			t.Errorf("masks (-want +got):\n%s", diff)
		}
	}
}

func TestGrab(t *testing.T) {
	f := newFake(t, keyboard)
	d := f.start(t)
	if err := errors.Join(d.Grab(), d.Ungrab(), d.Revoke()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{1, 0}, f.grabs); diff != "" || !f.revoked {
		t.Errorf("revoked %v, grabs (-want +got):\n%s", f.revoked, diff)
	}
	f.busy = true
	err := d.Grab()
	if want := "input device /dev/input/event7: EVIOCGRAB: device or resource busy"; !errors.Is(err, unix.EBUSY) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestMask(t *testing.T) {
	f := newFake(t, keyboard)
	d := f.start(t)
	if err := d.Mask(hid.EVKey, []uint16{hid.KeyPower, 0xffff}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(bitsOf(hid.EVKey, hid.KeyPower), f.masks[hid.EVKey]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLEDs(t *testing.T) {
	f := newFake(t, keyboard)
	d := f.start(t)
	if err := d.SetLEDs(hid.LEDCaps | hid.LEDScroll); err != nil { // it has no ScrollLock
		t.Fatal(err)
	}
	want := stream(0, "led 0=0", "led 1=1", "syn")
	if diff := cmp.Diff(want, f.written); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if leds, err := d.LEDs(); err != nil || leds != hid.LEDCaps {
		t.Errorf("lights %b, %v", leds, err)
	}
	if err := newFake(t, screen).start(t).SetLEDs(hid.LEDNum); err != nil {
		t.Errorf("a device without lights: %v", err)
	}
}

func TestHeld(t *testing.T) {
	f := newFake(t, keyboard)
	f.now.keys.set(hid.KeyLeftCtrl, true)
	f.now.keys.set(hid.BtnLeft, true)
	f.now.keys.set(0x160, true)
	var want hid.Keys
	want.Set(hid.KeyLeftCtrl, true)
	want.Set(0x160, true)
	if got := f.start(t).Held(); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestSwitches(t *testing.T) {
	f := newFake(t, Info{SW: bitsOf(hid.EVSW, 0, 1)})
	f.now.sw.set(0, true)
	sw, err := f.start(t).Switches()
	if err != nil || !sw.Has(0) || sw.Has(1) {
		t.Errorf("%v, %v", sw, err)
	}
}

// stream encodes events as the kernel does: "key 30=1", "abs 0=7", "syn", "dropped"; all at one time.
func stream(at time.Duration, events ...string) (p []byte) {
	types := map[string]uint16{"key": hid.EVKey, "rel": hid.EVRel, "abs": hid.EVAbs, "msc": hid.EVMsc, "sw": hid.EVSW, "led": hid.EVLED}
	for _, s := range events {
		e := hid.Event{}
		switch name, rest, _ := strings.Cut(s, " "); name {
		case "syn":
			e.Code = hid.SynReport
		case "dropped":
			e.Code = hid.SynDropped
		default:
			e.Type = types[name]
			if _, err := fmt.Sscanf(rest, "%v=%d", &e.Code, &e.Value); err != nil || e.Type == 0 {
				panic(s)
			}
		}
		n := len(p)
		p = putEvent(p, e)
		binary.NativeEndian.PutUint64(p[n:], uint64(at/time.Second))
		binary.NativeEndian.PutUint64(p[n+8:], uint64(at%time.Second/time.Microsecond))
	}
	return p
}

// words writes events as stream reads them.
func words(events []hid.Event) string {
	names := map[uint16]string{hid.EVKey: "key", hid.EVRel: "rel", hid.EVAbs: "abs", hid.EVMsc: "msc", hid.EVSW: "sw", hid.EVLED: "led"}
	var w []string
	for _, e := range events {
		w = append(w, fmt.Sprintf("%s %d=%d", names[e.Type], e.Code, e.Value))
	}
	return strings.Join(w, ", ")
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name   string
		info   Info
		now    func(*state) // what the device is like when it is opened
		events []string
		later  func(*state) // and after the events
		want   []string
	}{
		{name: "a key", info: keyboard, events: []string{"key 30=1", "syn", "key 30=2", "syn", "key 30=0", "syn"},
			want: []string{"key 30=1", "key 30=2", "key 30=0"}},
		{name: "two in a report", info: keyboard, events: []string{"key 30=1", "key 31=1", "syn"}, want: []string{"key 30=1, key 31=1"}},
		{name: "held when opened", info: keyboard, now: func(s *state) { s.keys.set(30, true) },
			events: []string{"key 30=2", "syn", "key 30=0", "syn"}, want: []string{"key 30=2", "key 30=0"}},
		{name: "nothing new", info: keyboard, events: []string{"key 30=0", "key 31=2", "syn", "syn", "key 30=1", "syn", "key 30=1", "syn"},
			want: []string{"key 30=1"}},
		{name: "unfinished", info: keyboard, events: []string{"key 30=1"}},
		{name: "lost", info: keyboard,
			// What was read with the loss is older than the state: 36 is not pressed.
			events: []string{"key 30=1", "syn", "key 31=1", "dropped", "key 32=1", "syn", "key 30=0", "key 36=1", "syn", "key 33=1"},
			later:  func(s *state) { s.keys.set(35, true); s.keys.set(34, true) },
			want:   []string{"key 30=1", "key 30=0, key 34=1, key 35=1"}},
		{name: "lost, and nothing has changed", info: keyboard,
			events: []string{"key 30=1", "syn", "dropped", "syn"}, later: func(s *state) { s.keys.set(30, true) },
			want: []string{"key 30=1"}},
		{name: "fingers lost", info: screen,
			events: []string{"abs 57=7", "abs 53=10", "abs 47=1", "abs 57=8", "abs 53=20", "syn", "dropped", "syn"},
			later: func(s *state) { // 7 has gone and 9 has come in its place; 8 has moved
				s.slots[0] = contactAt(9, 10, 4)
				s.slots[1] = contactAt(8, 21, 0)
				s.abs[hid.AbsX] = 5
				s.keys.set(hid.BtnTouch, true)
			},
			want: []string{
				"abs 57=7, abs 53=10, abs 47=1, abs 57=8, abs 53=20",
				"key 330=1, abs 0=5, abs 47=0, abs 57=9, abs 54=4, abs 47=1, abs 53=21, abs 47=0",
			}},
		{name: "a switch lost", info: Info{SW: bitsOf(hid.EVSW, 0)}, events: []string{"dropped", "syn"},
			later: func(s *state) { s.sw.set(0, true) }, want: []string{"sw 0=1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, tt.info)
			if tt.now != nil {
				tt.now(&f.now)
			}
			d := f.start(t)
			f.send(t, stream(3*time.Second+5*time.Microsecond, tt.events...))
			f.feed.Close()
			if tt.later != nil {
				tt.later(&f.now)
			}
			var got []string
			for {
				r, err := d.Read()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if want := 3*time.Second + 5*time.Microsecond; r.At != want {
					t.Errorf("report at %v, want %v", r.At, want)
				}
				got = append(got, words(r.Events))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func contactAt(id, x, y int32) (c contactState) {
	c[trackingID], c[hid.AbsMTPositionX-hid.AbsMTTouchMajor], c[hid.AbsMTPositionY-hid.AbsMTTouchMajor] = id, x, y
	return c
}

// After a loss, reports go on from the state that was read.
func TestReadAfterLoss(t *testing.T) {
	f := newFake(t, keyboard)
	d := f.start(t)
	f.now.keys.set(34, true)
	for _, tt := range []struct {
		events []string
		want   string
	}{
		{[]string{"dropped", "syn"}, "key 34=1"},
		{[]string{"key 34=1", "syn", "key 34=0", "syn"}, "key 34=0"},
		{[]string{"key 34=1", "syn"}, "key 34=1"},
	} {
		f.send(t, stream(0, tt.events...))
		if r, err := d.Read(); err != nil || words(r.Events) != tt.want {
			t.Errorf("%v: %s, %v; want %s", tt.events, words(r.Events), err, tt.want)
		}
	}
}

// A report that has no end is lost, and not stored.
func TestReportBound(t *testing.T) {
	f := newFake(t, keyboard)
	d := f.start(t)
	go func() {
		for range 2 * maxReport {
			f.feed.Write(stream(0, "rel 0=1"))
		}
		f.mu.Lock()
		f.now.keys.set(30, true)
		f.mu.Unlock()
		f.feed.Write(stream(0, "syn"))
	}()
	r, err := d.Read()
	if err != nil || words(r.Events) != "key 30=1" || cap(d.asm.events) > 2*maxReport {
		t.Errorf("%v, %v; room for %d events", words(r.Events), err, cap(d.asm.events))
	}
}

func TestClose(t *testing.T) {
	f := newFake(t, keyboard)
	d := f.start(t)
	go d.Close()
	if _, err := d.Read(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open("/dev/input/nothing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no node: %v", err)
	}
	// Something that is no input device has none of its ioctls.
	if _, err := Open("/dev/null"); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("/dev/null: %v", err)
	}
}

func TestReadAllocs(t *testing.T) {
	f := newFake(t, keyboard)
	d := f.start(t)
	press, release := stream(0, "msc 4=30", "key 30=1", "syn"), stream(0, "key 30=0", "syn")
	n := testing.AllocsPerRun(1000, func() {
		f.feed.Write(press)
		f.feed.Write(release)
		for range 2 {
			if _, err := d.Read(); err != nil {
				t.Fatal(err)
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations in two reports", n)
	}
}

// quick is a node without a pipe, for the fuzzer.
type quick struct {
	*fake
	rest []byte
}

func (q *quick) Read(p []byte) (int, error) {
	n := copy(p, q.rest[:len(q.rest)/sizeEvent*sizeEvent]) // whole events, as the kernel's
	if q.rest = q.rest[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func FuzzStream(f *testing.F) {
	f.Add(stream(0, "key 30=1", "syn", "key 30=0", "syn"), true)
	f.Add(stream(0, "abs 47=1", "abs 57=3", "abs 53=4", "syn", "dropped", "key 30=1", "syn", "abs 57=-1", "syn"), false)
	f.Add(stream(0, "rel 0=1", "sw 0=1", "abs 47=-1", "abs 57=3", "abs 63=4", "syn"), true)
	f.Fuzz(func(t *testing.T, p []byte, pressed bool) {
		info := complete(screen)
		info.Props = make(Bits, roomSmall)
		info.Keys = bitsOf(hid.EVKey, hid.BtnTouch, hid.BtnToolFinger, hid.BtnLeft)
		q := &quick{&fake{info: info, masks: make(map[uint16]Bits)}, p}
		q.now = state{keys: bitsOf(hid.EVKey), sw: make(Bits, roomSmall), slots: make([]contactState, info.slots())}
		d, err := open(q, "event")
		if err != nil {
			t.Fatal(err)
		}
		q.now.keys.set(30, pressed)
		down := make(Bits, roomKeys)
		pad, direct := NewTranslator(d.Info(), Options{}), NewTranslator(&screen, Options{})
		for {
			r, err := d.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Events) == 0 || len(r.Events) > 3*maxReport {
				t.Fatalf("a report of %d events", len(r.Events))
			}
			for _, e := range r.Events {
				if e.Type == hid.EVSyn {
					t.Fatal("a report with EV_SYN")
				}
				if e.Type == hid.EVKey && e.Code <= hid.KeyMax {
					if down.Has(e.Code) == (e.Value == 1) {
						t.Fatalf("key %d: value %d, down %v", e.Code, e.Value, down.Has(e.Code))
					}
					down.set(e.Code, e.Value != 0)
				}
			}
			pad.Translate(r, func(_ time.Duration, batch []hid.Event) {
				if len(batch) == 0 {
					t.Fatal("an empty batch")
				}
			})
			direct.Translate(r, func(_ time.Duration, batch []hid.Event) {
				for _, e := range batch {
					if e.Type == hid.EVAbs && e.Code != hid.AbsMTSlot && e.Code != hid.AbsMTTrackingID && (e.Value < 0 || e.Value > hid.AbsMax) {
						t.Fatalf("axis %#x at %d", e.Code, e.Value)
					}
				}
			})
		}
	})
}

func TestStream(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	d := NewStream(r, &Info{Path: "a stream"})
	var p []byte
	for _, e := range []hid.Event{{Type: hid.EVKey, Code: hid.KeyA, Value: 1}, {}, {Type: hid.EVKey, Code: hid.KeyA, Value: 1}, {}, {Type: hid.EVKey, Code: hid.KeyA}, {}} {
		p = putEvent(p, e)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int32{1, 0} { // a press of what is down says nothing new
		r, err := d.Read()
		if err != nil || len(r.Events) != 1 || r.Events[0] != (hid.Event{Type: hid.EVKey, Code: hid.KeyA, Value: want}) {
			t.Errorf("%+v, %v, want %d", r, err, want)
		}
	}
	if err := d.Grab(); err == nil {
		t.Error("a stream is grabbed")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Read(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
