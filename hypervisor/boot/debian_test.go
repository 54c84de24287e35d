package boot

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// debianKernel opens the 64-bit kernel of the machine that runs the test.
func debianKernel(t testing.TB) Image {
	t.Helper()
	paths, err := filepath.Glob("/boot/vmlinuz-*-amd64")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		t.Cleanup(func() { f.Close() })
		img, err := FileImage(f)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	t.Skip("needs a Debian kernel in /boot")
	return Image{}
}

// Debian's kernel, unpacked and loaded by PVH, is in memory what the standard library's ELF reader says it should be.
func TestDebianPVH(t *testing.T) {
	img := debianKernel(t)
	vmlinux, err := ExtractVMLinux(img)
	if err != nil {
		t.Fatal(err)
	}
	const size = 256 << 20
	m := mem.NewHeap(size)
	e, err := Load(m, Config{
		Kernel: BytesImage("vmlinux", vmlinux), Cmdline: "quiet", Modules: []Module{{Image: BytesImage("initrd", make([]byte, 32<<20))}},
		MemMap: smallMap(size), Zeroed: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if e.Protocol != PVH || e.RIP < 0x1000000 || e.RIP >= size {
		t.Errorf("entry %+v", e)
	}
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		got, err := m.Slice(mem.GPA(p.Paddr), int(p.Filesz))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, vmlinux[p.Off:p.Off+p.Filesz]) {
			t.Errorf("segment %d differs", i)
		}
	}
}

func TestDebianLinux64(t *testing.T) {
	img := debianKernel(t)
	const size = 128 << 20
	m := mem.NewHeap(size)
	e, err := Load(m, Config{Kernel: img, Cmdline: "quiet", MemMap: smallMap(size), Protocol: Linux64})
	if err != nil {
		t.Fatal(err)
	}
	if e.Mode != Long64 || e.RIP != 0x1000200 {
		t.Errorf("entry %+v", e)
	}
	head, err := img.head(headSize)
	if err != nil {
		t.Fatal(err)
	}
	k, err := parseBzImage(img, head)
	if err != nil {
		t.Fatal(err)
	}
	if k.version < protocol212 || k.xloadflags&xlfKernel64 == 0 || k.cmdlineMax < 2047 || k.initrdMax != 0x7fffffff {
		t.Errorf("setup header %+v", k)
	}
	want := make([]byte, k.size)
	if err := img.read(want, k.off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(peek(t, m, k.prefAddress, len(want)), want) {
		t.Error("kernel differs")
	}
}

// BenchmarkLoad is the part of a guest's start that this package has: an unpacked Debian kernel from a file into memory.
func BenchmarkLoad(b *testing.B) {
	vmlinux, err := ExtractVMLinux(debianKernel(b))
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "vmlinux")
	if err := os.WriteFile(path, vmlinux, 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	img, err := FileImage(f)
	if err != nil {
		b.Fatal(err)
	}
	const size = 256 << 20
	m := mem.NewHeap(size)
	b.SetBytes(img.Size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(m, Config{Kernel: img, MemMap: smallMap(size)}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkExtract unpacks Debian's kernel.
func BenchmarkExtract(b *testing.B) {
	img := debianKernel(b)
	for b.Loop() {
		if _, err := ExtractVMLinux(img); err != nil {
			b.Fatal(err)
		}
	}
}
