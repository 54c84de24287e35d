package kvm

//lint:file-ignore U1000 the kernel's structures have fields that we leave at zero

// userMemoryRegion is struct kvm_userspace_memory_region.
type userMemoryRegion struct {
	slot, flags   uint32
	guestPhysAddr uint64
	memorySize    uint64
	userspaceAddr uint64
}

// dirtyLog is struct kvm_dirty_log.
type dirtyLog struct {
	slot   uint32
	_      uint32
	bitmap *uint64
}

// irqLevel is struct kvm_irq_level.
type irqLevel struct{ irq, level uint32 }

// pitConfig is struct kvm_pit_config.
type pitConfig struct {
	flags uint32
	_     [15]uint32
}

// enableCap is struct kvm_enable_cap.
type enableCap struct {
	cap, flags uint32
	args       [4]uint64
	_          [64]byte
}

// RoutingEntry is struct kvm_irq_routing_entry: where a global system interrupt (GSI) goes. A GSI may have one entry
// for each chip. Make one with RouteIRQChip or RouteMSI.
type RoutingEntry struct {
	GSI, Type, Flags uint32
	_                uint32
	U                [8]uint32
}

// RouteIRQChip routes gsi to a pin of one of KVM's interrupt controllers.
func RouteIRQChip(gsi, chip, pin uint32) RoutingEntry {
	return RoutingEntry{GSI: gsi, Type: routingIRQChip, U: [8]uint32{chip, pin}}
}

// RouteMSI routes gsi to a message: a write of data to addr.
func RouteMSI(gsi uint32, addr uint64, data uint32) RoutingEntry {
	return RoutingEntry{GSI: gsi, Type: routingMSI, U: [8]uint32{uint32(addr), uint32(addr >> 32), data}}
}

// IRQFD is struct kvm_irqfd: signalling the eventfd FD raises GSI.
type IRQFD struct {
	FD, GSI, Flags, ResampleFD uint32
	_                          [16]byte
}

// IOEventFD is struct kvm_ioeventfd: a guest's write of Len bytes (1, 2, 4, 8; 0 is any) to Addr signals the eventfd FD.
type IOEventFD struct {
	Datamatch, Addr uint64
	Len             uint32
	FD              int32
	Flags           uint32
	_               [36]byte
}

// msi is struct kvm_msi.
type msi struct {
	addressLo, addressHi, data, flags, devID uint32
	_                                        [12]byte
}

// ClockData is struct kvm_clock_data: the guest's kvmclock.
type ClockData struct {
	Clock    uint64 // kvmclock in nanoseconds
	Flags    uint32
	_        uint32
	Realtime uint64 // CLOCK_REALTIME in nanoseconds when Clock was read
	HostTSC  uint64 // the host's TSC when Clock was read
	_        [4]uint32
}

// IRQChip is struct kvm_irqchip: the state of one interrupt controller, whose layout depends on ID.
type IRQChip struct {
	ID   uint32
	_    uint32
	Data [512]byte
}

// PITChannel is struct kvm_pit_channel_state: one of the three counters of the 8254.
type PITChannel struct {
	Count         uint32 // 1 to 65536
	LatchedCount  uint16
	CountLatched  uint8
	StatusLatched uint8
	Status        uint8
	ReadState     uint8
	WriteState    uint8
	WriteLatch    uint8
	RWMode        uint8
	Mode          uint8
	BCD           uint8
	Gate          uint8
	CountLoadTime int64 // host boot-time clock in nanoseconds; KVM sets it anew when the state is set
}

// PITState2 is struct kvm_pit_state2.
type PITState2 struct {
	Channels [3]PITChannel
	Flags    uint32
	_        [9]uint32
}

// Regs is struct kvm_regs.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is struct kvm_segment: a segment register with its hidden part (Intel SDM volume 3, §3.4.3).
type Segment struct {
	Base                           uint64
	Limit                          uint32
	Selector                       uint16
	Type                           uint8
	Present, DPL, DB, S, L, G, AVL uint8
	Unusable                       uint8
	_                              uint8
}

// DTable is struct kvm_dtable: GDTR or IDTR.
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// SRegs2 is struct kvm_sregs2.
type SRegs2 struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	Flags                   uint64 // 1: PDPTRs is valid
	PDPTRs                  [4]uint64
}

// sregs is struct kvm_sregs, which kernels before 5.14 have alone.
type sregs struct {
	cs, ds, es, fs, gs, ss  Segment
	tr, ldt                 Segment
	gdt, idt                DTable
	cr0, cr2, cr3, cr4, cr8 uint64
	efer                    uint64
	apicBase                uint64
	interruptBitmap         [4]uint64
}

// FPU is struct kvm_fpu.
type FPU struct {
	FPR        [8][16]byte
	FCW        uint16
	FSW        uint16
	FTWX       uint8 // in FXSAVE's format
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]byte
	MXCSR      uint32
	_          uint32
}

// XCR is struct kvm_xcr: one extended control register.
type XCR struct {
	XCR   uint32 // its number
	_     uint32
	Value uint64
}

// XCRs is struct kvm_xcrs.
type XCRs struct {
	N     uint32
	Flags uint32
	XCRs  [16]XCR
	_     [16]uint64
}

// LAPIC is struct kvm_lapic_state: the local APIC's registers, one in every 16 bytes (Intel SDM volume 3, §11.4.1).
type LAPIC [1024]byte

// VCPUEvents is struct kvm_vcpu_events: exceptions, interrupts and NMIs that are on their way into the guest.
type VCPUEvents struct {
	Exception struct {
		Injected, Nr, HasErrorCode, Pending uint8
		ErrorCode                           uint32
	}
	Interrupt  struct{ Injected, Nr, Soft, Shadow uint8 }
	NMI        struct{ Injected, Pending, Masked, _ uint8 }
	SIPIVector uint32
	Flags      uint32
	SMI        struct{ SMM, Pending, SMMInsideNMI, LatchedInit uint8 }

	TripleFaultPending  uint8
	_                   [26]byte
	ExceptionHasPayload uint8
	ExceptionPayload    uint64
}

// DebugRegs is struct kvm_debugregs.
type DebugRegs struct {
	DB       [4]uint64
	DR6, DR7 uint64
	Flags    uint64
	_        [9]uint64
}

// MSREntry is struct kvm_msr_entry: a model-specific register.
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

// CPUIDEntry is struct kvm_cpuid_entry2: what the CPUID instruction answers for one leaf, or for one subleaf.
type CPUIDEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}
