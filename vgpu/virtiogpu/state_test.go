package virtiogpu

import (
	"bytes"
	"image"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
	"github.com/lodgehv/lodge/vgpu/display"
)

func save(t testing.TB, d *Device) []byte {
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

// restore returns a card with the state and the memory of c, which it stops.
func (c *card) restore(t testing.TB) *card {
	t.Helper()
	c.Stop()
	state := save(t, c.d)
	n := &card{}
	for range c.sinks {
		n.sinks = append(n.sinks, &recorder{t: t})
	}
	n.d = newDevice(t, n.sinks...)
	if err := load(n.d, state); err != nil {
		t.Fatal(err)
	}
	if again := save(t, n.d); !bytes.Equal(state, again) {
		t.Error("state differs after a restore, before the start")
	}
	check(t, n.d)

	// A rig starts its device on empty memory: this one first takes the other's place.
	n.Rig = virtiotest.New(t, &virtiotest.Func{Sizes: n.d.QueueSizes()}, 0)
	copy(n.Bytes(0x20000, virtiotest.MemSize-0x20000), c.Bytes(0x20000, virtiotest.MemSize-0x20000))
	n.Free(c.Alloc(0))
	n.Device, n.Env.Features = n.d, c.Env.Features
	t.Cleanup(func() { n.Stop(); n.d.Reset() })
	n.Start()
	check(t, n.d)
	return n
}

// desktop returns a card that has all kinds of things, with 5 screens.
func desktop(t testing.TB) (*card, []buffer) {
	t.Helper()
	c := newCard(t, 5)
	c.Alloc(0x20000 - int(c.Alloc(0))) // buffers lie behind the rings, which a restore does not copy
	all := image.Rect(0, 0, 64, 64)
	bufs := []buffer{
		c.create2D(1, formatB8G8R8X8, 64, 64, 5), c.create2D(2, formatA8R8G8B8, 64, 64, 1),
		c.createBlob(3, 256, 64, 1), c.createBlob(4, 256, 64, 7), c.createBlob(5, 256, 64, 7),
	}
	for i, b := range bufs {
		b.fill(all, i+1)
	}
	// Of what is shown, a part is newer in the guest's memory.
	c.transfer(1, rect{0, 0, 64, 64}, 256)
	bufs[0].fill(image.Rect(5, 10, 9, 20), 50)
	c.must(cmdSetScanout, rect{1, 2, 60, 60}, 0, 1)
	// Of this one only a part was ever transferred, and its memory is gone.
	c.transfer(2, rect{10, 10, 20, 20}, 256)
	c.must(cmdSetScanout, rect{0, 0, 64, 64}, 1, 2)
	c.must(cmdResourceDetachBacking, 2, 0)
	// One in place, one gathered with news that were not flushed, and one that was gathered from another before.
	c.showBlob(2, 3, rect{0, 1, 64, 60}, 64, 63, 256, 256)
	c.showBlob(3, 4, rect{4, 1, 60, 60}, 64, 63, 256, 256)
	bufs[3].fill(image.Rect(5, 10, 9, 20), 50)
	c.showBlob(4, 4, rect{0, 0, 64, 64}, 64, 64, 256, 0)
	c.showBlob(4, 5, rect{0, 0, 64, 64}, 64, 64, 256, 0)
	c.do(cmdResourceAssignUUID, 4, 0)
	c.point(cmdUpdateCursor, 0, -5, 7, 1, 1, 2)
	c.point(cmdMoveCursor, 3, 20, 20, 0, 0, 0)
	return c, bufs
}

// A restored guest's screens are what they were, pixel for pixel, and go on from there.
func TestRestore(t *testing.T) {
	a, bufs := desktop(t)
	_, uuid := a.do(cmdResourceAssignUUID, 4, 0)
	b := a.restore(t)
	for i, old := range a.sinks {
		k := b.sinks[i]
		if k.surface == nil {
			t.Fatalf("screen %d is off", i)
		}
		k.sees(want{old.surface.Width, old.surface.Height, old.pixels})
		if k.surface.Format != old.surface.Format || k.surface.Stride != old.surface.Stride {
			t.Errorf("screen %d: %v, %d bytes a row, want %v, %d", i, k.surface.Format, k.surface.Stride, old.surface.Format, old.surface.Stride)
		}
		if d := cmp.Diff(old.cursor, k.cursor); d != "" || k.at != old.at {
			t.Errorf("screen %d: cursor at %v, want %v\n%s", i, k.at, old.at, d)
		}
		if len(k.calls) > 3 {
			t.Errorf("screen %d: told %q", i, k.calls)
		}
	}
	if _, again := b.do(cmdResourceAssignUUID, 4, 0); !bytes.Equal(uuid, again) {
		t.Error("a UUID is another")
	}
	if len(b.Changed) != 0 {
		t.Error("the same monitor is news")
	}
	for i := range bufs {
		bufs[i].c = b
	}
	all := image.Rect(0, 0, 64, 64)
	b.transfer(1, rect{0, 0, 64, 64}, 256)
	b.flush(1, rect{0, 0, 64, 64})
	b.sinks[0].sees(blank(60, 60).draw(all, image.Pt(1, 2), 1).draw(image.Rect(5, 10, 9, 20), image.Pt(1, 2), 50))
	b.flush(5, rect{0, 0, 1, 1})
	b.sinks[4].sees(blank(64, 64).draw(all, image.Point{}, 5))
	b.must(cmdResourceAttachBacking, 2, len(bufs[1].spans), bufs[1].spans)
	b.must(cmdResourceUnref, 4, 0)
	if b.sinks[3].surface != nil {
		t.Error("is shown without a resource")
	}
	check(t, b.d)

	// What the driver knows of monitors is kept too: another one is news.
	b.Stop()
	state := save(t, b.d)
	sinks := []*recorder{{t: t}, {t: t}, {t: t}, {t: t}, {t: t}}
	d := newDevice(t, sinks...)
	d.cfg.Screens[2].SetMonitor(display.Monitor{Connected: true, Width: 1, Height: 1})
	if err := load(d, state); err != nil {
		t.Fatal(err)
	}
	c := &card{Rig: virtiotest.New(t, &virtiotest.Func{Sizes: d.QueueSizes()}, 0), d: d}
	c.Device = d
	c.Start()
	t.Cleanup(func() { c.Stop(); d.Reset() })
	if len(c.Changed) != 1 || c.config().u32(configEventsRead) != eventDisplay {
		t.Error("another monitor is no news")
	}
}

// Rows that are in the guest's memory are not stored.
func TestStateIsSmall(t *testing.T) {
	c := newCard(t, 1)
	b := c.create2D(1, formatB8G8R8X8, 256, 200, 20)
	b.fill(image.Rect(0, 0, 256, 200), 1)
	c.transfer(1, rect{0, 0, 256, 200}, 1024)
	c.must(cmdSetScanout, rect{0, 0, 256, 200}, 0, 1)
	b.fill(image.Rect(7, 100, 8, 103), 2)
	c.Stop()
	if n := len(save(t, c.d)); n < 3*1024 || n > 3*1024+1024 {
		t.Errorf("%d bytes for three rows of 1 KiB", n)
	}
}

// A state that was damaged is refused, or taken and saved again as it is, and nothing breaks. One whose memory is another is refused at the start.
func TestDamagedState(t *testing.T) {
	c, _ := desktop(t)
	c.Stop()
	state := save(t, c.d)
	try := func(b []byte) error {
		t.Helper()
		d := newDevice(t, &recorder{t: t}, &recorder{t: t}, &recorder{t: t}, &recorder{t: t}, &recorder{t: t})
		err := load(d, b)
		check(t, d)
		if err == nil {
			if !bytes.Equal(save(t, d), b) {
				t.Error("another state after a restore")
			}
			r := virtiotest.New(t, &virtiotest.Func{Sizes: d.QueueSizes()}, 0)
			if d.Start(r.Env) == nil {
				check(t, d)
				r.Env.Stop(d)
			}
		}
		d.Reset()
		return err
	}
	for n := 0; n < len(state); n += 1 + n/20 {
		if err := try(state[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes it was taken", n, len(state))
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range 500 {
		b := bytes.Clone(state)
		at := rnd.IntN(1000)
		if rnd.IntN(2) == 0 {
			at = rnd.IntN(len(b))
		}
		b[at] ^= byte(1 + rnd.IntN(255))
		if try(b) != nil {
			refused++
		}
	}
	if refused < 10 { // most bytes are pixels and names, of which all are right
		t.Errorf("%d of 500 damaged states were refused", refused)
	}

	for name, change := range map[string]func(d *Device){
		"other screens": func(d *Device) { d.cfg.Screens, d.scanouts = d.cfg.Screens[:4], d.scanouts[:4] },
		"less memory":   func(d *Device) { d.cfg.MaxBytes = 1 << 12 },
	} {
		d := newDevice(t, &recorder{t: t}, &recorder{t: t}, &recorder{t: t}, &recorder{t: t}, &recorder{t: t})
		if change(d); load(d, state) == nil {
			t.Errorf("%s: was taken", name)
		}
	}

	d := newDevice(t, &recorder{t: t}, &recorder{t: t}, &recorder{t: t}, &recorder{t: t}, &recorder{t: t})
	if err := load(d, state); err != nil {
		t.Fatal(err)
	}
	for _, r := range d.resources {
		for i := range r.backing.pieces {
			r.backing.pieces[i].gpa += virtiotest.MemSize
		}
	}
	r := virtiotest.New(t, &virtiotest.Func{Sizes: d.QueueSizes()}, 0)
	if err := d.Start(r.Env); err == nil {
		t.Error("started on memory that it does not have")
	}
	check(t, d)
	d.Reset()
}

// FuzzState takes states that are small, or the fuzzer spends its time on making them so.
func FuzzState(f *testing.F) {
	c := newCard(f, 2)
	c.Alloc(0x20000 - int(c.Alloc(0)))
	b := c.create2D(1, formatB8G8R8A8, 4, 4, 3)
	b.fill(image.Rect(0, 0, 4, 4), 1)
	c.transfer(1, rect{0, 0, 4, 4}, 16)
	b.fill(image.Rect(0, 1, 4, 2), 2)
	c.must(cmdSetScanout, rect{1, 1, 3, 3}, 0, 1)
	c.createBlob(2, 16, 4, 1)
	c.createBlob(3, 16, 4, 3)
	c.point(cmdUpdateCursor, 0, 1, 2, 1, 3, 3)
	for id := 2; id <= 3; id++ {
		c.showBlob(1, id, rect{0, 0, 4, 4}, 4, 4, 16, 0)
		c.Stop()
		f.Add(save(f, c.d))
		c.Start()
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDevice(t, &recorder{t: t}, &recorder{t: t})
		defer d.Reset()
		if load(d, b) == nil {
			if again := save(t, d); !bytes.Equal(b, again) {
				t.Error("another state after a restore")
			}
			r := virtiotest.New(t, &virtiotest.Func{Sizes: d.QueueSizes()}, 0)
			if d.Start(r.Env) == nil {
				r.Env.Stop(d)
			}
		}
		check(t, d)
	})
}

// Arenas hand out zeros, never twice, and take all back.
func TestArena(t *testing.T) {
	for name, make := range map[string]func(int64) (*arena, error){"file": newArena, "heap": heapArena} {
		t.Run(name, func(t *testing.T) {
			a, err := make(100_000) // 25 pages
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			rnd := rand.New(rand.NewPCG(3, 4))
			var have []extent
			for i := range 2000 {
				if n := rnd.Int64N(20_000) + 1; rnd.IntN(2) == 0 {
					e, ok := a.alloc(n)
					if want := a.total+int(roundUp(n)) <= 25*4096; !ok && want {
						t.Fatalf("no room for %d bytes beside %d", n, a.total)
					}
					if !ok {
						continue
					}
					b := a.slice(e)
					if int64(len(b)) < n || !bytes.Equal(b, bytes.Repeat([]byte{0}, len(b))) {
						t.Fatalf("%d bytes for %d, or not zero", len(b), n)
					}
					for j := range b {
						b[j] = byte(i%255) + 1
					}
					have = append(have, e)
				} else if len(have) > 0 {
					j := rnd.IntN(len(have))
					b := a.slice(have[j])
					if !bytes.Equal(b, bytes.Repeat(b[:1], len(b))) || b[0] == 0 {
						t.Fatal("somebody else wrote there")
					}
					a.free(have[j])
					have = append(have[:j], have[j+1:]...)
				}
			}
			for _, e := range have {
				a.free(e)
			}
			if a.total != 0 || len(a.used) != 0 {
				t.Errorf("%d bytes in %v stay", a.total, a.used)
			}
			for _, n := range []int64{100_001 + 4096, 1 << 40, 1<<63 - 1} {
				if _, ok := a.alloc(n); ok {
					t.Errorf("got %d bytes", n)
				}
			}
		})
	}
}
