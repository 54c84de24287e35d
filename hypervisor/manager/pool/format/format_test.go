package format

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fileTarget and fileSource are a raw file.
type fileTarget struct{ *os.File }

func (t fileTarget) Resize(n int64) error { return t.Truncate(n) }

type fileSource struct{ *os.File }

func (s fileSource) Data(off int64) (int64, int64, error) {
	begin, err := s.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, err
	}
	end, err := s.Seek(begin, unix.SEEK_HOLE)
	return begin, end, err
}

func nothing(int64, int64) {}

// rawDisk makes a raw file of size bytes with data, zeros and holes of many lengths.
func rawDisk(t testing.TB, size int64, seed uint64) *os.File {
	t.Helper()
	f := create(t, "disk.raw")
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	for off := int64(0); off < size; {
		n := min(int64(1)<<rnd.IntN(20)*int64(1+rnd.IntN(3)), size-off)
		switch rnd.IntN(4) {
		case 0:
			write(t, f, noise(rnd, int(n)), off)
		case 1: // what compresses
			write(t, f, bytes.Repeat([]byte{byte(rnd.Uint32()), 'x', 'y'}, int(n))[:n], off)
		case 2:
			write(t, f, make([]byte, n), off)
		}
		off += n
	}
	return f
}

func noise(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func create(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t testing.TB, f *os.File, b []byte, off int64) {
	t.Helper()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func sizeOf(t testing.TB, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func same(t testing.TB, a, b *os.File) {
	t.Helper()
	n := sizeOf(t, a)
	if m := sizeOf(t, b); n != m {
		t.Fatalf("%d and %d bytes", n, m)
	}
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < n; off += int64(len(x)) {
		if begin, _, err := (fileSource{a}).Data(off); err == nil && begin >= off+int64(len(x)) {
			if begin, _, err := (fileSource{b}).Data(off); err == nil && begin >= off+int64(len(x)) {
				continue
			}
		}
		k, err := a.ReadAt(x, off)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := b.ReadAt(y[:k], off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x[:k], y[:k]) {
			t.Fatalf("they differ between %d and %d", off, off+int64(k))
		}
	}
}

// What qemu-img makes of a disk we read as that disk.
func TestReadWhatQEMUWrites(t *testing.T) {
	for _, c := range []struct {
		name string
		size int64
		args []string
	}{
		{"qcow2", 20<<20 + 512, []string{"-O", "qcow2"}},
		{"qcow2 version 2", 20 << 20, []string{"-O", "qcow2", "-o", "compat=0.10"}},
		{"qcow2 compressed", 20 << 20, []string{"-O", "qcow2", "-c"}},
		{"qcow2 by zstd", 20<<20 + 4096, []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd"}},
		{"qcow2 with small clusters", 3 << 20, []string{"-O", "qcow2", "-c", "-o", "cluster_size=512"}},
		{"qcow2 with large clusters", 20 << 20, []string{"-O", "qcow2", "-o", "cluster_size=2M"}},
		{"qcow2 preallocated", 5 << 20, []string{"-O", "qcow2", "-o", "preallocation=full"}},
		{"VMDK", 20<<20 + 512, []string{"-O", "vmdk"}},
		{"VMDK with zero grains", 20 << 20, []string{"-O", "vmdk", "-o", "zeroed_grain=on"}},
		{"VMDK compressed", 20 << 20, []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := rawDisk(t, c.size, 1)
			path := filepath.Join(t.TempDir(), "image")
			qemuImg(t, append(append([]string{"convert", "-f", "raw"}, c.args...), raw.Name(), path)...)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got := create(t, "got.raw")
			if err := copyImage(t.Context(), f, sizeOf(t, f), fileTarget{got}); err != nil {
				t.Fatal(err)
			}
			same(t, raw, got)
		})
	}
}

// copyImage copies the disk of an image whose format it finds out.
func copyImage(ctx context.Context, r io.ReaderAt, size int64, t Target) error {
	head := make([]byte, HeadSize)
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return err
	}
	kind, err := Detect(head[:n])
	if err != nil {
		return err
	}
	switch kind {
	case QCOW2:
		q, err := OpenQCOW2(r, size)
		if err != nil {
			return err
		}
		return q.CopyTo(ctx, t, nothing)
	case VMDKSparse:
		v, err := OpenVMDK(r, size)
		if err != nil {
			return err
		}
		return v.CopyTo(ctx, t, nothing)
	case VMDKStream:
		_, err := CopyVMDKStream(ctx, io.NewSectionReader(r, 0, size), t)
		return err
	}
	return fmt.Errorf("format %q", kind)
}

// What we write of a disk, qemu-img finds sound and the same, and so do our readers.
func TestWrite(t *testing.T) {
	for _, size := range []int64{512, 64 << 10, 20<<20 + 512, 600<<20 + 512} {
		raw := create(t, "disk.raw")
		if size > 100<<20 { // few data, far from each other
			write(t, raw, []byte("begin"), 1000)
			write(t, raw, []byte("end"), size-3)
		} else {
			raw = rawDisk(t, size, 2)
		}
		for _, c := range []struct {
			name  string
			write func(f *os.File) error
		}{
			{"qcow2", func(f *os.File) error { return writeQCOW2(t.Context(), f, raw, size, None) }},
			{"qcow2 deflate", func(f *os.File) error { return writeQCOW2(t.Context(), f, raw, size, Deflate) }},
			{"qcow2 zstd", func(f *os.File) error { return writeQCOW2(t.Context(), f, raw, size, ZstdC) }},
			{"vmdk", func(f *os.File) error { return WriteVMDK(t.Context(), f, fileSource{raw}, size, "x.vmdk", nothing) }},
		} {
			t.Run(fmt.Sprintf("%s of %d", c.name, size), func(t *testing.T) {
				f := create(t, "image")
				if err := c.write(f); err != nil {
					t.Fatal(err)
				}
				kind, _, _ := strings.Cut(c.name, " ")
				if kind == "qcow2" {
					if out := qemuImg(t, "check", "-f", "qcow2", f.Name()); !strings.Contains(out, "No errors were found") {
						t.Error(out)
					}
				}
				qemuImg(t, "compare", "-f", kind, "-F", "raw", f.Name(), raw.Name())
				got := create(t, "got.raw")
				if err := copyImage(t.Context(), f, sizeOf(t, f), fileTarget{got}); err != nil {
					t.Fatal(err)
				}
				same(t, raw, got)
			})
		}
	}
}

func writeQCOW2(ctx context.Context, f, raw *os.File, size int64, c Compression) error {
	n, err := WriteQCOW2(ctx, f, fileSource{raw}, size, c, nothing)
	if err != nil {
		return err
	}
	if st, err := f.Stat(); err != nil || st.Size() != n {
		return fmt.Errorf("the file has %d bytes, not %d: %w", st.Size(), n, err)
	}
	return nil
}

// An image with more clusters than one block of reference counts has room for.
func TestWriteManyClusters(t *testing.T) {
	const size = 5 << 30
	f := create(t, "image")
	q := &qcow2Writer{w: sparseAt{f}, size: size, l1: make([]uint64, size>>29), next: writeCluster}
	b := make([]byte, writeCluster)
	for off := int64(0); off < size; off += writeCluster {
		if err := q.put(off, b, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.flushL2(); err != nil {
		t.Fatal(err)
	}
	n, err := q.finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
	if out := qemuImg(t, "check", "-f", "qcow2", f.Name()); !strings.Contains(out, "No errors were found") {
		t.Error(out)
	}
}

// sparseAt writes no zeros.
type sparseAt struct{ *os.File }

func (s sparseAt) WriteAt(b []byte, off int64) (int, error) {
	if isZero(b) {
		return len(b), nil
	}
	return s.File.WriteAt(b, off)
}

func TestDetect(t *testing.T) {
	iso := make([]byte, HeadSize)
	copy(iso[32769:], "CD001")
	tarHead := make([]byte, 512)
	copy(tarHead[257:], "ustar\x0000")
	vdi := make([]byte, 512)
	copy(vdi[64:], "\x7f\x10\xda\xbe")
	stream := vmdkWriteHeader(1<<20, vmdkAtEnd)
	for _, c := range []struct {
		head string
		want Format
		err  error
	}{
		{"", Raw, nil},
		{"\xeb\x63\x90", Raw, nil},
		{"QFI\xfb\x00", QCOW2, nil},
		{"KDMV\x01\x00\x00\x00\x03\x00\x00\x00", VMDKSparse, nil},
		{string(stream), VMDKStream, nil},
		{string(tarHead), OVA, nil},
		{"\x1f\x8b\x08", Gzip, nil},
		{"\xfd7zXZ\x00", XZ, nil},
		{"\x28\xb5\x2f\xfd", Zstd, nil},
		{"BZh91AY&SY", Bzip2, nil},
		{string(iso), ISO, nil},
		{"# Disk DescriptorFile\n", "", ErrUnsupported},
		{"COWD", "", ErrUnsupported},
		{"vhdxfile", "", ErrUnsupported},
		{"conectix", "", ErrUnsupported},
		{string(vdi), "", ErrUnsupported},
		{"QED\x00", "", ErrUnsupported},
		{"LUKS\xba\xbe", "", ErrUnsupported},
		{"PK\x03\x04", "", ErrUnsupported},
	} {
		if got, err := Detect([]byte(c.head)); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%.20q: %q, %v; want %q, %v", c.head, got, err, c.want, c.err)
		}
	}
}
