package virtioinput

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

var names = map[Kind]string{Keyboard: "keyboard", Mouse: "mouse", Tablet: "tablet", Touch: "touch"}

func TestSuite(t *testing.T) {
	for kind, name := range names {
		t.Run(name, func(t *testing.T) {
			virtiotest.Suite(t, func(t testing.TB) virtio.Device { return newDevice(t, kind, Config{}) })
		})
	}
}

// probed is what Linux's driver learns of a device.
type probed struct {
	Name, Serial                     string
	Bus, Vendor, Product, Version    uint16
	Props                            []uint16
	Keys                             string // ranges
	Rel, Abs, LED, Rep               []uint16
	AbsMax                           []uint32
	KeyBytes                         int
	EVMscBits, EVSwitchBits, Nothing int // sizes
}

// probe reads the configuration as Linux's virtio_input does: byte by byte the selectors and the size, then as much as that
// says.
func probe(d *Device) (p probed) {
	le := binary.LittleEndian
	sel := func(sel, subsel byte) []byte {
		d.WriteConfig(0, []byte{sel})
		d.WriteConfig(1, []byte{subsel})
		var size [1]byte
		d.ReadConfig(2, size[:])
		b := make([]byte, size[0])
		d.ReadConfig(8, b)
		return b
	}
	codes := func(b []byte) (codes []uint16) {
		for i := range 8 * len(b) {
			if b[i/8]>>(i%8)&1 != 0 {
				codes = append(codes, uint16(i))
			}
		}
		return codes
	}
	p.Name, p.Serial = string(sel(1, 0)), string(sel(2, 0))
	ids := sel(3, 0)
	p.Bus, p.Vendor, p.Product, p.Version = le.Uint16(ids), le.Uint16(ids[2:]), le.Uint16(ids[4:]), le.Uint16(ids[6:])
	p.Props = codes(sel(0x10, 0))
	keys := sel(0x11, hid.EVKey)
	p.KeyBytes = len(keys)
	p.Keys = ranges(codes(keys))
	p.Rel, p.Abs = codes(sel(0x11, hid.EVRel)), codes(sel(0x11, hid.EVAbs))
	p.LED, p.Rep = codes(sel(0x11, hid.EVLED)), codes(sel(0x11, hid.EVRep))
	for _, a := range p.Abs {
		info := sel(0x12, byte(a))
		p.AbsMax = append(p.AbsMax, le.Uint32(info[4:]))
	}
	p.EVMscBits, p.EVSwitchBits = len(sel(0x11, hid.EVMsc)), len(sel(0x11, hid.EVSW))
	p.Nothing = len(sel(0, 0)) + len(sel(1, 1)) + len(sel(4, 0)) + len(sel(0x12, 0x3f)) + len(sel(0xff, 0xff))
	return p
}

func ranges(codes []uint16) string {
	var s []string
	for i := 0; i < len(codes); {
		j := i
		for j+1 < len(codes) && codes[j+1] == codes[j]+1 {
			j++
		}
		s = append(s, fmt.Sprintf("%#x-%#x", codes[i], codes[j]))
		i = j + 1
	}
	return strings.Join(s, " ")
}

func TestConfig(t *testing.T) {
	wheels := []uint16{hid.RelHWheel, hid.RelWheel, hid.RelWheelHiRes, hid.RelHWheelHiRes}
	for kind, want := range map[Kind]probed{
		Keyboard: {Name: "Lodge keyboard", Serial: "head 1", Bus: 6, Vendor: 0x1af4, Product: 1, Version: 1,
			Keys: "0x1-0xff 0x160-0x21f 0x224-0x2bf", KeyBytes: 88, LED: []uint16{0, 1, 2}, Rep: []uint16{0, 1}},
		Mouse: {Name: "Lodge mouse", Serial: "head 1", Bus: 6, Vendor: 0x1af4, Product: 2, Version: 1,
			Keys: "0x110-0x117", KeyBytes: 35, Rel: append([]uint16{hid.RelX, hid.RelY}, wheels...)},
		Tablet: {Name: "Lodge tablet", Serial: "head 1", Bus: 6, Vendor: 0x1af4, Product: 3, Version: 1,
			Keys: "0x110-0x117", KeyBytes: 35, Rel: wheels, Abs: []uint16{hid.AbsX, hid.AbsY}, AbsMax: []uint32{0x7fff, 0x7fff}},
		Touch: {Name: "Lodge touch screen", Serial: "head 1", Bus: 6, Vendor: 0x1af4, Product: 4, Version: 1,
			Props: []uint16{hid.PropDirect}, Keys: "0x14a-0x14a", KeyBytes: 42,
			Abs:    []uint16{hid.AbsMTSlot, hid.AbsMTPositionX, hid.AbsMTPositionY, hid.AbsMTTrackingID},
			AbsMax: []uint32{9, 0x7fff, 0x7fff, 0xffff}},
	} {
		t.Run(names[kind], func(t *testing.T) {
			d := newDevice(t, kind, Config{Serial: "head 1"})
			if diff := cmp.Diff(want, probe(d)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			d.WriteConfig(2, []byte{9, 9, 9}) // size is the device's
			d.WriteConfig(0, []byte{2, 0, 7, 7})
			var b [16]byte
			if d.ReadConfig(0, b[:]); string(b[:]) != "\x02\x00\x06\x00\x00\x00\x00\x00head 1\x00\x00" {
				t.Errorf("reads %q", b)
			}
			if n := testing.AllocsPerRun(100, func() { d.WriteConfig(0, b[:2]); d.ReadConfig(0, b[:]) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for name, try := range map[string]func() error{
		"kind":   func() error { _, err := New(Touch+1, Config{}); return err },
		"serial": func() error { _, err := New(Mouse, Config{Serial: strings.Repeat("x", 64)}); return err },
	} {
		if try() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReports(t *testing.T) {
	const slot, id, x, y = hid.AbsMTSlot, hid.AbsMTTrackingID, hid.AbsMTPositionX, hid.AbsMTPositionY
	mark := map[Kind][]hid.Event{ // a batch that always becomes a report: what comes before it is complete
		Keyboard: {key(hid.KeyF24, 1)}, Mouse: {rel(hid.RelX, 99)}, Tablet: {abs(hid.AbsX, 99)},
	}
	for _, tc := range []struct {
		name    string
		kind    Kind
		batches [][]hid.Event
		want    [][]string
	}{
		{"a key", Keyboard, [][]hid.Event{{key(hid.KeyA, 1)}, {key(hid.KeyA, 0)}}, [][]string{{"a 1"}, {"a 0"}}},
		{"two keys at once", Keyboard, [][]hid.Event{{key(hid.KeyLeftCtrl, 1), key(hid.KeyC, 1)}}, [][]string{{"leftctrl 1", "c 1"}}},
		{"repeats are the driver's", Keyboard, [][]hid.Event{{key(hid.KeyA, 1)}, {key(hid.KeyA, 2)}, {key(hid.KeyA, 1)}}, [][]string{{"a 1"}}},
		{"a release without a press", Keyboard, [][]hid.Event{{key(hid.KeyA, 0)}}, nil},
		{"codes that the device does not have", Keyboard, [][]hid.Event{{key(hid.BtnLeft, 1), rel(hid.RelX, 1), abs(hid.AbsX, 1)},
			{{Type: hid.EVMsc, Code: hid.MscScan, Value: 30}}, {}, {{}}, {key(0, 1)}, {key(0xffff, 1)}}, nil},
		{"a scan code beside its key", Keyboard, [][]hid.Event{{{Type: hid.EVMsc, Code: hid.MscScan, Value: 30}, key(hid.KeyA, 1)}}, [][]string{{"a 1"}}},

		{"motion and wheels", Mouse, [][]hid.Event{{rel(hid.RelX, -5), rel(hid.RelY, 7)},
			{rel(hid.RelWheel, 1), rel(hid.RelWheelHiRes, 120)}, {rel(hid.RelHWheelHiRes, -15)}},
			[][]string{{"rel 0 -5", "rel 1 7"}, {"rel 8 1", "rel 11 120"}, {"rel 12 -15"}}},
		{"no motion", Mouse, [][]hid.Event{{rel(hid.RelX, 0), rel(hid.RelDial, 3)}}, nil},
		{"drag", Mouse, [][]hid.Event{{key(hid.BtnLeft, 1)}, {rel(hid.RelX, 3)}, {key(hid.BtnLeft, 0)}},
			[][]string{{"btn_left 1"}, {"rel 0 3"}, {"btn_left 0"}}},

		{"positions are kept in bounds", Tablet, [][]hid.Event{{abs(hid.AbsX, 0x7fff), abs(hid.AbsY, 0)}, {abs(hid.AbsX, 0x8000), abs(hid.AbsY, -1)}},
			[][]string{{"abs 0x0 32767", "abs 0x1 0"}, {"abs 0x0 32767", "abs 0x1 0"}}},
		{"click and scroll", Tablet, [][]hid.Event{{abs(hid.AbsX, 5), key(hid.BtnLeft, 1)}, {rel(hid.RelWheel, -1), rel(hid.RelX, 1)}},
			[][]string{{"abs 0x0 5", "btn_left 1"}, {"rel 8 -1"}}},

		{"a contact", Touch, [][]hid.Event{{abs(slot, 0), abs(id, 7), abs(x, 1), abs(y, 2), key(hid.BtnTouch, 1)}, {abs(x, 3)}, {abs(id, -1), key(hid.BtnTouch, 0)}},
			[][]string{{"abs 0x2f 0", "abs 0x39 7", "abs 0x35 1", "abs 0x36 2", "btn_touch 1"}, {"abs 0x2f 0", "abs 0x35 3"},
				{"abs 0x2f 0", "abs 0x39 -1", "btn_touch 0"}}},
		{"two contacts", Touch, [][]hid.Event{{abs(id, 1), abs(x, 1), abs(slot, 1), abs(id, 2), abs(x, 2)}, {abs(slot, 0), abs(id, -1)}, {abs(slot, 1), abs(x, 9)}, {abs(id, -5)}},
			[][]string{{"abs 0x2f 0", "abs 0x39 1", "abs 0x35 1", "abs 0x2f 1", "abs 0x39 2", "abs 0x35 2", "btn_touch 1"},
				{"abs 0x2f 0", "abs 0x39 -1"}, {"abs 0x2f 1", "abs 0x35 9"}, {"abs 0x2f 1", "abs 0x39 -1", "btn_touch 0"}}},
		{"contacts that are not there", Touch, [][]hid.Event{{abs(slot, 10), abs(id, 1), abs(x, 1)}, {abs(slot, -1), abs(id, 1)}, {abs(slot, 3), abs(x, 1)},
			{abs(id, -1)}, {key(hid.BtnTouch, 1)}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := newDriver(t, tc.kind, Config{}, maxReport)
			for _, b := range tc.batches {
				v.dev.Send(b)
			}
			v.expect(tc.want...)
			if m := mark[tc.kind]; m != nil {
				v.dev.Send(m)
				v.expect([]string{short(m[0])})
			} else {
				v.quiet()
			}
		})
	}
}

// A batch that is longer than a report can be comes in several.
func TestLongBatch(t *testing.T) {
	v := newDriver(t, Keyboard, Config{}, maxReport)
	var batch []hid.Event
	var want []string
	for code := uint16(hid.KeyEsc); code <= 100; code++ {
		batch = append(batch, key(code, 1))
		want = append(want, short(batch[len(batch)-1]))
	}
	v.dev.Send(batch)
	v.expect(want[:maxReport-1], want[maxReport-1:])
}

// The driver sees all of a report or nothing, and it is interrupted once.
func TestWhole(t *testing.T) {
	v := newDriver(t, Mouse, Config{}, 0)
	v.dev.Send([]hid.Event{rel(hid.RelX, 1), rel(hid.RelY, 2), key(hid.BtnLeft, 1)})
	v.give(3)
	v.quiet()
	v.give(1)
	for _, want := range []hid.Event{rel(hid.RelX, 1), rel(hid.RelY, 2), key(hid.BtnLeft, 1), {}} {
		if got := v.event(false); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	select {
	case <-v.q.Interrupts:
	case <-time.After(10 * time.Second):
		t.Error("no interrupt")
	}
}

// A queue that is shorter than a report gets it in pieces.
func TestShortQueue(t *testing.T) {
	d := newDevice(t, Mouse, Config{})
	r := virtiotest.New(t, &shortQueue{d}, 0)
	v := &driver{Rig: r, dev: d, q: r.Queues[eventQueue], addr: make(map[uint16]mem.GPA)}
	v.give(2)
	d.Send([]hid.Event{rel(hid.RelX, 1), rel(hid.RelY, 2), key(hid.BtnLeft, 1), key(hid.BtnRight, 1)})
	v.expect([]string{"rel 0 1", "rel 1 2", "btn_left 1", "btn_right 1"})
}

// shortQueue is a device whose driver has made the eventq short.
type shortQueue struct{ *Device }

func (shortQueue) QueueSizes() []uint16 { return []uint16{2, 2} }

// While the driver has no buffers, motion gives way to newer motion, and presses stay.
func TestOverflow(t *testing.T) {
	v := newDriver(t, Mouse, Config{}, 0)
	v.dev.Send([]hid.Event{key(hid.BtnLeft, 1)})
	const moves = 2 * fifoSize
	for i := range int32(moves) {
		v.dev.Send([]hid.Event{rel(hid.RelX, i+1)})
		if i == 5 {
			v.dev.Send([]hid.Event{rel(hid.RelY, 1), key(hid.BtnLeft, 0)})
		}
	}
	v.give(maxReport)
	v.expect([]string{"btn_left 1"}, []string{"rel 1 1", "btn_left 0"})
	const rest = (fifoSize - 2 - 3) / 2 // moves that found room beside the clicks
	for i := int32(moves - rest); i < moves; i++ {
		v.expect([]string{fmt.Sprintf("rel 0 %d", i+1)})
	}
	v.quiet()
}

// A driver that takes no keys for long learns that they are all up, and then of new ones.
func TestFlood(t *testing.T) {
	v := newDriver(t, Keyboard, Config{}, 2)
	v.dev.Send([]hid.Event{key(hid.KeyLeftShift, 1)})
	for range 2 {
		v.event(false)
	}
	for i := range int32(fifoSize) {
		v.dev.Send([]hid.Event{key(hid.KeyA, 1-i%2)})
	}
	v.dev.Send([]hid.Event{key(hid.KeyLeftShift, 0)})
	v.give(maxReport - 2)
	if got := v.report(); got[0] != "leftshift 0" {
		t.Errorf("first report after the flood: %v", got)
	}
	v.dev.Send([]hid.Event{key(hid.KeyF24, 1)})
	for !v.down.Has(hid.KeyF24) {
		v.report()
	}
	if diff := cmp.Diff([]uint16{hid.KeyF24}, slices.Collect(v.down.All())); diff != "" {
		t.Errorf("down (-want +got):\n%s", diff)
	}
}

// A long report waits for buffers, and a short one takes its place, for which there are enough.
func TestFloodWhileWaiting(t *testing.T) {
	v := newDriver(t, Keyboard, Config{}, 2)
	v.dev.Send([]hid.Event{key(hid.KeyLeftShift, 1)})
	for range 2 {
		v.event(false)
	}
	v.dev.Send([]hid.Event{key(hid.KeyB, 1), key(hid.KeyC, 1), key(hid.KeyD, 1)})
	v.give(3)
	v.quiet()
	for i := range int32(fifoSize) {
		v.dev.Send([]hid.Event{key(hid.KeyA, 1-i%2)})
	}
	if got := v.event(false); got != key(hid.KeyLeftShift, 0) {
		t.Errorf("%+v, want the release of what was down", got)
	}
}

func TestReleaseAll(t *testing.T) {
	v := newDriver(t, Keyboard, Config{}, maxReport)
	v.dev.Send([]hid.Event{key(hid.KeyLeftAlt, 1)})
	v.dev.Send([]hid.Event{key(hid.KeyTab, 1)})
	v.dev.ReleaseAll()
	v.dev.ReleaseAll()                              // nothing is left
	v.dev.Send([]hid.Event{key(hid.KeyLeftAlt, 0)}) // nobody knows that it was down
	v.dev.Send([]hid.Event{key(hid.KeyB, 1)})
	v.expect([]string{"leftalt 1"}, []string{"tab 1"}, []string{"tab 0", "leftalt 0"}, []string{"b 1"})

	touch := newDriver(t, Touch, Config{}, maxReport)
	touch.dev.Send([]hid.Event{abs(hid.AbsMTSlot, 2), abs(hid.AbsMTTrackingID, 5)})
	touch.dev.ReleaseAll()
	touch.expect([]string{"abs 0x2f 2", "abs 0x39 5", "btn_touch 1"}, []string{"abs 0x2f 2", "abs 0x39 -1", "btn_touch 0"})
}

// A pause releases what was down when it ends; what the person did meanwhile is not for the guest.
func TestPause(t *testing.T) {
	v := newDriver(t, Keyboard, Config{}, maxReport)
	v.dev.Send([]hid.Event{key(hid.KeyA, 1)})
	v.expect([]string{"a 1"})
	v.Stop()
	v.dev.Send([]hid.Event{key(hid.KeyA, 0)})
	v.dev.Send([]hid.Event{key(hid.KeyB, 1)})
	v.Start()
	v.dev.Send([]hid.Event{key(hid.KeyB, 0)})
	v.dev.Send([]hid.Event{key(hid.KeyC, 1)})
	v.expect([]string{"a 0"}, []string{"c 1"})
}

// The driver that comes after a reset knows of nothing.
func TestReset(t *testing.T) {
	v := newDriver(t, Keyboard, Config{}, maxReport)
	v.dev.Send([]hid.Event{key(hid.KeyA, 1)})
	v.expect([]string{"a 1"})
	v.Stop()
	v.dev.Reset()
	v.Start()
	v.dev.Send([]hid.Event{key(hid.KeyA, 0)})
	v.dev.Send([]hid.Event{key(hid.KeyB, 1)})
	v.expect([]string{"b 1"})
}

// What was down when a guest was saved is released in the one that is restored; what had not been delivered is not told.
func TestRestore(t *testing.T) {
	v := newDriver(t, Touch, Config{}, 6)
	v.dev.Send([]hid.Event{abs(hid.AbsMTSlot, 4), abs(hid.AbsMTTrackingID, 5)})
	for range 4 {
		v.event(false)
	}
	v.dev.Send([]hid.Event{abs(hid.AbsMTSlot, 5), abs(hid.AbsMTTrackingID, 6)}) // no buffers for it
	v.Stop()
	state := saved(t, v.dev)

	d := newDevice(t, Touch, Config{})
	if err := load(d, state); err != nil {
		t.Fatal(err)
	}
	r := virtiotest.New(t, d, 0)
	w := &driver{Rig: r, dev: d, q: r.Queues[eventQueue], addr: make(map[uint16]mem.GPA)}
	w.give(maxReport)
	d.Send([]hid.Event{abs(hid.AbsMTSlot, 5), abs(hid.AbsMTPositionX, 6)})
	d.Send([]hid.Event{abs(hid.AbsMTSlot, 1), abs(hid.AbsMTTrackingID, 7)})
	w.expect([]string{"abs 0x2f 4", "abs 0x39 -1", "btn_touch 0"}, []string{"abs 0x2f 1", "abs 0x39 7", "btn_touch 1"})

	if err := load(newDevice(t, Tablet, Config{}), state); err == nil {
		t.Error("a tablet takes the state of a touch screen")
	}
	for i, bad := range map[int]byte{10: 8, 11: 2, 11 + 96: 0xff, 11 + 96 + 1: 0xff, 11 + 96 + 2: 10} { // lights, keys, contacts, slot
		b := slices.Clone(state)
		b[i] = bad
		if err := load(newDevice(t, Touch, Config{}), b); err == nil && i != 11+96 {
			t.Errorf("byte %d set to %d: no error", i, bad)
		}
	}
}

func TestLEDs(t *testing.T) {
	var now atomic.Uint32
	v := newDriver(t, Keyboard, Config{LEDs: func(l hid.LEDs) { now.Store(uint32(l)) }}, 8)
	expect := func(want hid.LEDs) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); hid.LEDs(now.Load()) != want; time.Sleep(10 * time.Microsecond) {
			if time.Now().After(deadline) {
				t.Fatalf("lights %#x, want %#x", now.Load(), want)
			}
		}
	}
	v.led(hid.LEDCapsL, 1)
	expect(hid.LEDCaps)
	v.led(hid.LEDNumL, 1)
	expect(hid.LEDCaps | hid.LEDNum)
	v.led(hid.LEDCompose, 1) // not ours
	v.led(hid.LEDCapsL, 0)
	expect(hid.LEDNum)
	v.Stop()
	state := saved(t, v.dev)
	v.dev.Reset()
	expect(0)
	if err := load(v.dev, state); err != nil {
		t.Fatal(err)
	}
	v.Start()
	expect(hid.LEDNum)
}

func TestBroken(t *testing.T) {
	for name, spoil := range map[string]func(*driver){
		"short event buffer": func(v *driver) {
			v.q.Send(v.In(eventSize - 1))
			v.dev.Send([]hid.Event{key(hid.KeyA, 1)})
		},
		"readable event buffer": func(v *driver) {
			v.q.Send(v.Out(make([]byte, eventSize)))
			v.dev.Send([]hid.Event{key(hid.KeyA, 1)})
		},
		"short status": func(v *driver) { v.Queues[statusQueue].Send(v.Out(make([]byte, eventSize-1))) },
		"empty status": func(v *driver) { v.Queues[statusQueue].Send(v.In(eventSize)) },
	} {
		t.Run(name, func(t *testing.T) {
			v := newDriver(t, Keyboard, Config{}, 0)
			spoil(v)
			select {
			case err := <-v.Broken:
				if !virtio.IsProtocol(err) {
					t.Errorf("broken with %v, want the driver's error", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("not broken")
			}
		})
	}
}

// Active follows the driver, and Changed is called when it has changed.
func TestActive(t *testing.T) {
	var calls atomic.Int32
	d := newDevice(t, Mouse, Config{Changed: func() { calls.Add(1) }})
	if d.Active() {
		t.Error("active without a driver")
	}
	r := virtiotest.New(t, d, 0)
	if !d.Active() || calls.Load() != 1 {
		t.Errorf("active %v after the start, %d calls", d.Active(), calls.Load())
	}
	r.Stop()
	if d.Active() || calls.Load() != 2 {
		t.Errorf("active %v after the stop, %d calls", d.Active(), calls.Load())
	}
}

// TestNothingSticks: whatever a person, the guest and the machine do, and in whatever order, the driver ends with nothing
// down that the person has let go of.
func TestNothingSticks(t *testing.T) {
	keys := []uint16{hid.KeyLeftCtrl, hid.KeyA, hid.KeyB}
	rapid.Check(t, func(rt *rapid.T) {
		s := &scoped{TB: t, rt: rt}
		defer s.end()
		v := newDriver(s, Keyboard, Config{}, rapid.IntRange(0, 4).Draw(rt, "buffers"))
		var held hid.Keys // by the person
		given := len(v.addr)
		rt.Repeat(map[string]func(*rapid.T){
			"key": func(rt *rapid.T) {
				code := rapid.SampledFrom(keys).Draw(rt, "key")
				down := !held.Has(code)
				held.Set(code, down)
				v.dev.Send([]hid.Event{key(code, value(down))})
			},
			"flood": func(*rapid.T) {
				for i := range int32(fifoSize) {
					v.dev.Send([]hid.Event{key(hid.KeyF24, 1-i%2)})
				}
			},
			"release all": func(*rapid.T) { v.dev.ReleaseAll() },
			"pause":       func(*rapid.T) { v.Stop(); v.Start() },
			"reset": func(*rapid.T) {
				v.Stop()
				for v.q.Used() > 0 {
					v.event(false)
					given--
				}
				v.dev.Reset()
				v.down = hid.Keys{}
				v.Start()
			},
			"give": func(rt *rapid.T) {
				if n := rapid.IntRange(1, 3).Draw(rt, "n"); given+n <= maxReport {
					v.give(n)
					given += n
				}
			},
		})
		v.give(maxReport - given)
		for !v.down.Has(hid.KeyEsc) { // a mark: all before it has been delivered then
			v.dev.Send([]hid.Event{key(hid.KeyEsc, 1)}) // again, as a full FIFO does not take it
			if v.q.Used() > 0 {
				v.event(true)
			}
			runtime.Gosched()
		}
		for code := range v.down.All() {
			if code != hid.KeyEsc && !held.Has(code) {
				rt.Fatalf("%s sticks", hid.KeyName(code))
			}
		}
	})
}

func TestAllocs(t *testing.T) {
	v := newDriver(t, Mouse, Config{}, maxReport)
	batch := []hid.Event{rel(hid.RelX, 1), rel(hid.RelY, -1)}
	if n := testing.AllocsPerRun(1000, func() {
		v.dev.Send(batch)
		for range 3 {
			v.event(true)
		}
	}); n != 0 {
		t.Errorf("%v allocations a report", n)
	}
}

// BenchmarkSend is from Send until the driver sees the report in the used ring.
func BenchmarkSend(b *testing.B) {
	v := newDriver(b, Keyboard, Config{}, maxReport)
	down, up := []hid.Event{key(hid.KeyA, 1)}, []hid.Event{key(hid.KeyA, 0)}
	b.ReportAllocs()
	for b.Loop() {
		v.dev.Send(down)
		v.event(true)
		v.event(true)
		down, up = up, down
	}
}

// FuzzVirtioInput has a driver do with both queues and the configuration what the fuzzer thinks up, while events come.
func FuzzVirtioInput(f *testing.F) {
	f.Add(byte(0), []byte{1, 1, 1, 1}, []byte{0, 1, 17, 0, 1, 0, 1, 0, 0, 0})
	f.Add(byte(3), []byte{1, 1}, []byte{0, 1, 17, 0, 0, 0, 1, 0, 0, 0})
	f.Add(byte(2), []byte{0x81, 1}, []byte{0x11, 3})
	f.Fuzz(func(t *testing.T, kind byte, events, status []byte) {
		d := newDevice(t, Kind(kind)%(Touch+1), Config{})
		r := virtiotest.New(t, d, 0)
		for i, b := range status {
			d.WriteConfig(uint32(i%3), []byte{b})
			d.ReadConfig(uint32(b), make([]byte, 16))
		}
		for _, c := range virtiotest.Descs(r, events) {
			r.Queues[eventQueue].Send(c)
		}
		r.Queues[statusQueue].Send(virtiotest.Descs(r, status)...)
		for i, b := range events {
			d.Send([]hid.Event{{Type: uint16(b % 8), Code: uint16(b) << 1, Value: int32(i)}, key(uint16(b), int32(i%2)),
				abs(hid.AbsMTSlot, int32(b%16)), abs(hid.AbsMTTrackingID, int32(i%3)-1)})
		}
		r.Stop()
		if err := load(newDevice(t, d.kind, Config{}), saved(t, d)); err != nil {
			t.Fatal(err)
		}
	})
}
