package mem

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func allocPrivate(t testing.TB, ranges []Range) *Memory {
	t.Helper()
	m, err := AllocPrivate(ranges)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestAllocPrivate(t *testing.T) {
	m := allocPrivate(t, testRanges)
	var got []Range
	for _, r := range m.Regions() {
		got = append(got, Range{r.Base, uint64(len(r.Bytes))})
		if r.File != nil {
			t.Errorf("region %#x has a file to share", r.Base)
		}
		if off := uint64(address(r.Bytes)) - uint64(r.Off); off%hugePage != 0 {
			t.Errorf("region %#x: offset 0 lies at %#x, not a multiple of 2 MiB", r.Base, off)
		}
	}
	if d := cmp.Diff(sorted(testRanges), got); d != "" {
		t.Error(d)
	}
	if !bytes.Equal(content(t, m), make([]byte, m.Size())) {
		t.Error("new memory is not zero")
	}
	scribble(m, 1)
	want := content(t, m)
	high := m.Regions()[1]
	if err := m.Discard(high.Base, page); err != nil {
		t.Fatal(err)
	}
	clear(want[high.Off : high.Off+page])
	if !bytes.Equal(content(t, m), want) {
		t.Error("after Discard: not zero, or something else is")
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if m, err := AllocPrivate([]Range{{0, 0}}); err == nil {
		m.Close()
		t.Error("a range without pages was taken")
	}
}

func TestSavePrivate(t *testing.T) {
	for _, jail := range []bool{false, true} {
		m, path := allocPrivate(t, testRanges), filepath.Join(t.TempDir(), "ram")
		m.backing.(*anonymous).pages.missing = jail // as without /proc
		scribble(m, 2)
		want := content(t, m)
		save(t, m, path)
		if got := content(t, mapPrivate(t, path)); !bytes.Equal(got, want) {
			t.Errorf("without pagemap %v: the file holds something else than the memory", jail)
		}
	}
}

// Saving neither writes what the guest never touched nor makes it take up memory.
func TestSavePrivateIsSparse(t *testing.T) {
	m, err := AllocPrivate([]Range{{0, 256 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	// Whatever the host's policy, the pages of this memory are small.
	if err := unix.Madvise(m.Regions()[0].Bytes, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ram")
	m.WriteAt([]byte("x"), 100<<20)
	m.WriteAt([]byte{0}, 200<<20) // touched, and zero
	save(t, m, path)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("the file takes up %d bytes, %v", st.Blocks*512, err)
	}
	var there int64
	for off := int64(0); off < 256<<20; {
		start, end, err := m.backing.data(&m.regions[0], off)
		if err != nil {
			t.Fatal(err)
		}
		there, off = there+end-start, end
	}
	if there != 2*page {
		t.Errorf("after saving, %d bytes take up memory, want two pages", there)
	}
}
