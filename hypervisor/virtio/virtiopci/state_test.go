package virtiopci

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// saveState returns the state of a transport, which is paused.
func saveState(t *testing.T, tr *Transport) []byte {
	t.Helper()
	c := snap.NewEncoder(tr.SnapVersion())
	tr.State(c)
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	return c.Data()
}

func loadState(tr *Transport, b []byte) error {
	c := snap.NewDecoder(b, tr.SnapVersion())
	tr.State(c)
	c.Done()
	return c.Err()
}

// clone returns a new machine with the same memory and state, and the driver as it was.
func (d *driver) clone(dev virtio.Device, state []byte) (*driver, error) {
	d.t.Helper()
	b := newBoard(d.t, dev, d.bells != nil)
	copy(b.bytes(0, memSize), d.bytes(0, memSize))
	c := *d
	c.board, c.queues = b, nil
	for _, q := range d.queues {
		r := *q
		r.d = &c
		r.desc, r.avail, r.used = c.bytes(r.at, 0x400), c.bytes(r.at+0x1000, 0x400), c.bytes(r.at+0x2000, 0x400)
		c.queues = append(c.queues, &r)
	}
	return &c, loadState(b.tr, state)
}

// A machine is saved while requests are in the rings. The restored one answers them without a kick, once each, and the
// one that was saved goes on as well.
func TestSaveAndRestore(t *testing.T) {
	for _, vectors := range []bool{false, true} {
		t.Run(fmt.Sprintf("msix=%v", vectors), func(t *testing.T) {
			gate := make(chan struct{}, 100)
			e := &echo{gate: gate}
			d := probe(newBoard(t, e, true))
			d.start(vectors)
			gate <- struct{}{}
			d.queues[0].do("answered before") // and, with INTx, its interrupt not yet taken
			for i := range 3 {
				d.queues[0].offer(fmt.Sprint("request ", i))
			}
			d.queues[0].kick()
			d.queues[1].offer("request 3")
			d.queues[1].kick()
			eventually(t, "two requests wait", func() bool { return e.waiting.Load() == 2 })
			if err := d.tr.Pause(); err != nil {
				t.Fatal(err)
			}
			d.queues[1].offer("request 4") // a kick while it is paused
			d.queues[1].kick()
			state := saveState(t, d.tr)
			restored := &echo{}
			c, err := d.clone(restored, state)
			if err != nil {
				t.Fatal(err)
			}
			if again := saveState(t, c.tr); string(again) != string(state) {
				t.Errorf("state differs after a restore:\n%x\n%x", state, again)
			}
			if restored.served != 1 || c.queues[0].done() != 0 {
				t.Errorf("%d requests served; %d answers before Resume", restored.served, c.queues[0].done())
			}
			if !vectors && !c.line.Level() {
				t.Error("the pin is not asserted")
			}
			close(gate)
			for name, d := range map[string]*driver{"saved": d, "restored": c} {
				if err := d.tr.Resume(); err != nil {
					t.Fatal(err)
				}
				for i := range 5 {
					if got, want := d.queues[i/3].take(), fmt.Sprint("request ", i); got != want {
						t.Errorf("%s: answer %q, want %q", name, got, want)
					}
				}
				if n := d.tr.dev.(*echo).count(); n != 6 {
					t.Errorf("%s: %d requests served, want 6: each once", name, n)
				}
				d.queues[0].do("after")
				d.queues[1].do("after")
				if vectors {
					eventually(t, name+": interrupts", func() bool { return d.interrupts(1) >= 2 && d.interrupts(2) >= 2 })
				} else if v := d.get(capISR, 0, 1); v != isrQueue || d.line.Level() {
					t.Errorf("%s: ISR status %#x, and the pin is %v", name, v, d.line.Level())
				}
				if len(d.bells.addresses()) != 2 {
					t.Errorf("%s: doorbells %#x", name, d.bells.addresses())
				}
				d.start(vectors)
				d.queues[0].do("after a reset")
			}
		})
	}
}

// A device can be saved at every step of its initialisation.
func TestSaveAtEachStep(t *testing.T) {
	steps := []struct {
		name string
		do   func(d *driver)
	}{
		{"fresh", func(*driver) {}},
		{"half the features", func(d *driver) {
			d.setStatus(statusAcknowledge | statusDriver)
			d.put(capCommon, regDriverFeatureSelect, 4, 1)
			d.put(capCommon, regDriverFeature, 4, 1)
		}},
		{"queues", func(d *driver) { d.negotiate(^uint64(0)); d.setUp(false) }},
		{"running", func(d *driver) { d.setStatus(allSet) }},
		{"broken", func(d *driver) {
			d.queues[0].setAvailable(999)
			d.queues[0].kick()
			eventually(d.t, "needs a reset", func() bool { return d.status()&statusNeedsReset != 0 })
		}},
		{"reset", func(d *driver) { d.setStatus(0) }},
		{"broken before it ran", func(d *driver) {
			d.negotiate(^uint64(0))
			d.put(capCommon, regQueueDesc, 4, memSize)
			d.put(capCommon, regQueueEnable, 2, 1)
			d.setStatus(allSet)
		}},
	}
	d := probe(newBoard(t, new(echo), false))
	for _, s := range steps {
		s.do(d)
		if err := d.tr.Pause(); err != nil {
			t.Fatal(err)
		}
		state := saveState(t, d.tr)
		c, err := d.clone(new(echo), state)
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		for _, tr := range []*Transport{d.tr, c.tr} {
			if err := tr.Resume(); err != nil {
				t.Fatal(err)
			}
		}
		for off := uint32(0); off < commonSize; off += 4 {
			if a, b := d.get(capCommon, off, 4), c.get(capCommon, off, 4); a != b {
				t.Errorf("%s: register %d is %#x, and %#x in the restored device", s.name, off, a, b)
			}
		}
		c.start(false)
		c.queues[0].do(s.name)
	}
}

func TestStateRefuses(t *testing.T) {
	d := probe(newBoard(t, &echo{features: 1 << 3}, false))
	d.start(true)
	if err := d.tr.Pause(); err != nil {
		t.Fatal(err)
	}
	state := saveState(t, d.tr)
	function := snap.NewEncoder(1)
	d.tr.fn.State(function)
	registers := len(function.Data()) // where the transport's own part starts, with two matches
	const statusAt, queueSizeAt = 16, 16 + 4 + 4 + 4 + 4 + 4 + 8 + 2 + 1 + 1
	for name, tc := range map[string]struct {
		dev   virtio.Device
		spoil func(b []byte)
		want  string
	}{
		"fewer features":   {&echo{}, nil, "the guest uses features 0x110000008, and this device offers 0x130000000"},
		"another type":     {&virtiotest.Func{Sizes: []uint16{64, 16}}, nil, "configuration byte 0x2"},
		"other queues":     {&oneQueue{echo{features: 1 << 3}}, nil, "number of interrupt vectors is 3"},
		"unknown status":   {nil, func(b []byte) { b[registers+statusAt] |= 0x10 }, "device status"},
		"impossible state": {nil, func(b []byte) { b[registers+statusAt] &^= statusFeaturesOK }, "device status"},
		"vector 3":         {nil, func(b []byte) { b[registers+statusAt+8] = 3 }, "interrupt vector 0x3, where there are 3"},
		"queue's vector 3": {nil, func(b []byte) { b[registers+queueSizeAt+2] = 3 }, "interrupt vector 0x3, where there are 3"},
		"device version 0": {nil, func(b []byte) { b[len(b)-10] = 0 }, "device: state version 0"},
		"queue size 3":     {nil, func(b []byte) { b[registers+queueSizeAt] = 3 }, "a queue of 3 entries"},
		"queue size 128":   {nil, func(b []byte) { b[registers+queueSizeAt] = 128 }, "a queue of 128 entries"},
		"queue elsewhere":  {nil, func(b []byte) { b[registers+queueSizeAt+2+4+4] = 1 }, "driver error: queue 0: descriptor table"},
	} {
		t.Run(name, func(t *testing.T) {
			b := append([]byte(nil), state...)
			if tc.spoil != nil {
				tc.spoil(b)
			}
			if tc.dev == nil {
				tc.dev = &echo{features: 1 << 3}
			}
			_, err := d.clone(tc.dev, b)
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	for n := 0; n < len(state); n += 1 + n/16 {
		if _, err := d.clone(&echo{features: 1 << 3}, state[:n]); err == nil {
			t.Fatalf("a state cut to %d of %d bytes was accepted", n, len(state))
		}
	}
}

// oneQueue is an echo with a queue less.
type oneQueue struct{ echo }

func (*oneQueue) QueueSizes() []uint16 { return []uint16{64} }

// FuzzState feeds damaged states to a transport: it refuses them, or saves them again as the same and runs with them.
func FuzzState(f *testing.F) {
	b := newBoard(f, new(echo), false)
	d := probe(b)
	d.start(true)
	_ = b.tr.Pause()
	c := snap.NewEncoder(1)
	b.tr.State(c)
	f.Add(0, []byte{1})
	f.Add(pci.ConfigSize+1+8+3*16+3, []byte{0xff, 0, 0xff})
	f.Fuzz(func(t *testing.T, at int, xor []byte) {
		state := append([]byte(nil), c.Data()...)
		for i, v := range xor {
			if at >= 0 && at < len(state)-i {
				state[at+i] ^= v
			}
		}
		b := newBoard(t, new(echo), true)
		if loadState(b.tr, state) != nil {
			return
		}
		if again := saveState(t, b.tr); !bytes.Equal(again, state) {
			t.Errorf("saved again it is another state:\n%x\n%x", state, again)
		}
		if err := b.tr.Resume(); err != nil {
			t.Error(err)
		}
		if err := b.tr.Pause(); err != nil {
			t.Error(err)
		}
	})
}
