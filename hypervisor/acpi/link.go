package acpi

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// Names of fw_cfg files. Firmware knows the first three; the script refers to the others.
const (
	tablesFile      = "etc/acpi/tables"
	rsdpFile        = "etc/acpi/rsdp"
	loaderFile      = "etc/table-loader"
	vmgenidGUIDFile = "etc/vmgenid_guid"

	// VMGenIDAddrFile is the fw_cfg file into which firmware writes where it placed the generation identifier: eight
	// bytes, for VMGenID.SetAddr.
	VMGenIDAddrFile = "etc/vmgenid_addr"
)

// Where tables may lie for a kernel to find the RSDP by searching (ACPI 6.5 §5.2.5.1).
const (
	biosStart mem.GPA = 0xE0000
	biosEnd   mem.GPA = 0x100000
)

// Tables are the tables of one board before anyone decided where they go: blobs, and links, which say what to write
// into them once their addresses are known. Place follows the links itself; Files translates them for firmware.
type Tables struct {
	blobs []blob // in the order in which they are placed
	links []link // a checksum after the pointers that it covers
}

// blob is a piece of guest memory that is placed as a whole.
type blob struct {
	file  string
	data  []byte
	align int  // of its address, a power of two
	low   bool // whether it must lie between biosStart and biosEnd
}

// link is a pointer or a checksum in a blob.
type link struct {
	file   string // of the blob that is written to
	offset int    // in it

	// A pointer: add the address of blob target to the size bytes at offset.
	target string
	size   int

	// A checksum, if target is empty: set the byte at offset such that length bytes from start add up to 0.
	start, length int
}

// Placed says where Place put what.
type Placed struct {
	RSDP mem.GPA // the root pointer, which a boot protocol may pass on
	GUID mem.GPA // the generation identifier, for VMGenID.SetGPA; 0 if there is none
	End  mem.GPA // the first address after the tables
}

// Place writes the tables to m from at up, linked. Kernels search 0xE0000 to 0xFFFFF for the RSDP, so they must lie
// there: at is a multiple of 16 there. The whole range is to be reserved in the guest's memory map.
func (t *Tables) Place(m *mem.Memory, at mem.GPA) (Placed, error) {
	if at%16 != 0 || at < biosStart || at >= biosEnd {
		return Placed{}, fmt.Errorf("ACPI tables at %#x: want a multiple of 16 within %#x-%#x", at, biosStart, biosEnd-1)
	}
	bases := make(map[string]mem.GPA, len(t.blobs))
	data := make(map[string][]byte, len(t.blobs))
	end := at
	for _, b := range t.blobs {
		align := mem.GPA(b.align)
		base := (end + align - 1) &^ (align - 1)
		bases[b.file], data[b.file] = base, slices.Clone(b.data)
		end = base + mem.GPA(len(b.data))
	}
	if end > biosEnd {
		return Placed{}, fmt.Errorf("ACPI tables at %#x-%#x: want them to end by %#x", at, end, biosEnd)
	}
	for _, l := range t.links {
		l.apply(data[l.file], uint64(bases[l.target]))
	}
	for _, b := range t.blobs {
		if err := m.WriteAt(data[b.file], bases[b.file]); err != nil {
			return Placed{}, fmt.Errorf("ACPI tables at %#x-%#x: %w", at, end, err)
		}
	}
	p := Placed{RSDP: bases[rsdpFile], End: end}
	if base, ok := bases[vmgenidGUIDFile]; ok {
		p.GUID = base + guidOffset
	}
	return p, nil
}

// apply writes what l says into b, the bytes of its blob; base is the address of its target.
func (l link) apply(b []byte, base uint64) {
	if l.target == "" {
		b[l.offset] -= sum(b[l.start : l.start+l.length])
		return
	}
	var v [8]byte
	field := b[l.offset : l.offset+l.size]
	copy(v[:], field)
	binary.LittleEndian.PutUint64(v[:], binary.LittleEndian.Uint64(v[:])+base)
	copy(field, v[:])
}

// sum adds up bytes modulo 256.
func sum(b []byte) (s byte) {
	for _, v := range b {
		s += v
	}
	return s
}

// File is a file for the board's fw_cfg device.
type File struct {
	Name     string
	Data     []byte
	Writable bool // whether the guest writes it
}

// Files returns the tables and the script that places and links them, for firmware. The file VMGenIDAddrFile, if it is
// among them, is written by the firmware, which VMGenID.SetAddr is to be told of.
func (t *Tables) Files() []File {
	var files []File
	for _, b := range t.blobs {
		files = append(files, File{Name: b.file, Data: slices.Clone(b.data)})
		if b.file == vmgenidGUIDFile {
			files = append(files, File{Name: VMGenIDAddrFile, Data: make([]byte, 8), Writable: true})
		}
	}
	return append(files, File{Name: loaderFile, Data: t.script()})
}

// Commands of the script in etc/table-loader. Each takes an entry of 128 bytes: the command, then its operands without
// gaps, file names in 56 bytes each with at least one NUL, then zeros.
const (
	cmdAllocate     = 1 // file, alignment uint32, zone uint8
	cmdAddPointer   = 2 // file, target file, offset uint32, size uint8
	cmdAddChecksum  = 3 // file, offset, start and length uint32
	cmdWritePointer = 4 // file, target file, offset in file, offset in target uint32, size uint8

	entryLen    = 128
	fileNameLen = 56

	zoneHigh = 1 // anywhere
	zoneFSeg = 2 // where the RSDP is searched
)

// script returns the commands that do in firmware what Place does here.
func (t *Tables) script() []byte {
	var s script
	for _, b := range t.blobs {
		zone := byte(zoneHigh)
		if b.low {
			zone = zoneFSeg
		}
		s.entry(cmdAllocate).name(b.file).u32(b.align).u8(zone)
	}
	for _, l := range t.links {
		if l.target == "" {
			s.entry(cmdAddChecksum).name(l.file).u32(l.offset).u32(l.start).u32(l.length)
		} else {
			s.entry(cmdAddPointer).name(l.file).name(l.target).u32(l.offset).u8(byte(l.size))
		}
	}
	for _, b := range t.blobs {
		if b.file == vmgenidGUIDFile {
			s.entry(cmdWritePointer).name(VMGenIDAddrFile).name(b.file).u32(0).u32(guidOffset).u8(8)
		}
	}
	s.pad()
	return s
}

// script is a growing list of entries.
type script []byte

func (s *script) pad() { *s = append(*s, make([]byte, -len(*s)&(entryLen-1))...) }

func (s *script) entry(cmd int) *script {
	s.pad()
	return s.u32(cmd)
}

func (s *script) name(file string) *script {
	var b [fileNameLen]byte
	copy(b[:len(b)-1], file)
	*s = append(*s, b[:]...)
	return s
}

func (s *script) u32(v int) *script {
	*s = binary.LittleEndian.AppendUint32(*s, uint32(v))
	return s
}

func (s *script) u8(v byte) *script {
	*s = append(*s, v)
	return s
}
