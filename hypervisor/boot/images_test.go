package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// This file builds the images that the other tests load.

// testSegment is a program header with its bytes.
type testSegment struct {
	typ          uint32
	vaddr, paddr uint64
	data         []byte
	memsz        uint64 // 0: len(data)
	align        uint64
}

// buildELF returns an x86 ELF executable of the given class.
func buildELF(class64 bool, entry uint64, segs ...testSegment) []byte {
	le := binary.LittleEndian
	ehsize, phsize := elfEhdrSize32, elfPhdrSize32
	if class64 {
		ehsize, phsize = elfEhdrSize64, elfPhdrSize64
	}
	b := make([]byte, ehsize+phsize*len(segs))
	copy(b, elfMagic)
	b[4], b[5], b[6] = elfClass32, elfData2LSB, 1
	le.PutUint16(b[16:], 2) // ET_EXEC
	le.PutUint16(b[18:], elfMachine386)
	le.PutUint32(b[20:], 1)
	if class64 {
		b[4] = elfClass64
		le.PutUint16(b[18:], elfMachineX64)
		le.PutUint64(b[24:], entry)
		le.PutUint64(b[32:], uint64(ehsize))
		le.PutUint16(b[54:], uint16(phsize))
		le.PutUint16(b[56:], uint16(len(segs)))
	} else {
		le.PutUint32(b[24:], uint32(entry))
		le.PutUint32(b[28:], uint32(ehsize))
		le.PutUint16(b[42:], uint16(phsize))
		le.PutUint16(b[44:], uint16(len(segs)))
	}
	for i, s := range segs {
		memsz := max(s.memsz, uint64(len(s.data)))
		off := len(b)
		ph := b[ehsize+phsize*i:]
		le.PutUint32(ph, s.typ)
		if class64 {
			for j, v := range []uint64{uint64(off), s.vaddr, s.paddr, uint64(len(s.data)), memsz, s.align} {
				le.PutUint64(ph[8+8*j:], v)
			}
		} else {
			for j, v := range []uint64{uint64(off), s.vaddr, s.paddr, uint64(len(s.data)), memsz} {
				le.PutUint32(ph[4+4*j:], uint32(v))
			}
			le.PutUint32(ph[28:], uint32(s.align))
		}
		b = append(b, s.data...)
	}
	return b
}

// note returns an ELF note with its name and descriptor padded to four bytes.
func note(owner string, typ uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(owner)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, typ)
	b = append(b, owner...)
	b = append(b, make([]byte, 4-len(owner)%4)...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(desc)&3)...)
}

// pvhNotes is a PT_NOTE segment that names a PVH entry point behind another note.
func pvhNotes(entry uint64) testSegment {
	b := note("GNU", 3, []byte{1, 2, 3, 4, 5})
	return testSegment{typ: elfPTNote, align: 4, data: append(b, note(xenNoteOwner, xenNotePhys32Entry, binary.LittleEndian.AppendUint64(nil, entry))...)}
}

// pvhKernel is a 64-bit PVH kernel of two segments, the second with a bss.
func pvhKernel() []byte {
	return buildELF(true, 0x100000,
		testSegment{typ: elfPTLoad, vaddr: 0xffff_ffff_8010_0000, paddr: 0x100000, data: bytes.Repeat([]byte("text"), 2048)},
		testSegment{typ: elfPTLoad, vaddr: 0xffff_ffff_8010_4000, paddr: 0x104000, data: []byte("data"), memsz: 0x1800},
		pvhNotes(0x100040))
}

// bzKernel describes a bzImage to build.
type bzKernel struct {
	version   uint16
	xload     uint16
	pref      uint64
	initSize  uint32
	initrdMax uint32
	payload   []byte
}

func defaultBz() bzKernel {
	return bzKernel{version: 0x20f, xload: xlfKernel64, pref: 0x100000, initSize: 0x10000, initrdMax: 0x7fffffff}
}

// build returns the bzImage: a setup sector pair, then 1 KiB of code, then the payload.
func (k bzKernel) build() []byte {
	le := binary.LittleEndian
	const code = 1024
	body := append(bytes.Repeat([]byte{0x90}, code), k.payload...)
	body = append(body, make([]byte, -len(body)&15)...)
	b := make([]byte, 2*sectorSize)
	b[hdrSetupSects] = 1
	le.PutUint32(b[hdrSyssize:], uint32(len(body)/16))
	le.PutUint16(b[hdrBootFlag:], bootFlag)
	b[hdrJump], b[hdrJump+1] = 0xeb, 0x6a
	copy(b[hdrMagic:], "HdrS")
	le.PutUint16(b[hdrVersion:], k.version)
	b[hdrLoadflags] = loadedHigh
	le.PutUint32(b[hdrInitrdAddrMax:], k.initrdMax)
	le.PutUint16(b[hdrXloadflags:], k.xload)
	le.PutUint32(b[hdrCmdlineSize:], 255)
	le.PutUint32(b[hdrPayloadOffset:], code)
	le.PutUint32(b[hdrPayloadLength:], uint32(len(k.payload)))
	le.PutUint64(b[hdrSetupData:], 0xdead)
	le.PutUint64(b[hdrPrefAddress:], k.pref)
	le.PutUint32(b[hdrInitSize:], k.initSize)
	return append(b, body...)
}

// gzipped returns b as a gzip payload, whose trailer is the size.
func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sized appends the uncompressed size, as Linux's build does for all formats but gzip.
func sized(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(size))
}

// multibootHeader returns a header with the given flags and address fields.
func multibootHeader(flags uint32, addresses ...uint32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, mbHeaderMagic)
	b = le.AppendUint32(b, flags)
	b = le.AppendUint32(b, -(mbHeaderMagic + flags))
	for _, a := range addresses {
		b = le.AppendUint32(b, a)
	}
	return b
}

// smallMap is a PC's memory map for a guest of size bytes, with the hole below 1 MiB.
func smallMap(size uint64) []MemRange {
	return []MemRange{
		{Base: 0, Size: 0x9fc00, Type: RAM},
		{Base: 0x9fc00, Size: 0x100000 - 0x9fc00, Type: Reserved},
		{Base: 0x100000, Size: size - 0x100000, Type: RAM},
	}
}

// dirtyHeap returns memory that was used before.
func dirtyHeap(size int) *mem.Memory {
	m := mem.NewHeap(size)
	for _, r := range m.Regions() {
		copy(r.Bytes, bytes.Repeat([]byte{0xaa}, len(r.Bytes)))
	}
	return m
}

// peek returns a copy of n bytes of guest memory.
func peek(t *testing.T, m *mem.Memory, gpa uint64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := m.ReadAt(b, mem.GPA(gpa)); err != nil {
		t.Fatalf("read %d bytes at %#x: %v", n, gpa, err)
	}
	return b
}

func peek32(t *testing.T, m *mem.Memory, gpa uint64) uint32 {
	t.Helper()
	return binary.LittleEndian.Uint32(peek(t, m, gpa, 4))
}

func peek64(t *testing.T, m *mem.Memory, gpa uint64) uint64 {
	t.Helper()
	return binary.LittleEndian.Uint64(peek(t, m, gpa, 8))
}

// peekString returns the zero-terminated string at gpa.
func peekString(t *testing.T, m *mem.Memory, gpa uint64) string {
	t.Helper()
	s, _, _ := bytes.Cut(peek(t, m, gpa, 256), []byte{0})
	return string(s)
}
