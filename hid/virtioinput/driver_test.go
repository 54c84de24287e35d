package virtioinput

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// driver is the driver of an input device, with the same buffers all the time, as Linux's.
type driver struct {
	*virtiotest.Rig
	dev  *Device
	q    *virtiotest.Queue
	addr map[uint16]mem.GPA // of the buffers, by the heads of their chains
	down hid.Keys           // what it has seen
}

func newDevice(t testing.TB, kind Kind, cfg Config) *Device {
	t.Helper()
	d, err := New(kind, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// newDriver returns the driver of a new device, which has given it n buffers.
func newDriver(t testing.TB, kind Kind, cfg Config, n int) *driver {
	t.Helper()
	d := newDevice(t, kind, cfg)
	r := virtiotest.New(t, d, 0)
	v := &driver{Rig: r, dev: d, q: r.Queues[eventQueue], addr: make(map[uint16]mem.GPA)}
	v.give(n)
	return v
}

// give makes n more buffers available.
func (v *driver) give(n int) {
	for range n {
		b := v.In(eventSize)
		v.addr[v.q.Send(b)] = b.Addr
	}
}

// event waits for an event, and gives its buffer back if again is set.
func (v *driver) event(again bool) hid.Event {
	v.T.Helper()
	head, n := v.q.Wait()
	if n != eventSize {
		v.T.Fatalf("%d bytes written, want %d", n, eventSize)
	}
	b := v.Bytes(v.addr[head], eventSize)
	le := binary.LittleEndian
	e := hid.Event{Type: le.Uint16(b), Code: le.Uint16(b[2:]), Value: int32(le.Uint32(b[4:]))}
	if e.Type == hid.EVKey {
		v.down.Set(e.Code, e.Value != 0)
	}
	if again {
		v.q.Offer(head)
	}
	return e
}

// report waits for a report, and returns its events in short form.
func (v *driver) report() (events []string) {
	v.T.Helper()
	for {
		e := v.event(true)
		if e.Type == hid.EVSyn {
			if e != (hid.Event{}) {
				v.T.Errorf("EV_SYN is %+v", e)
			}
			return events
		}
		events = append(events, short(e))
	}
}

// expect waits for reports and compares them.
func (v *driver) expect(want ...[]string) {
	v.T.Helper()
	for i, w := range want {
		if diff := cmp.Diff(w, v.report()); diff != "" {
			v.T.Fatalf("report %d (-want +got):\n%s", i, diff)
		}
	}
}

// quiet checks that nothing comes: what comes later than the mark that it sends is not looked for.
func (v *driver) quiet() {
	v.T.Helper()
	if _, _, ok := v.q.TryWait(5 * time.Millisecond); ok {
		v.T.Error("an event that nobody expects")
	}
}

func short(e hid.Event) string {
	switch e.Type {
	case hid.EVKey:
		return fmt.Sprintf("%s %d", hid.KeyName(e.Code), e.Value)
	case hid.EVRel:
		return fmt.Sprintf("rel %d %d", e.Code, e.Value)
	case hid.EVAbs:
		return fmt.Sprintf("abs %#x %d", e.Code, e.Value)
	}
	return fmt.Sprintf("%+v", e)
}

func key(code uint16, v int32) hid.Event { return hid.Event{Type: hid.EVKey, Code: code, Value: v} }
func rel(code uint16, v int32) hid.Event { return hid.Event{Type: hid.EVRel, Code: code, Value: v} }
func abs(code uint16, v int32) hid.Event { return hid.Event{Type: hid.EVAbs, Code: code, Value: v} }

// led has the driver switch a light.
func (v *driver) led(code uint16, on uint32) {
	v.T.Helper()
	b := binary.LittleEndian.AppendUint16(nil, hid.EVLED)
	b = binary.LittleEndian.AppendUint16(b, code)
	v.Queues[statusQueue].Do(v.Out(binary.LittleEndian.AppendUint32(b, on)))
}

// saved returns d's state, whose rig is stopped.
func saved(t testing.TB, d *Device) []byte {
	t.Helper()
	c := snap.NewEncoder(d.StateVersion())
	d.State(c)
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	return c.Data()
}

func load(d *Device, b []byte) error {
	c := snap.NewDecoder(b, d.StateVersion())
	d.State(c)
	c.Done()
	return c.Err()
}

// scoped is the testing.TB of one run of a property.
type scoped struct {
	testing.TB
	rt       *rapid.T
	cleanups []func()
}

func (s *scoped) Fatalf(format string, args ...any) { s.rt.Fatalf(format, args...) }

func (s *scoped) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *scoped) end() {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
}

var _ virtio.Device = (*Device)(nil)
var _ hid.Sink = (*Device)(nil)
