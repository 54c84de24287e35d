package pool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func nothing(int64, int64) {}

// open opens a pool in dir. Its thresholds let tests use the last byte.
func open(t testing.TB, dir string, change func(*Options)) *Pool {
	t.Helper()
	opt := Options{Low: 2, Critical: 1, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&opt)
	}
	p, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// files returns the names in a pool's directory.
func files(t testing.TB, p *Pool) []string {
	t.Helper()
	entries, err := os.ReadDir(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

// rawDisk makes a raw file of size bytes with data, zeros and holes.
func rawDisk(t testing.TB, size int64, seed uint64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	rnd := rand.NewChaCha8([32]byte{byte(seed)})
	for off := int64(0); off < size; {
		kind := rnd.Uint64()
		n := min(int64(1)<<(kind>>8%20)*int64(1+kind>>40%3), size-off)
		b := make([]byte, n)
		switch kind % 4 {
		case 0:
			_, _ = rnd.Read(b)
		case 1:
			b = bytes.Repeat([]byte{byte(kind), 'x', 'y', 'z'}, int(n)/4+1)[:n]
		case 2:
			b = nil
		}
		if b != nil {
			if _, err := f.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
		off += n
	}
	return f
}

// write fills an image with the content of raw.
func write(t testing.TB, p *Pool, name string, raw *os.File) {
	t.Helper()
	src, err := FromFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Import(t.Context(), name, src, ImportOptions{}, nothing); err != nil {
		t.Fatal(err)
	}
}

// fileName returns the file of an image.
func fileName(t testing.TB, p *Pool, name string) string {
	t.Helper()
	file, err := p.fileOf(name)
	if err != nil {
		t.Fatal(err)
	}
	return p.file(file)
}

// same fails unless two files have the same content.
func same(t testing.TB, a, b string) {
	t.Helper()
	fa, err := os.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer fb.Close()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := 0; ; off += len(x) {
		n, errA := io.ReadFull(fa, x)
		m, errB := io.ReadFull(fb, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			t.Fatalf("%s and %s differ from %d on", a, b, off)
		}
		if errA != nil || errB != nil {
			return
		}
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mounted makes a file system of the kind and size in bytes, mounts it and returns where. It skips without root.
func mounted(t testing.TB, kind string, size int64) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	if kind == "tmpfs" {
		if err := unix.Mount("lodge-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
			t.Fatal(err)
		}
	} else {
		if known, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(known), "\t"+kind+"\n") {
			if err := exec.Command("modprobe", kind).Run(); err != nil {
				t.Skipf("needs root and a kernel with loop devices and %s", kind)
			}
		}
		if _, err := os.Stat("/dev/loop-control"); errors.Is(err, fs.ErrNotExist) {
			t.Skipf("needs root and a kernel with loop devices and %s", kind)
		}
		image := filepath.Join(t.TempDir(), "fs")
		f, err := os.Create(image)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
			t.Fatal(err)
		}
		run(t, "mkfs."+kind, "-q", image)
		run(t, "mount", "-o", "loop", image, dir)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
