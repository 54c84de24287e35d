package pci

import (
	"math/bits"

	"github.com/lodgehv/lodge/hypervisor/bus"
)

// The expansion ROM's base address register, PCI 3.0 §6.2.5.2.
const (
	romEnable = 1 << 0
	romMin    = 2 << 10 // bytes: its address bits begin there
	romMax    = 16 << 20
)

// A function's base address registers have the numbers 0 to 5; the expansion ROM's is one more.
const (
	romBAR  = 6
	numBARs = 7
)

// barOffset returns where register i is in configuration space.
func barOffset(i int) int {
	if i == romBAR {
		return ExpansionROM
	}
	return BAR0 + 4*i
}

// romSize returns how many bytes the register for a ROM of n bytes, at least one, decodes.
func romSize(n int) uint64 { return max(romMin, uint64(1)<<bits.Len(uint(n-1))) }

// rom answers for an expansion ROM. What lies beyond its end reads as zero.
type rom []byte

// Read implements bus.Device.
func (r rom) Read(a bus.Access, p []byte) {
	n := 0
	if a.Off < uint64(len(r)) {
		n = copy(p, r[a.Off:])
	}
	clear(p[n:])
}

// Write implements bus.Device.
func (rom) Write(bus.Access, []byte) {}
