package kvmtest

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/hypervisor/boot"
)

// Image returns p as a kernel: an ELF executable with a PVH entry, for a whole machine to start as it starts Linux.
func Image(p Program) *boot.Image {
	ram := make([]byte, MinMemory)
	Load(ram, p)

	const ehdrSize, phdrSize, segments = 64, 56, 3
	le := binary.LittleEndian
	note := le.AppendUint32(nil, 4)  // length of the owner's name
	note = le.AppendUint32(note, 4)  // of the descriptor
	note = le.AppendUint32(note, 18) // XEN_ELFNOTE_PHYS32_ENTRY
	note = append(note, "Xen\x00"...)
	note = le.AppendUint32(note, entry32)

	file := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...) // 64-bit, little-endian
	file = le.AppendUint16(file, 2)                                   // an executable
	file = le.AppendUint16(file, 62)                                  // for x86-64
	file = le.AppendUint32(file, 1)
	file = le.AppendUint64(file, entry32)
	file = le.AppendUint64(file, ehdrSize) // program headers
	file = append(file, make([]byte, 12)...)
	for _, v := range []uint16{ehdrSize, phdrSize, segments, 0, 0, 0} {
		file = le.AppendUint16(file, v)
	}
	data := uint64(ehdrSize + segments*phdrSize)
	var content []byte
	segment := func(typ uint32, addr uint64, b []byte) {
		file = le.AppendUint32(file, typ)
		file = le.AppendUint32(file, 7) // readable, writable, executable
		for _, v := range []uint64{data + uint64(len(content)), addr, addr, uint64(len(b)), uint64(len(b)), 4} {
			file = le.AppendUint64(file, v)
		}
		content = append(content, b...)
	}
	segment(4, 0, note)
	segment(1, pml4, ram[pml4:stack0])
	segment(1, entry32, ram[entry32:stack3])
	file = append(file, content...)
	img := boot.BytesImage("test guest", file)
	return &img
}

// entry32 is the PVH entry: from flat 32-bit segments without paging it goes to 64-bit mode (Intel SDM volume 3, §11.8.5).
func (p Program) entry32() *Asm {
	a := &Asm{Base: entry32}
	a.Bytes(0x0f, 0x20, 0xe0, 0x83, 0xc8, 1<<5, 0x0f, 0x22, 0xe0)         // cr4 |= PAE
	a.Bytes(0xb8).imm32(pml4).Bytes(0x0f, 0x22, 0xd8)                     // cr3 = pml4
	a.Bytes(0xb9).imm32(0xc0000080).Bytes(0x0f, 0x32, 0x0d).imm32(1 << 8) // EFER |= LME
	a.Bytes(0x0f, 0x30)
	a.Bytes(0x0f, 0x01, 0x15).imm32(gdtPtr)                              // lgdt
	a.Bytes(0x0f, 0x20, 0xc0, 0x0d).imm32(1<<31).Bytes(0x0f, 0x22, 0xc0) // cr0 |= PG
	return a.Bytes(0xea).imm32(stub).Bytes(0x10, 0)                      // ljmp 0x10:stub
}
