// Package kvmtest builds small guests for tests that run on /dev/kvm: 64-bit paging, descriptor tables, a stub of ring-0
// code, and the test's own code in ring 3. The split lets them run on every flavour of KVM: where there is no
// virtualisation hardware (PVM), ring 3 is native, while ring 0 is emulated and knows fewer instructions.
package kvmtest

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
)

// A guest's memory map. All of the first 4 GiB is mapped at its own address, readable and writable from ring 3, so that
// memory-mapped devices can lie anywhere in it. What package boot places for a kernel (its GDT, the start information at
// 0x6000, the command line at 0x20000) lies between, so that a guest can be started as one: see Image.
const (
	pml4      = 0x1000
	pdpt      = 0x2000
	gdt       = 0x3000
	idtPtr    = 0x3100
	gdtPtr    = 0x3110
	tss       = 0x3200
	idt       = 0x4000
	stack0    = 0x6000 // grows down
	entry32   = 0x7000
	pageDirs  = 0x8000 // four, of 1 GiB each
	stub      = 0xc000
	handlers  = 0xd000  // 256 bytes for each that there is
	Code      = 0x10000 // the test's code
	stack3    = 0x20000
	Data      = 0x30000 // free for the test
	MinMemory = 0x40000
)

// Selectors beyond those of vcpu.GDT. The TSS takes two places in 64-bit mode.
const (
	tssSel  = 0x20
	dataSel = 0x30 | 3
	codeSel = 0x38 | 3

	gdtLimit = 0x40 - 1
)

// Open opens /dev/kvm, or skips the test.
func Open(t testing.TB) *kvm.System {
	t.Helper()
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	t.Cleanup(func() { sys.Close() })
	return sys
}

// RAM returns n bytes outside the Go heap, for SetUserMemoryRegion. They stay for as long as the process: a VM that a
// test fails to close may use them.
func RAM(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Ring says where a Program's code runs.
type Ring int

const (
	Ring0 Ring = iota // emulated on PVM
	Ring3             // native everywhere; talks by MMIO, since PVM knows no I/O privilege level
)

// Program is a test guest: what it does.
type Program struct {
	Ring Ring
	Main func(a *Asm)
	// Handlers are ring-0 interrupt handlers by vector. Each saves the registers that it changes and ends with Iretq.
	// If there are any, interrupts are on in Main, and the local APIC is enabled.
	Handlers map[byte]func(a *Asm)
	Masked   bool // interrupts are off in spite of Handlers
}

// Load writes p into ram, which lies at guest-physical address 0 and has at least MinMemory bytes, and returns where it
// begins.
func Load(ram []byte, p Program) vcpu.Entry {
	put := func(addr uint64, v uint64) { binary.LittleEndian.PutUint64(ram[addr:], v) }

	// Paging: present, writable, user; the directories' entries are pages of 2 MiB.
	const pwu, large = 0x7, 0x80
	put(pml4, pdpt|pwu)
	for i := range uint64(4) {
		put(pdpt+8*i, pageDirs+0x1000*i|pwu)
	}
	for i := range uint64(4 * 512) {
		put(pageDirs+8*i, i<<21|pwu|large)
	}

	for i, d := range vcpu.GDT(vcpu.ModeLong64) {
		put(gdt+8*uint64(i), d)
	}
	put(gdt+tssSel, 0x0000890000000067|tss&0xffff<<16|tss>>16<<32) // available 64-bit TSS
	put(gdt+tssSel+8, 0)
	put(gdt+0x30, 0x00cff3000000ffff) // flat data, ring 3
	put(gdt+0x38, 0x00affb000000ffff) // flat 64-bit code, ring 3
	put(tss+4, stack0)                // RSP0

	n := uint64(0)
	for vector, f := range p.Handlers {
		at := handlers + 256*n
		n++
		a := &Asm{Base: at}
		f(a)
		copy(ram[at:at+256], a.Code)
		// A 64-bit interrupt gate: offset 15:0, the code selector of ring 0, present, offset 31:16.
		put(idt+16*uint64(vector), at&0xffff|0x10<<16|0x8e00<<32|at>>16<<48)
		put(idt+16*uint64(vector)+8, 0)
	}
	binary.LittleEndian.PutUint16(ram[idtPtr:], 16*256-1)
	put(idtPtr+2, idt)
	binary.LittleEndian.PutUint16(ram[gdtPtr:], gdtLimit)
	put(gdtPtr+2, gdt)

	main := &Asm{Base: Code}
	p.Main(main)
	copy(ram[Code:stack3-0x1000], main.Code)

	copy(ram[entry32:], p.entry32().Code)
	copy(ram[stub:handlers], p.stub().Code)
	return vcpu.Entry{
		Mode: vcpu.ModeLong64, RIP: stub, RSP: stack0, CR3: pml4, GDTBase: gdt, GDTLimit: gdtLimit,
	}
}

// stub is the code that runs first, in ring 0. A PVH entry leaves an address in RBX; the guest gets 0.
func (p Program) stub() *Asm {
	a := &Asm{Base: stub}
	a.Mov(RSP, stack0).Mov(RBX, 0).Mov(RDI, idtPtr).Lidt(RDI)
	a.Mov(RAX, tssSel).Ltr()
	rflags := uint32(1 << 1)
	if len(p.Handlers) > 0 {
		a.Mov(RDI, 0xfee000f0).Mov(RAX, 0x1ff).Store32(RDI, RAX) // the local APIC's spurious vector register: enable
		if !p.Masked {
			rflags |= 1 << 9
		}
	}
	if p.Ring == Ring3 {
		a.PushImm(dataSel).PushImm(stack3).PushImm(rflags).PushImm(codeSel)
	} else {
		a.PushImm(0x18).PushImm(stack0).PushImm(rflags).PushImm(0x10)
	}
	return a.PushImm(Code).Iretq()
}

// EndOfInterrupt adds to a handler the write that tells the local APIC. It changes RAX and RDI.
func EndOfInterrupt(a *Asm) *Asm { return a.Mov(RDI, 0xfee000b0).Mov(RAX, 0).Store32(RDI, RAX) }
