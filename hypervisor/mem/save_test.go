package mem

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var (
	testID = [16]byte{1, 2, 3, 15: 16}
	// Neither a multiple of a chunk nor of a block.
	testRanges = []Range{{Base: 1 << 32, Size: 3<<20 + 5*page}, {Base: 0, Size: 2<<20 + 3*page}}
)

func alloc(t testing.TB, ranges []Range) *Memory {
	t.Helper()
	m, err := Alloc(ranges, AllocOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// scribble fills some pages of m with noise, always the first and the last one of each region.
func scribble(m *Memory, seed uint64) {
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	pick := rand.New(rng)
	for _, r := range m.Regions() {
		for off := 0; off < len(r.Bytes); off += page {
			if off == 0 || off == len(r.Bytes)-page || pick.IntN(8) == 0 {
				b, _ := m.Slice(r.Base+GPA(off), page)
				rng.Read(b)
			}
		}
	}
}

// content reads all of m the way that devices do.
func content(t testing.TB, m *Memory) []byte {
	t.Helper()
	var all []byte
	for _, r := range m.Regions() {
		p := make([]byte, len(r.Bytes))
		if err := m.ReadAt(p, r.Base); err != nil {
			t.Fatal(err)
		}
		all = append(all, p...)
	}
	return all
}

func save(t testing.TB, m *Memory, path string) {
	t.Helper()
	if err := m.SaveFile(context.Background(), path, testID, nil); err != nil {
		t.Fatal(err)
	}
	if err := VerifyFile(context.Background(), path, [16]byte{0xff}, nil); !errors.Is(err, ErrForeign) {
		t.Errorf("VerifyFile for another snapshot = %v, want ErrForeign", err)
	}
	if err := VerifyFile(context.Background(), path, testID, nil); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mapPrivate(t testing.TB, path string) *Memory {
	t.Helper()
	m, err := MapPrivate(open(t, path), testID, testRanges)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestAlloc(t *testing.T) {
	m := alloc(t, testRanges)
	var got []Range
	for _, r := range m.Regions() {
		got = append(got, Range{r.Base, uint64(len(r.Bytes))})
	}
	if d := cmp.Diff(sorted(testRanges), got); d != "" {
		t.Error(d)
	}
	low, high := m.Regions()[0], m.Regions()[1]
	if low.Off != 0 || high.Off != int64(len(low.Bytes)) || low.File != high.File {
		t.Errorf("regions at offsets %d and %d of %p and %p", low.Off, high.Off, low.File, high.File)
	}
	scribble(m, 1)
	want := content(t, m)
	seen := make([]byte, len(want))
	if _, err := low.File.ReadAt(seen, 0); err != nil || !bytes.Equal(seen, want) {
		t.Errorf("the memfd does not hold the memory: %v", err)
	}
	for _, size := range []int64{0, 1 << 30} {
		if err := low.File.Truncate(size); !errors.Is(err, syscall.EPERM) {
			t.Errorf("truncate to %d: %v, want EPERM", size, err)
		}
	}
	if err := m.Discard(high.Base, page); err != nil {
		t.Fatal(err)
	}
	if off, err := low.File.Seek(high.Off, unix.SEEK_HOLE); off != high.Off {
		t.Errorf("discarded page still takes up memory: next hole at %d, %v", off, err)
	}
	clear(want[high.Off : high.Off+page])
	if !bytes.Equal(content(t, m), want) {
		t.Error("after Discard: not zero, or something else is")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error("second Close:", err)
	}
}

func TestAllocRefuses(t *testing.T) {
	for name, ranges := range map[string][]Range{
		"none":        nil,
		"too many":    make([]Range, maxRanges+1),
		"empty":       {{0, 0}},
		"not aligned": {{0, page + 1}},
		"absurd":      {{0, 1 << 60}},
		"sum wraps":   {{0, 1<<64 - page}, {0, 2 * page}},
		"overlap":     {{0, 2 * page}, {page, page}},
	} {
		if m, err := Alloc(ranges, AllocOptions{}); err == nil {
			m.Close()
			t.Errorf("%s: Alloc succeeded", name)
		}
	}
	m, err := Alloc([]Range{{0, 4 << 20}}, AllocOptions{Huge: true})
	if err != nil {
		t.Fatal("huge pages:", err)
	}
	m.Close()
}

func TestSaveIsSparse(t *testing.T) {
	m, path := alloc(t, []Range{{0, 256 << 20}}), filepath.Join(t.TempDir(), "ram")
	m.WriteAt([]byte("x"), 100<<20)
	m.WriteAt([]byte{0}, 200<<20) // touched, and zero
	save(t, m, path)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("the file takes up %d bytes, %v", st.Blocks*512, err)
	}
	if err := unix.Fstat(int(m.Regions()[0].File.Fd()), &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("saving made the memory grow to %d bytes, %v", st.Blocks*512, err)
	}
}

func TestPrivateRoundTrip(t *testing.T) {
	m, path := alloc(t, testRanges), filepath.Join(t.TempDir(), "ram")
	scribble(m, 1)
	want := content(t, m)
	save(t, m, path)

	// Restored, changed, and saved over the file that it is mapped from, with and without a page map.
	for round, noPagemap := range []bool{false, true, false} {
		r := mapPrivate(t, path)
		r.backing.(*private).pages.missing = noPagemap
		if !bytes.Equal(content(t, r), want) {
			t.Fatalf("round %d: restored other than saved", round)
		}
		scribble(r, uint64(round+2))
		next := content(t, r)
		save(t, r, path)
		if !bytes.Equal(content(t, r), next) {
			t.Fatalf("round %d: saving changed the memory", round)
		}
		// The old file reappears, though its name is gone.
		if err := r.Discard(0, page); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, page)
		if r.ReadAt(p, 0); !bytes.Equal(p, want[:page]) {
			t.Errorf("round %d: a discarded page is not what the file holds", round)
		}
		want = next
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) != 0 {
		t.Error("temporary files left:", left)
	}
}

func TestSaveHeap(t *testing.T) {
	m, path := NewHeap(int(testRanges[1].Size)), filepath.Join(t.TempDir(), "ram")
	scribble(m, 1)
	save(t, m, path)
	r, err := MapPrivate(open(t, path), testID, testRanges[1:])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if !bytes.Equal(content(t, r), content(t, m)) {
		t.Error("restored other than saved")
	}
}

func TestSaveCancelled(t *testing.T) {
	m, path := alloc(t, testRanges), filepath.Join(t.TempDir(), "ram")
	scribble(m, 1)
	save(t, m, path)
	old, _ := os.ReadFile(path)
	scribble(m, 2)
	ctx, cancel := context.WithCancel(context.Background())
	var last uint64
	err := m.SaveFile(ctx, path, testID, func(done, total uint64) {
		if last = done; done > total/2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || last == m.Size() {
		t.Errorf("SaveFile = %v after %d bytes", err, last)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, old) {
		t.Error("the old file has changed")
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) != 0 {
		t.Error("temporary files left:", left)
	}
}

func TestProgress(t *testing.T) {
	m, path := alloc(t, testRanges), filepath.Join(t.TempDir(), "ram")
	scribble(m, 1)
	steps := func(name string, run func(Progress) error) {
		var got []uint64
		if err := run(func(done, total uint64) {
			if total != m.Size() {
				t.Errorf("%s: total %d, want %d", name, total, m.Size())
			}
			got = append(got, done)
		}); err != nil {
			t.Fatal(err)
		}
		want := []uint64{1 << 20, 2 << 20, 3 << 20, 4 << 20, 5 << 20, m.Size()}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(name, d)
		}
	}
	ctx := context.Background()
	steps("save", func(p Progress) error { return m.SaveFile(ctx, path, testID, p) })
	steps("verify", func(p Progress) error { return VerifyFile(ctx, path, testID, p) })
}

// TestRefused damages a good file in every way that has a name of its own.
func TestRefused(t *testing.T) {
	m, good := alloc(t, testRanges), filepath.Join(t.TempDir(), "good")
	scribble(m, 1)
	save(t, m, good)
	size := (&header{size: m.Size()}).fileSize()
	poke := func(at int64, p ...byte) func(*os.File) { return func(f *os.File) { f.WriteAt(p, at) } }
	resum := func(change func(b []byte)) func(*os.File) {
		return func(f *os.File) {
			b := make([]byte, page)
			f.ReadAt(b, 0)
			change(b)
			binary.LittleEndian.PutUint32(b[headerSum:], crc32.Checksum(b[:headerSum], castagnoli()))
			f.WriteAt(b, 0)
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(*os.File)
		id     [16]byte
		want   []Range
		err    error
	}{
		{name: "magic", damage: poke(0, 'X'), err: ErrForeign},
		{name: "newer", damage: poke(8, 2), err: ErrNewer},
		{name: "header", damage: poke(48, 1), err: ErrDamaged},
		{name: "version 0", damage: resum(func(b []byte) { b[8] = 0 }), err: ErrDamaged},
		{name: "page size", damage: resum(func(b []byte) { b[13] = 0x40 }), err: ErrDamaged},
		{name: "too many regions", damage: resum(func(b []byte) { b[44] = maxRanges + 1 }), err: ErrDamaged},
		{name: "no regions", damage: resum(func(b []byte) { b[44] = 0 }), err: ErrDamaged},
		{name: "image size", damage: resum(func(b []byte) { b[33] ^= 0x10 }), err: ErrDamaged},
		{name: "empty", damage: func(f *os.File) { f.Truncate(0) }, err: ErrTruncated},
		{name: "cut in the header", damage: func(f *os.File) { f.Truncate(100) }, err: ErrTruncated},
		{name: "cut in the image", damage: func(f *os.File) { f.Truncate(1 << 20) }, err: ErrTruncated},
		{name: "cut by a byte", damage: func(f *os.File) { f.Truncate(size - 1) }, err: ErrTruncated},
		{name: "too long", damage: func(f *os.File) { f.Truncate(size + 1) }, err: ErrDamaged},
		{name: "another snapshot", id: [16]byte{9}, err: ErrForeign},
		{name: "other memory", want: testRanges[:1], err: ErrMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ram")
			f := copyFile(t, good, path)
			id, want := testID, testRanges
			if tt.id != id && tt.id != [16]byte{} {
				id = tt.id
			}
			if tt.want != nil {
				want = tt.want
			}
			if tt.damage != nil {
				tt.damage(f)
				if err := VerifyFile(context.Background(), path, testID, nil); !errors.Is(err, tt.err) {
					t.Errorf("VerifyFile = %v, want %v", err, tt.err)
				}
			}
			m, err := MapPrivate(f, id, want)
			if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), path) {
				t.Errorf("MapPrivate = %v, want %v and the name", err, tt.err)
			}
			if err == nil {
				m.Close()
			}
			if _, err := Lazy(f, id, want, LazyOptions{}); !errors.Is(err, tt.err) {
				t.Errorf("Lazy = %v, want %v", err, tt.err)
			}
		})
	}
}

func copyFile(t *testing.T, from, to string) *os.File {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return open(t, to)
}

// TestVerify flips one bit in the image, in a hole and in the table. Restoring does not look at those.
func TestVerify(t *testing.T) {
	m, good := alloc(t, testRanges), filepath.Join(t.TempDir(), "good")
	m.WriteAt([]byte("data"), 1<<32)
	save(t, m, good)
	high := m.Regions()[1].Off
	for _, tt := range []struct {
		at   int64
		says string
	}{
		{page + high + 5, "0x100000000"},
		{page + 1<<20 + 7, "0x100000 to 0x1fffff"},
		{page + int64(m.Size()) - 1, "0x1003"},
		{page + int64(m.Size()), "checksums"},
	} {
		path := filepath.Join(t.TempDir(), "ram")
		f := copyFile(t, good, path)
		var b [1]byte
		f.ReadAt(b[:], tt.at)
		b[0] ^= 0x40
		f.WriteAt(b[:], tt.at)
		err := VerifyFile(context.Background(), path, testID, nil)
		if tt.at == page+high+5 {
			// The chunk begins below, in the other region.
			tt.says = "to 0x1000f"
		}
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("VerifyFile = %v, want ErrDamaged, %q and %s", err, tt.says, path)
		}
		mapPrivate(t, path)
	}
	if err := VerifyFile(context.Background(), filepath.Join(t.TempDir(), "none"), testID, nil); !errors.Is(err, os.ErrNotExist) {
		t.Error("missing file:", err)
	}
}

func FuzzHeader(f *testing.F) {
	h := &header{id: testID, size: 3 * page, ranges: []Range{{0, page}, {1 << 32, 2 * page}}}
	f.Add(h.encode(), true)
	f.Add(make([]byte, page), false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		p := make([]byte, page)
		copy(p, b)
		if fix { // or the fuzzer never gets past the checksum
			binary.LittleEndian.PutUint32(p[headerSum:], crc32.Checksum(p[:headerSum], castagnoli()))
		}
		h, err := parseHeader(p)
		if err != nil {
			if !errors.Is(err, ErrForeign) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrDamaged) {
				t.Fatalf("unnamed error: %v", err)
			}
			return
		}
		if h.size == 0 || h.size > maxImage || h.fileSize() < int64(h.size) {
			t.Fatalf("accepted %+v", h)
		}
		again, err := parseHeader(h.encode())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(h, again, cmp.AllowUnexported(header{})); d != "" {
			t.Fatal(d)
		}
	})
}
