package kvm

import (
	"testing"
	"unsafe"
)

// The expected numbers were printed by a C program that includes linux/kvm.h.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"kvm_userspace_memory_region", unsafe.Sizeof(userMemoryRegion{}), 32},
		{"kvm_dirty_log", unsafe.Sizeof(dirtyLog{}), 16},
		{"kvm_irq_level", unsafe.Sizeof(irqLevel{}), 8},
		{"kvm_pit_config", unsafe.Sizeof(pitConfig{}), 64},
		{"kvm_enable_cap", unsafe.Sizeof(enableCap{}), 104},
		{"kvm_irq_routing_entry", unsafe.Sizeof(RoutingEntry{}), 48},
		{"kvm_irq_routing_entry.u", unsafe.Offsetof(RoutingEntry{}.U), 16},
		{"kvm_irqfd", unsafe.Sizeof(IRQFD{}), 32},
		{"kvm_ioeventfd", unsafe.Sizeof(IOEventFD{}), 64},
		{"kvm_msi", unsafe.Sizeof(msi{}), 32},
		{"kvm_clock_data", unsafe.Sizeof(ClockData{}), 48},
		{"kvm_irqchip", unsafe.Sizeof(IRQChip{}), 520},
		{"kvm_irqchip.chip", unsafe.Offsetof(IRQChip{}.Data), 8},
		{"kvm_pit_channel_state", unsafe.Sizeof(PITChannel{}), 24},
		{"kvm_pit_state2", unsafe.Sizeof(PITState2{}), 112},
		{"kvm_regs", unsafe.Sizeof(Regs{}), 144},
		{"kvm_segment", unsafe.Sizeof(Segment{}), 24},
		{"kvm_dtable", unsafe.Sizeof(DTable{}), 16},
		{"kvm_sregs", unsafe.Sizeof(sregs{}), 312},
		{"kvm_sregs2", unsafe.Sizeof(SRegs2{}), 320},
		{"kvm_sregs2.cr0", unsafe.Offsetof(SRegs2{}.CR0), 224},
		{"kvm_sregs2.flags", unsafe.Offsetof(SRegs2{}.Flags), 280},
		{"kvm_sregs2.pdptrs", unsafe.Offsetof(SRegs2{}.PDPTRs), 288},
		{"kvm_fpu", unsafe.Sizeof(FPU{}), 416},
		{"kvm_xcrs", unsafe.Sizeof(XCRs{}), 392},
		{"kvm_lapic_state", unsafe.Sizeof(LAPIC{}), 1024},
		{"kvm_vcpu_events", unsafe.Sizeof(VCPUEvents{}), 64},
		{"kvm_vcpu_events.interrupt", unsafe.Offsetof(VCPUEvents{}.Interrupt), 8},
		{"kvm_vcpu_events.nmi", unsafe.Offsetof(VCPUEvents{}.NMI), 12},
		{"kvm_vcpu_events.sipi_vector", unsafe.Offsetof(VCPUEvents{}.SIPIVector), 16},
		{"kvm_vcpu_events.flags", unsafe.Offsetof(VCPUEvents{}.Flags), 20},
		{"kvm_vcpu_events.smi", unsafe.Offsetof(VCPUEvents{}.SMI), 24},
		{"kvm_vcpu_events.triple_fault", unsafe.Offsetof(VCPUEvents{}.TripleFaultPending), 28},
		{"kvm_vcpu_events.exception_has_payload", unsafe.Offsetof(VCPUEvents{}.ExceptionHasPayload), 55},
		{"kvm_vcpu_events.exception_payload", unsafe.Offsetof(VCPUEvents{}.ExceptionPayload), 56},
		{"kvm_debugregs", unsafe.Sizeof(DebugRegs{}), 128},
		{"kvm_msr_entry", unsafe.Sizeof(MSREntry{}), 16},
		{"kvm_cpuid_entry2", unsafe.Sizeof(CPUIDEntry{}), 40},
		{"kvm_run.exit_reason", unsafe.Offsetof(run{}.exitReason), 8},
		{"kvm_run.cr8", unsafe.Offsetof(run{}.cr8), 16},
		{"kvm_run.apic_base", unsafe.Offsetof(run{}.apicBase), 24},
		{"kvm_run.io", unsafe.Offsetof(run{}.exit), 32},
		{"kvm_run.kvm_valid_regs", unsafe.Sizeof(run{}), 288},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, the kernel's is %d", c.name, c.got, c.want)
		}
	}
}

// The size of an ioctl's argument is in bits 16 to 29 of its number: it must be that of the structure which goes with it.
func TestNumbersAgreeWithSizes(t *testing.T) {
	for _, c := range []struct {
		name string
		nr   uintptr
		size uintptr
	}{
		{"KVM_SET_USER_MEMORY_REGION", nrSetUserMemoryRegion, unsafe.Sizeof(userMemoryRegion{})},
		{"KVM_GET_DIRTY_LOG", nrGetDirtyLog, unsafe.Sizeof(dirtyLog{})},
		{"KVM_IRQ_LINE", nrIRQLine, unsafe.Sizeof(irqLevel{})},
		{"KVM_CREATE_PIT2", nrCreatePIT2, unsafe.Sizeof(pitConfig{})},
		{"KVM_ENABLE_CAP", nrEnableCap, unsafe.Sizeof(enableCap{})},
		{"KVM_IRQFD", nrIRQFD, unsafe.Sizeof(IRQFD{})},
		{"KVM_IOEVENTFD", nrIOEventFD, unsafe.Sizeof(IOEventFD{})},
		{"KVM_SIGNAL_MSI", nrSignalMSI, unsafe.Sizeof(msi{})},
		{"KVM_GET_CLOCK", nrGetClock, unsafe.Sizeof(ClockData{})},
		{"KVM_SET_CLOCK", nrSetClock, unsafe.Sizeof(ClockData{})},
		{"KVM_GET_IRQCHIP", nrGetIRQChip, unsafe.Sizeof(IRQChip{})},
		{"KVM_SET_IRQCHIP", nrSetIRQChip, unsafe.Sizeof(IRQChip{})},
		{"KVM_GET_PIT2", nrGetPIT2, unsafe.Sizeof(PITState2{})},
		{"KVM_SET_PIT2", nrSetPIT2, unsafe.Sizeof(PITState2{})},
		{"KVM_GET_REGS", nrGetRegs, unsafe.Sizeof(Regs{})},
		{"KVM_SET_REGS", nrSetRegs, unsafe.Sizeof(Regs{})},
		{"KVM_GET_SREGS", nrGetSRegs, unsafe.Sizeof(sregs{})},
		{"KVM_SET_SREGS", nrSetSRegs, unsafe.Sizeof(sregs{})},
		{"KVM_GET_SREGS2", nrGetSRegs2, unsafe.Sizeof(SRegs2{})},
		{"KVM_SET_SREGS2", nrSetSRegs2, unsafe.Sizeof(SRegs2{})},
		{"KVM_GET_FPU", nrGetFPU, unsafe.Sizeof(FPU{})},
		{"KVM_SET_FPU", nrSetFPU, unsafe.Sizeof(FPU{})},
		{"KVM_GET_XSAVE", nrGetXSAVE, xsaveMinSize},
		{"KVM_SET_XSAVE", nrSetXSAVE, xsaveMinSize},
		{"KVM_GET_XCRS", nrGetXCRS, unsafe.Sizeof(XCRs{})},
		{"KVM_SET_XCRS", nrSetXCRS, unsafe.Sizeof(XCRs{})},
		{"KVM_GET_LAPIC", nrGetLAPIC, unsafe.Sizeof(LAPIC{})},
		{"KVM_SET_LAPIC", nrSetLAPIC, unsafe.Sizeof(LAPIC{})},
		{"KVM_GET_VCPU_EVENTS", nrGetVCPUEvents, unsafe.Sizeof(VCPUEvents{})},
		{"KVM_SET_VCPU_EVENTS", nrSetVCPUEvents, unsafe.Sizeof(VCPUEvents{})},
		{"KVM_GET_DEBUGREGS", nrGetDebugRegs, unsafe.Sizeof(DebugRegs{})},
		{"KVM_SET_DEBUGREGS", nrSetDebugRegs, unsafe.Sizeof(DebugRegs{})},
	} {
		if got := c.nr >> 16 & 0x3fff; got != c.size {
			t.Errorf("%s (%#x): carries %d bytes, the structure has %d", c.name, c.nr, got, c.size)
		}
	}
}
