package acpi

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// firmware runs etc/table-loader as a BIOS does. It places blobs where at says and returns the files as the guest left
// them in memory, and as it wrote them back.
func firmware(t *testing.T, files []File, m *mem.Memory, at map[string]uint64) (written map[string][]byte) {
	t.Helper()
	contents := map[string]File{}
	for _, f := range files {
		contents[f.Name] = f
	}
	placed := map[string][]byte{}
	written = map[string][]byte{}
	script := contents[loaderFile].Data
	if len(script) == 0 || len(script)%entryLen != 0 {
		t.Fatalf("script of %d bytes", len(script))
	}
	le := binary.LittleEndian
	name := func(b []byte) string { return string(bytes.TrimRight(b[:fileNameLen], "\x00")) }
	add := func(field []byte, v uint64) {
		var b [8]byte
		copy(b[:], field)
		le.PutUint64(b[:], le.Uint64(b[:])+v)
		copy(field, b[:])
	}
	for ; len(script) > 0; script = script[entryLen:] {
		a := script[4:entryLen]
		file := name(a)
		switch cmd := le.Uint32(script); cmd {
		case cmdAllocate:
			align, zone, base := uint64(le.Uint32(a[56:])), a[60], at[file]
			if base == 0 || base%align != 0 || placed[file] != nil {
				t.Fatalf("allocate %s, alignment %d, at %#x", file, align, base)
			}
			if (zone == zoneFSeg) != (file == rsdpFile) {
				t.Errorf("allocate %s: zone %d", file, zone)
			}
			if err := m.WriteAt(contents[file].Data, mem.GPA(base)); err != nil {
				t.Fatal(err)
			}
			placed[file], _ = m.Slice(mem.GPA(base), len(contents[file].Data))
		case cmdAddPointer:
			target, offset, size := name(a[56:]), le.Uint32(a[112:]), a[116]
			if placed[file] == nil || placed[target] == nil {
				t.Fatalf("pointer in %q to %q before both are placed", file, target)
			}
			add(placed[file][offset:][:size], at[target])
		case cmdAddChecksum:
			offset, start, length := le.Uint32(a[56:]), le.Uint32(a[60:]), le.Uint32(a[64:])
			placed[file][offset] = 0
			placed[file][offset] = -sum(placed[file][start:][:length])
		case cmdWritePointer:
			target, offset, from, size := name(a[56:]), le.Uint32(a[112:]), le.Uint32(a[116:]), a[120]
			if !contents[file].Writable {
				t.Fatalf("pointer written to %q", file)
			}
			b := bytes.Clone(contents[file].Data)
			add(b[offset:][:size], at[target]+uint64(from))
			written[file] = b
		default:
			t.Fatalf("command %d", cmd)
		}
	}
	return written
}

// TestFirmwareAgrees has firmware place the tables where Place did: both must leave the same bytes.
func TestFirmwareAgrees(t *testing.T) {
	tables := build(t, board())
	direct, viaFirmware := mem.NewHeap(1<<20), mem.NewHeap(1<<20)
	p, err := tables.Place(direct, biosStart)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]uint64{
		rsdpFile:        uint64(p.RSDP),
		tablesFile:      uint64(biosStart) + 64,
		vmgenidGUIDFile: uint64(p.GUID) - guidOffset,
	}
	written := firmware(t, tables.Files(), viaFirmware, at)
	if !bytes.Equal(direct.Regions()[0].Bytes, viaFirmware.Regions()[0].Bytes) {
		t.Error("guest memory differs")
	}
	want := map[string][]byte{VMGenIDAddrFile: binary.LittleEndian.AppendUint64(nil, uint64(p.GUID))}
	if d := cmp.Diff(want, written); d != "" {
		t.Errorf("written back (-want +got):\n%s", d)
	}
}

// TestFirmwareElsewhere has firmware scatter the blobs, as it does in truth.
func TestFirmwareElsewhere(t *testing.T) {
	m := mem.NewHeap(16 << 20)
	tables := build(t, board())
	written := firmware(t, tables.Files(), m,
		map[string]uint64{rsdpFile: 0xF5A20, tablesFile: 0xABC040, vmgenidGUIDFile: 0xDEF000})
	found := discover(t, m)
	if len(found) != 8 {
		t.Errorf("found %d tables, want 8", len(found))
	}
	if got := binary.LittleEndian.Uint32(found["DSDT"][headerLen+7:]); got != 0xDEF028 {
		t.Errorf("VGIA = %#x, want 0xdef028", got)
	}
	v := NewVMGenID(m, func() {})
	if err := v.SetAddr(written[VMGenIDAddrFile]); err != nil {
		t.Fatal(err)
	}
	want := v.GUID()
	if got, _ := m.Slice(0xDEF028, 16); !bytes.Equal(got, want[:]) {
		t.Errorf("identifier in memory % x, want % x", got, want)
	}
}

func TestFiles(t *testing.T) {
	var names []string
	for _, f := range build(t, smallBoard()).Files() {
		names = append(names, f.Name)
		if len(f.Name) >= fileNameLen {
			t.Errorf("file name %q is too long", f.Name)
		}
	}
	if d := cmp.Diff([]string{rsdpFile, tablesFile, loaderFile}, names); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
