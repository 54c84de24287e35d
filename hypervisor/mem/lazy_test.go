package mem

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// saved returns a RAM file and what it holds.
func saved(t testing.TB) (path string, want []byte) {
	t.Helper()
	m := alloc(t, testRanges)
	scribble(m, 1)
	path = filepath.Join(t.TempDir(), "ram")
	save(t, m, path)
	return path, content(t, m)
}

func lazily(t testing.TB, path string, opt LazyOptions) *Memory {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to serve page faults of the kernel")
	}
	m, err := Lazy(open(t, path), testID, testRanges, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// touch has the kernel read b, as KVM does, and returns what it read. A pipe takes 64 KiB without a reader.
func touch(t testing.TB, b []byte) ([]byte, error) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	n, err := unix.Write(p[1], b)
	if err != nil {
		return nil, err
	}
	got := make([]byte, n)
	if _, err := unix.Read(p[0], got); err != nil {
		t.Fatal(err)
	}
	return got, nil
}

func TestLazyRoundTrip(t *testing.T) {
	path, want := saved(t)
	for _, onDemand := range []bool{true, false} {
		m := lazily(t, path, LazyOptions{onDemand: onDemand})
		if !bytes.Equal(content(t, m), want) {
			t.Fatalf("on demand %v: restored other than saved", onDemand)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	// Changed, filled, and saved over its own file; then all is ordinary memory.
	m := lazily(t, path, LazyOptions{})
	scribble(m, 2)
	want = content(t, m)
	save(t, m, path)
	if m.filling.Load() != nil {
		t.Error("still filling after a save")
	}
	if r := mapPrivate(t, path); !bytes.Equal(content(t, r), want) {
		t.Error("saved other than was restored and changed")
	}
	file := make([]byte, len(want))
	if _, err := m.Regions()[0].File.ReadAt(file, 0); err != nil || !bytes.Equal(file, want) {
		t.Errorf("the memfd does not hold the memory: %v", err)
	}
	if err := m.Discard(0, page); err != nil {
		t.Fatal(err)
	}
	clear(want[:page])
	if !bytes.Equal(content(t, m), want) {
		t.Error("after Discard: not zero, or something else is")
	}
}

// TestLazyKernelFaults has many threads in the kernel touch missing pages at once, beside accesses of our own and the
// garbage collector.
func TestLazyKernelFaults(t *testing.T) {
	path, want := saved(t)
	for _, onDemand := range []bool{true, false} {
		m := lazily(t, path, LazyOptions{onDemand: onDemand})
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for _, r := range m.Regions() {
					for k := 0; k < len(r.Bytes)/page; k++ {
						off := (k*37 + i*11) % (len(r.Bytes) / page) * page
						w := want[int(r.Off)+off:][:page]
						got, err := touch(t, r.Bytes[off:off+page])
						if err != nil || !bytes.Equal(got, w) {
							t.Errorf("the kernel reads %#x otherwise, %v", r.Base+GPA(off), err)
							return
						}
						if err := m.ReadAt(got, r.Base+GPA(off)); err != nil || !bytes.Equal(got, w) {
							t.Errorf("we read %#x otherwise, %v", r.Base+GPA(off), err)
							return
						}
					}
				}
			})
		}
		wg.Go(func() {
			for range 20 {
				runtime.GC()
			}
		})
		wg.Wait()
		m.Close()
	}
}

func TestLazyDiscard(t *testing.T) {
	path, want := saved(t)
	m := lazily(t, path, LazyOptions{onDemand: true})
	// One page inside a missing block, one in a filled block, all of some blocks.
	b, err := m.Slice(5*blockSize, page)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range [][2]int{{3*blockSize + page, page}, {5 * blockSize, page}, {7 * blockSize, 3 * blockSize}} {
		if err := m.Discard(GPA(d[0]), d[1]); err != nil {
			t.Fatal(err)
		}
		clear(want[d[0] : d[0]+d[1]])
	}
	if !bytes.Equal(b, make([]byte, page)) { // and does not hang
		t.Error("a discarded page reads other than zero through an old slice")
	}
	if got, err := touch(t, m.Regions()[0].Bytes[8*blockSize:][:page]); err != nil || !bytes.Equal(got, make([]byte, page)) {
		t.Errorf("the kernel reads a discarded page as other than zero, %v", err)
	}
	if !bytes.Equal(content(t, m), want) {
		t.Error("not zero, or something else is")
	}
	// A guest that discards every other page cannot use up the process's mappings.
	m.backing.(*lazy).filler.released = maxReleased
	if err := m.Discard(20*blockSize, page); err != nil {
		t.Fatal(err)
	}
	if p := content(t, m); !bytes.Equal(p, want) {
		t.Error("a discard too many changed the memory")
	}
}

// TestLazyDamaged cuts the file short under a running restore.
func TestLazyDamaged(t *testing.T) {
	path, want := saved(t)
	failed := make(chan error, 2)
	m := lazily(t, path, LazyOptions{onDemand: true, Failed: func(err error) { failed <- err }})
	if err := os.Truncate(path, page+1<<20); err != nil {
		t.Fatal(err)
	}
	high := m.Regions()[1]
	if _, err := touch(t, high.Bytes[:page]); !errors.Is(err, unix.EFAULT) {
		t.Errorf("the kernel reads what the file lost: %v, want EFAULT", err)
	}
	if err := <-failed; !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
		t.Errorf("Failed got %v", err)
	}
	if _, err := m.Slice(high.Base, 1); !errors.Is(err, ErrDamaged) {
		t.Errorf("Slice = %v, want ErrDamaged", err)
	}
	if _, err := m.Slice(high.Base+2*blockSize, 1); !errors.Is(err, ErrDamaged) { // one that nobody has asked for
		t.Errorf("Slice = %v, want ErrDamaged", err)
	}
	ctx := context.Background()
	if err := m.WaitFilled(ctx); !errors.Is(err, ErrDamaged) {
		t.Errorf("WaitFilled = %v, want ErrDamaged", err)
	}
	if err := m.SaveFile(ctx, path+"2", testID, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("SaveFile = %v, want ErrDamaged", err)
	}
	p := make([]byte, page)
	if err := m.ReadAt(p, 0); err != nil || !bytes.Equal(p, want[:page]) {
		t.Errorf("what the file still has cannot be read: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if len(failed) != 0 {
		t.Error("Failed was called twice")
	}
}

// TestLazyPrefetchFails meets the damage while reading ahead.
func TestLazyPrefetchFails(t *testing.T) {
	path, _ := saved(t)
	f := open(t, path)
	m := lazily(t, path, LazyOptions{onDemand: true})
	if err := f.Truncate(page + 1<<20); err != nil {
		t.Fatal(err)
	}
	if fl := m.filling.Load(); fl.prefetch() {
		t.Error("prefetch of a cut file succeeded")
	}
	if err := m.WaitFilled(context.Background()); !errors.Is(err, ErrDamaged) {
		t.Errorf("WaitFilled = %v, want ErrDamaged", err)
	}
}

func TestLazyDevice(t *testing.T) {
	path, want := saved(t)
	dev, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs root and a kernel with /dev/userfaultfd")
	}
	defer dev.Close()
	m := lazily(t, path, LazyOptions{Device: dev})
	if !bytes.Equal(content(t, m), want) {
		t.Error("restored other than saved")
	}
}

func TestLazyCloseEarly(t *testing.T) {
	path, _ := saved(t)
	before := openFiles(t)
	for range 20 {
		m := lazily(t, path, LazyOptions{})
		ctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
		m.WaitFilled(ctx)
		cancel()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestLazyNoAllocations(t *testing.T) {
	path, _ := saved(t)
	m := lazily(t, path, LazyOptions{onDemand: true})
	gpa := GPA(0)
	if n := testing.AllocsPerRun(10, func() {
		var p [16]byte
		if err := m.ReadAt(p[:], gpa); err != nil {
			t.Error(err)
		}
		gpa += blockSize
	}); n != 0 {
		t.Errorf("%v allocations per filled block", n)
	}
}
