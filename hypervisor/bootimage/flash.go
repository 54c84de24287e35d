package bootimage

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"fmt"
)

// A flash image is the last 16 MiB below 4 GiB:
//
//	0        magic, the UKI's size (little-endian, 8 bytes)
//	4 KiB    the UKI
//	         erased
//	16 MiB-N the firmware: variables, then code, whose last byte is the last one
const (
	FlashSize   = 16 << 20
	flashHeader = 4 << 10
	flashMagic  = "LODGEUKI"
)

//go:embed loader/loader.bin
var loaderCode []byte

// ErrTooLarge says what does not fit into a flash image.
type ErrTooLarge struct{ UKI, Room int }

// Error tells both sizes.
func (e *ErrTooLarge) Error() string {
	return fmt.Sprintf("flash image: the UKI has %d bytes, %d more than there is room for beside the firmware", e.UKI, e.UKI-e.Room)
}

// Flash returns a flash image: OVMF's variables and code, with a program in place of its UEFI Shell that starts the UKI in the flash.
// If that does not fit, the error is an *ErrTooLarge.
func Flash(vars, code, uki []byte) ([]byte, error) {
	room := FlashSize - flashHeader - len(vars) - len(code)
	if len(uki) > room {
		return nil, &ErrTooLarge{len(uki), room}
	}
	code, err := ReplaceShell(code, loader())
	if err != nil {
		return nil, err
	}
	if vars, err = bootFlashFirst(vars); err != nil {
		return nil, err
	}
	rom := bytes.Repeat([]byte{0xff}, FlashSize)
	copy(rom, flashMagic)
	binary.LittleEndian.PutUint64(rom[8:], uint64(len(uki)))
	copy(rom[flashHeader:], uki)
	copy(rom[FlashSize-len(code)-len(vars):], vars)
	copy(rom[FlashSize-len(code):], code)
	return rom, nil
}

// loader returns the program that starts the UKI in the flash, an EFI application.
func loader() []byte {
	const (
		headers = 0x200
		peAt    = 0x40
		// codeAt is both in memory and, since sections begin at a page, not in the file.
		codeAt = pageSize
	)
	size := alignUp(len(loaderCode), headers)
	b := make([]byte, headers+size)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[peOffsetAt:], peAt)
	copy(b[peAt:], peMagic)
	le := binary.LittleEndian
	coff := b[peAt+len(peMagic):]
	le.PutUint16(coff[0:], 0x8664)      // machine: x86-64
	le.PutUint16(coff[2:], 1)           // sections
	le.PutUint16(coff[16:], optSize)    // of the optional header
	le.PutUint16(coff[18:], 0x0022)     // executable, large addresses
	opt := coff[coffSize:]              //
	le.PutUint16(opt[0:], 0x20b)        // PE32+
	le.PutUint32(opt[4:], uint32(size)) // of code
	le.PutUint32(opt[16:], codeAt)      // entry point
	le.PutUint32(opt[20:], codeAt)      // base of code
	le.PutUint32(opt[32:], pageSize)    // alignment in memory
	le.PutUint32(opt[36:], headers)     // and in the file
	le.PutUint32(opt[56:], codeAt+uint32(alignUp(size, pageSize)))
	le.PutUint32(opt[60:], headers) // size of headers
	le.PutUint16(opt[68:], 10)      // subsystem: EFI application
	le.PutUint32(opt[108:], 16)     // data directories
	s := opt[optSize:]
	copy(s, ".text")
	le.PutUint32(s[8:], uint32(len(loaderCode)))
	le.PutUint32(s[12:], codeAt)
	le.PutUint32(s[16:], uint32(size))
	le.PutUint32(s[20:], headers)
	le.PutUint32(s[36:], 0x60000020) // code, executable, readable
	copy(b[headers:], loaderCode)
	return b
}
