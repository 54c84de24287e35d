package kvm

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// run is the part of struct kvm_run that Lodge uses. The kernel maps it at the start of a vCPU's descriptor; the data
// of a port access follows at an offset that the exit names.
type run struct {
	in         uint32 // request_interrupt_window, immediate_exit, padding: bytes that only we write
	_          uint32
	exitReason uint32
	_          uint32 // ready_for_interrupt_injection, if_flag, flags
	cr8        uint64
	apicBase   uint64
	exit       [256]byte // what the exit reason makes of it
}

const minRunSize = unsafe.Sizeof(run{})

// immediateExit is the field of that name in run.in, a little-endian word.
const immediateExit = 1 << 8

func runOf(mmap []byte) *run { return (*run)(unsafe.Pointer(unsafe.SliceData(mmap))) }

// Run is KVM_RUN (0xae80): runs the guest until something needs us. Errors that are none come back as often as 0:
// EINTR, when a signal came or SetImmediateExit was in force, and EAGAIN, when an application processor waits for its
// SIPI. It returns the bare number, since an error value would be a cost for each exit.
//
// Never RawSyscall: the Go scheduler must know that the thread is gone, or stopping the world waits for the guest.
func (v *VCPU) Run() unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, v.fd, nrRun, 0)
	runtime.KeepAlive(v)
	return errno
}

// SetImmediateExit makes Run return EINTR without entering the guest, after completing the exit before it; or not any
// longer. It may be called on any thread, at any time before Close.
func (v *VCPU) SetImmediateExit(on bool) {
	var in uint32
	if on {
		in = immediateExit
	}
	atomic.StoreUint32(&v.run.in, in)
}

// ExitReason is why Run returned 0 (KVM_EXIT_*).
type ExitReason uint32

// The exit reasons that an x86-64 machine of ours can have.
const (
	ExitUnknown       ExitReason = 0
	ExitIO            ExitReason = 2
	ExitHypercall     ExitReason = 3
	ExitDebug         ExitReason = 4
	ExitHLT           ExitReason = 5 // only without CreateIRQChip
	ExitMMIO          ExitReason = 6
	ExitIRQWindowOpen ExitReason = 7
	ExitShutdown      ExitReason = 8 // triple fault
	ExitFailEntry     ExitReason = 9
	ExitIntr          ExitReason = 10
	ExitInternalError ExitReason = 17
	ExitSystemEvent   ExitReason = 24
	ExitIOAPICEOI     ExitReason = 26
)

// ExitReason returns why the last Run returned.
func (v *VCPU) ExitReason() ExitReason { return ExitReason(v.run.exitReason) }

// IO is a port access: Count accesses of Size bytes each to one Port, whose data lie one after the other in Data. Data
// aliases the run structure: on an input, what is put there is what the guest gets from the next Run.
type IO struct {
	Out   bool
	Size  int // 1, 2 or 4
	Port  uint16
	Count int // more than 1 for string instructions
	Data  []byte
}

// IO returns the access of an ExitIO.
func (v *VCPU) IO() (a IO) {
	e := (*struct {
		direction, size uint8
		port            uint16
		count           uint32
		dataOffset      uint64
	})(unsafe.Pointer(&v.run.exit))
	n := uint64(e.size) * uint64(e.count)
	if n > uint64(len(v.mmap)) || e.dataOffset > uint64(len(v.mmap))-n {
		return IO{} // the kernel never does this
	}
	return IO{
		Out: e.direction == 1, Size: int(e.size), Port: e.port, Count: int(e.count),
		Data: v.mmap[e.dataOffset : e.dataOffset+n : e.dataOffset+n],
	}
}

// MMIO is an access to a guest-physical address that no memory slot holds, or a write to a read-only one. Data, 1 to 8
// bytes, aliases the run structure: on a read, what is put there is what the guest gets from the next Run.
type MMIO struct {
	Addr  uint64
	Write bool
	Data  []byte
}

// MMIO returns the access of an ExitMMIO.
func (v *VCPU) MMIO() MMIO {
	e := (*struct {
		physAddr uint64
		data     [8]byte
		len      uint32
		isWrite  uint8
	})(unsafe.Pointer(&v.run.exit))
	return MMIO{Addr: e.physAddr, Write: e.isWrite != 0, Data: e.data[:min(e.len, 8)]}
}

// SystemEvent is what the guest asked of the whole machine.
type SystemEvent struct {
	Type uint32 // SystemEventShutdown, SystemEventReset, …
	Data []uint64
}

// Types of SystemEvent.
const (
	SystemEventShutdown uint32 = 1
	SystemEventReset    uint32 = 2
	SystemEventCrash    uint32 = 3
)

// SystemEvent returns the event of an ExitSystemEvent.
func (v *VCPU) SystemEvent() SystemEvent {
	typ, data := v.typed()
	return SystemEvent{Type: typ, Data: data}
}

// Suberrors of InternalError.
const (
	InternalErrorEmulation            uint32 = 1 // an instruction that KVM cannot emulate
	InternalErrorSimultaneous         uint32 = 2 // an exception while one was delivered
	InternalErrorDelivery             uint32 = 3 // the CPU failed to deliver an event
	InternalErrorUnexpectedExitReason uint32 = 4
)

// InternalError is KVM's failure to run the guest.
type InternalError struct {
	Suberror    uint32
	Data        []uint64
	Instruction []byte // the bytes at RIP, if KVM tells
}

// InternalError returns the error of an ExitInternalError.
func (v *VCPU) InternalError() InternalError {
	sub, data := v.typed()
	e := InternalError{Suberror: sub, Data: data}
	// With flag 0 of the first word, an emulation failure's next bytes are insn_size and up to 15 insn_bytes.
	if sub == InternalErrorEmulation && len(data) >= 3 && data[0]&1 != 0 {
		b := v.run.exit[16:]
		e.Instruction = append(e.Instruction, b[1:1+min(b[0], 15)]...)
	}
	return e
}

// typed copies the form that system events and internal errors share: a number, then up to 16 words.
func (v *VCPU) typed() (typ uint32, data []uint64) {
	b := v.run.exit[:]
	n := min(binary.LittleEndian.Uint32(b[4:]), 16)
	for i := range n {
		data = append(data, binary.LittleEndian.Uint64(b[8+8*i:]))
	}
	return binary.LittleEndian.Uint32(b), data
}

// HardwareEntryFailure returns the CPU's reason for an ExitFailEntry, or the hardware's reason for an ExitUnknown.
func (v *VCPU) HardwareEntryFailure() uint64 { return binary.LittleEndian.Uint64(v.run.exit[:]) }
