package main

import "slices"

// romSize is what QEMU's microvm asks for: whole 64 KiB.
const romSize = 64 << 10

// resetSize is how many bytes there are from the reset vector to the end of a ROM.
const resetSize = 16

// rom returns firmware with code, up to resetSize bytes, at the reset vector: all that a guest needs. The CPU starts there
// in real mode, with the base of CS 64 KiB below 4 GiB and the other segments at 0.
func rom(code ...byte) []byte {
	b := slices.Repeat([]byte{0xf4}, romSize) // hlt
	copy(b[romSize-resetSize:], code)
	return b
}

// Code for ROMs.
var (
	// sayByte writes a byte to COM1 and stops.
	sayByte = []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, '!', // mov al, '!'
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	}
	// waitForFlag waits until the byte at flagAddr is not 0 and writes to the debug-exit port.
	waitForFlag = []byte{
		0x80, 0x3e, flagAddr & 0xff, flagAddr >> 8, 0x00, // cmp byte [flagAddr], 0
		0x74, 0xf9, // je to the cmp
		0xe6, 0xf4, // out 0xf4, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	}
	// outForever writes to a port again and again.
	outForever = []byte{
		0xba, exitPort & 0xff, exitPort >> 8, // mov dx, exitPort
		0xee,       // out dx, al
		0xeb, 0xfd, // jmp to the out
	}
)

const (
	flagAddr = 0x500
	exitPort = 0x5658
)
