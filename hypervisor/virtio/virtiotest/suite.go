package virtiotest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// Suite runs what every device must pass, whatever it does. Each part gets a new device from make.
func Suite(t *testing.T, make func(t testing.TB) virtio.Device) {
	t.Run("describes itself", func(t *testing.T) { describes(t, make(t)) })
	t.Run("configuration space", func(t *testing.T) { configuration(t, make(t)) })
	t.Run("stops and starts", func(t *testing.T) { stopsAndStarts(t, make(t)) })
	t.Run("survives garbage", func(t *testing.T) {
		for seed := range uint64(64) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) { Garbage(t, make(t), seed) })
		}
	})
	if _, remote := make(t).(virtio.Remote); !remote { // whose rings are looked at elsewhere
		t.Run("refuses an impossible ring", func(t *testing.T) { impossible(t, make) })
	}
	t.Run("saves and restores", func(t *testing.T) { saves(t, make) })
}

func describes(t *testing.T, d virtio.Device) {
	if d.Features()&virtio.CoreFeatures != 0 {
		t.Errorf("features %#x contain those of the core", d.Features())
	}
	if len(d.QueueSizes()) == 0 {
		t.Error("no queues")
	}
	for i, n := range d.QueueSizes() {
		if n == 0 || n&(n-1) != 0 || n > virtio.MaxQueueSize {
			t.Errorf("queue %d: size %d", i, n)
		}
	}
}

// configuration reads and writes everywhere, also far outside: it may not panic, and must fill what it is given.
func configuration(t *testing.T, d virtio.Device) {
	for off := range uint32(512) {
		for _, n := range []int{1, 2, 4, 8} {
			a, b := bytes.Repeat([]byte{0xa5}, n), bytes.Repeat([]byte{0x5a}, n)
			d.ReadConfig(off, a)
			d.ReadConfig(off, b)
			if !bytes.Equal(a, b) {
				t.Fatalf("reading %d bytes at %d leaves some unset, or is not repeatable: %x, %x", n, off, a, b)
			}
		}
	}
	for _, off := range []uint32{0, 1, 3, 0x100, 0xfff, 1 << 31, 1<<32 - 1} {
		d.ReadConfig(off, []byte{0, 0, 0, 0, 0, 0, 0, 0})
		d.WriteConfig(off, []byte{1, 2, 3, 4, 5, 6, 7, 8})
	}
}

func stopsAndStarts(t *testing.T, d virtio.Device) {
	r := New(t, d, 0)
	for range 20 {
		r.Stop()
		r.Start()
	}
	r.Stop()
	d.Reset()
	r.Start()
}

// Garbage gives d queues full of random chains made from seed, in rounds: between them the device is stopped, as the race
// detector would not see the joke. The device may mark itself broken; it must stop in time.
func Garbage(t testing.TB, d virtio.Device, seed uint64) {
	r := New(t, d, 0)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 8 {
		r.Stop()
		junk := r.Bytes(MemSize/2, MemSize/2)
		for i := range 256 {
			junk[rnd.IntN(len(junk))] = byte(i)
		}
		q := r.Queues[rnd.IntN(len(r.Queues))]
		for range 4 {
			q.garbage(rnd)
		}
		r.Start()
		q.TryWait(time.Millisecond)
	}
	r.Stop()
}

// garbage offers one random chain.
func (q *Queue) garbage(rnd *rand.Rand) {
	n := uint16(1 + rnd.IntN(6))
	head := uint16(rnd.IntN(int(q.cfg.Size)))
	for i := range n {
		addr, length := mem.GPA(MemSize/2+rnd.IntN(MemSize/4)), uint32(rnd.IntN(5000))
		if rnd.IntN(32) == 0 {
			addr = mem.GPA(rnd.Uint64())
		}
		if rnd.IntN(32) == 0 {
			length = rnd.Uint32()
		}
		flags := uint16(rnd.IntN(4)) // readable and writable, chained or not
		if i == n-1 && rnd.IntN(8) != 0 {
			flags &^= 1
		}
		if rnd.IntN(32) == 0 {
			flags |= 4
		}
		slot := (head + i) % q.cfg.Size
		q.SetDesc(slot, addr, length, flags, (slot+1)%q.cfg.Size)
	}
	q.Offer(head)
}

func impossible(t *testing.T, make func(t testing.TB) virtio.Device) {
	for name, spoil := range map[string]func(r *Rig, q *Queue){
		"index far ahead": func(r *Rig, q *Queue) { q.SetAvailable(q.cfg.Size + 1); q.Kick() },
		"loop": func(r *Rig, q *Queue) {
			q.SetDesc(0, 0x100, 4, 1, 1)
			q.SetDesc(1, 0x100, 4, 1, 0)
			q.Offer(0)
		},
		"outside memory": func(r *Rig, q *Queue) { q.SetDesc(0, MemSize-1, 2, 0, 0); q.Offer(0) },
		"wraps around":   func(r *Rig, q *Queue) { q.SetDesc(0, ^mem.GPA(0), 2, 0, 0); q.Offer(0) },
		"no such descriptor": func(r *Rig, q *Queue) {
			q.Offer(q.cfg.Size)
		},
		"odd indirect table": func(r *Rig, q *Queue) { q.SetDesc(0, 0x100, 17, 4, 0); q.Offer(0) },
		"indirect in indirect": func(r *Rig, q *Queue) {
			table := r.Alloc(16)
			copy(r.Bytes(table, 16), []byte{0, 1, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0, 0})
			q.SetDesc(0, table, 16, 4, 0)
			q.Offer(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			// A device need not look at every queue of its own accord (one that it only sends on): one must notice.
			noticed := false
			r := New(t, make(t), 0)
			for i := range r.Queues {
				spoil(r, r.Queues[i])
			}
			select {
			case err := <-r.Broken:
				noticed = virtio.IsProtocol(err)
				if !noticed {
					t.Errorf("broken with %v, which does not blame the driver", err)
				}
			case <-time.After(timeout):
			}
			if !noticed {
				t.Error("no queue was marked broken")
			}
		})
	}
}

func saves(t *testing.T, make func(t testing.TB) virtio.Device) {
	a, b := make(t), make(t)
	r := New(t, a, 0)
	r.Stop()
	first := snap.NewEncoder(a.StateVersion())
	a.State(first)
	if err := first.Err(); err != nil {
		t.Fatalf("saving: %v", err)
	}
	d := snap.NewDecoder(first.Data(), a.StateVersion())
	b.State(d)
	d.Done()
	if err := d.Err(); err != nil {
		t.Fatalf("restoring: %v", err)
	}
	second := snap.NewEncoder(b.StateVersion())
	b.State(second)
	if !bytes.Equal(first.Data(), second.Data()) {
		t.Errorf("state differs after a restore:\n%x\n%x", first.Data(), second.Data())
	}
	for n := range first.Data() {
		c := snap.NewDecoder(first.Data()[:n], a.StateVersion())
		make(t).State(c)
		if c.Err() == nil {
			t.Fatalf("a state cut to %d of %d bytes was accepted", n, len(first.Data()))
		}
	}
}
