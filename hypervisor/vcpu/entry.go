package vcpu

import (
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// Mode is how the boot processor stands when it fetches the first instruction.
type Mode int

const (
	// ModeReset is real mode at the reset vector, 0xfffffff0 (Intel SDM volume 3, §9.1.4): firmware. No other field of
	// an Entry counts.
	ModeReset Mode = iota
	// ModeProtected32 is 32-bit protected mode, paging off, flat segments: the PVH entry, Multiboot 1 (§3.2 of its
	// specification), and the 32-bit boot protocol of Linux.
	ModeProtected32
	// ModeLong64 is 64-bit mode with the page tables at CR3: the 64-bit boot protocol of Linux, for which they map
	// what the protocol names, at its own address.
	ModeLong64
)

// Selectors of the flat code and data segments, as the boot protocols of Linux want them (__BOOT_CS and __BOOT_DS of
// Documentation/arch/x86/boot.rst). The other protocols leave them open.
const (
	bootCS = 0x10
	bootDS = 0x18
	bootTR = 0x20
)

// Entry is where and in which state a guest begins. Application processors have none: their INIT and SIPI tell them.
type Entry struct {
	Mode Mode
	// The first instruction, and the stack, which no protocol promises: 0 if there is none.
	RIP, RSP uint64
	// What the protocol hands over: Multiboot its magic in EAX and its information in EBX, PVH its start information
	// in EBX, Linux its boot parameters in RSI.
	RAX, RBX, RSI uint64
	CR3           uint64 // of ModeLong64: the top-level page table
	// The table that GDT() returns, if the boot package put it into guest memory, where Linux wants it; else GDTLimit
	// is 0 and the guest may not load a segment register before it has loaded a table of its own.
	GDTBase  uint64
	GDTLimit uint16
}

// GDT returns the descriptor table that belongs to the segments of mode, for Entry.GDTBase to point to.
func GDT(mode Mode) [5]uint64 {
	const (
		code32 = 0x00cf9b000000ffff // flat, 32-bit, execute and read, accessed
		code64 = 0x00af9b000000ffff // flat, 64-bit, execute and read, accessed
		data   = 0x00cf93000000ffff // flat, read and write, accessed
		tss    = 0x00008b0000000067 // at 0, busy
	)
	g := [5]uint64{bootCS / 8: code32, bootDS / 8: data, bootTR / 8: tss}
	if mode == ModeLong64 {
		g[bootCS/8] = code64
	}
	return g
}

// Control bits (Intel SDM volume 3, §2.5 and §2.2.1).
const (
	cr0PE   = 1 << 0
	cr0ET   = 1 << 4
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsReserved = 1 << 1 // always set
)

// SetRegisters puts v, a vCPU as KVM creates it, into the state that e describes. Call it through CPU.Do.
func (e Entry) SetRegisters(v *kvm.VCPU) error {
	if e.Mode == ModeReset {
		return nil // as KVM creates it
	}
	var s kvm.SRegs2
	if err := v.GetSRegs2(&s); err != nil {
		return err
	}
	if err := e.system(&s); err != nil {
		return err
	}
	if err := v.SetSRegs2(&s); err != nil {
		return err
	}
	return v.SetRegs(&kvm.Regs{
		RIP: e.RIP, RSP: e.RSP, RAX: e.RAX, RBX: e.RBX, RSI: e.RSI, RFLAGS: rflagsReserved,
	})
}

// system changes the system registers s from the reset state to e's.
func (e Entry) system(s *kvm.SRegs2) error {
	code := kvm.Segment{Limit: 0xffffffff, Selector: bootCS, Type: 0xb, Present: 1, S: 1, G: 1}
	switch e.Mode {
	case ModeProtected32:
		code.DB = 1
		s.CR0 = cr0PE | cr0ET
		s.CR4 = 0
		s.EFER = 0
	case ModeLong64:
		code.L = 1
		s.CR0 = cr0PE | cr0ET | cr0PG
		s.CR3 = e.CR3
		s.CR4 = cr4PAE
		s.EFER = eferLME | eferLMA
	default:
		return fmt.Errorf("entry mode %d does not exist", e.Mode)
	}
	data := kvm.Segment{Limit: 0xffffffff, Selector: bootDS, Type: 0x3, Present: 1, S: 1, G: 1, DB: 1}
	s.CS, s.DS, s.ES, s.FS, s.GS, s.SS = code, data, data, data, data, data
	// VMX refuses to enter a guest whose task register is not a busy 32-bit or 64-bit TSS (SDM volume 3, §27.3.1.2).
	s.TR = kvm.Segment{Limit: 0x67, Selector: bootTR, Type: 0xb, Present: 1}
	s.LDT = kvm.Segment{Unusable: 1}
	s.GDT = kvm.DTable{Base: e.GDTBase, Limit: e.GDTLimit}
	s.IDT = kvm.DTable{}
	return nil
}
