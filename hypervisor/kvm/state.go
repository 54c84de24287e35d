package kvm

import "fmt"

// xsaveMinSize is the size in bytes of struct kvm_xsave, all that KVM_GET_XSAVE knows.
const xsaveMinSize = 4096

// maxMSRs is how many registers KVM_GET_MSRS and KVM_SET_MSRS take at once.
const maxMSRs = 256

// get and set carry the structures that need no more said.
func get[T any](v *VCPU, name string, nr uintptr, p *T) error {
	_, err := ioctlPtr(&v.file, name, nr, p)
	return err
}

func set[T any](v *VCPU, name string, nr uintptr, p *T) error { return get(v, name, nr, p) }

// GetRegs is KVM_GET_REGS (0x8090ae81).
func (v *VCPU) GetRegs(r *Regs) error { return get(v, "KVM_GET_REGS", nrGetRegs, r) }

// SetRegs is KVM_SET_REGS (0x4090ae82).
func (v *VCPU) SetRegs(r *Regs) error { return set(v, "KVM_SET_REGS", nrSetRegs, r) }

// GetSRegs2 is KVM_GET_SREGS2 (0x8140aecc), or KVM_GET_SREGS (0x8138ae83) where KVM has no other. Then PDPTRs are not
// valid, and KVM reads them from memory again when SetSRegs2 is called.
func (v *VCPU) GetSRegs2(s *SRegs2) error {
	if v.hasSRegs2 {
		return get(v, "KVM_GET_SREGS2", nrGetSRegs2, s)
	}
	var o sregs
	if err := get(v, "KVM_GET_SREGS", nrGetSRegs, &o); err != nil {
		return err
	}
	*s = SRegs2{
		CS: o.cs, DS: o.ds, ES: o.es, FS: o.fs, GS: o.gs, SS: o.ss, TR: o.tr, LDT: o.ldt, GDT: o.gdt, IDT: o.idt,
		CR0: o.cr0, CR2: o.cr2, CR3: o.cr3, CR4: o.cr4, CR8: o.cr8, EFER: o.efer, APICBase: o.apicBase,
	}
	return nil
}

// SetSRegs2 is KVM_SET_SREGS2 (0x4140aecd), or KVM_SET_SREGS (0x4138ae84) where KVM has no other. The interrupt that
// the latter can inject is VCPUEvents' matter.
func (v *VCPU) SetSRegs2(s *SRegs2) error {
	if v.hasSRegs2 {
		return set(v, "KVM_SET_SREGS2", nrSetSRegs2, s)
	}
	o := sregs{
		cs: s.CS, ds: s.DS, es: s.ES, fs: s.FS, gs: s.GS, ss: s.SS, tr: s.TR, ldt: s.LDT, gdt: s.GDT, idt: s.IDT,
		cr0: s.CR0, cr2: s.CR2, cr3: s.CR3, cr4: s.CR4, cr8: s.CR8, efer: s.EFER, apicBase: s.APICBase,
	}
	return set(v, "KVM_SET_SREGS", nrSetSRegs, &o)
}

// GetFPU is KVM_GET_FPU (0x81a0ae8c).
func (v *VCPU) GetFPU(f *FPU) error { return get(v, "KVM_GET_FPU", nrGetFPU, f) }

// SetFPU is KVM_SET_FPU (0x41a0ae8d).
func (v *VCPU) SetFPU(f *FPU) error { return set(v, "KVM_SET_FPU", nrSetFPU, f) }

// XSAVESize returns the size in bytes of what GetXSAVE2 and SetXSAVE carry, at least 4096.
func (v *VCPU) XSAVESize() int { return v.xsaveSize }

// GetXSAVE2 is KVM_GET_XSAVE2 (0x9000aecf), or KVM_GET_XSAVE (0x9000aea4) where KVM has no other: the XSAVE area (Intel
// SDM volume 1, §13.4) into b, of XSAVESize bytes.
func (v *VCPU) GetXSAVE2(b []byte) error {
	if len(b) < v.xsaveSize { // the kernel would write beyond b
		return fmt.Errorf("KVM_GET_XSAVE2: %d bytes for %d", len(b), v.xsaveSize)
	}
	if v.hasXSAVE2 {
		return get(v, "KVM_GET_XSAVE2", nrGetXSAVE2, &b[0])
	}
	return get(v, "KVM_GET_XSAVE", nrGetXSAVE, &b[0])
}

// SetXSAVE is KVM_SET_XSAVE (0x5000aea5), which takes as much as GetXSAVE2 gives.
func (v *VCPU) SetXSAVE(b []byte) error {
	if len(b) < v.xsaveSize {
		return fmt.Errorf("KVM_SET_XSAVE: %d bytes for %d", len(b), v.xsaveSize)
	}
	return set(v, "KVM_SET_XSAVE", nrSetXSAVE, &b[0])
}

// GetXCRS is KVM_GET_XCRS (0x8188aea6).
func (v *VCPU) GetXCRS(x *XCRs) error { return get(v, "KVM_GET_XCRS", nrGetXCRS, x) }

// SetXCRS is KVM_SET_XCRS (0x4188aea7).
func (v *VCPU) SetXCRS(x *XCRs) error { return set(v, "KVM_SET_XCRS", nrSetXCRS, x) }

// GetLAPIC is KVM_GET_LAPIC (0x8400ae8e).
func (v *VCPU) GetLAPIC(l *LAPIC) error { return get(v, "KVM_GET_LAPIC", nrGetLAPIC, l) }

// SetLAPIC is KVM_SET_LAPIC (0x4400ae8f).
func (v *VCPU) SetLAPIC(l *LAPIC) error { return set(v, "KVM_SET_LAPIC", nrSetLAPIC, l) }

// GetVCPUEvents is KVM_GET_VCPU_EVENTS (0x8040ae9f).
func (v *VCPU) GetVCPUEvents(e *VCPUEvents) error {
	return get(v, "KVM_GET_VCPU_EVENTS", nrGetVCPUEvents, e)
}

// SetVCPUEvents is KVM_SET_VCPU_EVENTS (0x4040aea0).
func (v *VCPU) SetVCPUEvents(e *VCPUEvents) error {
	return set(v, "KVM_SET_VCPU_EVENTS", nrSetVCPUEvents, e)
}

// GetDebugRegs is KVM_GET_DEBUGREGS (0x8080aea1).
func (v *VCPU) GetDebugRegs(d *DebugRegs) error {
	return get(v, "KVM_GET_DEBUGREGS", nrGetDebugRegs, d)
}

// SetDebugRegs is KVM_SET_DEBUGREGS (0x4080aea2).
func (v *VCPU) SetDebugRegs(d *DebugRegs) error {
	return set(v, "KVM_SET_DEBUGREGS", nrSetDebugRegs, d)
}

// GetMPState is KVM_GET_MP_STATE (0x8004ae98): one of the MPState constants. It needs CreateIRQChip.
func (v *VCPU) GetMPState() (uint32, error) {
	var s uint32
	err := get(v, "KVM_GET_MP_STATE", nrGetMPState, &s)
	return s, err
}

// SetMPState is KVM_SET_MP_STATE (0x4004ae99).
func (v *VCPU) SetMPState(s uint32) error { return set(v, "KVM_SET_MP_STATE", nrSetMPState, &s) }

// MSRIndexList returns what System.GetMSRIndexList did. A vCPU may lack some of them. The caller must not change it.
func (v *VCPU) MSRIndexList() []uint32 { return v.msrs }

// GetMSRs is KVM_GET_MSRS (0xc008ae88): fills in Data for each Index. KVM stops at the first register that it cannot
// read; n is how many came before it, and is len(entries) if all could be read.
func (v *VCPU) GetMSRs(entries []MSREntry) (n int, err error) {
	return v.carryMSRs("KVM_GET_MSRS", nrGetMSRs, entries)
}

// SetMSRs is KVM_SET_MSRS (0x4008ae89). KVM stops at the first register that it refuses; n is how many came before it.
func (v *VCPU) SetMSRs(entries []MSREntry) (n int, err error) {
	return v.carryMSRs("KVM_SET_MSRS", nrSetMSRs, entries)
}

func (v *VCPU) carryMSRs(name string, nr uintptr, entries []MSREntry) (n int, err error) {
	for n < len(entries) {
		part := entries[n:min(n+maxMSRs, len(entries))]
		l := newList(part)
		done, err := ioctlPtr(&v.file, name, nr, &l[0])
		if err != nil {
			return n, err
		}
		n += copy(part, elemsOf[MSREntry](l, int(done)))
		if int(done) < len(part) {
			break
		}
	}
	return n, nil
}
