package notebook

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// directRate is the speed of ring 0, in instructions per second, from which KVM
// is taken to run guest kernels on the processor itself. Processors with VMX or
// SVM reach 10⁹; flavours of KVM without them emulate ring 0 at a few 10⁶.
const directRate = 1e8

// DirectKVM reports whether this machine's /dev/kvm runs Linux guests directly.
// It tries: a loop in ring 0, protected mode, is timed. The reason says what was
// found, for people.
func DirectKVM() (direct bool, reason string) {
	rate, err := ring0Rate()
	if err != nil {
		return false, err.Error()
	}
	if rate < directRate {
		return false, fmt.Sprintf("/dev/kvm emulates ring 0 (%.1f million instructions/s): no VMX or SVM", rate/1e6)
	}
	return true, fmt.Sprintf("/dev/kvm runs ring 0 directly (%.0f million instructions/s)", rate/1e6)
}

// ring0Rate runs a counting loop as a guest and returns instructions per second,
// the best of a few tries.
func ring0Rate() (rate float64, err error) {
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	vm, err := sys.CreateVM()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	ram, err := unix.Mmap(-1, 0, 0x1000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(ram)) }()
	copy(ram, []byte{0x49, 0x75, 0xfd, 0xf4}) // 1: dec ecx; jnz 1b; hlt
	if err := vm.SetUserMemoryRegion(0, 0, 0, ram); err != nil {
		return 0, err
	}
	// KVM binds a vCPU to the thread that first runs it, more or less.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, cpu.Close()) }()
	var s kvm.SRegs2
	if err := cpu.GetSRegs2(&s); err != nil {
		return 0, err
	}
	s.CS = kvm.Segment{Limit: math.MaxUint32, Selector: 8, Type: 11, Present: 1, DB: 1, S: 1, G: 1}
	data := s.CS
	data.Selector, data.Type = 16, 3
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.CR0 |= 1 // PE
	if err := cpu.SetSRegs2(&s); err != nil {
		return 0, err
	}
	const loops = 200_000 // 0.1 s when emulated
	for range 3 {
		if err := cpu.SetRegs(&kvm.Regs{RCX: loops, RFLAGS: 2}); err != nil {
			return 0, err
		}
		start := time.Now()
		errno := cpu.Run()
		for errno == unix.EINTR {
			errno = cpu.Run()
		}
		d := time.Since(start)
		if errno != 0 {
			return 0, fmt.Errorf("/dev/kvm: KVM_RUN: %w", errno)
		}
		if reason := cpu.ExitReason(); reason != kvm.ExitHLT {
			return 0, fmt.Errorf("/dev/kvm: a loop in ring 0 ended with %v, not HLT", reason)
		}
		rate = max(rate, 2*loops/d.Seconds())
	}
	return rate, nil
}
