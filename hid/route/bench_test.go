package route

import (
	"fmt"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hid"
)

// counter is a sink that counts.
type counter struct {
	events   int
	absolute bool
}

func (c *counter) Send(batch []hid.Event) { c.events += len(batch) }
func (c *counter) WantsAbsolute() bool    { return c.absolute }

func key(code uint16, value int32) []hid.Event {
	return []hid.Event{{Type: hid.EVKey, Code: code, Value: value}}
}

// crowd returns a router with n guests, the first of which has the focus.
func crowd(tb testing.TB, n int, cfg Config) (*Router, *counter) {
	cfg.Console = &counter{}
	r, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		slot := i + 1
		if slot > 9 {
			slot = 0
		}
		if err := r.Add(fmt.Sprintf("guest%d", i), slot, &counter{absolute: true}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := r.SetFocus("guest0"); err != nil {
		tb.Fatal(err)
	}
	return r, r.focus.sink.(*counter)
}

func TestAllocs(t *testing.T) {
	r, sink := crowd(t, 4, Config{Edge: Edge{Push: 1 << 20}})
	press, release := key(hid.KeyA, keyDown), key(hid.KeyA, keyUp)
	motion := []hid.Event{{Type: hid.EVRel, Code: hid.RelX, Value: 3}, {Type: hid.EVRel, Code: hid.RelWheel, Value: 1}}
	touch := []hid.Event{{Type: hid.EVAbs, Code: hid.AbsMTTrackingID, Value: 1}, {Type: hid.EVAbs, Code: hid.AbsX, Value: 9}}
	n := testing.AllocsPerRun(1000, func() {
		r.Input(1, 0, press)
		r.Input(1, 0, release)
		r.Input(2, 0, motion)
		r.Input(3, 0, touch)
	})
	if n != 0 || sink.events < 4000 {
		t.Errorf("%v allocations in four reports, %d events got through", n, sink.events)
	}
}

func BenchmarkInput(b *testing.B) {
	b.ReportAllocs()
	r, _ := crowd(b, 4, Config{})
	reports := [2][]hid.Event{key(hid.KeyA, keyDown), key(hid.KeyA, keyUp)}
	for i := 0; b.Loop(); i++ {
		r.Input(1, 0, reports[i&1])
	}
}

func BenchmarkMotion(b *testing.B) {
	b.ReportAllocs()
	r, _ := crowd(b, 4, Config{})
	report := []hid.Event{{Type: hid.EVRel, Code: hid.RelX, Value: 1}, {Type: hid.EVRel, Code: hid.RelY, Value: -1}}
	for b.Loop() {
		r.Input(1, 0, report)
	}
}

// BenchmarkSwitch measures from a chord's trigger to OnFocus, with Ctrl, Alt and a letter held in the old guest.
func BenchmarkSwitch(b *testing.B) {
	for _, n := range []int{2, 4, 16} {
		b.Run(fmt.Sprintf("targets=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var begin time.Time
			var total time.Duration
			switches := 0
			r, _ := crowd(b, n, Config{OnFocus: func(c Change) {
				total += time.Since(begin)
				switches++
			}})
			held := []hid.Event{
				{Type: hid.EVKey, Code: hid.KeyLeftCtrl, Value: keyDown},
				{Type: hid.EVKey, Code: hid.KeyLeftAlt, Value: keyDown},
				{Type: hid.EVKey, Code: hid.KeyA, Value: keyDown},
			}
			up := []hid.Event{
				{Type: hid.EVKey, Code: hid.KeyLeftCtrl},
				{Type: hid.EVKey, Code: hid.KeyLeftAlt},
				{Type: hid.EVKey, Code: hid.KeyA},
				{Type: hid.EVKey, Code: hid.KeyRight},
			}
			trigger := key(hid.KeyRight, keyDown)
			switches = 0
			total = 0
			for b.Loop() {
				r.Input(1, 0, held)
				begin = time.Now()
				r.Input(1, 0, trigger)
				r.Input(1, 0, up)
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(switches), "ns-to-focus/op")
		})
	}
}
