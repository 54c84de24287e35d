package balloon

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, func(testing.TB) virtio.Device { return New(nil) })
}

// dirty fills pages [first, first+n) and returns their page numbers.
func dirty(r *virtiotest.Rig, first, n int) []uint32 {
	b := r.Bytes(mem.GPA(first*PageSize), n*PageSize)
	for i := range b {
		b[i] = 0xdd
	}
	var pfns []uint32
	for i := range n {
		pfns = append(pfns, uint32(first+i))
	}
	return pfns
}

// zero reports which of the pages are zero now.
func zero(r *virtiotest.Rig, pfns []uint32) (is []uint32) {
	for _, p := range pfns {
		if b := r.Bytes(mem.GPA(p)*PageSize, PageSize); b[0] == 0 && b[PageSize-1] == 0 {
			is = append(is, p)
		}
	}
	return is
}

func list(pfns ...uint32) []byte {
	var b []byte
	for _, p := range pfns {
		b = binary.LittleEndian.AppendUint32(b, p)
	}
	return b
}

func TestInflate(t *testing.T) {
	for name, pfns := range map[string][]uint32{
		"up":      {600, 601, 602, 603},
		"down":    {603, 602, 601, 600},
		"mixed":   {600, 603, 604, 602, 650, 601, 601},
		"nothing": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := virtiotest.New(t, New(nil), 0)
			all := dirty(r, 590, 100)
			want := map[uint32]bool{}
			for _, p := range pfns {
				want[p] = true
			}
			if pfns == nil {
				r.Queues[inflateQueue].Do(r.In(1))
			} else {
				r.Queues[inflateQueue].Do(r.Out(list(pfns...)))
			}
			got := map[uint32]bool{}
			for _, p := range zero(r, all) {
				got[p] = true
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("pages given back (-want +got):\n%s", diff)
			}
			r.Queues[deflateQueue].Do(r.Out(list(600)))
		})
	}
}

// A pause need not wait for the end of a long list.
func TestPauseWithinList(t *testing.T) {
	r := virtiotest.New(t, New(nil), 0)
	q := r.Queues[inflateQueue]
	var pfns []uint32
	for i := range uint32(maxPFNs) {
		pfns = append(pfns, 512+i%256*2) // no neighbours
	}
	long := r.Out(list(pfns...))
	for range 100 { // until the pause comes at the right time
		page := dirty(r, 512, 1)
		q.Send(long)
		time.Sleep(time.Millisecond)
		r.Stop()
		begun, ended := len(zero(r, page)) > 0, q.Used() > 0
		r.Start()
		q.Wait() // it is served all the same
		if begun && !ended {
			return
		}
	}
	t.Error("no pause came before a list had ended")
}

func TestHostilePages(t *testing.T) {
	const end = virtiotest.MemSize / PageSize
	for name, b := range map[string][]byte{
		"behind memory": list(end),
		"a run out of":  list(end-2, end-1, end),
		"far away":      list(1<<32 - 1),
		"not whole":     {1, 2, 3},
	} {
		t.Run(name, func(t *testing.T) {
			r := virtiotest.New(t, New(nil), 0)
			r.Queues[inflateQueue].Send(r.Out(b))
			if err := <-r.Broken; !virtio.IsProtocol(err) {
				t.Error(err)
			}
		})
	}
}

func TestReporting(t *testing.T) {
	for _, queue := range []int{reportingQueueOld, reportingQueue} {
		r := virtiotest.New(t, New(nil), 0)
		all := dirty(r, 600, 20)
		r.Queues[queue].Do(
			virtiotest.Desc{Addr: 602 * PageSize, Len: 3 * PageSize, Write: true},
			virtiotest.Desc{Addr: 610*PageSize - 1, Len: PageSize + 2, Write: true}, // whole pages only
			virtiotest.Desc{Addr: 615*PageSize + 1, Len: PageSize, Write: true},
		)
		if diff := cmp.Diff([]uint32{602, 603, 604, 610}, zero(r, all)); diff != "" {
			t.Errorf("queue %d: pages given back (-want +got):\n%s", queue, diff)
		}
	}
}

func TestTarget(t *testing.T) {
	d := New(nil)
	d.SetTarget(5) // before there is a driver
	r := virtiotest.New(t, d, 0)
	d.SetTarget(1000)
	<-r.Changed
	var p [4]byte
	if d.ReadConfig(0, p[:]); binary.LittleEndian.Uint32(p[:]) != 1000 {
		t.Errorf("num_pages %x", p)
	}
	d.WriteConfig(4, []byte{0xe8, 3, 0, 0})
	d.WriteConfig(0, []byte{1, 0, 0, 0}) // not the driver's to write
	if d.Actual() != 1000 || d.target.Load() != 1000 {
		t.Errorf("actual %d, target %d, want 1000", d.Actual(), d.target.Load())
	}
	r.Stop()
	enc := snap.NewEncoder(1)
	d.State(enc)
	back := New(nil)
	back.State(snap.NewDecoder(enc.Data(), 1))
	if back.Actual() != 1000 || back.target.Load() != 1000 {
		t.Errorf("restored: actual %d, target %d, want 1000", back.Actual(), back.target.Load())
	}
	if d.Reset(); d.Actual() != 0 || d.target.Load() != 1000 {
		t.Errorf("after a reset: actual %d, target %d", d.Actual(), d.target.Load())
	}
}

func stat(tag uint16, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(nil, tag), v)
}

func TestStats(t *testing.T) {
	d := New(nil)
	r := virtiotest.New(t, d, 0)
	q := r.Queues[statsQueue]
	if _, at := d.Stats(); !at.IsZero() {
		t.Error("statistics without a driver that tells")
	}
	q.Send(r.Out(append(stat(StatFree, 1<<20), stat(StatTotal, 1<<30)...)))
	if _, _, ok := q.TryWait(5 * time.Millisecond); ok {
		t.Fatal("the buffer came back without a question")
	}
	d.AskStats()
	q.Wait()
	// A pause keeps the buffer.
	q.Send(r.Out(append(stat(StatFree, 2<<20), stat(999, 1)...)))
	r.Stop()
	r.Start()
	d.AskStats()
	q.Wait()
	got, at := d.Stats()
	if diff := cmp.Diff(map[int]uint64{StatFree: 2 << 20, StatTotal: 1 << 30}, got); diff != "" || at.IsZero() {
		t.Errorf("at %v: %s", at, diff)
	}
}

// A driver that offers a second buffer gets the first one back: one that stays in the queue would keep the device busy.
func TestSecondStatsBuffer(t *testing.T) {
	d := New(nil)
	r := virtiotest.New(t, d, 0)
	q := r.Queues[statsQueue]
	first := q.Send(r.Out(stat(StatFree, 1)))
	second := q.Send(r.Out(stat(StatFree, 2)))
	if head, _ := q.Wait(); head != first {
		t.Errorf("chain %d came back, want %d", head, first)
	}
	if _, _, ok := q.TryWait(5 * time.Millisecond); ok {
		t.Error("the second buffer came back without a question")
	}
	if n := q.AvailEvent(); n != 2 {
		t.Errorf("the device waits for buffer %d, want 2", n)
	}
	d.AskStats()
	if head, _ := q.Wait(); head != second {
		t.Errorf("chain %d came back, want %d", head, second)
	}
}

func TestAllocations(t *testing.T) {
	r := virtiotest.New(t, New(nil), 0)
	out, in := r.Out(list(900, 901, 950)), virtiotest.Desc{Addr: 700 * PageSize, Len: PageSize, Write: true}
	if n := testing.AllocsPerRun(100, func() {
		r.Queues[inflateQueue].Do(out)
		r.Queues[deflateQueue].Do(out)
		r.Queues[reportingQueue].Do(in)
	}); n != 0 {
		t.Errorf("%v allocations per request, want none", n)
	}
}

// FuzzRequests sends what the fuzzer thinks up to every queue. The device may be marked broken, and a guest that gives its
// rings away waits in vain; the device has to stop all the same.
func FuzzRequests(f *testing.F) {
	f.Add(append([]byte{0, 1}, list(600, 601, 602, 603)...))
	f.Add([]byte{1, 255, 0xf1, 255})
	f.Add(append([]byte{0, 1}, stat(StatFree, 1)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := New(nil)
		r := virtiotest.New(t, d, 0)
		for _, q := range []int{inflateQueue, deflateQueue, statsQueue, reportingQueue} {
			d.AskStats()
			r.Queues[q].Send(virtiotest.Descs(r, data)...)
			r.Queues[q].TryWait(2 * time.Millisecond)
		}
		r.Stop()
	})
}
