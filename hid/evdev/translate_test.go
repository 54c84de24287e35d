package evdev

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hid"
)

func TestTranslate(t *testing.T) {
	mouse := Info{Rel: bitsOf(hid.EVRel, hid.RelX, hid.RelY, hid.RelWheel, hid.RelHWheel), Keys: bitsOf(hid.EVKey, hid.BtnLeft)}
	fine := mouse
	fine.Rel = bitsOf(hid.EVRel, hid.RelX, hid.RelY, hid.RelWheel, hid.RelWheelHiRes)
	tablet := Info{Axes: map[uint16]Axis{hid.AbsX: {Max: 32767}, hid.AbsY: {Min: -1000, Max: 1000}, hid.AbsPressure: {Max: 10}},
		Keys: bitsOf(hid.EVKey, hid.BtnToolPen, hid.BtnTouch, hid.BtnStylus, hid.BtnStylus2)}
	single := Info{Axes: map[uint16]Axis{hid.AbsX: {Max: 100}, hid.AbsY: {}}, Keys: bitsOf(hid.EVKey, hid.BtnTouch)}
	pad := Info{Axes: map[uint16]Axis{hid.AbsX: {Max: 1000, Resolution: 10}, hid.AbsY: {Max: 600, Resolution: 10}},
		Keys: bitsOf(hid.EVKey, hid.BtnTouch, hid.BtnToolFinger, hid.BtnLeft)}
	for _, tt := range []struct {
		name   string
		info   Info
		events []string
		want   []string
	}{
		{"a keyboard", keyboard, []string{"key 30=1", "msc 4=30", "led 1=1", "syn", "key 30=0", "syn"}, []string{"key 30=1", "key 30=0"}},
		{"a mouse", mouse, []string{"rel 0=3", "rel 1=-4", "key 272=1", "syn"}, []string{"rel 0=3, rel 1=-4, key 272=1"}},
		{"a wheel with notches", mouse, []string{"rel 8=-2", "rel 6=1", "syn"}, []string{"rel 8=-2, rel 11=-240, rel 6=1, rel 12=120"}},
		{"a finer wheel", fine, []string{"rel 11=30", "syn", "rel 8=1", "rel 11=90", "syn"}, []string{"rel 11=30", "rel 8=1, rel 11=90"}},
		{"a pen", tablet, []string{"key 320=1", "abs 0=32767", "abs 1=0", "abs 24=5", "syn", "key 330=1", "key 331=1", "key 332=1", "syn"},
			[]string{"abs 0=32767, abs 1=16384", "key 272=1, key 273=1, key 274=1"}},
		{"beyond the edge", tablet, []string{"abs 0=40000", "abs 1=-2000", "syn"}, []string{"abs 0=32767, abs 1=0"}},
		{"a touch screen", screen, []string{"abs 47=1", "abs 57=3", "abs 53=4095", "abs 54=2048", "abs 48=5", "key 330=1", "abs 0=7", "syn"},
			[]string{"abs 47=1, abs 57=3, abs 53=32767, abs 54=16388, key 330=1"}},
		{"one finger", single, []string{"abs 0=50", "abs 1=50", "key 330=1", "syn", "key 330=0", "syn"},
			[]string{"abs 0=16384, abs 1=0, key 272=1", "key 272=0"}},
		{"only what is not for guests", Info{SW: bitsOf(hid.EVSW, 0)}, []string{"sw 0=1", "syn"}, nil},
		{"a touchpad without slots", pad, []string{
			"key 330=1", "key 325=1", "abs 0=500", "abs 1=300", "syn", "abs 0=520", "syn", "abs 0=540", "syn", "key 330=0", "syn", // moves
			"key 330=1", "abs 0=100", "syn", "key 330=0", "syn", // taps
		}, []string{"rel 0=84", "rel 0=84", "key 272=1", "key 272=0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info := complete(tt.info)
			tr := NewTranslator(&info, Options{})
			var got []string
			var a assembler
			for p := stream(time.Second, tt.events...); len(p) > 0; {
				n, at, _, _ := a.feed(p)
				if p = p[n:]; at != time.Second {
					t.Fatalf("at %v", at)
				}
				tr.Translate(Report{at, a.events}, func(_ time.Duration, batch []hid.Event) { got = append(got, words(batch)) })
				a.next()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// slide returns the translator of a touchpad on which a finger lies, and a report in which it moves at each call.
func slide(t testing.TB) (tr *Translator, next func() Report) {
	s := &script{t: t, down: make(map[int]bool)}
	s.pad([]string{"100", "60"})
	tr = NewTranslator(&s.info, Options{NoTap: true})
	tr.Translate(Report{Events: s.report([]string{"0@50,30"})}, nil)
	events := []hid.Event{{Type: hid.EVAbs, Code: hid.AbsMTPositionX, Value: 50 * perMM}}
	at := time.Duration(0)
	return tr, func() Report {
		events[0].Value = (events[0].Value + perMM/10) % (100 * perMM)
		at += 8 * time.Millisecond
		return Report{at, events}
	}
}

func TestTranslateAllocs(t *testing.T) {
	tr, next := slide(t)
	batches := 0
	send := func(time.Duration, []hid.Event) { batches++ }
	if n := testing.AllocsPerRun(1000, func() { tr.Translate(next(), send) }); n != 0 || batches < 1000 {
		t.Errorf("%v allocations in a report of a touchpad; %d batches", n, batches)
	}
}

func BenchmarkTouchpad(b *testing.B) {
	b.ReportAllocs()
	tr, next := slide(b)
	send := func(time.Duration, []hid.Event) {}
	for b.Loop() {
		tr.Translate(next(), send)
	}
}

// BenchmarkKey is the way of a key from the kernel's bytes to a batch.
func BenchmarkKey(b *testing.B) {
	b.ReportAllocs()
	info := complete(keyboard)
	tr := NewTranslator(&info, Options{})
	told := &state{keys: make(Bits, roomKeys), sw: make(Bits, roomSmall)}
	send := func(time.Duration, []hid.Event) {}
	p := stream(time.Second, "key 30=1", "syn", "key 30=0", "syn")
	var a assembler
	for b.Loop() {
		for rest := p; len(rest) > 0; {
			n, at, _, _ := a.feed(rest)
			rest = rest[n:]
			tr.Translate(Report{at, told.apply(a.events)}, send)
			a.next()
		}
	}
}
