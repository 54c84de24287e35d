package guest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hid/virtioinput"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

var _ hid.Sink = (*Input)(nil)

// fake is a device that writes down what it gets.
type fake struct {
	name string
	log  *[]string
	off  bool
	down hid.Keys
}

func (f *fake) Active() bool { return !f.off }

func (f *fake) ReleaseAll() {
	for code := range f.down.All() {
		f.note("release " + hid.KeyName(code))
	}
	f.down = hid.Keys{}
}

func (f *fake) Send(batch []hid.Event) {
	if f.off {
		return
	}
	var events []string
	for _, e := range batch {
		switch e.Type {
		case hid.EVKey:
			f.down.Set(e.Code, e.Value == 1)
			events = append(events, fmt.Sprintf("%s %d", hid.KeyName(e.Code), e.Value))
		case hid.EVRel:
			events = append(events, fmt.Sprintf("rel%d %d", e.Code, e.Value))
		case hid.EVAbs:
			events = append(events, fmt.Sprintf("abs%#x %d", e.Code, e.Value))
		}
	}
	f.note(strings.Join(events, ", "))
}

func (f *fake) note(s string) {
	if f.log != nil {
		*f.log = append(*f.log, f.name+": "+s)
	}
}

var placeNames = [places]string{virtioKeyboard: "keyboard", virtioMouse: "mouse", virtioTablet: "tablet", virtioTouch: "touch",
	ps2Keyboard: "ps2 keyboard", ps2Mouse: "ps2 mouse"}

// rig is an Input with fakes at given places.
type rig struct {
	Input
	fakes [places]*fake
	log   []string
}

func newRig(ps ...place) *rig {
	r := new(rig)
	for _, p := range ps {
		r.add(p)
	}
	return r
}

func (r *rig) add(p place) {
	r.fakes[p] = &fake{name: placeNames[p], log: &r.log}
	r.plug(p, r.fakes[p])
}

func (r *rig) turn(p place, on bool) {
	r.fakes[p].off = !on
	r.changed()
}

func (r *rig) expect(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, slices.Clone(r.log)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.log = nil
}

func key(code uint16, v int32) hid.Event { return hid.Event{Type: hid.EVKey, Code: code, Value: v} }
func rel(code uint16, v int32) hid.Event { return hid.Event{Type: hid.EVRel, Code: code, Value: v} }
func abs(code uint16, v int32) hid.Event { return hid.Event{Type: hid.EVAbs, Code: code, Value: v} }

func TestRouting(t *testing.T) {
	old := []place{ps2Keyboard, ps2Mouse}
	all := append([]place{virtioKeyboard, virtioMouse, virtioTablet, virtioTouch}, old...)
	for _, tc := range []struct {
		name    string
		places  []place
		batches [][]hid.Event
		want    []string
	}{
		{"keys", all, [][]hid.Event{{key(hid.KeyA, 1)}, {key(hid.KeyA, 2)}, {key(hid.KeyA, 0)}}, []string{"keyboard: a 1", "keyboard: a 0"}},
		{"keys of an old system", old, [][]hid.Event{{key(hid.KeyA, 1)}, {key(hid.KeyA, 0)}}, []string{"ps2 keyboard: a 1", "ps2 keyboard: a 0"}},
		{"a batch for three", all, [][]hid.Event{{key(hid.KeyA, 1), rel(hid.RelX, 1), key(hid.BtnLeft, 1), abs(hid.AbsMTSlot, 0), rel(hid.RelY, 2)}},
			[]string{"keyboard: a 1", "mouse: rel0 1, btn_left 1, rel1 2", "touch: abs0x2f 0"}},
		{"a button goes where the motion went", all, [][]hid.Event{{abs(hid.AbsX, 1)}, {key(hid.BtnLeft, 1)}, {rel(hid.RelX, 1)}, {key(hid.BtnRight, 1)},
			{key(hid.BtnLeft, 0), key(hid.BtnRight, 0)}},
			[]string{"tablet: abs0x0 1", "tablet: btn_left 1", "mouse: rel0 1", "mouse: btn_right 1", "mouse: btn_right 0", "tablet: btn_left 0"}},
		{"before any motion", all, [][]hid.Event{{key(hid.BtnLeft, 1)}}, []string{"tablet: btn_left 1"}},
		{"a wheel in notches", all, [][]hid.Event{{rel(hid.RelWheel, -1)}, {rel(hid.RelX, 1), rel(hid.RelHWheel, 2)}},
			[]string{"tablet: rel8 -1, rel11 -120", "mouse: rel0 1, rel6 2, rel12 240"}},
		{"a fine wheel", all, [][]hid.Event{{rel(hid.RelWheelHiRes, 70)}, {rel(hid.RelWheelHiRes, 70)}, {rel(hid.RelWheelHiRes, -110)}, {rel(hid.RelWheelHiRes, -10)}},
			[]string{"tablet: rel11 70", "tablet: rel8 1, rel11 70", "tablet: rel11 -110", "tablet: rel8 -1, rel11 -10"}},
		// As Linux tells them of most mice: the first notch is full at a half, the others after a whole one, and what there is
		// of one is forgotten when the wheel rests (between the 50 and the 60).
		{"a wheel that counts its notches", all, [][]hid.Event{{rel(hid.RelWheelHiRes, 40)}, {rel(hid.RelWheel, 1), rel(hid.RelWheelHiRes, 40)},
			{rel(hid.RelWheelHiRes, 80)}, {rel(hid.RelWheelHiRes, 50)}, {rel(hid.RelWheel, 1), rel(hid.RelWheelHiRes, 60)}, {rel(hid.RelWheelHiRes, -100)}},
			[]string{"tablet: rel11 40", "tablet: rel8 1, rel11 40", "tablet: rel11 80", "tablet: rel11 50", "tablet: rel8 1, rel11 60", "tablet: rel11 -100"}},
		{"a wheel with both", all, [][]hid.Event{{rel(hid.RelWheel, 1), rel(hid.RelWheelHiRes, 100)}}, []string{"tablet: rel8 1, rel11 100"}},
		{"positions without a tablet", old, [][]hid.Event{{abs(hid.AbsX, 0x4000), abs(hid.AbsY, 0x4000)}, {abs(hid.AbsX, 0x4100), abs(hid.AbsY, 0x3fff)},
			{abs(hid.AbsX, 0x4101), key(hid.BtnLeft, 1)}, {abs(hid.AbsX, 0xffff)}},
			[]string{"ps2 mouse: rel0 8, rel1 -1", "ps2 mouse: btn_left 1", "ps2 mouse: rel0 503"}},
		{"not for a guest", all, [][]hid.Event{{key(hid.BtnSouth, 1), key(hid.BtnTouch, 1), rel(hid.RelDial, 1), abs(hid.AbsZ, 1), {Type: hid.EVMsc, Code: hid.MscScan}, {}}, {}}, nil},
		{"a release without a press", all, [][]hid.Event{{key(hid.KeyA, 0), key(0xffff, 1)}}, nil},
		{"no devices", nil, [][]hid.Event{{key(hid.KeyA, 1), rel(hid.RelX, 1), abs(hid.AbsX, 1), abs(hid.AbsMTSlot, 1)}, {key(hid.KeyA, 0)}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(tc.places...)
			for _, b := range tc.batches {
				r.Send(b)
			}
			r.expect(t, tc.want...)
		})
	}
}

// The driver of a better device comes and goes while keys are held.
func TestTakeover(t *testing.T) {
	r := newRig(ps2Keyboard, virtioKeyboard)
	r.turn(virtioKeyboard, false)
	r.Send([]hid.Event{key(hid.KeyLeftCtrl, 1)})
	r.turn(virtioKeyboard, true)
	r.Send([]hid.Event{key(hid.KeyA, 1)})
	r.Send([]hid.Event{key(hid.KeyLeftCtrl, 0)}) // its press is forgotten
	r.turn(virtioKeyboard, false)                // releases what is down by itself, when its driver comes again
	r.Send([]hid.Event{key(hid.KeyA, 0)})
	r.Send([]hid.Event{key(hid.KeyA, 1)})
	r.expect(t, "ps2 keyboard: leftctrl 1", "ps2 keyboard: release leftctrl", "keyboard: a 1", "keyboard: release a", "ps2 keyboard: a 1")
}

// A guest that reboots has new devices. What was held in the old ones is over.
func TestReboot(t *testing.T) {
	r := newRig(ps2Keyboard, virtioKeyboard)
	r.Send([]hid.Event{key(hid.KeyA, 1)})
	before := r.fakes[virtioKeyboard]
	r.add(ps2Keyboard)
	r.add(virtioKeyboard)
	r.Send([]hid.Event{key(hid.KeyA, 0)})
	r.Send([]hid.Event{key(hid.KeyB, 1)})
	r.light(virtioKeyboard, before, hid.LEDCaps) // its last words
	r.expect(t, "keyboard: a 1", "keyboard: b 1")
	if r.LEDs() != 0 {
		t.Error("the old keyboard's lights are on")
	}
}

func TestReleaseAll(t *testing.T) {
	r := newRig(virtioKeyboard, ps2Mouse)
	r.Send([]hid.Event{key(hid.KeyLeftAlt, 1), key(hid.BtnLeft, 1), abs(hid.AbsX, 100)})
	r.ReleaseAll()
	r.Send([]hid.Event{key(hid.KeyLeftAlt, 0), key(hid.BtnLeft, 0), abs(hid.AbsX, 0x7000)}) // the pointer comes back elsewhere
	r.expect(t, "keyboard: leftalt 1", "ps2 mouse: btn_left 1", "keyboard: release leftalt", "ps2 mouse: release btn_left")
}

func TestLights(t *testing.T) {
	r := newRig(ps2Keyboard, virtioKeyboard)
	var got []hid.LEDs
	stop := r.OnLEDs(func(l hid.LEDs) { got = append(got, l) })
	r.light(virtioKeyboard, r.fakes[virtioKeyboard], hid.LEDCaps)
	r.light(virtioKeyboard, r.fakes[virtioKeyboard], hid.LEDCaps)
	r.light(ps2Keyboard, r.fakes[ps2Keyboard], hid.LEDNum) // not the one in use
	r.turn(virtioKeyboard, false)
	if r.LEDs() != hid.LEDNum {
		t.Errorf("lights %#x", r.LEDs())
	}
	stop()
	r.turn(virtioKeyboard, true)
	if diff := cmp.Diff([]hid.LEDs{hid.LEDCaps, hid.LEDNum}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWantsAbsolute(t *testing.T) {
	r := newRig(ps2Mouse)
	var got []bool
	stop := r.OnWantsAbsolute(func(b bool) { got = append(got, b) })
	r.SetSize(1920, 1080)
	r.Send([]hid.Event{abs(hid.AbsX, 0)})
	r.Send([]hid.Event{abs(hid.AbsX, 0x4000)})
	r.add(virtioTablet)
	if !r.WantsAbsolute() {
		t.Error("a guest with a tablet does not want positions")
	}
	r.Send([]hid.Event{abs(hid.AbsX, 0)})
	r.turn(virtioTablet, false)
	r.Send([]hid.Event{abs(hid.AbsX, 0x4000)}) // no jump
	stop()
	r.turn(virtioTablet, true)
	r.expect(t, "ps2 mouse: rel0 960", "tablet: abs0x0 0")
	if diff := cmp.Diff([]bool{true, false}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestNothingSticks: whatever a person, the guest's drivers and the machine do, and in whatever order, no device that is in
// use has anything down that the person has let go of, nor has any other anything down.
func TestNothingSticks(t *testing.T) {
	codes := []uint16{hid.KeyLeftCtrl, hid.KeyA, hid.BtnLeft}
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig()
		var held hid.Keys
		which := rapid.Map(rapid.IntRange(1, int(places)-1), func(i int) place { return place(i) })
		rt.Repeat(map[string]func(*rapid.T){
			"": func(rt *rapid.T) {
				count := 0
				for p, f := range r.fakes {
					if f == nil {
						continue
					}
					for code := range f.down.All() {
						if count++; !held.Has(code) {
							rt.Fatalf("%s sticks in the %s", hid.KeyName(code), placeNames[p])
						}
					}
				}
				if count > len(slices.Collect(held.All())) {
					rt.Fatal("a key is down in two devices")
				}
			},
			"key": func(rt *rapid.T) {
				code := rapid.SampledFrom(codes).Draw(rt, "key")
				down := !held.Has(code)
				held.Set(code, down)
				v := int32(0)
				if down {
					v = 1
				}
				r.Send([]hid.Event{key(code, v)})
			},
			"move":  func(*rapid.T) { r.Send([]hid.Event{rel(hid.RelX, 1)}) },
			"point": func(*rapid.T) { r.Send([]hid.Event{abs(hid.AbsX, 1)}) },
			"plug":  func(rt *rapid.T) { r.add(which.Draw(rt, "place")) },
			"driver": func(rt *rapid.T) {
				if p := which.Draw(rt, "place"); r.fakes[p] != nil {
					r.fakes[p].ReleaseAll() // as a device does when its driver comes or goes
					r.turn(p, r.fakes[p].off)
				}
			},
			"release all": func(*rapid.T) { r.ReleaseAll() },
		})
	})
}

// The real devices: a guest starts with PS/2, and its virtio drivers come.
func TestDevices(t *testing.T) {
	var g Input
	var leds []hid.LEDs
	g.OnLEDs(func(l hid.LEDs) { leds = append(leds, l) })
	k, m := g.PS2Keyboard(func() {}), g.PS2Mouse(func() {})
	for _, c := range []interface {
		Resume() error
		Pause() error
	}{k, m} {
		if err := c.Resume(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Pause() })
	}
	next := func(d interface{ Next() (byte, bool) }) (s string) {
		for b, ok := d.Next(); ok; b, ok = d.Next() {
			s += fmt.Sprintf("%02x ", b)
		}
		return s
	}
	m.Write(0xf4)
	k.Write(0xed)
	k.Write(4)
	next(k)
	next(m)
	g.Send([]hid.Event{key(hid.KeyA, 1), key(hid.BtnLeft, 1), rel(hid.RelX, 2)})
	if got := next(k) + next(m); got != "1c 09 02 00 " {
		t.Errorf("read %s", got)
	}
	var rigs []*virtiotest.Rig
	for kind := virtioinput.Keyboard; kind <= virtioinput.Touch; kind++ {
		d, err := g.Virtio(kind)()
		if err != nil {
			t.Fatal(err)
		}
		rigs = append(rigs, start(t, d))
	}
	if got := next(k) + next(m); got != "f0 1c 08 00 00 " {
		t.Errorf("after the takeover: read %s", got)
	}
	if !g.WantsAbsolute() || g.LEDs() != 0 {
		t.Errorf("wants positions: %v, lights: %v", g.WantsAbsolute(), g.LEDs())
	}
	g.Send([]hid.Event{key(hid.KeyB, 1), abs(hid.AbsX, 7), rel(hid.RelY, 1), abs(hid.AbsMTTrackingID, 1)})
	for kind, want := range []int{2, 2, 2, 4} { // events: what was sent and EV_SYN; the slot and BTN_TOUCH
		for range want {
			rigs[kind].Queues[0].Wait()
		}
	}
	if got := next(k) + next(m); got != "" {
		t.Errorf("PS/2 also gets %s", got)
	}
	rigs[virtioinput.Keyboard].Stop()
	g.Send([]hid.Event{key(hid.KeyC, 1)})
	if got := next(k); got != "21 " {
		t.Errorf("after the driver has gone: read %s", got)
	}
	if diff := cmp.Diff([]hid.LEDs{hid.LEDCaps, 0, hid.LEDCaps}, leds); diff != "" {
		t.Errorf("lights (-want +got):\n%s", diff)
	}
	if _, err := g.Virtio(virtioinput.Touch + 1)(); err == nil {
		t.Error("a device of no kind")
	}
}

// start starts a driver that has given the device buffers.
func start(t *testing.T, d virtio.Device) *virtiotest.Rig {
	t.Helper()
	r := virtiotest.New(t, d, 0)
	for range 8 {
		r.Queues[0].Send(r.In(8))
	}
	return r
}

func TestAllocs(t *testing.T) {
	r := newRig()
	for p := virtioKeyboard; p < places; p++ {
		r.plug(p, sinkhole{})
	}
	batch := []hid.Event{key(hid.KeyA, 1), rel(hid.RelX, 1), rel(hid.RelWheel, 1), abs(hid.AbsX, 3), key(hid.KeyA, 0)}
	if n := testing.AllocsPerRun(1000, func() { r.Send(batch) }); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

func BenchmarkSend(b *testing.B) {
	r := newRig()
	for p := virtioKeyboard; p < places; p++ {
		r.plug(p, sinkhole{})
	}
	batch := []hid.Event{rel(hid.RelX, 1), rel(hid.RelY, 1)}
	b.ReportAllocs()
	for b.Loop() {
		r.Send(batch)
	}
}

type sinkhole struct{}

func (sinkhole) Send([]hid.Event) {}
func (sinkhole) ReleaseAll()      {}
func (sinkhole) Active() bool     { return true }
