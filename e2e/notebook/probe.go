package notebook

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
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

// KVM's ioctls and structures as far as the probe needs them, from linux/kvm.h.
const (
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmExitHLT             = 5
)

type kvmSegment struct {
	base                                uint64
	limit                               uint32
	selector                            uint16
	typ, present, dpl, db, s, l, g, avl uint8
	unusable, padding                   uint8
}

type kvmSregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt kvmSegment
	gdt, idt                        [2]uint64
	cr0, cr2, cr3, cr4, cr8         uint64
	efer, apicBase                  uint64
	interrupts                      [4]uint64
}

type kvmRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r                                      [8]uint64
	rip, rflags                            uint64
}

type kvmMemory struct {
	slot, flags          uint32
	gpa, size, userspace uint64
}

// ring0Rate runs a counting loop as a guest and returns instructions per second,
// the best of a few tries.
func ring0Rate() (rate float64, err error) {
	sys, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer sys.Close()
	// KVM binds a vCPU to the thread that first runs it, more or less.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ioctl := func(fd, req uintptr, arg unsafe.Pointer) (uintptr, error) {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, fd, req, uintptr(arg))
		if e != 0 {
			return 0, fmt.Errorf("/dev/kvm: ioctl %#x: %w", req, e)
		}
		return r, nil
	}
	vm, err := ioctl(sys.Fd(), kvmCreateVM, nil)
	if err != nil {
		return 0, err
	}
	defer unix.Close(int(vm))
	ram, err := unix.Mmap(-1, 0, 0x1000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(ram)) }()
	copy(ram, []byte{0x49, 0x75, 0xfd, 0xf4}) // 1: dec ecx; jnz 1b; hlt
	region := kvmMemory{size: 0x1000, userspace: uint64(uintptr(unsafe.Pointer(&ram[0])))}
	if _, err := ioctl(vm, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return 0, err
	}
	vcpu, err := ioctl(vm, kvmCreateVCPU, nil)
	if err != nil {
		return 0, err
	}
	defer unix.Close(int(vcpu))
	size, err := ioctl(sys.Fd(), kvmGetVCPUMmapSize, nil)
	if err != nil {
		return 0, err
	}
	runPage, err := unix.Mmap(int(vcpu), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(runPage)) }()
	var sregs kvmSregs
	if _, err := ioctl(vcpu, kvmGetSregs, unsafe.Pointer(&sregs)); err != nil {
		return 0, err
	}
	flat := kvmSegment{limit: math.MaxUint32, selector: 8, typ: 11, present: 1, db: 1, s: 1, g: 1}
	sregs.cs = flat
	flat.selector, flat.typ = 16, 3
	sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss = flat, flat, flat, flat, flat
	sregs.cr0 |= 1 // PE
	if _, err := ioctl(vcpu, kvmSetSregs, unsafe.Pointer(&sregs)); err != nil {
		return 0, err
	}
	const loops = 200_000 // 0.1 s when emulated
	for range 3 {
		regs := kvmRegs{rcx: loops, rflags: 2}
		if _, err := ioctl(vcpu, kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
			return 0, err
		}
		start := time.Now()
		for {
			_, err := ioctl(vcpu, kvmRun, nil)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EINTR) {
				return 0, err
			}
		}
		d := time.Since(start)
		// struct kvm_run: exit_reason is a uint32 at offset 8.
		if reason := *(*uint32)(unsafe.Pointer(&runPage[8])); reason != kvmExitHLT {
			return 0, fmt.Errorf("/dev/kvm: a loop in ring 0 ended with exit %d, not HLT", reason)
		}
		rate = max(rate, 2*loops/d.Seconds())
	}
	return rate, nil
}
