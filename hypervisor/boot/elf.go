package boot

import (
	"encoding/binary"
	"math"
)

// Constants of the ELF specification (System V ABI, edition 4.1, chapters 4 and 5), only those needed.
const (
	elfMagic = "\x7fELF"

	elfClass32     = 1
	elfClass64     = 2
	elfData2LSB    = 1
	elfMachine386  = 3
	elfMachineX64  = 62
	elfPTLoad      = 1
	elfPTNote      = 4
	elfEhdrSize32  = 52
	elfEhdrSize64  = 64
	elfPhdrSize32  = 32
	elfPhdrSize64  = 56
	elfNoteHdrSize = 12

	// Kernels have a handful of program headers and some hundred bytes of notes.
	maxPhdrs    = 128
	maxNoteSize = 64 << 10
)

// elfFile is what the loaders need of an ELF header.
type elfFile struct {
	class64  bool
	entry    uint64
	segments []segment // of type PT_LOAD with bytes in memory
	notes    []segment // of type PT_NOTE
}

// segment is one program header.
type segment struct {
	off, vaddr, paddr, filesz, memsz, align uint64
}

func isELF(head []byte) bool { return len(head) >= 4 && string(head[:4]) == elfMagic }

// parseELF reads the headers of img, an x86 executable. head is a prefix of the file of at least an ELF header's size,
// if the file is that long.
func parseELF(img Image, head []byte) (*elfFile, error) {
	le := binary.LittleEndian
	if len(head) < elfEhdrSize32 {
		return nil, img.errorf("ELF header: the file has only %d bytes", len(head))
	}
	if head[5] != elfData2LSB {
		return nil, img.errorf("ELF header: not little-endian")
	}
	if machine := le.Uint16(head[18:]); machine != elfMachine386 && machine != elfMachineX64 {
		return nil, img.errorf("ELF header: machine %d, an x86 guest runs %d (i386) or %d (x86-64)", machine, elfMachine386, elfMachineX64)
	}
	f := &elfFile{}
	var phoff uint64
	var phsize, phentsize, phnum uint16
	switch head[4] {
	case elfClass32:
		f.entry, phoff = uint64(le.Uint32(head[24:])), uint64(le.Uint32(head[28:]))
		phsize, phentsize, phnum = elfPhdrSize32, le.Uint16(head[42:]), le.Uint16(head[44:])
	case elfClass64:
		if len(head) < elfEhdrSize64 {
			return nil, img.errorf("ELF header: the file has only %d bytes", len(head))
		}
		f.class64 = true
		f.entry, phoff = le.Uint64(head[24:]), le.Uint64(head[32:])
		phsize, phentsize, phnum = elfPhdrSize64, le.Uint16(head[54:]), le.Uint16(head[56:])
	default:
		return nil, img.errorf("ELF header: class %d is neither 32-bit nor 64-bit", head[4])
	}
	if phentsize != phsize || phnum == 0 || phnum > maxPhdrs {
		return nil, img.errorf("ELF header: %d program headers of %d bytes, want 1 to %d of %d bytes", phnum, phentsize, maxPhdrs, phsize)
	}
	table := make([]byte, int(phnum)*int(phsize))
	if err := img.read(table, phoff); err != nil {
		return nil, err
	}
	for i := range int(phnum) {
		typ, s := parsePhdr(table[i*int(phsize):], f.class64)
		switch typ {
		case elfPTLoad:
			if s.filesz > s.memsz || !img.contains(s.off, s.filesz) {
				return nil, img.errorf("ELF segment %d: %#x bytes at offset %#x for %#x bytes of memory: the file is cut short or damaged",
					i, s.filesz, s.off, s.memsz)
			}
			if s.memsz > 0 {
				f.segments = append(f.segments, s)
			}
		case elfPTNote:
			f.notes = append(f.notes, s)
		}
	}
	return f, nil
}

// parsePhdr decodes one program header. The two classes order their fields differently.
func parsePhdr(b []byte, class64 bool) (typ uint32, s segment) {
	le := binary.LittleEndian
	typ = le.Uint32(b)
	if class64 {
		return typ, segment{
			off: le.Uint64(b[8:]), vaddr: le.Uint64(b[16:]), paddr: le.Uint64(b[24:]),
			filesz: le.Uint64(b[32:]), memsz: le.Uint64(b[40:]), align: le.Uint64(b[48:]),
		}
	}
	u := func(off int) uint64 { return uint64(le.Uint32(b[off:])) }
	return typ, segment{off: u(4), vaddr: u(8), paddr: u(12), filesz: u(16), memsz: u(20), align: u(28)}
}

// note returns the descriptor of the first note of the given owner and type, or nil.
func (f *elfFile) note(img Image, owner string, typ uint32) ([]byte, error) {
	le := binary.LittleEndian
	for _, s := range f.notes {
		if s.filesz > maxNoteSize {
			return nil, img.errorf("ELF notes: %d bytes, at most %d are possible", s.filesz, maxNoteSize)
		}
		b := make([]byte, s.filesz)
		if err := img.read(b, s.off); err != nil {
			return nil, err
		}
		align := uint64(4)
		if s.align == 8 {
			align = 8
		}
		up := func(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }
		for len(b) >= elfNoteHdrSize {
			namesz, descsz := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
			desc := up(elfNoteHdrSize + namesz)
			if desc > uint64(len(b)) || descsz > uint64(len(b))-desc {
				break // a damaged note hides those behind it
			}
			if le.Uint32(b[8:]) == typ && string(b[elfNoteHdrSize:elfNoteHdrSize+namesz]) == owner+"\x00" {
				return b[desc : desc+descsz], nil
			}
			b = b[min(up(desc+descsz), uint64(len(b))):]
		}
	}
	return nil, nil
}

// elf starts an ELF image by PVH if it can, else by Multiboot.
func (l *loader) elf(img Image, head []byte) (Entry, error) {
	f, err := parseELF(img, head)
	if err != nil {
		return Entry{}, err
	}
	entry, ok, err := f.pvhEntry(img)
	if err != nil {
		return Entry{}, err
	}
	switch p := l.cfg.Protocol; {
	case ok && (p == Auto || p == PVH):
		limit := uint64(math.MaxUint32)
		if !f.class64 {
			limit = linux32InitrdMax
		}
		return l.pvh(img, f, entry, limit+1, math.MaxUint32)
	case hasMultiboot(head) && (p == Auto || p == Multiboot):
		return l.multiboot(img, head, f)
	case p == Auto:
		return Entry{}, img.errorf("an ELF image without a way to start it: it has neither the note XEN_ELFNOTE_PHYS32_ENTRY (Linux: CONFIG_PVH) nor a Multiboot header")
	default:
		return Entry{}, img.errorf("protocol %v: %w", p, errNotSupported)
	}
}

// segments places the image's segments at their physical addresses.
func (l *loader) segments(img Image, f *elfFile) error {
	if len(f.segments) == 0 {
		return img.errorf("ELF image without anything to load")
	}
	for _, s := range f.segments { // all are reserved before one is written: a lie costs no time
		if err := l.reserve("kernel "+img.Name, s.paddr, s.memsz); err != nil {
			return err
		}
	}
	for _, s := range f.segments {
		if err := l.fillSparse(img, s.off, s.paddr, s.filesz); err != nil {
			return err
		}
		if err := l.zero(s.paddr+s.filesz, s.memsz-s.filesz); err != nil {
			return err
		}
	}
	return nil
}

// holds reports whether the physical address a lies in a segment.
func (f *elfFile) holds(a uint64) bool {
	for _, s := range f.segments {
		if s.paddr <= a && a-s.paddr < s.memsz {
			return true
		}
	}
	return false
}
