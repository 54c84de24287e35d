package mem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

const page = PageSize

// split is a memory of every shape that matters: two regions that adjoin, a hole, a third one, and one at the very end.
func split(t testing.TB) *Memory {
	t.Helper()
	heap := func(base GPA, pages int) Region { return Region{Base: base, Bytes: make([]byte, pages*page)} }
	m, err := New(heap(8*page, 1), heap(0, 2), heap(2*page, 1), heap(1<<32, 2), heap(1<<64-2*page, 1))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNewRefuses(t *testing.T) {
	one := make([]byte, page)
	for name, regions := range map[string][]Region{
		"empty":              {{Bytes: nil}},
		"base not aligned":   {{Base: 1, Bytes: one}},
		"length not aligned": {{Bytes: one[:page-1]}},
		"ends at 2^64":       {{Base: 1<<64 - page, Bytes: one}},
		"overlap":            {{Base: page, Bytes: one}, {Base: 0, Bytes: make([]byte, 2*page)}},
		"twice":              {{Bytes: one}, {Bytes: one}},
	} {
		if _, err := New(regions...); err == nil {
			t.Errorf("%s: New succeeded", name)
		}
	}
}

func TestSliceEdges(t *testing.T) {
	m := split(t)
	for _, tt := range []struct {
		gpa  GPA
		n    int
		want error
	}{
		{0, 2 * page, nil},
		{0, 0, nil},
		{2*page - 1, 1, nil},
		{2*page - 1, 2, ErrNotContiguous},
		{0, 3 * page, ErrNotContiguous},
		{0, 3*page + 1, ErrOutOfRange},
		{0, 9 * page, ErrOutOfRange}, // both ends are memory, the middle is not
		{3 * page, 0, ErrOutOfRange},
		{3*page - 1, 2, ErrOutOfRange},
		{0, -1, ErrOutOfRange},
		{1<<32 + 2*page - 1, 1, nil},
		{1<<64 - page - 1, 1, nil},
		{1<<64 - page - 1, 2, ErrOutOfRange},
		{1<<64 - 2*page, 1<<63 - 1, ErrOutOfRange},
		{1<<64 - 1, 2, ErrOutOfRange},
	} {
		b, err := m.Slice(tt.gpa, tt.n)
		if !errors.Is(err, tt.want) || err == nil && (len(b) != tt.n || cap(b) != tt.n) {
			t.Errorf("Slice(%#x, %d) = %d bytes, capacity %d, %v, want %v", tt.gpa, tt.n, len(b), cap(b), err, tt.want)
		}
	}
}

// TestModel compares a Memory with a map of bytes.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := split(t)
		model := map[GPA]byte{}
		for _, r := range m.Regions() {
			for i := range r.Bytes {
				model[r.Base+GPA(i)] = 0
			}
		}
		// Addresses near the edges of regions, where mistakes are.
		edge := rapid.SampledFrom([]GPA{0, 2 * page, 3 * page, 8 * page, 9 * page, 1 << 32, 1<<32 + 2*page, 1<<64 - 2*page, 1<<64 - page})
		near := rapid.Custom(func(t *rapid.T) GPA { return edge.Draw(t, "edge") + GPA(rapid.IntRange(-20, 20).Draw(t, "delta")) })
		length := rapid.OneOf(rapid.IntRange(0, 40), rapid.SampledFrom([]int{page, 2 * page, 3 * page, 4 * page}))
		has := func(gpa GPA, n int) bool {
			for i := range n {
				if _, ok := model[gpa+GPA(i)]; !ok || gpa+GPA(i) < gpa {
					return false
				}
			}
			return true
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				gpa, p := near.Draw(rt, "gpa"), rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(rt, "bytes")
				err := m.WriteAt(p, gpa)
				for i := range p { // a prefix is written even if not all can be
					if !has(gpa, i+1) {
						break
					}
					model[gpa+GPA(i)] = p[i]
				}
				if (err == nil) != has(gpa, len(p)) {
					rt.Fatalf("WriteAt(%d bytes, %#x) = %v", len(p), gpa, err)
				}
			},
			"read": func(rt *rapid.T) {
				gpa, p := near.Draw(rt, "gpa"), make([]byte, length.Draw(rt, "n"))
				err := m.ReadAt(p, gpa)
				if (err == nil) != has(gpa, len(p)) {
					rt.Fatalf("ReadAt(%d bytes, %#x) = %v", len(p), gpa, err)
				}
				for i := range p {
					if err == nil && p[i] != model[gpa+GPA(i)] {
						rt.Fatalf("ReadAt: %#x is %#x, want %#x", gpa+GPA(i), p[i], model[gpa+GPA(i)])
					}
				}
			},
			"slice": func(rt *rapid.T) {
				gpa, n := near.Draw(rt, "gpa"), length.Draw(rt, "n")
				b, err := m.Slice(gpa, n)
				switch {
				case n > 0 && errors.Is(err, ErrNotContiguous) != (err != nil && has(gpa, n)):
					rt.Fatalf("Slice(%#x, %d) = %v, yet all memory: %v", gpa, n, err, has(gpa, n))
				case err == nil && !has(gpa, n):
					rt.Fatalf("Slice(%#x, %d) reaches beyond memory", gpa, n)
				}
				for i := range b {
					if b[i] != model[gpa+GPA(i)] {
						rt.Fatalf("Slice: %#x is %#x, want %#x", gpa+GPA(i), b[i], model[gpa+GPA(i)])
					}
				}
			},
		})
	})
}

func TestDiscardHeap(t *testing.T) {
	m := split(t)
	for _, r := range m.Regions() {
		for i := range r.Bytes {
			r.Bytes[i] = 0xaa
		}
	}
	if err := m.Discard(page, page); err != nil {
		t.Fatal(err)
	}
	b, _ := m.Slice(0, 2*page)
	if want := append(bytes.Repeat([]byte{0xaa}, page), make([]byte, page)...); !bytes.Equal(b, want) {
		t.Error("Discard(page, page) did not zero that page alone")
	}
	for _, tt := range []struct {
		gpa  GPA
		n    int
		want error
	}{{page, 2 * page, ErrNotContiguous}, {3 * page, page, ErrOutOfRange}, {8 * page, 2 * page, ErrOutOfRange}} {
		if err := m.Discard(tt.gpa, tt.n); !errors.Is(err, tt.want) {
			t.Errorf("Discard(%#x, %#x) = %v, want %v", tt.gpa, tt.n, err, tt.want)
		}
	}
	for _, bad := range [][2]int{{1, page}, {0, 1}, {0, -page}} {
		if err := m.Discard(GPA(bad[0]), bad[1]); err == nil {
			t.Errorf("Discard(%d, %d) succeeded", bad[0], bad[1])
		}
	}
}

// TestNoAllocations also holds that a caller's buffer can stay on its stack.
func TestNoAllocations(t *testing.T) {
	m := split(t)
	if n := testing.AllocsPerRun(100, func() {
		var p [16]byte
		if m.WriteAt(p[:], 2*page-8) != nil || m.ReadAt(p[:], 2*page-8) != nil || m.ReadAt(p[:], 3*page) == nil {
			t.Error("access failed")
		}
		if _, err := m.Slice(page, 64); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add(uint64(0), 10)
	f.Add(uint64(2*page-1), 2)
	f.Add(uint64(1<<64-2*page), page)
	f.Add(uint64(1<<64-1), 1<<62)
	f.Fuzz(func(t *testing.T, addr uint64, n int) {
		m, gpa := split(t), GPA(addr)
		b, err := m.Slice(gpa, n)
		if err == nil && len(b) != n {
			t.Fatalf("Slice(%#x, %d) returned %d bytes", gpa, n, len(b))
		}
		if n < 8 || n > 1<<20 {
			return
		}
		p, q := make([]byte, n), make([]byte, n)
		binary.LittleEndian.PutUint64(p, addr+1)
		werr, rerr := m.WriteAt(p, gpa), m.ReadAt(q, gpa)
		if (werr == nil) != (rerr == nil) || (rerr == nil) != (err == nil || errors.Is(err, ErrNotContiguous)) {
			t.Fatalf("%d bytes at %#x: slice %v, write %v, read %v", n, gpa, err, werr, rerr)
		}
		if werr == nil && !bytes.Equal(p, q) {
			t.Fatalf("%d bytes at %#x: read other than was written", n, gpa)
		}
	})
}
