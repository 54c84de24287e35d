package pci

import "github.com/lodgehv/lodge/hypervisor/bus"

// Fixed is a range that a function decodes where it always was, without a register: what a VGA card answers (PCI 3.0
// §3.10). It is decoded while the command register enables its address space.
type Fixed struct {
	Ports  bool // I/O, not memory
	Range  bus.Range
	Device bus.Device // answers accesses; Off is relative to Range
}

// remapFixed makes the buses agree with the command register. What is mapped there already stays: this is not decoded.
func (f *Function) remapFixed(cmd uint16) {
	for i, x := range f.fixed {
		space, enable := f.env.MMIO, uint16(CommandMemory)
		if x.Ports {
			space, enable = f.env.Ports, CommandIO
		}
		want := cmd&enable != 0
		if f.isFixed[i] && !want {
			space.Unmap(x.Range.Base)
		}
		f.isFixed[i] = want && (f.isFixed[i] || space.Map(x.Range, x.Device) == nil)
	}
}
