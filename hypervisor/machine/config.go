// Package machine is the board that ties one virtual machine together: memory, interrupt controllers, the chipset and
// its small devices, slots for PCI cards, and the vCPUs. It looks like a PC with Intel's Q35 chipset.
//
// A Machine is built from a Config and lives once. A guest that reboots gets a new Machine of the same Config, in the same
// process: what the host opened for it (disks, sockets) is the Config's and stays, as does what a battery keeps.
//
//	New or Restore ──▶ Start ──▶ running ⇄ Pause/Resume (Save) ──▶ Wait returns an Outcome ──▶ Close
package machine

import (
	"io"
	"log/slog"

	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiopci"
)

// Config describes a machine.
type Config struct {
	Name   string
	UUID   [16]byte // as SMBIOS tells it, in the order of RFC 9562
	KVM    *kvm.System
	CPUs   int    // 1 to MaxCPUs
	Memory uint64 // bytes, MinMemory to MaxMemory in whole pages

	// SharedMemory makes the memory one whose regions have a File (mem.Alloc): for devices that share it with others. It costs
	// what small pages cost, unless the host gives huge ones to files in memory.
	SharedMemory bool

	Boot Boot

	Serial       [2]io.Writer // where COM1 and COM2 write to; nil leaves a port out
	DebugConsole io.Writer    // where port 0x402 writes to; nil leaves it out

	// PS2 builds the keyboard [0] and the mouse [1] at the keyboard controller, for each Machine of the Config; nil leaves
	// a port empty. The device calls ready when it has something to send (legacy.I8042.Ready).
	PS2 [2]func(ready func()) PS2Device

	Battery *legacy.Battery // of the CMOS clock, which goes from one machine to the next; nil is a new one

	Slots []Slot // the cards, in the order of their slots

	Log *slog.Logger // nil is slog's default
}

// PS2Device is a keyboard or a mouse as the machine sees it.
type PS2Device interface {
	legacy.PS2Port
	snap.Component
}

// Boot says what a guest starts with: a kernel, or firmware.
type Boot struct {
	Kernel   *boot.Image
	Cmdline  string
	Modules  []boot.Module // Linux takes one, its initrd
	Protocol boot.Protocol
	Firmware *boot.Image // with it, Kernel must be nil
}

// Slot is a PCI card to be: a name, unique in the machine, and the function that builds it for a board.
type Slot struct {
	Name string
	New  func(b Board) (Card, error)
}

// Board is what a card is built on.
type Board struct {
	Name      string // of the card
	Mem       *mem.Memory
	Doorbells bus.Doorbells
	Mapper    bus.Mapper
	Pin       uint8 // INTx pin to use
	Log       *slog.Logger
}

// Card is a PCI card as the machine sees it.
type Card interface {
	pci.ConfigSpace
	snap.Component
	Function() *pci.Function
	Close() error
}

// Virtio returns a slot for a virtio device. make is called for each Machine that is built of the Config.
func Virtio(name string, make func() (virtio.Device, error)) Slot {
	return Slot{Name: name, New: func(b Board) (Card, error) {
		d, err := make()
		if err != nil {
			return nil, err
		}
		return virtiopci.New(d, virtiopci.Config{Name: b.Name, Mem: b.Mem, Doorbells: b.Doorbells, Pin: b.Pin, Log: b.Log})
	}}
}
