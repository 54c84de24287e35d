package blk

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

const diskSize = 1 << 20

// disk returns a disk of n bytes that differ, and its file.
func disk(t testing.TB, n int, change func(*Config)) (*Device, *os.File) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "disk.raw"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>9 + i)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Name: "test", File: f, Serial: "LODGE-1", Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d, f
}

func header(kind uint32, sector uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	return binary.LittleEndian.AppendUint64(append(b, 0, 0, 0, 0), sector)
}

func segment(sector uint64, n, flags uint32) []byte {
	b := binary.LittleEndian.AppendUint64(nil, sector)
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, n), flags)
}

// do sends one request and returns its status and the number of bytes written.
func do(r *virtiotest.Rig, kind uint32, sector uint64, data ...virtiotest.Desc) (status byte, written uint32) {
	r.T.Helper()
	st := r.In(1)
	r.Bytes(st.Addr, 1)[0] = 0xff
	chain := append([]virtiotest.Desc{r.Out(header(kind, sector))}, data...)
	n := r.Queues[0].Do(append(chain, st)...)
	return r.Bytes(st.Addr, 1)[0], n
}

func contents(t testing.TB, f *os.File) []byte {
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSuite(t *testing.T) {
	_, f := disk(t, diskSize, nil) // one for all: a state is of its file
	virtiotest.Suite(t, func(t testing.TB) virtio.Device {
		d, err := New(Config{Name: "test", File: f, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

func TestReadAndWrite(t *testing.T) {
	for _, c := range []struct {
		name     string
		direct   bool
		noCached bool // as on a file system without RWF_NOWAIT
		inMemory bool // as on a tmpfs
		without  uint64
	}{
		{name: "cached"}, {name: "direct", direct: true}, {name: "no RWF_NOWAIT", noCached: true},
		{name: "tmpfs", inMemory: true},
		{name: "no flush", without: featureFlush},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, f := disk(t, diskSize, func(cfg *Config) { cfg.Direct = c.direct })
			d.noCached, d.inMemory = c.noCached, c.inMemory
			r := virtiotest.New(t, d, c.without)
			model := contents(t, f)
			rnd := rand.New(rand.NewPCG(1, 2))
			next := r.Alloc(0)
			for i := range 100 {
				at, n := rnd.IntN(diskSize/4096)*4096, 4096
				n = min(n*(1+rnd.IntN(20)), diskSize-at)
				// Two pieces, cut anywhere: also where direct I/O cannot.
				cut := 1 + rnd.IntN(n-1)
				if i%2 == 0 {
					a, b := r.In(cut), r.In(n-cut)
					if s, w := do(r, typeIn, uint64(at/512), a, b); s != statusOK || w != uint32(n+1) {
						t.Fatalf("read of %d at %d: status %d, %d bytes", n, at, s, w)
					}
					got := append(bytes.Clone(r.Bytes(a.Addr, cut)), r.Bytes(b.Addr, n-cut)...)
					if !bytes.Equal(got, model[at:at+n]) {
						t.Fatalf("read of %d at %d differs", n, at)
					}
				} else {
					p := make([]byte, n)
					for k := range p {
						p[k] = byte(rnd.Uint32())
					}
					copy(model[at:], p)
					if s, w := do(r, typeOut, uint64(at/512), r.Out(p[:cut]), r.Out(p[cut:])); s != statusOK || w != 1 {
						t.Fatalf("write of %d at %d: status %d, %d bytes", n, at, s, w)
					}
				}
				r.Free(next)
			}
			if s, w := do(r, typeFlush, 0); s != statusOK || w != 1 {
				t.Errorf("flush: status %d, %d bytes", s, w)
			}
			if !bytes.Equal(contents(t, f), model) {
				t.Error("the file differs from what was written")
			}
		})
	}
}

func TestStatus(t *testing.T) {
	const last = diskSize / 512
	for _, c := range []struct {
		name     string
		kind     uint32
		sector   uint64
		out      []byte
		in       int
		readOnly bool
		want     byte
	}{
		{name: "read the last sector", kind: typeIn, sector: last - 1, in: 512},
		{name: "read nothing", kind: typeIn, sector: last},
		{name: "read behind the end", kind: typeIn, sector: last, in: 512, want: statusIOError},
		{name: "read across the end", kind: typeIn, sector: last - 1, in: 1024, want: statusIOError},
		{name: "read where 64 bits end", kind: typeIn, sector: 1<<64 - 1, in: 1024, want: statusIOError},
		{name: "read where the position overflows", kind: typeIn, sector: 1 << 55, in: 512, want: statusIOError},
		{name: "read half a sector", kind: typeIn, in: 100, want: statusIOError},
		{name: "write half a sector", kind: typeOut, out: make([]byte, 100), want: statusIOError},
		{name: "write behind the end", kind: typeOut, sector: last, out: make([]byte, 512), want: statusIOError},
		{name: "write to a read-only disk", kind: typeOut, out: make([]byte, 512), readOnly: true, want: statusIOError},
		{name: "discard on a read-only disk", kind: typeDiscard, out: segment(0, 8, 0), readOnly: true, want: statusIOError},
		{name: "flush a read-only disk", kind: typeFlush, readOnly: true},
		{name: "SCSI", kind: 2, want: statusUnsupported},
		{name: "discard", kind: typeDiscard, out: segment(8, 8, 0)},
		{name: "discard nothing", kind: typeDiscard, out: segment(8, 0, 0)},
		{name: "discard with unmap", kind: typeDiscard, out: segment(8, 8, 1), want: statusUnsupported},
		{name: "discard across the end", kind: typeDiscard, out: segment(last-1, 2, 0), want: statusIOError},
		{name: "discard where 64 bits end", kind: typeDiscard, out: segment(1<<64-1, 2, 0), want: statusIOError},
		{name: "discard too much", kind: typeDiscard, out: segment(0, 1<<32-1, 0), want: statusIOError},
		{name: "discard half a range", kind: typeDiscard, out: make([]byte, 8), want: statusIOError},
		{name: "discard too many ranges", kind: typeDiscard, out: make([]byte, 16*(maxRanges+1)), want: statusIOError},
		{name: "zeroes with an unknown flag", kind: typeWriteZeroes, out: segment(0, 8, 2), want: statusUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, _ := disk(t, diskSize, func(cfg *Config) { cfg.ReadOnly = c.readOnly })
			r := virtiotest.New(t, d, 0)
			var data []virtiotest.Desc
			if c.out != nil {
				data = append(data, r.Out(c.out))
			}
			if c.in > 0 {
				data = append(data, r.In(c.in))
			}
			if got, _ := do(r, c.kind, c.sector, data...); got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
		})
	}
}

// What one request may cost is bounded, and the driver is told by how much.
func TestLimits(t *testing.T) {
	d, _ := disk(t, 512, func(c *Config) {
		if err := c.File.Truncate(1 << 30); err != nil {
			t.Fatal(err)
		}
	})
	r := virtiotest.New(t, d, 0)
	config := func(off uint32) uint32 {
		var b [4]byte
		d.ReadConfig(off, b[:])
		return binary.LittleEndian.Uint32(b[:])
	}
	if d.Features()&(featureSizeMax|featureSegMax) != featureSizeMax|featureSegMax {
		t.Error("the driver is told of no limits")
	}
	piece := r.In(int(config(8))) // size_max: the same memory in each descriptor
	var data []virtiotest.Desc
	for range config(12) { // seg_max
		data = append(data, piece)
	}
	if s, _ := do(r, typeIn, 0, data...); s != statusOK {
		t.Errorf("reading as much as is allowed: status %d", s)
	}
	data[0].Len += SectorSize
	r.In(SectorSize)
	if s, _ := do(r, typeIn, 0, data...); s != statusIOError {
		t.Errorf("reading a sector more: status %d", s)
	}
	for i := range data {
		data[i].Write = false
	}
	if s, _ := do(r, typeOut, 0, data...); s != statusIOError {
		t.Errorf("writing a sector more: status %d", s)
	}
	for kind, off := range map[uint32]uint32{typeDiscard: 36, typeWriteZeroes: 48} {
		most := config(off)
		if bytes := uint64(most) * SectorSize * uint64(config(off+4)); bytes > 64<<20 {
			t.Errorf("type %d: %d bytes at once", kind, bytes)
		}
		if s, _ := do(r, kind, 0, r.Out(segment(0, most, 0))); s != statusOK {
			t.Errorf("type %d: status %d for as much as is allowed", kind, s)
		}
		if s, _ := do(r, kind, 0, r.Out(segment(0, most+8, 0))); s != statusIOError {
			t.Errorf("type %d: status %d for more", kind, s)
		}
	}
}

func TestWriteZeroes(t *testing.T) {
	for _, unmap := range []uint32{0, 1} {
		d, f := disk(t, diskSize, nil)
		r := virtiotest.New(t, d, 0)
		model := contents(t, f)
		clear(model[8*512 : 24*512])
		clear(model[100*512 : 108*512])
		for _, s := range [][]byte{segment(8, 16, unmap), segment(100, 8, unmap)} {
			if s, _ := do(r, typeWriteZeroes, 0, r.Out(s)); s != statusOK {
				t.Fatalf("unmap %d: status %d", unmap, s)
			}
		}
		if !bytes.Equal(contents(t, f), model) {
			t.Errorf("unmap %d: the file differs", unmap)
		}
	}
}

func TestOverwrite(t *testing.T) {
	for _, direct := range []bool{false, true} {
		d, f := disk(t, diskSize, func(c *Config) { c.Direct = direct })
		model := contents(t, f)
		clear(model[4096 : 4096+2*bounceSize+8192])
		if err := d.requests[0].overwrite(4096, 2*bounceSize+8192); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(contents(t, f), model) {
			t.Errorf("direct %t: the file differs", direct)
		}
	}
}

func TestGetID(t *testing.T) {
	d, _ := disk(t, 512, nil)
	r := virtiotest.New(t, d, 0)
	in := r.In(20)
	if s, n := do(r, typeGetID, 0, in); s != statusOK || n != 21 {
		t.Errorf("status %d, %d bytes", s, n)
	}
	if diff := cmp.Diff("LODGE-1", string(bytes.TrimRight(r.Bytes(in.Addr, 20), "\x00"))); diff != "" {
		t.Error(diff)
	}
}

// TestErrorOfTheDisk takes half of the file away: the guest hears of it, and the driver is not blamed.
func TestErrorOfTheDisk(t *testing.T) {
	d, f := disk(t, diskSize, nil)
	r := virtiotest.New(t, d, 0)
	if err := f.Truncate(diskSize / 2); err != nil {
		t.Fatal(err)
	}
	if s, n := do(r, typeIn, diskSize/1024-4, r.In(4096)); s != statusIOError || n != 2048 {
		t.Errorf("status %d with %d bytes, want %d with the 2048 there are", s, n, statusIOError)
	}
	if s, _ := do(r, typeIn, 0, r.In(512)); s != statusOK {
		t.Errorf("status %d after an error, want %d", s, statusOK)
	}
}

// Only a file system that does not know how makes the disk give up reading from the page cache: an error may pass.
func TestCachedReadFails(t *testing.T) {
	for _, c := range []struct {
		name, path string
		flag       int
		gaveUp     bool
	}{
		{"an error", os.DevNull, os.O_WRONLY, false}, // EBADF
		{"not supported", "/proc/kallsyms", os.O_RDONLY, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := os.OpenFile(c.path, c.flag, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			d, _ := disk(t, diskSize, nil)
			d.fd = int(f.Fd())
			r := virtiotest.New(t, d, 0)
			if s, _ := do(r, typeIn, 0, r.In(512)); (s == statusOK) != c.gaveUp {
				t.Errorf("status %d", s)
			}
			r.Stop()
			if d.noCached != c.gaveUp {
				t.Errorf("gave up: %t", d.noCached)
			}
		})
	}
}

func TestOverlap(t *testing.T) {
	d, f := disk(t, diskSize, func(c *Config) { c.Direct = true }) // all requests take the long way
	r := virtiotest.New(t, d, 0)
	q := r.Queues[0]
	model := contents(t, f)
	q.NoKick = true
	type sent struct{ in, status virtiotest.Desc }
	requests := map[uint16]sent{}
	for i := range 60 { // more than are in flight at a time
		s := sent{r.In(4096), r.In(1)}
		requests[q.Send(r.Out(header(typeIn, uint64(8*i))), s.in, s.status)] = s
	}
	q.Kick()
	for range 60 {
		head, n := q.Wait()
		s := requests[head]
		if got := r.Bytes(s.status.Addr, 1)[0]; got != statusOK || n != 4097 {
			t.Fatalf("status %d, %d bytes", got, n)
		}
		i := int(head) / 3
		if !bytes.Equal(r.Bytes(s.in.Addr, 4096), model[4096*i:4096*i+4096]) {
			t.Fatalf("request %d differs", i)
		}
		delete(requests, head)
	}
}

// TestStopFinishes stops the device again and again with requests in flight: each begun must be in the used ring, and
// each other served after the next start.
func TestStopFinishes(t *testing.T) {
	d, _ := disk(t, diskSize, func(c *Config) { c.Direct = true })
	r := virtiotest.New(t, d, 0)
	q := r.Queues[0]
	for range 20 {
		free := r.Alloc(0)
		for i := range 40 {
			q.Send(r.Out(header(typeIn, uint64(8*i))), r.In(512), r.In(1))
		}
		r.Stop()
		enc := snap.NewEncoder(1)
		q.Device().State(enc)
		taken, used := binary.LittleEndian.Uint16(enc.Data()), binary.LittleEndian.Uint16(enc.Data()[2:])
		if taken != used {
			t.Fatalf("%d chains are lost in the pause", taken-used)
		}
		r.Start()
		for range 40 {
			q.Wait()
		}
		r.Free(free)
	}
}

func TestNewRefuses(t *testing.T) {
	d, f := disk(t, 512, nil)
	ro, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	odd, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer odd.Close()
	if err := odd.Truncate(1000); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"long serial": {File: f, Serial: "123456789012345678901"},
		"no writing":  {File: ro},
		"directory":   {File: dir, ReadOnly: true},
		"odd size":    {File: odd},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(Config{File: ro, ReadOnly: true}); err != nil {
		t.Error(err)
	}
	// A state of another disk.
	c := snap.NewEncoder(1)
	d.State(c)
	other, _ := disk(t, 1024, nil)
	dec := snap.NewDecoder(c.Data(), 1)
	if other.State(dec); dec.Err() == nil {
		t.Error("the state of a disk of another size was accepted")
	}
}

// A disk that cannot be flushed fails the save, by name. One that nobody writes to is not flushed.
func TestSaveFlushes(t *testing.T) {
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	for _, readOnly := range []bool{false, true} {
		d, f := disk(t, diskSize, func(c *Config) { c.ReadOnly = readOnly })
		d.fd = int(pipe.Fd()) // fdatasync fails on it
		c := snap.NewEncoder(d.StateVersion())
		d.State(c)
		err := c.Err()
		if (err == nil) != readOnly {
			t.Errorf("read-only %t: saved with %v", readOnly, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "disk test: flush") || !strings.Contains(err.Error(), f.Name())) {
			t.Errorf("error %q does not name the disk", err)
		}
	}
}

// A state goes with what the disk held then: what was written later is refused by name, unless the user knows better.
func TestChangedSinceSaved(t *testing.T) {
	const soon = time.Second
	for _, c := range []struct {
		name    string
		change  func(t *testing.T, f *os.File)
		ignore  bool
		version uint16
		refused bool
	}{
		{"unchanged", func(*testing.T, *os.File) {}, false, 2, false},
		{"read", func(t *testing.T, f *os.File) { contents(t, f) }, false, 2, false},
		{"written to", func(t *testing.T, f *os.File) {
			// The kernel's clock for this has a coarse step: what is written within one of it seems to be of one moment.
			for before := modified(t, f); modified(t, f) == before; {
				if _, err := f.WriteAt([]byte{1}, 0); err != nil {
					t.Fatal(err)
				}
			}
		}, false, 2, true},
		{"an older copy", func(t *testing.T, f *os.File) { touch(t, f, modified(t, f).Add(-time.Hour)) }, false, 2, true},
		{"the copy of then", func(t *testing.T, f *os.File) {
			then := modified(t, f)
			touch(t, f, then.Add(soon))
			touch(t, f, then)
		}, false, 2, false},
		{"ignored", func(t *testing.T, f *os.File) { touch(t, f, modified(t, f).Add(soon)) }, true, 2, false},
		{"a state of version 1", func(t *testing.T, f *os.File) { touch(t, f, modified(t, f).Add(soon)) }, false, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, f := disk(t, 512, func(cfg *Config) { cfg.IgnoreChanges = c.ignore })
			enc := snap.NewEncoder(c.version)
			d.State(enc)
			c.change(t, f)
			dec := snap.NewDecoder(enc.Data(), c.version)
			d.State(dec)
			dec.Done()
			err := dec.Err()
			if (err != nil) != c.refused {
				t.Errorf("refused: %v", err)
			}
			if err != nil && (!strings.Contains(err.Error(), "disk test: "+f.Name()) || !strings.Contains(err.Error(), "--ignore-disk-changes")) {
				t.Errorf("error %q does not say what to do", err)
			}
		})
	}
}

func modified(t testing.TB, f *os.File) time.Time {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.ModTime()
}

func touch(t testing.TB, f *os.File, at time.Time) {
	t.Helper()
	if err := os.Chtimes(f.Name(), at, at); err != nil {
		t.Fatal(err)
	}
}

func TestRefresh(t *testing.T) {
	d, f := disk(t, 512, nil)
	r := virtiotest.New(t, d, 0)
	if err := f.Truncate(2048); err != nil {
		t.Fatal(err)
	}
	if err := d.Refresh(); err != nil {
		t.Fatal(err)
	}
	<-r.Changed
	var p [8]byte
	if d.ReadConfig(0, p[:]); binary.LittleEndian.Uint64(p[:]) != 4 {
		t.Errorf("capacity %d, want 4", binary.LittleEndian.Uint64(p[:]))
	}
	if s, _ := do(r, typeIn, 3, r.In(512)); s != statusOK {
		t.Errorf("status %d", s)
	}
}

func TestAllocations(t *testing.T) {
	for name, change := range map[string]func(*Config){"cached": nil, "direct": func(c *Config) { c.Direct = true }} {
		d, _ := disk(t, diskSize, change)
		r := virtiotest.New(t, d, 0)
		h, data, status := r.Out(header(typeIn, 8)), r.In(4096+4096), r.In(1)
		data.Addr, data.Len = (data.Addr+4095)&^4095, 4096
		for kind, chain := range map[uint32][]virtiotest.Desc{
			typeIn: {h, data, status}, typeOut: {r.Out(header(typeOut, 8)), {Addr: data.Addr, Len: 4096}, status},
			typeFlush: {r.Out(header(typeFlush, 0)), status},
		} {
			if n := testing.AllocsPerRun(100, func() { r.Queues[0].Do(chain...) }); n != 0 {
				t.Errorf("%s: %v allocations per request of type %d, want none", name, n, kind)
			}
		}
	}
}

// FuzzRequests makes chains of what the fuzzer thinks up, against a disk with a page of data: each is answered, or the
// driver is to blame, and the file keeps its size.
func FuzzRequests(f *testing.F) {
	f.Add(append([]byte{0, 1}, append(header(typeIn, 0), 1, 32, 0xf1, 1)...))
	f.Add(append([]byte{0, 1}, append(header(typeGetID, 0), 1, 32)...))
	f.Add(append([]byte{0, 33}, append(header(typeOut, 1), make([]byte, 512)...)...))
	f.Add(append(append([]byte{0, 2}, header(typeDiscard, 1)...), append(segment(1, 1, 0), 1, 1)...))
	f.Add(append(append([]byte{0, 2}, header(typeWriteZeroes, 1)...), append(segment(1, 1, 1), 1, 1)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, file := disk(t, 4096, nil)
		r := virtiotest.New(t, d, 0)
		r.Queues[0].Send(virtiotest.Descs(r, data)...)
		for {
			if _, _, ok := r.Queues[0].TryWait(time.Millisecond); ok || len(r.Broken) > 0 {
				break
			}
		}
		r.Stop()
		if st, err := file.Stat(); err != nil || st.Size() != 4096 {
			t.Fatalf("the file has %d bytes now: %v", st.Size(), err)
		}
	})
}

// BenchmarkRead reads with several requests in flight, as a guest's block layer does.
func BenchmarkRead(b *testing.B) {
	for _, c := range []struct {
		name   string
		size   int
		depth  int
		direct bool
	}{
		{"4K×1", 4096, 1, false}, {"4K×32", 4096, 32, false}, {"1M×2", 1 << 20, 2, false},
		{"4K×1/direct", 4096, 1, true}, {"4K×32/direct", 4096, 32, true}, {"1M×2/direct", 1 << 20, 2, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			const size = 256 << 20
			f, err := os.OpenFile(filepath.Join(b.TempDir(), "disk.raw"), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			for at := int64(0); at < size; at += 1 << 20 {
				if _, err := f.WriteAt(bytes.Repeat([]byte{byte(at >> 20)}, 1<<20), at); err != nil {
					b.Fatal(err)
				}
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
			d, err := New(Config{Name: "bench", File: f, Direct: c.direct})
			if err != nil {
				b.Fatal(err)
			}
			r := virtiotest.New(b, d, 0)
			q := r.Queues[0]
			var headers []virtiotest.Desc
			rnd := rand.New(rand.NewPCG(1, 2))
			for i := range 512 {
				at := rnd.IntN(size/c.size) * c.size
				if c.size > 4096 {
					at = i * c.size % size
				}
				headers = append(headers, r.Out(header(typeIn, uint64(at/512))))
			}
			data := r.In(c.size + 4096)
			data.Addr, data.Len = (data.Addr+4095)&^4095, uint32(c.size)
			status := r.In(1)
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			inFlight, i := 0, 0
			for b.Loop() {
				if inFlight == c.depth {
					<-q.Interrupts
					for ; q.Used() > 0; inFlight-- {
						q.Wait()
					}
				}
				q.Send(headers[i%len(headers)], data, status)
				inFlight++
				i++
			}
			for ; inFlight > 0; inFlight-- {
				q.Wait()
			}
			if r.Bytes(status.Addr, 1)[0] != statusOK {
				b.Fatalf("status %d", r.Bytes(status.Addr, 1)[0])
			}
		})
	}
}
