package bootimage

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

const debianStub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testKernel is a bzImage as far as a UKI wants it.
func testKernel() []byte {
	b := bytes.Repeat([]byte("kernel! "), 1000)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x400)
	copy(b[0x600:], "6.1.0-test (someone) #1\x00")
	return b
}

// sectionsOf returns the sections of a PE image, as another reader sees it.
func sectionsOf(t testing.TB, image []byte) map[string][]byte {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	sections := make(map[string][]byte)
	var end uint32
	for _, s := range f.Sections {
		if s.VirtualAddress < end {
			t.Errorf("section %s at %#x begins before the end %#x of the one before", s.Name, s.VirtualAddress, end)
		}
		end = s.VirtualAddress + s.VirtualSize
		b, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		sections[s.Name] = b[:min(int(s.VirtualSize), len(b))]
	}
	if size := f.OptionalHeader.(*pe.OptionalHeader64).SizeOfImage; size < end {
		t.Errorf("the image has %#x bytes in memory, its sections end at %#x", size, end)
	}
	return sections
}

func TestUKI(t *testing.T) {
	u := &UKI{Stub: read(t, debianStub), Kernel: testKernel(), Initramfs: []byte("initramfs"), Cmdline: "quiet", Release: "1.2"}
	image, parts, err := u.Build()
	if err != nil {
		t.Fatal(err)
	}
	got := sectionsOf(t, image)
	for name, want := range map[string]string{
		".linux": string(u.Kernel), ".initrd": "initramfs", ".cmdline": "quiet\x00",
		".osrel": "NAME=\"Lodge\"\nPRETTY_NAME=\"Lodge 1.2\"\nVERSION_ID=\"1.2\"\n",
	} {
		if string(got[name]) != want {
			t.Errorf("section %s has %d bytes, want %d", name, len(got[name]), len(want))
		}
	}
	for name, want := range sectionsOf(t, u.Stub) {
		if !bytes.Equal(got[name], want) {
			t.Errorf("section %s is not the stub's", name)
		}
	}
	if len(parts) != 5 || parts[3].Name != ".linux" || parts[3].Size != len(u.Kernel) {
		t.Errorf("parts %v", parts)
	}
	for _, tt := range []struct {
		want  string
		spoil func(u *UKI)
	}{
		{"not a PE image", func(u *UKI) { u.Stub = []byte("MZ") }},
		{"not a bzImage", func(u *UKI) { u.Kernel = []byte("\x7fELF") }},
		{"line end", func(u *UKI) { u.Cmdline = "a\nb" }},
		{"quotes", func(u *UKI) { u.Release = `1"` }},
	} {
		u := *u
		tt.spoil(&u)
		if _, _, err := u.Build(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}

func TestKernelVersion(t *testing.T) {
	if v, err := KernelVersion(testKernel()); v != "6.1.0-test" || err != nil {
		t.Errorf("version %q %v", v, err)
	}
}

func FuzzPE(f *testing.F) {
	f.Add(loader())
	stub := read(f, debianStub)
	f.Add(stub[:0x500])
	f.Fuzz(func(t *testing.T, image []byte) {
		KernelVersion(image)
		out, err := appendSections(image, section{".linux", []byte("kernel")}, section{".initrd", []byte("files")})
		if err != nil {
			return
		}
		h, err := parsePE(out)
		if err != nil {
			t.Fatalf("what was appended to does not read: %v", err)
		}
		s := h.sections[len(h.sections)-2]
		if got := string(out[s.PointerToRawData:][:s.VirtualSize]); got != "kernel" {
			t.Errorf("the first section appended is %q", got)
		}
	})
}
