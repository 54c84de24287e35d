package virtio_test

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// echo copies what the driver sends to where it may be written.
func echo() *virtiotest.Func {
	var c virtio.Chain
	return &virtiotest.Func{Sizes: []uint16{64}, Handle: func(q *virtio.Queue) error {
		for {
			ok, err := q.Next(&c)
			if !ok || err != nil {
				return err
			}
			for c.Readable() > 0 && c.Writable() > 0 {
				_, _ = c.Write(c.NextReadable(c.Writable()))
			}
			q.Done(&c)
		}
	}}
}

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, func(testing.TB) virtio.Device { return echo() })
}

func TestEcho(t *testing.T) {
	for name, without := range map[string]uint64{
		"event index": 0, "flags": virtio.FeatureEventIdx, "direct": virtio.FeatureIndirectDesc,
	} {
		t.Run(name, func(t *testing.T) {
			r := virtiotest.New(t, echo(), without)
			q := r.Queues[0]
			for range 200 { // three times round the ring
				in := r.In(7)
				if n := q.Do(r.Out([]byte("four")), r.Out([]byte("teen")), in); n != 7 {
					t.Fatalf("%d bytes written, want 7", n)
				}
				if diff := cmp.Diff("fourtee", string(r.Bytes(in.Addr, 7))); diff != "" {
					t.Fatal(diff)
				}
			}
		})
	}
}

func TestIndirectEcho(t *testing.T) {
	r := virtiotest.New(t, echo(), 0)
	in := r.In(8)
	r.Queues[0].SendIndirect(r.Out([]byte("four")), r.Out([]byte("teen")), in)
	if _, n := r.Queues[0].Wait(); n != 8 {
		t.Errorf("%d bytes written, want 8", n)
	}
	if diff := cmp.Diff("fourteen", string(r.Bytes(in.Addr, 8))); diff != "" {
		t.Error(diff)
	}
	r = virtiotest.New(t, echo(), virtio.FeatureIndirectDesc)
	r.Queues[0].SendIndirect(r.Out([]byte("four")))
	if err := <-r.Broken; !virtio.IsProtocol(err) {
		t.Errorf("an indirect table that was not negotiated: %v", err)
	}
}

func TestNewQueueRefuses(t *testing.T) {
	m := mem.NewHeap(0x10000)
	good := virtio.Config{Size: 64, Desc: 0x1000, Avail: 0x2000, Used: 0x3000}
	for name, change := range map[string]func(*virtio.Config){
		"size 0":         func(c *virtio.Config) { c.Size = 0 },
		"size 3":         func(c *virtio.Config) { c.Size = 3 },
		"desc align":     func(c *virtio.Config) { c.Desc += 8 },
		"avail align":    func(c *virtio.Config) { c.Avail++ },
		"used align":     func(c *virtio.Config) { c.Used += 2 },
		"desc outside":   func(c *virtio.Config) { c.Desc = 0x10000 - 16*63 },
		"avail outside":  func(c *virtio.Config) { c.Avail = 0x10000 - 132 },
		"used outside":   func(c *virtio.Config) { c.Used = 0x10000 - 516 },
		"wraps":          func(c *virtio.Config) { c.Used = ^mem.GPA(3) },
		"nothing at all": func(c *virtio.Config) { c.Desc = 1 << 40 },
	} {
		c := good
		change(&c)
		if _, err := virtio.NewQueue(3, m, c, 0, nil, nil); !virtio.IsProtocol(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := virtio.NewQueue(3, m, good, 0, nil, nil); err != nil {
		t.Error(err)
	}
}

// TestQueueModel plays a driver and a device at random and checks what each may see: every chain once, used entries in
// the order of Done, and an interrupt exactly when the specification's formula says so.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 8
		eventIdx := rapid.Bool().Draw(t, "event idx")
		var features uint64 = virtio.FeatureVersion1
		if eventIdx {
			features |= virtio.FeatureEventIdx
		}
		m := mem.NewHeap(0x2000)
		interrupts := 0
		q, err := virtio.NewQueue(0, m, virtio.Config{Size: size, Desc: 0, Avail: 0x100, Used: 0x200}, features, nil, func() { interrupts++ })
		if err != nil {
			t.Fatal(err)
		}
		// Begin anywhere, so that the indices wrap.
		start := rapid.SampledFrom([]uint16{0, 5, 65530}).Draw(t, "start")
		enc := snap.NewEncoder(1)
		for range 3 {
			enc.U16(&start)
		}
		q.State(snap.NewDecoder(enc.Data(), 1))
		put16 := func(at int, v uint16) { put(t, m, at, byte(v), byte(v>>8)) }
		get16 := func(at int) uint16 {
			b, _ := m.Slice(mem.GPA(at), 2)
			return uint16(b[0]) | uint16(b[1])<<8
		}
		for i := range size {
			putDesc(t, m, 16*i, 0x1000, uint32(i), 0, 0)
		}
		put16(0x102, start)
		put16(0x202, start)

		avail, used := start, start
		free := []uint16{0, 1, 2, 3, 4, 5, 6, 7}
		var offered []uint16
		type taken struct {
			c    *virtio.Chain
			head uint16
		}
		var inFlight []taken
		event, noInterrupt, lastFlush := uint16(0), false, start
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if q.Available() != len(offered) {
					t.Fatalf("%d available, want %d", q.Available(), len(offered))
				}
				if got := get16(0x202); got != used {
					t.Fatalf("used index %d, want %d", got, used)
				}
			},
			"offer": func(t *rapid.T) {
				if len(free) == 0 {
					t.Skip("none free")
				}
				head := free[0]
				free = free[1:]
				put16(0x104+2*int(avail%size), head)
				avail++
				put16(0x102, avail)
				offered = append(offered, head)
			},
			"next": func(t *rapid.T) {
				c := &virtio.Chain{}
				ok, err := q.Next(c)
				if err != nil || ok != (len(offered) > 0) {
					t.Fatalf("Next = %v, %v with %d offered", ok, err, len(offered))
				}
				if ok {
					if c.Readable() != int(offered[0]) {
						t.Fatalf("chain %d, want %d", c.Readable(), offered[0])
					}
					inFlight = append(inFlight, taken{c, offered[0]})
					offered = offered[1:]
				}
			},
			"undo": func(t *rapid.T) {
				// Only what was taken last and in one go can be undone: as a device that needs several buffers does.
				c := &virtio.Chain{}
				n := 0
				for range rapid.IntRange(1, 3).Draw(t, "n") {
					if ok, _ := q.Next(c); ok {
						n++
					}
				}
				q.Undo(n)
			},
			"done": func(t *rapid.T) {
				if len(inFlight) == 0 {
					t.Skip("none in flight")
				}
				i := rapid.IntRange(0, len(inFlight)-1).Draw(t, "which")
				n := rapid.IntRange(1, len(inFlight)-i).Draw(t, "n")
				var cs []*virtio.Chain
				for _, k := range inFlight[i : i+n] {
					cs = append(cs, k.c)
				}
				if n == 1 {
					q.Done(cs[0])
				} else {
					q.DoneAll(cs)
				}
				for _, k := range inFlight[i : i+n] {
					if got := get16(0x204 + 8*int(used%size)); got != k.head {
						t.Fatalf("used entry %d is chain %d, want %d", used, got, k.head)
					}
					used++
					free = append(free, k.head)
				}
				inFlight = append(inFlight[:i:i], inFlight[i+n:]...)
			},
			"want interrupt": func(t *rapid.T) {
				event = used + uint16(rapid.IntRange(-3, 3).Draw(t, "event"))
				noInterrupt = rapid.Bool().Draw(t, "no interrupt")
				put16(0x104+2*size, event)
				put(t, m, 0x100, map[bool]byte{true: 1}[noInterrupt])
			},
			"flush": func(t *rapid.T) {
				want := 0
				for i := lastFlush; i != used; i++ {
					if eventIdx && i == event || !eventIdx && !noInterrupt {
						want = 1
					}
				}
				interrupts, lastFlush = 0, used
				q.Flush()
				if interrupts != want {
					t.Fatalf("%d interrupts, want %d", interrupts, want)
				}
			},
		})
	})
}

// A driver that offers descriptors again before it got them back would make a device that holds chains hold any number.
func TestNextRefusesMoreThanSize(t *testing.T) {
	q, dev := newIdle(t, 4, 0)
	d := q.Rig().In(1)
	chains := make([]virtio.Chain, 5)
	take := func(n int) error {
		for i := range n {
			q.Send(d)
			if ok, err := dev.Next(&chains[i]); !ok {
				return err
			}
		}
		return nil
	}
	if err := take(4); err != nil {
		t.Fatal(err)
	}
	if ok, err := dev.Next(&chains[4]); ok || err != nil {
		t.Errorf("a fifth chain: %v, %v", ok, err)
	}
	for i := range 4 {
		dev.Done(&chains[i])
	}
	if err := take(4); err != nil {
		t.Fatal(err)
	}
	dev.Undo(1)
	if ok, err := dev.Next(&chains[3]); !ok {
		t.Errorf("a chain that was given back: %v", err)
	}
	q.Send(d)
	if _, err := dev.Next(&chains[4]); !virtio.IsProtocol(err) {
		t.Errorf("five chains of four descriptors: %v", err)
	}
}

// TestNoKickLost has a driver that kicks only when the device has asked it to, as §2.7.10 allows. A device that asks too
// late would sleep for ever.
func TestNoKickLost(t *testing.T) {
	for name, without := range map[string]uint64{"event index": 0, "flags": virtio.FeatureEventIdx} {
		t.Run(name, func(t *testing.T) {
			r := virtiotest.New(t, echo(), without)
			q := r.Queues[0]
			q.NoKick = true
			out := r.Out([]byte("x"))
			kicks := 0
			for i := range uint16(5000) {
				q.Send(out)
				// Send's store of the index is a full barrier before these loads.
				if without == 0 && q.AvailEvent() == i || without != 0 && q.UsedFlags() == 0 {
					kicks++
					q.Kick()
				}
				q.Wait()
				if i%3 == 0 {
					runtime.Gosched()
				}
			}
			t.Logf("%d kicks for 5000 requests", kicks)
		})
	}
}

// TestWait holds that a handler that waits inside is woken by a kick, and by a stop.
func TestWait(t *testing.T) {
	var waiting atomic.Int32
	d := &virtiotest.Func{Sizes: []uint16{8}, Handle: func(q *virtio.Queue) error {
		var c virtio.Chain
		for {
			ok, err := q.Next(&c)
			if err != nil {
				return err
			}
			if ok {
				q.Done(&c)
				continue
			}
			waiting.Add(1)
			if !q.Wait() {
				return nil
			}
		}
	}}
	r := virtiotest.New(t, d, 0)
	q := r.Queues[0]
	for range 100 {
		// The interrupt first: once the driver takes the chain it asks for the next one's, and the device may see that
		// before it decides on this one's.
		q.Send(r.Out([]byte{1}))
		select {
		case <-q.Interrupts: // Wait flushes
		case <-time.After(10 * time.Second):
			t.Fatal("a handler that waits has not interrupted")
		}
		q.Wait()
	}
	r.Stop()
	if waiting.Load() == 0 {
		t.Error("the handler never waited")
	}
	// What was made available during a pause is served after it, whoever took its kick.
	q.NoKick = true
	q.Send(r.Out([]byte{1}))
	if _, _, ok := q.TryWait(5 * time.Millisecond); ok {
		t.Error("a stopped device works")
	}
	r.Start()
	q.Wait()
}

// TestBroken holds that the goroutine of a queue ends at the first error, and says so once.
func TestBroken(t *testing.T) {
	r := virtiotest.New(t, echo(), 0)
	r.Queues[0].Offer(64)
	if err := <-r.Broken; !virtio.IsProtocol(err) {
		t.Error(err)
	}
	r.Queues[0].Offer(64)
	r.Stop()
	if len(r.Broken) != 0 {
		t.Errorf("broken twice: %v", <-r.Broken)
	}
}

func TestConfigAt(t *testing.T) {
	cfg := []byte{1, 2, 3}
	for _, c := range []struct {
		off  uint32
		want []byte
	}{
		{0, []byte{1, 2}}, {2, []byte{3, 0}}, {3, []byte{0, 0}}, {1<<32 - 1, []byte{0, 0}},
	} {
		p := []byte{9, 9}
		virtio.ConfigAt(cfg, c.off, p)
		if diff := cmp.Diff(c.want, p); diff != "" {
			t.Errorf("at %d: %s", c.off, diff)
		}
	}
}

// TestAllocations holds that a request's whole way, kick and wait included, allocates nothing.
func TestAllocations(t *testing.T) {
	r := virtiotest.New(t, echo(), 0)
	q := r.Queues[0]
	out, in := r.Out([]byte("four")), r.In(4)
	if n := testing.AllocsPerRun(1000, func() { q.Do(out, in) }); n != 0 {
		t.Errorf("%v allocations per request, want none", n)
	}
}

// BenchmarkRoundTrip is one request from kick to interrupt, with the device's goroutine asleep before it.
func BenchmarkRoundTrip(b *testing.B) {
	r := virtiotest.New(b, echo(), 0)
	q := r.Queues[0]
	out, in := r.Out([]byte("four")), r.In(4)
	b.ReportAllocs()
	for b.Loop() {
		q.Send(out, in)
		<-q.Interrupts
		q.Wait()
	}
}

// BenchmarkQueue is the same without waking anybody: what the core itself costs.
func BenchmarkQueue(b *testing.B) {
	q, dev := newIdle(b, 64, 0)
	out, in := q.Rig().Out([]byte("four")), q.Rig().In(4)
	q.NoKick = true
	var c virtio.Chain
	b.ReportAllocs()
	for b.Loop() {
		q.Send(out, in)
		if ok, err := dev.Next(&c); !ok || err != nil {
			b.Fatal(ok, err)
		}
		_, _ = c.Write(c.NextReadable(4))
		dev.Done(&c)
		dev.Flush()
		q.Wait()
	}
}
