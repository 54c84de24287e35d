package mem

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var gib = []Range{{Base: 0, Size: 1 << 30}}

// touched returns 1 GiB of memory of which 64 MiB are in use.
func touched(b *testing.B) *Memory {
	b.Helper()
	m := alloc(b, gib)
	for off := GPA(0); off < 64<<20; off += page {
		s, err := m.Slice(off*4, page)
		if err != nil {
			b.Fatal(err)
		}
		for i := range s {
			s[i] = byte(off>>12) | 1
		}
	}
	return m
}

// BenchmarkSave includes the sync to disk: what the user waits for.
func BenchmarkSave(b *testing.B) {
	m, path := touched(b), filepath.Join(b.TempDir(), "ram")
	b.SetBytes(64 << 20)
	for b.Loop() {
		if err := m.SaveFile(context.Background(), path, testID, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSaveMemory is BenchmarkSave without the disk.
func BenchmarkSaveMemory(b *testing.B) {
	m := touched(b)
	fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "bench")
	defer f.Close()
	b.SetBytes(64 << 20)
	for b.Loop() {
		f.Truncate(0)
		if err := m.Save(context.Background(), f, testID, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRestorePrivate1GiB(b *testing.B) {
	path := filepath.Join(b.TempDir(), "ram")
	if err := touched(b).SaveFile(context.Background(), path, testID, nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		m, err := MapPrivate(f, testID, gib)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		m.Close()
		b.StartTimer()
	}
}

// BenchmarkRestoreLazy1GiB measures until all is in memory; start-ns/op until the machine may run.
func BenchmarkRestoreLazy1GiB(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to serve page faults of the kernel")
	}
	path := filepath.Join(b.TempDir(), "ram")
	if err := touched(b).SaveFile(context.Background(), path, testID, nil); err != nil {
		b.Fatal(err)
	}
	var start time.Duration
	for b.Loop() {
		began := time.Now()
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		m, err := Lazy(f, testID, gib, LazyOptions{})
		if err != nil {
			b.Fatal(err)
		}
		start += time.Since(began)
		if err := m.WaitFilled(context.Background()); err != nil {
			b.Fatal(err)
		}
		m.Close()
	}
	b.ReportMetric(float64(start.Nanoseconds())/float64(b.N), "start-ns/op")
}

func BenchmarkSlice(b *testing.B) {
	m := alloc(b, gib)
	for b.Loop() {
		m.Slice(1<<20, 64)
	}
}
