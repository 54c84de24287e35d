package rng

import (
	"bytes"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, func(testing.TB) virtio.Device { return new(Device) })
}

func TestRequests(t *testing.T) {
	r := virtiotest.New(t, new(Device), 0)
	q := r.Queues[0]
	for _, c := range []struct {
		name  string
		lens  []int
		wants uint32
	}{
		{"one buffer", []int{64}, 64},
		{"three buffers", []int{32, 1, 31}, 64},
		{"more than a request gets", []int{maxRequest - 1, 100}, maxRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			var chain []virtiotest.Desc
			for _, n := range c.lens {
				chain = append(chain, r.In(n))
			}
			if n := q.Do(chain...); n != c.wants {
				t.Errorf("%d bytes, want %d", n, c.wants)
			}
			// 31 zeros in a row do not happen; an untouched buffer does.
			for _, d := range chain {
				if b := r.Bytes(d.Addr, int(d.Len)); d.Len > 30 && bytes.Count(b[:31], []byte{0}) == 31 {
					t.Errorf("buffer of %d bytes was not filled", d.Len)
				}
			}
		})
	}
	if n := q.Do(r.Out([]byte("nothing to write to"))); n != 0 {
		t.Errorf("%d bytes written into a buffer that is to be read", n)
	}
}

func TestAllocations(t *testing.T) {
	r := virtiotest.New(t, new(Device), 0)
	in := r.In(64)
	if n := testing.AllocsPerRun(200, func() { r.Queues[0].Do(in) }); n != 0 {
		t.Errorf("%v allocations per request, want none", n)
	}
}

// FuzzRequests takes a chain's lengths and directions from the fuzzer: it comes back, or the driver is to blame.
func FuzzRequests(f *testing.F) {
	f.Add([]byte{1, 64})
	f.Add([]byte{0, 1, 1, 255, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := virtiotest.New(t, new(Device), 0)
		r.Queues[0].Send(virtiotest.Descs(r, data)...)
		for {
			if _, _, ok := r.Queues[0].TryWait(time.Millisecond); ok || len(r.Broken) > 0 {
				return
			}
		}
	})
}
