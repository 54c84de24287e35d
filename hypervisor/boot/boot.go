package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// Protocol is a way to hand a machine over to a kernel.
type Protocol int

// The protocols, see the package comment. Auto lets Load choose by what the image offers.
const (
	Auto Protocol = iota
	PVH
	Linux64
	Linux32
	Multiboot
)

// String returns the protocol's name in lower case.
func (p Protocol) String() string {
	switch p {
	case Auto:
		return "auto"
	case PVH:
		return "pvh"
	case Linux64:
		return "linux64"
	case Linux32:
		return "linux32"
	case Multiboot:
		return "multiboot"
	}
	return fmt.Sprintf("protocol(%d)", int(p))
}

// Mode is a CPU state to start in, see the package comment.
type Mode int

// The modes.
const (
	Reset       Mode = iota // real mode at the reset vector
	Protected32             // flat 32-bit segments, paging off
	Long64                  // flat 64-bit segments, paging on
)

// The selectors of an entry in Protected32 or Long64, and the limit of its GDT in bytes minus one. Linux insists on these
// two selectors (boot.rst, __BOOT_CS and __BOOT_DS); the other protocols leave them open.
const (
	CodeSelector = 0x10
	DataSelector = 0x18
	GDTLimit     = 4*8 - 1
)

// Entry is the state in which the first vCPU starts; the package comment says what it does not name.
type Entry struct {
	Protocol      Protocol // the one that Load used; Auto for firmware
	Mode          Mode
	RIP           uint64
	RAX, RBX, RSI uint64
	CR3           uint64 // page table root, Long64 only
	GDT           uint64 // guest-physical address of the GDT, not in mode Reset
}

// Module is a file handed to the kernel beside its own image.
type Module struct {
	Image
	Cmdline string // Multiboot and PVH kernels see it, Linux does not
}

// Config says what Load loads. Kernel and MemMap are required.
type Config struct {
	Kernel  Image
	Cmdline string
	// Modules are Multiboot or PVH modules. Linux takes at most one, as its initrd.
	Modules []Module
	// MemMap is the memory map that the guest is told. RAM in it must be backed by memory; only RAM is written to, so
	// what the caller placed elsewhere, say ACPI tables, is safe if its range has another type.
	MemMap []MemRange
	// RSDP is the guest-physical address of the ACPI root pointer, or 0. Multiboot has no field for it.
	RSDP uint64
	// Protocol forces one. With anything but Auto or PVH a bzImage is not unpacked here but by its own code.
	Protocol Protocol
	// Zeroed promises that guest memory was never written to, so that pages of zeros need not be written: that saves a
	// third of the time and half of the page frames. Leave it false when a guest is started anew in used memory.
	Zeroed bool
}

var errNotSupported = errors.New("not supported by this image")

// headSize is how much of the kernel is read to recognise it: a Multiboot header lies in the first 8 KiB.
const headSize = 8 << 10

// Load puts cfg.Kernel with its modules, command line and boot information into m and returns how to start it. On error,
// what RAM holds is undefined. The error names the file at fault and, where it is memory that lacks, how much is needed.
func Load(m *mem.Memory, cfg Config) (Entry, error) {
	s, err := newSpace(m, cfg.MemMap, cfg.Zeroed)
	if err != nil {
		return Entry{}, err
	}
	if len(cfg.Modules) > maxModules {
		return Entry{}, fmt.Errorf("%d modules, at most %d are possible", len(cfg.Modules), maxModules)
	}
	head, err := cfg.Kernel.head(headSize)
	if err != nil {
		return Entry{}, err
	}
	l := &loader{space: s, cfg: &cfg}
	switch {
	case isELF(head):
		return l.elf(cfg.Kernel, head)
	case isBzImage(head):
		return l.bzImage(head)
	case hasMultiboot(head):
		if cfg.Protocol != Auto && cfg.Protocol != Multiboot {
			return Entry{}, cfg.Kernel.errorf("protocol %v: %w, it is a Multiboot image", cfg.Protocol, errNotSupported)
		}
		return l.multiboot(cfg.Kernel, head, nil)
	}
	return Entry{}, cfg.Kernel.errorf("not a kernel: neither an ELF image nor a bzImage nor a Multiboot image")
}

// loader is the state of one Load.
type loader struct {
	*space
	cfg *Config
	// strings is where the next command line goes.
	strings uint64
}

// gdt places the descriptor table that goes with the selectors, with the given code descriptor.
func (l *loader) gdt(code uint64) error {
	const data = 0x00cf_9300_0000_ffff // 4 GiB, writable, accessed
	if err := l.reserve("GDT", gdtAddr, GDTLimit+1); err != nil {
		return err
	}
	var b [GDTLimit + 1]byte
	binary.LittleEndian.PutUint64(b[CodeSelector:], code)
	binary.LittleEndian.PutUint64(b[DataSelector:], data)
	return l.write(gdtAddr, b[:])
}

// Code descriptors: 4 GiB, readable, accessed.
const (
	code32 = 0x00cf_9b00_0000_ffff
	code64 = 0x00af_9b00_0000_ffff
)

// cmdline places a command line of at most limit bytes, the closing zero not counted, and returns its address.
func (l *loader) cmdline(owner, line string, limit uint64) (uint64, error) {
	if i := strings.IndexByte(line, 0); i >= 0 {
		return 0, fmt.Errorf("%s: command line: zero byte at position %d", owner, i)
	}
	if l.strings == 0 {
		if err := l.reserve("command line", cmdlineAddr, cmdlineSize); err != nil {
			return 0, err
		}
		l.strings = cmdlineAddr
	}
	room := cmdlineAddr + cmdlineSize - l.strings
	if n := uint64(len(line)); n > limit || n >= room {
		return 0, fmt.Errorf("%s: command line: %d bytes, at most %d are possible", owner, n, min(limit, max(room, 1)-1))
	}
	at := l.strings
	l.strings += uint64(len(line)) + 1
	return at, l.write(at, append([]byte(line), 0))
}

// initrd places the one module that Linux takes below limit. Without a module it returns zeros.
func (l *loader) initrd(limit uint64) (base, size uint64, err error) {
	switch len(l.cfg.Modules) {
	case 0:
		return 0, 0, nil
	case 1:
		img := l.cfg.Modules[0].Image
		base, err = l.module("initrd", img, func(name string, size uint64) (uint64, error) {
			return l.highest(name, size, limit)
		})
		return base, img.size(), err
	}
	return 0, 0, fmt.Errorf("%s: %d modules, Linux takes one initrd: concatenate them", l.cfg.Modules[1].Name, len(l.cfg.Modules))
}

// module places img where place says.
func (l *loader) module(kind string, img Image, place func(name string, size uint64) (uint64, error)) (uint64, error) {
	if img.size() == 0 {
		return 0, img.errorf("%s: the file is empty", kind)
	}
	base, err := place(fmt.Sprintf("%s %s", kind, img.Name), img.size())
	if err != nil {
		return 0, err
	}
	return base, l.fill(img, 0, base, img.size())
}
