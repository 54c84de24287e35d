package kvm

// The numbers of the ioctls. The upper half encodes the direction and the size of the argument; it is part of the
// number: KVM_GET_PIT2 and KVM_GET_VCPU_EVENTS, for one, differ in nothing else.
const (
	// On /dev/kvm.
	nrGetAPIVersion     = 0xae00
	nrCreateVM          = 0xae01
	nrGetMSRIndexList   = 0xc004ae02
	nrCheckExtension    = 0xae03
	nrGetVCPUMmapSize   = 0xae04
	nrGetSupportedCPUID = 0xc008ae05

	// On a VM.
	nrCreateVCPU          = 0xae41
	nrGetDirtyLog         = 0x4010ae42
	nrSetUserMemoryRegion = 0x4020ae46
	nrSetTSSAddr          = 0xae47
	nrSetIdentityMapAddr  = 0x4008ae48
	nrCreateIRQChip       = 0xae60
	nrIRQLine             = 0x4008ae61
	nrGetIRQChip          = 0xc208ae62
	nrSetIRQChip          = 0x8208ae63
	nrSetGSIRouting       = 0x4008ae6a
	nrIRQFD               = 0x4020ae76
	nrCreatePIT2          = 0x4040ae77
	nrIOEventFD           = 0x4040ae79
	nrSetClock            = 0x4030ae7b
	nrGetClock            = 0x8030ae7c
	nrGetPIT2             = 0x8070ae9f
	nrSetPIT2             = 0x4070aea0
	nrEnableCap           = 0x4068aea3
	nrSignalMSI           = 0x4020aea5

	// On a vCPU.
	nrRun           = 0xae80
	nrGetRegs       = 0x8090ae81
	nrSetRegs       = 0x4090ae82
	nrGetSRegs      = 0x8138ae83
	nrSetSRegs      = 0x4138ae84
	nrGetMSRs       = 0xc008ae88
	nrSetMSRs       = 0x4008ae89
	nrGetFPU        = 0x81a0ae8c
	nrSetFPU        = 0x41a0ae8d
	nrGetLAPIC      = 0x8400ae8e
	nrSetLAPIC      = 0x4400ae8f
	nrSetCPUID2     = 0x4008ae90
	nrGetCPUID2     = 0xc008ae91
	nrGetMPState    = 0x8004ae98
	nrSetMPState    = 0x4004ae99
	nrNMI           = 0xae9a
	nrGetVCPUEvents = 0x8040ae9f
	nrSetVCPUEvents = 0x4040aea0
	nrGetDebugRegs  = 0x8080aea1
	nrSetDebugRegs  = 0x4080aea2
	nrSetTSCKHz     = 0xaea2
	nrGetTSCKHz     = 0xaea3
	nrGetXSAVE      = 0x9000aea4
	nrSetXSAVE      = 0x5000aea5
	nrGetXCRS       = 0x8188aea6
	nrSetXCRS       = 0x4188aea7
	nrKVMClockCtrl  = 0xaead
	nrGetSRegs2     = 0x8140aecc
	nrSetSRegs2     = 0x4140aecd
	nrGetXSAVE2     = 0x9000aecf
)

// Requests returns the numbers of the ioctls that a VMM issues, for a process that is held to a list of system calls. Those of
// setup make machines, and save and restore what is no vCPU's; those of run are what a vCPU's thread needs: its own, and what
// devices do that it writes to.
func Requests() (setup, run []uint32) {
	return []uint32{
			nrGetAPIVersion, nrCreateVM, nrGetMSRIndexList, nrCheckExtension, nrGetVCPUMmapSize, nrGetSupportedCPUID,
			nrCreateVCPU, nrGetDirtyLog, nrSetTSSAddr, nrSetIdentityMapAddr, nrCreateIRQChip, nrGetIRQChip, nrSetIRQChip, nrCreatePIT2,
			nrSetClock, nrGetClock, nrGetPIT2, nrSetPIT2,
		}, []uint32{
			nrRun, // the most frequent comes first
			nrSignalMSI, nrIRQLine, nrSetGSIRouting, nrIRQFD, nrIOEventFD, nrSetUserMemoryRegion,
			nrGetRegs, nrSetRegs, nrGetSRegs, nrSetSRegs, nrGetSRegs2, nrSetSRegs2, nrGetMSRs, nrSetMSRs, nrGetXSAVE, nrGetXSAVE2,
			nrSetXSAVE, nrGetXCRS, nrSetXCRS, nrGetLAPIC, nrSetLAPIC, nrSetCPUID2, nrGetMPState, nrSetMPState, nrNMI,
			nrGetVCPUEvents, nrSetVCPUEvents, nrGetDebugRegs, nrSetDebugRegs, nrSetTSCKHz, nrGetTSCKHz, nrKVMClockCtrl,
		}
}

// apiVersion is what KVM_GET_API_VERSION has returned since Linux 2.6.22; the kernel's documentation says to refuse
// any other.
const apiVersion = 12

// Cap is an optional part of the API (KVM_CAP_*), asked for with CheckExtension.
type Cap uint32

// The capabilities that Lodge asks for.
const (
	CapIRQChip            Cap = 0
	CapUserMemory         Cap = 3
	CapNrVCPUs            Cap = 9  // recommended maximum of vCPUs
	CapNrMemslots         Cap = 10 // number of memory slots
	CapIRQFD              Cap = 32
	CapPIT2               Cap = 33
	CapIOEventFD          Cap = 36
	CapVCPUEvents         Cap = 41
	CapXSAVE              Cap = 55
	CapXCRS               Cap = 56
	CapTSCControl         Cap = 60
	CapGetTSCKHz          Cap = 61
	CapMaxVCPUs           Cap = 66 // maximum of vCPUs
	CapTSCDeadlineTimer   Cap = 72
	CapKVMClockCtrl       Cap = 76
	CapSignalMSI          Cap = 77
	CapReadonlyMem        Cap = 81
	CapIRQFDResample      Cap = 82
	CapSplitIRQChip       Cap = 121
	CapIOEventFDAnyLength Cap = 122
	CapX2APICAPI          Cap = 129
	CapImmediateExit      Cap = 136
	CapSRegs2             Cap = 200
	CapXSAVE2             Cap = 208 // size in bytes of a vCPU's XSAVE area
)

// Flags of SetUserMemoryRegion.
const (
	MemLogDirtyPages uint32 = 1 << 0 // record written pages for GetDirtyLog
	MemReadonly      uint32 = 1 << 1 // the guest's writes exit as MMIO
)

// Flags of IRQFD.
const (
	IRQFDDeassign uint32 = 1 << 0 // undo
	IRQFDResample uint32 = 1 << 1 // level-triggered: deassert at end of interrupt and signal ResampleFD
)

// Flags of IOEventFD.
const (
	IOEventFDDatamatch uint32 = 1 << 0 // signal only when the value written is Datamatch
	IOEventFDPIO       uint32 = 1 << 1 // Addr is a port
	IOEventFDDeassign  uint32 = 1 << 2 // undo
)

// Flags of ClockData.
const (
	ClockTSCStable uint32 = 1 << 1 // the clock is the same on all vCPUs
	ClockRealtime  uint32 = 1 << 2 // Realtime is valid; set: advance by the real time that has passed since
	ClockHostTSC   uint32 = 1 << 3 // HostTSC is valid
)

// The chips of GetIRQChip.
const (
	IRQChipPICMaster uint32 = 0
	IRQChipPICSlave  uint32 = 1
	IRQChipIOAPIC    uint32 = 2
)

// Types of RoutingEntry.
const (
	routingIRQChip uint32 = 1
	routingMSI     uint32 = 2
)

// What a vCPU is doing (GetMPState).
const (
	MPStateRunnable      uint32 = 0
	MPStateUninitialized uint32 = 1 // an application processor before INIT: KVM_RUN fails with EAGAIN
	MPStateInitReceived  uint32 = 2 // waits for SIPI
	MPStateHalted        uint32 = 3 // in HLT
	MPStateSIPIReceived  uint32 = 4
)

// Flags of VCPUEvents: which of its fields SetVCPUEvents takes.
const (
	EventsValidNMIPending  uint32 = 1 << 0
	EventsValidSIPIVector  uint32 = 1 << 1
	EventsValidShadow      uint32 = 1 << 2
	EventsValidSMM         uint32 = 1 << 3
	EventsValidPayload     uint32 = 1 << 4
	EventsValidTripleFault uint32 = 1 << 5
)

// CPUIDSignificantIndex in CPUIDEntry.Flags: the leaf has subleaves and Index counts.
const CPUIDSignificantIndex uint32 = 1 << 0

// PITSpeakerDummy in CreatePIT2's flags: KVM also answers port 0x61.
const PITSpeakerDummy uint32 = 1 << 0
