package virtio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// newIdle returns a running rig whose only queue the test plays the device of.
func newIdle(t testing.TB, size uint16, without uint64) (*virtiotest.Queue, *virtio.Queue) {
	r := virtiotest.New(t, &virtiotest.Func{Sizes: []uint16{size}}, without)
	return r.Queues[0], r.Queues[0].Device()
}

// TestChainModel lays random bytes out in random descriptors over two adjoining regions of memory, and compares what every
// way of consuming a chain does with a flat copy of it.
func TestChainModel(t *testing.T) {
	const half = 1 << 16
	f := tempFile(t, 1<<16)
	content := make([]byte, 1<<16)
	if _, err := f.ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		m, err := mem.New(mem.Region{Bytes: make([]byte, half)}, mem.Region{Base: half, Bytes: make([]byte, half)})
		if err != nil {
			t.Fatal(err)
		}
		const size = 64
		q, err := virtio.NewQueue(0, m, virtio.Config{Size: size, Desc: 0, Avail: 0x800, Used: 0xa00}, virtio.CoreFeatures, nil, func() {})
		if err != nil {
			t.Fatal(err)
		}
		// The chain's bytes lie one after the other around the seam between the regions.
		lens := rapid.SliceOfN(rapid.IntRange(0, 700), 1, 40).Draw(t, "lens")
		writable := rapid.IntRange(0, len(lens)).Draw(t, "first writable")
		direct := rapid.IntRange(0, len(lens)).Draw(t, "direct") // the rest in an indirect table
		total := 0
		for _, n := range lens {
			total += n
		}
		start := half - rapid.IntRange(0, total).Draw(t, "before the seam")
		at, table := start, 0x2000
		var out, in []byte
		for i, n := range lens {
			d := uint32(0)
			if i >= writable {
				d |= 2
			}
			if i < len(lens)-1 {
				d |= 1
			}
			slot := 16 * i
			if i >= direct {
				slot = table + 16*(i-direct)
			}
			next := i + 1
			if i >= direct {
				next -= direct
			}
			putDesc(t, m, slot, uint64(at), uint32(n), uint16(d), uint16(next))
			for k := range n {
				b := byte(7*i + k)
				if err := m.WriteAt([]byte{b}, mem.GPA(at+k)); err != nil {
					t.Fatal(err)
				}
				if i < writable {
					out = append(out, b)
				} else {
					in = append(in, b)
				}
			}
			at += n
		}
		if direct < len(lens) {
			putDesc(t, m, 16*direct, uint64(table), uint32(16*(len(lens)-direct)), 4, 0)
		}
		put(t, m, 0x800, 0, 0, 1, 0, 0, 0)
		var c virtio.Chain
		if ok, err := q.Next(&c); !ok || err != nil {
			t.Fatalf("Next: %v, %v", ok, err)
		}

		inAt, written, last := start+len(out), 0, false
		end := inAt + len(in)
		expect := append([]byte{}, in...) // what the writable part has to hold
		fill := byte(0)
		wrote := func(n int, what func(i int) byte) {
			for i := range n {
				expect[written+i] = what(i)
			}
			written += n
			inAt += n
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if c.Readable() != len(out) || c.Writable() != end-inAt {
					t.Fatalf("%d readable, %d writable; want %d, %d", c.Readable(), c.Writable(), len(out), end-inAt)
				}
				want := written
				if last && inAt == end {
					want++
				}
				if c.Written() != want {
					t.Fatalf("%d written, want %d", c.Written(), want)
				}
			},
			"read": func(t *rapid.T) {
				p := make([]byte, rapid.IntRange(0, 900).Draw(t, "n"))
				n, err := c.Read(p)
				k := min(len(p), len(out))
				switch {
				case n != k, !bytes.Equal(p[:n], out[:k]):
					t.Fatalf("Read(%d) = %d %x, want %x", len(p), n, p[:n], out[:k])
				case n == len(p) && err != nil, n < len(p) && n > 0 && !errors.Is(err, virtio.ErrShort), n < len(p) && n == 0 && err != io.EOF:
					t.Fatalf("Read(%d) = %d, %v", len(p), n, err)
				}
				out = out[n:]
			},
			"next readable": func(t *rapid.T) {
				limit := rapid.IntRange(1, 900).Draw(t, "limit")
				b := c.NextReadable(limit)
				if len(b) > limit || (len(b) == 0) != (len(out) == 0) || !bytes.Equal(b, out[:len(b)]) {
					t.Fatalf("NextReadable(%d) = %x of %x", limit, b, out)
				}
				out = out[len(b):]
			},
			"advance readable": func(t *rapid.T) {
				n := rapid.IntRange(0, 900).Draw(t, "n")
				c.AdvanceReadable(n)
				out = out[min(n, len(out)):]
			},
			"write file": func(t *rapid.T) {
				n := rapid.IntRange(0, 900).Draw(t, "n")
				off := int64(rapid.IntRange(0, 1000).Draw(t, "off"))
				k := min(n, len(out))
				if err := c.WriteFileAt(int(f.Fd()), n, off); (err == nil) != (k == n) {
					t.Fatalf("WriteFileAt of %d, with %d there: %v", n, k, err)
				}
				copy(content[off:], out[:k])
				got := make([]byte, len(content))
				if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
					t.Fatalf("file differs: %v\n%s", err, cmp.Diff(content, got))
				}
				out = out[k:]
			},
			"write": func(t *rapid.T) {
				fill++
				p := bytes.Repeat([]byte{fill}, rapid.IntRange(0, 900).Draw(t, "n"))
				n, err := c.Write(p)
				if n != min(len(p), end-inAt) || (err == nil) != (n == len(p)) {
					t.Fatalf("Write(%d) = %d, %v with %d left", len(p), n, err, end-inAt)
				}
				wrote(n, func(int) byte { return fill })
			},
			"next writable": func(t *rapid.T) {
				fill++
				b := c.NextWritable(rapid.IntRange(1, 900).Draw(t, "limit"))
				for i := range b {
					b[i] = fill
				}
				wrote(len(b), func(int) byte { return fill })
			},
			"read file": func(t *rapid.T) {
				n := rapid.IntRange(0, 900).Draw(t, "n")
				off := int64(rapid.IntRange(0, 1000).Draw(t, "off"))
				k := min(n, end-inAt)
				var err error
				if rapid.Bool().Draw(t, "cached") {
					var got int
					if got, err = c.ReadCachedAt(int(f.Fd()), n, off); err == nil && got != k {
						t.Skip("the page cache has lost some")
					}
					if errors.Is(err, errors.ErrUnsupported) {
						t.Skip("this file system has no cached reads")
					}
				} else if err = c.ReadFileAt(int(f.Fd()), n, off); k < n {
					if err == nil {
						t.Fatal("ReadFileAt into a chain that is too short worked")
					}
					err = nil
				}
				if err != nil {
					t.Fatal(err)
				}
				wrote(k, func(i int) byte { return content[off+int64(i)] })
			},
			"write last": func(t *rapid.T) {
				if last || inAt == end {
					t.Skip("there is none")
				}
				last = true
				fill++
				end--
				expect[len(expect)-1] = fill
				if err := c.WriteLast(fill); err != nil {
					t.Fatal(err)
				}
			},
		})
		got := make([]byte, len(expect))
		if err := m.ReadAt(got, mem.GPA(at-len(in))); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(expect, got); diff != "" {
			t.Fatalf("the writable part (-want +got):\n%s", diff)
		}
	})
}

// TestChainRefuses has what virtiotest.Suite does not: the order of descriptors, and memory at its edges.
func TestChainRefuses(t *testing.T) {
	const end = virtiotest.MemSize
	for name, chain := range map[string][]virtiotest.Desc{
		"readable after writable":  {{Addr: 0x100, Len: 1, Write: true}, {Addr: 0x100, Len: 1}},
		"one byte behind memory":   {{Addr: end - 4, Len: 5}},
		"4 GiB":                    {{Addr: 0x100, Len: 1<<32 - 1}},
		"memory, then what is not": {{Addr: 0x100, Len: 1}, {Addr: end, Len: 1}},
	} {
		q, dev := newIdle(t, 8, 0)
		q.Send(chain...)
		var c virtio.Chain
		if ok, err := dev.Next(&c); ok || !virtio.IsProtocol(err) {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	q, dev := newIdle(t, 8, 0)
	q.Send(virtiotest.Desc{Addr: end - 4, Len: 4}, virtiotest.Desc{Addr: end, Len: 0})
	var c virtio.Chain
	if ok, err := dev.Next(&c); !ok || err != nil || c.Readable() != 4 {
		t.Errorf("the last bytes of memory: %v, %v, %d bytes", ok, err, c.Readable())
	}
}

func TestFileErrors(t *testing.T) {
	q, dev := newIdle(t, 8, 0)
	r := q.Rig()
	f := tempFile(t, 4096)
	var c virtio.Chain
	q.Send(r.In(8192))
	if ok, err := dev.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := c.ReadFileAt(int(f.Fd()), 8192, 0); err != io.ErrUnexpectedEOF || c.Written() != 4096 {
		t.Errorf("reading past the end of the file: %v with %d written; want %v with 4096", err, c.Written(), io.ErrUnexpectedEOF)
	}
	w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := c.ReadFileAt(int(w.Fd()), 1, 0); err == nil || c.Written() != 4096 {
		t.Errorf("reading a file that is open for writing: %v", err)
	}
	if err := c.WriteFileAt(int(f.Fd()), 1, 0); err == nil {
		t.Error("writing from an empty chain worked")
	}
}

// TestLongestVector has a chain of more pieces than the kernel takes at once.
func TestLongestVector(t *testing.T) {
	q, dev := newIdle(t, 8, 0)
	r := q.Rig()
	table := r.Alloc(16 * virtio.MaxChain)
	data := r.Alloc(virtio.MaxChain)
	for i := range virtio.MaxChain - 1 {
		flags := uint16(3)
		if i == virtio.MaxChain-2 {
			flags = 2
		}
		putDesc(t, r.Mem, int(table)+16*i, uint64(data)+uint64(i), 1, flags, uint16(i+1))
	}
	q.SetDesc(0, table, 16*(virtio.MaxChain-1), 4, 0)
	q.Offer(0)
	var c virtio.Chain
	if ok, err := dev.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	f := tempFile(t, 4096)
	if err := c.ReadFileAt(int(f.Fd()), virtio.MaxChain-1, 1); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, virtio.MaxChain-1)
	if _, err := f.ReadAt(want, 1); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, r.Bytes(data, len(want))); diff != "" {
		t.Error(diff)
	}
}

// FuzzChain takes a queue's whole memory, rings and tables included, from the fuzzer. Next must refuse it or return a
// chain whose bytes are all in memory and that is no longer than a chain may be.
func FuzzChain(f *testing.F) {
	f.Add([]byte{0, 0x30, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0}, uint16(1), true)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 4, 0, 0, 0}, uint16(1), true)
	f.Add([]byte{0, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0}, uint16(7), false)
	f.Add([]byte{0xff, 0x0f, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 3, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 2, 0, 0, 0}, uint16(3), true)
	f.Fuzz(func(t *testing.T, data []byte, available uint16, indirect bool) {
		const size = 16
		m, err := mem.New(mem.Region{Bytes: make([]byte, 4096)}, mem.Region{Base: 4096, Bytes: make([]byte, 4096)},
			mem.Region{Base: 1 << 32, Bytes: make([]byte, 4096)})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range m.Regions() {
			for n := 0; len(data) > 0 && n < len(r.Bytes); {
				n += copy(r.Bytes[n:], data)
			}
		}
		var features uint64 = virtio.CoreFeatures
		if !indirect {
			features &^= virtio.FeatureIndirectDesc
		}
		q, err := virtio.NewQueue(0, m, virtio.Config{Size: size, Desc: 0, Avail: 0x100, Used: 0x200}, features, nil, func() {})
		if err != nil {
			t.Fatal(err)
		}
		put(t, m, 0x102, byte(available), byte(available>>8))
		var c virtio.Chain
		for i := 0; ; i++ {
			ok, err := q.Next(&c)
			if err != nil && !virtio.IsProtocol(err) {
				t.Fatalf("an error that does not blame the driver: %v", err)
			}
			if !ok || err != nil {
				break
			}
			if i >= size {
				t.Fatal("more chains than descriptors")
			}
			if c.Readable() < 0 || c.Writable() < 0 || c.Readable() > virtio.MaxChain*8192 || c.Writable() > virtio.MaxChain*8192 {
				t.Fatalf("%d readable, %d writable", c.Readable(), c.Writable())
			}
			n, pieces := 0, 0
			for want := c.Readable(); n < want; pieces++ {
				b := c.NextReadable(1 << 20)
				if len(b) == 0 {
					t.Fatalf("%d bytes readable, but %d were there", want, n)
				}
				n += len(b)
			}
			n = 0
			for want := c.Writable(); n < want; pieces++ {
				b := c.NextWritable(1 << 20)
				if len(b) == 0 {
					t.Fatalf("%d bytes writable, but %d were there", want, n)
				}
				n += len(b)
			}
			if pieces > 2*virtio.MaxChain {
				t.Fatalf("%d pieces", pieces)
			}
			q.Done(&c)
		}
	})
}

func putDesc(t rapid.TB, m *mem.Memory, at int, addr uint64, length uint32, flags, next uint16) {
	b := binary.LittleEndian.AppendUint64(nil, addr)
	b = binary.LittleEndian.AppendUint32(b, length)
	b = binary.LittleEndian.AppendUint16(b, flags)
	put(t, m, at, binary.LittleEndian.AppendUint16(b, next)...)
}

func put(t rapid.TB, m *mem.Memory, at int, b ...byte) {
	if err := m.WriteAt(b, mem.GPA(at)); err != nil {
		t.Fatal(err)
	}
}

// tempFile returns a file of n bytes that differ.
func tempFile(t testing.TB, n int) *os.File {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return f
}
