package machine

import (
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// The guest-physical memory map. It is a Q35's, as firmware and the ACPI tables expect it:
//
//	0x0000_0000   RAM        conventional memory
//	0x000A_0000   —          VGA's window
//	0x000C_0000   RAM        where the option ROMs and the BIOS of a PC are: writable here, firmware shadows itself in it,
//	                         and a kernel that starts without firmware finds the ACPI and SMBIOS tables in it
//	0x0010_0000   RAM        up to 2 GiB
//	0xB000_0000   ECAM       configuration space of PCI bus 0
//	0xC000_0000   PCI        32-bit BARs
//	0xFEC0_0000   IOAPIC     (KVM's)
//	0xFEE0_0000   local APIC (KVM's)
//	0xFEFF_C000   —          KVM's own pages for real mode on old Intel CPUs
//	0xFFxx_xxxx   ROM        the firmware image, which ends at 4 GiB
//	0x1_0000_0000 RAM        what does not fit below
//	above         PCI        64-bit BARs
const (
	vgaBase      = 0xa0000
	highLowBase  = 0xc0000 // RAM continues here
	lowRAMMax    = 2 << 30 // as much RAM lies below 4 GiB
	ecamBase     = 0xb000_0000
	pci32Base    = 0xc000_0000
	pci32Last    = 0xfebf_ffff
	ioapicBase   = 0xfec0_0000
	lapicBase    = 0xfee0_0000
	identityBase = 0xfeff_c000 // one page
	tssBase      = 0xfeff_d000 // three pages
	fourGiB      = 1 << 32
	pci64Size    = 32 << 30
	pci64Align   = 1 << 30
	hugePage     = 2 << 20

	tablesBase = 0xe0000 // ACPI tables of a guest without firmware, up to
	smbiosBase = 0xf0000 // the SMBIOS ones, up to
	tablesEnd  = 0x100000
)

// Ports of PCI and the global system interrupts. The ports and ISA interrupts of the small devices are package legacy's.
const (
	pciIOBase = 0xd00  // the window of I/O BARs
	pciIOBARs = 0xc000 // where the board itself places them
	pciIOLast = 0xffff

	gsiPIRQ = 16 // GSI of PIRQ A; H is 23
	numGSI  = 24
)

// PCI slots of the board's own functions.
const (
	slotMCH   = 0
	slotLPC   = 31
	slotCards = 1 // the first for cards
)

// Limits of a machine.
const (
	MaxCPUs   = 16
	MinMemory = 2 << 20   // bytes
	MaxMemory = 512 << 30 // bytes; with the 64-bit PCI window it stays within 40-bit physical addresses
)

// ramRanges returns the RAM of a guest with size bytes, and the ROM for firmware of romSize bytes, if any. They are laid
// out so that a GPA and its offset in the memfd are congruent modulo 2 MiB, without which KVM cannot use huge pages: the
// VGA window has RAM behind it that no guest can see, and the ROM takes whole huge pages of which only the end is mapped.
func ramRanges(size, romSize uint64) ([]mem.Range, error) {
	if size < MinMemory || size > MaxMemory || size%mem.PageSize != 0 {
		return nil, fmt.Errorf("memory of %d bytes: from %d MiB to %d GiB in whole pages are possible",
			size, MinMemory>>20, MaxMemory>>30)
	}
	low := min(size, lowRAMMax)
	rs := []mem.Range{{Base: 0, Size: low}}
	if romSize != 0 {
		rom := (romSize + hugePage - 1) &^ (hugePage - 1)
		rs = append(rs, mem.Range{Base: mem.GPA(fourGiB - rom), Size: rom})
	}
	if size > low {
		rs = append(rs, mem.Range{Base: fourGiB, Size: size - low})
	}
	return rs, nil
}

// pci64Window returns the first address of the window for 64-bit BARs.
func pci64Window(memory uint64) uint64 {
	end := uint64(fourGiB)
	if memory > lowRAMMax {
		end += memory - lowRAMMax
	}
	return (end + pci64Align - 1) &^ (pci64Align - 1)
}

// intxGSI returns the GSI that pin (0 is INTA) of the device in slot is wired to: PIRQ E to H in turn for the slots of
// cards, PIRQ A to D for the chipset's, as SeaBIOS takes for granted on a Q35.
func intxGSI(slot, pin int) uint32 {
	if slot < 25 {
		return gsiPIRQ + 4 + uint32(slot+pin)&3
	}
	return gsiPIRQ + uint32(pin)&3
}

// cmosCentury is where the clock keeps the century, for the FADT.
const cmosCentury = 0x32
