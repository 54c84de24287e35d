package bootimage

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"

// testFile returns an FFS file of one section.
func testFile(name guid, kind, section byte, content []byte) []byte {
	b := make([]byte, ffsHeaderSize+sectionHeader, ffsHeaderSize+sectionHeader+len(content))
	b = append(b, content...)
	copy(b, name[:])
	b[ffsTypeAt], b[ffsStateAt] = kind, 0xf8
	put24(b[ffsSizeAt:], len(b))
	put24(b[ffsHeaderSize:], len(content)+sectionHeader)
	b[ffsHeaderSize+3] = section
	sumFile(b)
	return b
}

// testVolume returns a firmware volume of size bytes with files.
func testVolume(size int, files ...[]byte) []byte {
	b := bytes.Repeat([]byte{0xff}, size)
	clear(b[:72])
	binary.LittleEndian.PutUint64(b[fvLengthAt:], uint64(size))
	copy(b[fvSignatureAt:], fvSignature)
	binary.LittleEndian.PutUint16(b[fvHeaderLengthAt:], 72)
	at := 72
	for _, f := range files {
		copy(b[at:], f)
		at = alignUp(at+len(f), ffsAlign)
	}
	return b
}

// testFirmware is a volume that has, compressed in it, a volume with a shell and files around that.
func testFirmware(t testing.TB) []byte {
	t.Helper()
	before := testFile(guid{1}, 7, sectionPE32, []byte("driver before"))
	shell := testFile(guidShell, 9, sectionPE32, bytes.Repeat([]byte("shell "), 1000))
	after := testFile(guid{2}, 7, sectionPE32, []byte("driver after"))
	inner := testVolume(16<<10, before, shell, after)
	raw := append(make([]byte, sectionHeader), inner...)
	put24(raw, len(raw))
	raw[3] = sectionVolume
	packed, err := packSection(raw)
	if err != nil {
		t.Fatal(err)
	}
	guided := make([]byte, guidedHeader)
	copy(guided, guidLZMA[:])
	binary.LittleEndian.PutUint16(guided[16:], sectionHeader+guidedHeader)
	return testVolume(8<<10, testFile(guid{3}, 1, sectionRaw, []byte("not a volume")), testFile(guid{4}, ffsVolume, sectionGUIDed, append(guided, packed...)))
}

// innerVolumes returns what the compressed section of firmware unpacks to.
func innerVolumes(t testing.TB, firmware []byte) []byte {
	t.Helper()
	at := bytes.Index(firmware, guidLZMA[:])
	if at < 0 {
		t.Fatal("no compressed section")
	}
	raw, err := unpackSection(firmware[at+guidedHeader:])
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// shellAt returns where the shell's file begins.
func shellAt(t testing.TB, volumes []byte) int {
	t.Helper()
	for at := 0; ; at++ { // others name it too
		next := bytes.Index(volumes[at:], guidShell[:])
		if next < 0 {
			t.Fatal("no shell")
		}
		if at += next; volumes[at+ffsTypeAt] == 9 && volumes[at+ffsStateAt] == 0xf8 {
			return at
		}
	}
}

func TestReplaceShell(t *testing.T) {
	for name, firmware := range map[string][]byte{"small": testFirmware(t), "OVMF": read(t, ovmfCode)} {
		t.Run(name, func(t *testing.T) {
			old := innerVolumes(t, firmware)
			kept := bytes.Clone(firmware)
			got, err := ReplaceShell(firmware, loader())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(firmware, kept) {
				t.Error("the original has changed")
			}
			if len(got) != len(firmware) {
				t.Fatalf("%d bytes, want %d", len(got), len(firmware))
			}
			// Nothing but the shell's file is another.
			inner := innerVolumes(t, got)
			at := shellAt(t, old)
			f, err := parseFile(old[at:])
			if err != nil {
				t.Fatal(err)
			}
			if len(inner) != len(old) || !bytes.Equal(inner[:at], old[:at]) || !bytes.Equal(inner[at+f.size:], old[at+f.size:]) {
				t.Error("other files have changed")
			}
			program := inner[at+ffsHeaderSize+sectionHeader:][:len(loader())]
			if !bytes.Equal(program, loader()) {
				t.Error("the shell's file does not begin with the program")
			}
			for what, header := range map[string][]byte{"the file": inner[at:], "the compressed file": got[bytes.Index(got, guidLZMA[:])-ffsHeaderSize-sectionHeader:]} {
				if sum := sum8(header[:ffsHeaderSize]) - header[ffsFileCheckAt] - header[ffsStateAt]; sum != 0 {
					t.Errorf("%s: its header sums up to %#x", what, sum)
				}
			}
		})
	}
}

func TestReplaceShellErrors(t *testing.T) {
	cut := testFirmware(t)
	for _, tt := range []struct {
		name, want string
		firmware   []byte
		program    []byte
	}{
		{"no volume", "not a firmware volume", make([]byte, 4096), loader()},
		{"no shell", "no UEFI Shell", testVolume(4096), loader()},
		{"large program", "does not fit", testFirmware(t), make([]byte, 8000)},
		{"cut", "a volume of 8192 bytes in", cut[:len(cut)-1000], loader()},
	} {
		if _, err := ReplaceShell(tt.firmware, tt.program); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzFirmware(f *testing.F) {
	f.Add(testFirmware(f))
	f.Add(testVolume(4096, testFile(guidShell, 9, sectionPE32, make([]byte, 2000))))
	f.Fuzz(func(t *testing.T, firmware []byte) {
		out, err := ReplaceShell(firmware, loader())
		if err == nil && len(out) != len(firmware) {
			t.Errorf("%d bytes have become %d", len(firmware), len(out))
		}
	})
}

func TestFlash(t *testing.T) {
	vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Fatal(err)
	}
	code := testFirmware(t)
	uki := []byte("MZ this is started")
	rom, err := Flash(vars, code, uki)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Flash(vars, code, uki); err != nil || !bytes.Equal(rom, again) {
		t.Errorf("made once more it differs (%v)", err)
	}
	if len(rom) != FlashSize {
		t.Fatalf("%d bytes", len(rom))
	}
	withOption, err := bootFlashFirst(vars)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte(flashMagic), byte(len(uki)), 0, 0, 0, 0, 0, 0, 0)
	if !bytes.HasPrefix(rom, want) || !bytes.HasPrefix(rom[flashHeader:], append(uki, 0xff)) {
		t.Errorf("header % x, UKI %q", rom[:16], rom[flashHeader:flashHeader+20])
	}
	if !bytes.Equal(rom[FlashSize-len(code)-len(vars):FlashSize-len(code)], withOption) {
		t.Error("the variables are not before the code")
	}
	if end := 64; !bytes.Equal(rom[FlashSize-end:], code[len(code)-end:]) {
		t.Error("the reset vector is not the firmware's")
	}
	room := FlashSize - flashHeader - len(code) - len(vars)
	if _, err := Flash(vars, code, make([]byte, room)); err != nil {
		t.Errorf("a UKI that just fits: %v", err)
	}
	var large *ErrTooLarge
	if _, err := Flash(vars, code, make([]byte, room+1)); !errors.As(err, &large) || !strings.Contains(err.Error(), "1 more than") {
		t.Errorf("one byte more: %v", err)
	}
}

// The loader that is built in is its source, assembled.
func TestLoader(t *testing.T) {
	dir := t.TempDir()
	object, raw := filepath.Join(dir, "loader.o"), filepath.Join(dir, "loader.bin")
	for _, args := range [][]string{{"as", "--64", "-o", object, "loader/loader.S"}, {"objcopy", "-O", "binary", "-j", ".text", object, raw}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	code, err := os.ReadFile(raw)
	if err != nil || !bytes.Equal(code, loaderCode) {
		t.Errorf("loader.bin is not loader.S: assemble it anew (%v)", err)
	}
	f, err := pe.NewFile(bytes.NewReader(loader()))
	if err != nil {
		t.Fatal(err)
	}
	text, err := f.Section(".text").Data()
	if err != nil || !bytes.HasPrefix(text, code) || f.OptionalHeader.(*pe.OptionalHeader64).AddressOfEntryPoint != f.Section(".text").VirtualAddress {
		t.Errorf("the program does not begin with its code (%v)", err)
	}
}
