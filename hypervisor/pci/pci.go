// Package pci is the PCI bus of a guest: functions with their configuration space, base address registers that move,
// capability lists and MSI-X, and the root that routes configuration accesses to them (PCI Local Bus 3.0; the ECAM is
// PCI Express Base 3.0 §7.2.2).
//
// The topology is flat: functions sit on bus 0, one slot each, as root-complex integrated devices. A slot can be filled
// and emptied while the guest runs.
package pci

import "fmt"

// Offsets of the type 0 configuration header, PCI 3.0 §6.1.
const (
	VendorID          = 0x00
	DeviceID          = 0x02
	Command           = 0x04
	Status            = 0x06
	RevisionID        = 0x08
	ProgIF            = 0x09
	SubClass          = 0x0a
	BaseClass         = 0x0b
	CacheLineSize     = 0x0c
	LatencyTimer      = 0x0d
	HeaderType        = 0x0e
	BAR0              = 0x10
	SubsystemVendorID = 0x2c
	SubsystemID       = 0x2e
	ExpansionROM      = 0x30
	CapPointer        = 0x34
	InterruptLine     = 0x3c
	InterruptPin      = 0x3d
	firstCap          = 0x40
)

// Bits of the command register, PCI 3.0 §6.2.2.
const (
	CommandIO         = 1 << 0
	CommandMemory     = 1 << 1
	CommandMaster     = 1 << 2
	CommandParity     = 1 << 6
	CommandSERR       = 1 << 8
	CommandINTxOff    = 1 << 10
	commandWritable   = CommandIO | CommandMemory | CommandMaster | CommandParity | CommandSERR | CommandINTxOff
	statusInterrupt   = 1 << 3
	statusCapList     = 1 << 4
	multifunctionFlag = 0x80
)

// Capability identifiers, PCI 3.0 appendix H.
const (
	CapVendor = 0x09
	CapMSIX   = 0x11
)

// ConfigSize is the size of a conventional configuration space in bytes.
const ConfigSize = 256

// Address is a function's place on bus 0.
type Address struct {
	Device   uint8 // 0 to 31
	Function uint8 // 0 to 7
}

// String returns a in lspci's form, such as 00:1f.0.
func (a Address) String() string { return fmt.Sprintf("00:%02x.%d", a.Device, a.Function) }

func (a Address) devfn() int { return int(a.Device)<<3 | int(a.Function) }

// ConfigSpace is what a slot holds: a Function of this package, or a real device that is passed through.
type ConfigSpace interface {
	// ReadConfig fills p from offset off; len(p) is 1, 2 or 4 and off is a multiple of it, below 4096.
	ReadConfig(off int, p []byte)
	// WriteConfig takes p under the same terms.
	WriteConfig(off int, p []byte)
}
