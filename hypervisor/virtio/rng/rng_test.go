package rng

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, func(testing.TB) virtio.Device { return &Device{} })
}

func TestFill(t *testing.T) {
	for name, sizes := range map[string][]int{
		"one byte":            {1},
		"Linux":               {64},
		"pieces":              {1, 2, 61, 4},
		"just the bound":      {maxRequest},
		"more than the bound": {maxRequest + 1},
		"bound in a piece":    {maxRequest - 16, 32, 16},
	} {
		t.Run(name, func(t *testing.T) {
			r := virtiotest.New(t, &Device{}, 0)
			var chain []virtiotest.Desc
			total := 0
			for _, n := range sizes {
				chain, total = append(chain, r.In(n)), total+n
			}
			n := r.Queues[0].Do(chain...)
			if want := min(total, maxRequest); int(n) != want {
				t.Fatalf("%d bytes written, want %d", n, want)
			}
			got := content(r, chain)
			if rest := got[n:]; !bytes.Equal(rest, make([]byte, len(rest))) {
				t.Errorf("bytes behind the written %d were changed", n)
			}
			// 16 zeros in a row would be an accident of one in 2¹²⁸ a place.
			if bytes.Contains(got[:n], make([]byte, 16)) {
				t.Errorf("part of the buffer was not filled: %x", got[:n])
			}
		})
	}
}

// TestFresh asks twice with the same buffer.
func TestFresh(t *testing.T) {
	r := virtiotest.New(t, &Device{}, 0)
	chain := []virtiotest.Desc{r.In(32)}
	r.Queues[0].Do(chain...)
	first := content(r, chain)
	r.Queues[0].Do(chain...)
	if second := content(r, chain); bytes.Equal(first, second) {
		t.Errorf("two requests got the same bytes: %x", first)
	}
}

// TestQueued makes many requests available before the device hears of them.
func TestQueued(t *testing.T) {
	r := virtiotest.New(t, &Device{}, 0)
	q := r.Queues[0]
	q.NoKick = true
	var want, got []uint16
	for range 64 {
		want = append(want, q.Send(r.In(8)))
	}
	q.Kick()
	for range want {
		head, n := q.Wait()
		if n != 8 {
			t.Errorf("request %d: %d bytes written, want 8", head, n)
		}
		got = append(got, head)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of the answers (-want +got):\n%s", diff)
	}
}

func TestBroken(t *testing.T) {
	for name, chain := range map[string]func(r *virtiotest.Rig) []virtiotest.Desc{
		"readable":              func(r *virtiotest.Rig) []virtiotest.Desc { return []virtiotest.Desc{r.Out([]byte{1})} },
		"readable and writable": func(r *virtiotest.Rig) []virtiotest.Desc { return []virtiotest.Desc{r.Out([]byte{1}), r.In(8)} },
		"empty":                 func(r *virtiotest.Rig) []virtiotest.Desc { return []virtiotest.Desc{r.In(0)} },
	} {
		t.Run(name, func(t *testing.T) {
			r := virtiotest.New(t, &Device{}, 0)
			if _, err := request(r, chain(r)); !virtio.IsProtocol(err) {
				t.Errorf("device broken with %v, want the driver's error", err)
			}
		})
	}
}

func TestAllocs(t *testing.T) {
	r := virtiotest.New(t, &Device{}, 0)
	chain := []virtiotest.Desc{r.In(64), r.In(maxRequest)}
	if n := testing.AllocsPerRun(1000, func() { r.Queues[0].Do(chain...) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte{1, 4})                // 64 bytes
	f.Add([]byte{0x1, 255, 0x11, 255}) // more than the bound
	f.Add([]byte{0, 1, 1, 4})          // a readable descriptor first
	f.Add([]byte{1, 4, 0, 1})          // and last
	f.Fuzz(func(t *testing.T, data []byte) {
		r := virtiotest.New(t, &Device{}, 0)
		chain := virtiotest.Descs(r, data)
		writable, wrong := 0, false
		for _, d := range chain {
			if d.Write {
				writable += int(d.Len)
			} else {
				wrong = true
			}
		}
		n, err := request(r, chain)
		switch {
		case wrong != (err != nil) || err != nil && !virtio.IsProtocol(err):
			t.Errorf("device broken with %v; readable descriptors: %t", err, wrong)
		case err == nil && int(n) != min(writable, maxRequest):
			t.Errorf("%d bytes written, want %d", n, min(writable, maxRequest))
		}
	})
}

// request sends chain and returns how many bytes were written, or what the device was marked broken with.
func request(r *virtiotest.Rig, chain []virtiotest.Desc) (n uint32, err error) {
	r.T.Helper()
	r.Queues[0].Send(chain...)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if _, n, ok := r.Queues[0].TryWait(time.Millisecond); ok {
			return n, nil
		}
		select {
		case err := <-r.Broken:
			return 0, err
		default:
		}
	}
	r.T.Fatal("the chain did not come back and the device is not broken")
	return 0, nil
}

// content returns a copy of the bytes of chain.
func content(r *virtiotest.Rig, chain []virtiotest.Desc) (b []byte) {
	for _, d := range chain {
		b = append(b, r.Bytes(d.Addr, int(d.Len))...)
	}
	return b
}
