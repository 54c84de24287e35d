package vcpu

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// Events is told what a vCPU cannot decide. It is called on the vCPU's thread, when the vCPU has become Paused, so it
// leaves the reaction to another goroutine.
type Events func(Event)

// Event is why a vCPU paused itself.
type Event struct {
	CPU  int
	Kind EventKind
	Err  error // of a Failure: an *ExitError
}

// EventKind tells events apart.
type EventKind int

// The events.
const (
	TripleFault EventKind = iota // a fault while a double fault was delivered: a PC resets
	Halt                         // HLT with no interrupt controller that could end it
	Shutdown                     // the guest asked KVM to power the machine off
	Reset                        // the guest asked KVM to reset the machine
	Crash                        // the guest told KVM that it crashed
	Failure                      // KVM cannot run this guest on: Event.Err says why
)

// String returns k's name.
func (k EventKind) String() string {
	switch k {
	case TripleFault:
		return "triple fault"
	case Halt:
		return "halt without an interrupt controller"
	case Shutdown:
		return "shutdown"
	case Reset:
		return "reset"
	case Crash:
		return "crash"
	case Failure:
		return "failure"
	}
	return fmt.Sprintf("EventKind(%d)", int(k))
}

// ExitError is a vCPU that KVM cannot run, with what a person needs to find out why.
type ExitError struct {
	CPU      int
	Errno    unix.Errno // of KVM_RUN; if it is 0, Reason counts
	Reason   kvm.ExitReason
	Hardware uint64            // of ExitFailEntry and ExitUnknown: the CPU's own reason
	Internal kvm.InternalError // of ExitInternalError
	Regs     kvm.Regs
	SRegs    kvm.SRegs2
}

// failed describes the vCPU as it stands.
func (c *CPU) failed(errno unix.Errno) Event {
	e := &ExitError{CPU: c.index, Errno: errno, Reason: c.k.ExitReason()}
	if errno == 0 {
		switch e.Reason {
		case kvm.ExitInternalError:
			e.Internal = c.k.InternalError()
		case kvm.ExitFailEntry, kvm.ExitUnknown:
			e.Hardware = c.k.HardwareEntryFailure()
		}
	}
	// Where these fail there is nothing to add to the error that is under way.
	_ = c.k.GetRegs(&e.Regs)
	_ = c.k.GetSRegs2(&e.SRegs)
	return Event{CPU: c.index, Kind: Failure, Err: e}
}

// Unwrap returns the errno of KVM_RUN, if that is what failed.
func (e *ExitError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Error describes the failure in one line.
func (e *ExitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "vcpu %d: ", e.CPU)
	switch {
	case e.Errno != 0:
		fmt.Fprintf(&b, "KVM_RUN: %v", e.Errno)
	case e.Reason == kvm.ExitInternalError && e.Internal.Suberror == kvm.InternalErrorEmulation:
		b.WriteString("KVM cannot emulate an instruction")
	case e.Reason == kvm.ExitInternalError:
		fmt.Fprintf(&b, "KVM internal error %d %#x", e.Internal.Suberror, e.Internal.Data)
	case e.Reason == kvm.ExitFailEntry:
		fmt.Fprintf(&b, "the CPU refuses to enter the guest, reason %#x", e.Hardware)
	default:
		fmt.Fprintf(&b, "KVM exit %d that no machine of ours causes (%#x)", e.Reason, e.Hardware)
	}
	r, s := &e.Regs, &e.SRegs
	fmt.Fprintf(&b, " at %04x:%016x", s.CS.Selector, r.RIP)
	if len(e.Internal.Instruction) > 0 {
		fmt.Fprintf(&b, " (bytes % x)", e.Internal.Instruction)
	}
	fmt.Fprintf(&b, " rax=%x rbx=%x rcx=%x rdx=%x rsi=%x rdi=%x rsp=%x rbp=%x", r.RAX, r.RBX, r.RCX, r.RDX, r.RSI, r.RDI, r.RSP, r.RBP)
	fmt.Fprintf(&b, " r8=%x r9=%x r10=%x r11=%x r12=%x r13=%x r14=%x r15=%x", r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15)
	fmt.Fprintf(&b, " rflags=%x cs.base=%x cr0=%x cr2=%x cr3=%x cr4=%x efer=%x", r.RFLAGS, s.CS.Base, s.CR0, s.CR2, s.CR3, s.CR4, s.EFER)
	return b.String()
}
