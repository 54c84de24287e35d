package machine

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/pci"
)

// Registers of the memory controller hub, Intel 3 Series Express Chipset datasheet §5.1.
const (
	mchPCIEXBAR = 0x60 // 8 bytes: base of ECAM and an enable bit
	mchPAM0     = 0x90 // 7 bytes: whether 0xC0000–0xFFFFF is RAM
	mchSMRAM    = 0x9d
	mchESMRAMC  = 0x9e
)

// Registers of the LPC bridge, ICH9 datasheet §13.1.
const (
	lpcPMBASE   = 0x40
	lpcACPICNTL = 0x44
	lpcPIRQA    = 0x60 // A to D, one byte each
	lpcPIRQE    = 0x68 // E to H
)

// newMCH returns function 00:00.0. Firmware tells the platform by its identity, and writes to registers that change
// nothing here: ECAM is where it is, and the memory below 1 MiB is RAM always.
func newMCH() (*pci.Function, error) {
	f, err := pci.NewFunction(pci.Config{Name: "mch", Vendor: 0x8086, Device: 0x29c0, Class: 0x060000, Revision: 2})
	if err != nil {
		return nil, err
	}
	var bar [8]byte
	binary.LittleEndian.PutUint64(bar[:], ecamBase|1)
	f.SetRegister(mchPCIEXBAR, bar[:], bits(8))
	f.SetRegister(mchPAM0, make([]byte, 7), bits(7))
	f.SetRegister(mchSMRAM, []byte{0x02}, []byte{0x58}) // no system management RAM: the lock and open bits do nothing
	f.SetRegister(mchESMRAMC, []byte{0x38}, nil)
	return f, nil
}

// newLPC returns function 00:1f.0, which routes the PIRQs to ISA interrupts for guests without the IOAPIC.
func newLPC(n *interrupts) (*pci.Function, error) {
	f, err := pci.NewFunction(pci.Config{Name: "lpc", Vendor: 0x8086, Device: 0x2918, Class: 0x060100, Revision: 2})
	if err != nil {
		return nil, err
	}
	f.SetRegister(lpcPMBASE, []byte{legacy.PMBase&0xff | 1, legacy.PMBase >> 8}, nil)
	f.SetRegister(lpcACPICNTL, []byte{0x80}, []byte{0x80}) // the power management block is decoded; SCI is interrupt 9
	for group, off := range []int{lpcPIRQA, lpcPIRQE} {
		f.SetRegister(off, []byte{pirqOff, pirqOff, pirqOff, pirqOff}, []byte{0x8f, 0x8f, 0x8f, 0x8f})
		f.OnWrite(off, 4, func() {
			for i, v := range f.Peek(off, 4) {
				n.routePIRQ(4*group+i, v)
			}
		})
	}
	return f, nil
}

// bits returns n bytes in which all bits are set.
func bits(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xff
	}
	return b
}
