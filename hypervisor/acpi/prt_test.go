package acpi

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// takeInt returns the integer that b begins with and what follows it.
func takeInt(t *testing.T, b []byte) (uint32, []byte) {
	t.Helper()
	size := map[byte]int{0x0A: 1, 0x0B: 2, 0x0C: 4}[b[0]]
	if size == 0 {
		if b[0] > 1 {
			t.Fatalf("opcode %#x, want an integer", b[0])
		}
		return uint32(b[0]), b[1:]
	}
	var v [4]byte
	copy(v[:], b[1:1+size])
	return binary.LittleEndian.Uint32(v[:]), b[1+size:]
}

// routes returns the entries of the _PRT in a DSDT, each an address, a pin, a source and a GSI.
func routes(t *testing.T, dsdt []byte) [][4]uint32 {
	t.Helper()
	_, b, ok := bytes.Cut(dsdt, []byte("\x08_PRT\x12"))
	if !ok {
		t.Fatal("no _PRT")
	}
	b = b[1+b[0]>>6:] // the package's length
	entries := make([][4]uint32, b[0])
	b = b[1:]
	for i := range entries {
		if b[0] != 0x12 || b[2] != 4 {
			t.Fatalf("entry %d: % x, want a package of 4", i, b[:3])
		}
		b = b[3:]
		for j := range entries[i] {
			entries[i][j], b = takeInt(t, b)
		}
	}
	return entries
}

func TestInterruptRouting(t *testing.T) {
	all := routes(t, place(t, board())["DSDT"])
	if len(all) != slots*4 {
		t.Fatalf("%d routes, want %d", len(all), slots*4)
	}
	for _, want := range [][4]uint32{
		{0x0000_FFFF, 0, 0, 16}, {0x0000_FFFF, 3, 0, 19},
		{0x0001_FFFF, 0, 0, 17}, {0x0001_FFFF, 1, 0, 18},
		{0x0005_FFFF, 2, 0, 23}, {0x0005_FFFF, 3, 0, 16},
		{0x001F_FFFF, 0, 0, 23}, {0x001F_FFFF, 1, 0, 16},
	} {
		if d := cmp.Diff(want, all[want[0]>>16*4+want[1]]); d != "" {
			t.Errorf("slot %d pin %d (-want +got):\n%s", want[0]>>16, want[1], d)
		}
	}
}
