// Package acpi describes a board like Intel's Q35 to its operating system by ACPI tables (ACPI 6.5), and is the virtual
// machine generation identifier, the one device that exists through those tables alone.
//
// Build makes the tables of a Config. They reach the guest in one of two ways: a kernel that is booted directly finds
// them where Place wrote them; firmware gets the Files, places the tables itself, and fixes the pointers and checksums
// as a script among the files says.
//
// The AML in the DSDT comes from package aml. A device that needs AML of its own has its terms added by Config.Extra.
package acpi

import (
	"errors"
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/acpi/aml"
)

// What the tables and the board agree on.
const (
	// Registers of the power management block, as offsets from Config.PMBase (ICH9 datasheet §13.8.3).
	PM1aEvent   = 0x00 // PM1 status and enable, 2 bytes each
	PM1aControl = 0x04 // PM1 control, 2 bytes
	PMTimer     = 0x08 // 4 bytes, of which 24 bits count
	GPE0        = 0x20 // general-purpose events: 8 bytes of status, 8 of enable
	PMLen       = 0x80 // length of the whole block

	// Values of SLP_TYP in PM1 control that enter a sleep state.
	SleepS5 = 0
	SleepS3 = 1
	SleepS4 = 2

	SCI        = 9 // the ISA interrupt and GSI of power management events: level-triggered, active high
	VMGenIDGPE = 5 // the general-purpose event that tells of a new generation identifier
)

// Sizes that tables and method names are laid out for.
const (
	maxCPUs  = 16
	slots    = 32 // of a PCI bus
	maxBuses = 256
)

// Window is the range of addresses from Base to Last, both within it.
type Window struct{ Base, Last uint64 }

// Config is all that the tables say about a board.
type Config struct {
	APICIDs    []uint8 // local APIC identifiers of the CPUs, the boot CPU's first; 1 to 16, each less than 255
	LAPICBase  uint32  // guest-physical address of the local APICs, 0xFEE00000
	IOAPICID   uint8
	IOAPICBase uint32 // guest-physical address of the IOAPIC, whose GSIs begin at 0; 0xFEC00000

	ECAMBase  uint64 // guest-physical address of PCI configuration space, below 4 GiB
	ECAMBuses int    // buses in it, from 0 up, 1 to 256: 1 MiB each
	PCIIO     Window // ports for BARs, above 0xCFF
	PCIMem32  Window // memory for BARs below 4 GiB
	PCIMem64  Window // memory for BARs above 4 GiB; the zero Window means none

	// INTx returns the GSI, 16 to 23, that pin (0 is INTA) of the device in slot, 0 to 31, of bus 0 is wired to.
	INTx func(slot, pin int) uint32

	PMBase     uint16 // first port of the power management block
	ResetPort  uint16 // port that resets the machine, 0xCF9
	ResetValue uint8  // what a guest writes there
	S3         bool   // whether the guest can suspend to RAM
	S4         bool   // whether the guest can suspend to disk

	CenturyReg uint8 // index in CMOS of the clock's century, or 0 if it has none
	VGA        bool  // whether there is a VGA-compatible display
	I8042      bool  // whether there are a PS/2 keyboard and mouse, at interrupts 1 and 12
	COM1, COM2 bool  // whether there are UARTs at 0x3F8, interrupt 4, and 0x2F8, interrupt 3
	FWCfg      bool  // whether there is a fw_cfg device at ports 0x510 to 0x51B
	VMGenID    bool  // whether there is a VMGenID

	Extra []aml.Term // what devices add to the DSDT, each in the Scope that it needs
}

// check returns the first reason why tables of c would not be true or not be valid.
func (c *Config) check() error {
	if len(c.APICIDs) < 1 || len(c.APICIDs) > maxCPUs {
		return fmt.Errorf("%d CPUs, want 1 to %d", len(c.APICIDs), maxCPUs)
	}
	var seen [256]bool
	for _, id := range c.APICIDs {
		if id == 255 || seen[id] {
			return fmt.Errorf("local APIC identifier %d is reserved or given twice", id)
		}
		seen[id] = true
	}
	if c.ECAMBuses < 1 || c.ECAMBuses > maxBuses {
		return fmt.Errorf("configuration space of %d buses, want 1 to %d", c.ECAMBuses, maxBuses)
	}
	if c.ECAMBase == 0 || c.ECAMBase%(1<<20) != 0 || c.ECAMBase+uint64(c.ECAMBuses)<<20 > 1<<32 {
		return fmt.Errorf("configuration space of %d buses at %#x: want whole MiB below 4 GiB", c.ECAMBuses, c.ECAMBase)
	}
	for _, w := range []struct {
		name string
		Window
		low, high uint64
	}{
		{"port", c.PCIIO, 0xD00, 0xFFFF},
		{"32-bit memory", c.PCIMem32, 1 << 20, 1<<32 - 1},
		{"64-bit memory", c.PCIMem64, 1 << 32, 1<<52 - 1},
	} {
		if w.name == "64-bit memory" && w.Window == (Window{}) {
			continue
		}
		if w.Base > w.Last || w.Base < w.low || w.Last > w.high {
			return fmt.Errorf("PCI %s window %#x-%#x: want a range within %#x-%#x", w.name, w.Base, w.Last, w.low, w.high)
		}
	}
	if c.INTx == nil {
		return errors.New("no routing of PCI interrupts")
	}
	for slot := range slots {
		for pin := range 4 {
			if gsi := c.INTx(slot, pin); gsi < 16 || gsi > 23 {
				return fmt.Errorf("PCI slot %d pin %d goes to GSI %d, want 16 to 23", slot, pin, gsi)
			}
		}
	}
	if c.PMBase == 0 || c.PMBase%PMLen != 0 {
		return fmt.Errorf("power management block at port %#x: want a multiple of %#x", c.PMBase, PMLen)
	}
	if c.ResetPort == 0 {
		return errors.New("no reset port")
	}
	return nil
}
