package kvm

import (
	"fmt"
	"sync"
)

// VM is one virtual machine. Its methods may be called from any goroutine.
type VM struct {
	file
	vcpuMmapSize int
	msrs         []uint32
	hasSRegs2    bool
	hasXSAVE2    bool
	scalesTSC    bool

	mu    sync.Mutex
	slots map[uint32]uint64 // number of a memory slot → its size in bytes
}

// Close closes the descriptor. The kernel frees the machine when its last VCPU is closed too, which with an interrupt
// controller takes tens of milliseconds.
func (vm *VM) Close() error { return vm.f.Close() }

// CheckExtension is KVM_CHECK_EXTENSION (0xae03) for this VM; see System.CheckExtension.
func (vm *VM) CheckExtension(c Cap) int { return vm.checkExtension(c) }

// EnableCap is KVM_ENABLE_CAP (0x4068aea3). There are at most four args.
func (vm *VM) EnableCap(c Cap, args ...uint64) error {
	e := enableCap{cap: uint32(c)}
	if copy(e.args[:], args) != len(args) {
		return fmt.Errorf("KVM_ENABLE_CAP %d: %d arguments", c, len(args))
	}
	_, err := ioctlPtr(&vm.file, "KVM_ENABLE_CAP", nrEnableCap, &e)
	return err
}

// SetUserMemoryRegion is KVM_SET_USER_MEMORY_REGION (0x4020ae46): makes b, whole pages outside the Go heap, the guest's
// memory at the guest-physical address gpa, as the given slot; an empty b deletes the slot. An existing slot can be
// moved, and MemLogDirtyPages turned on and off; its size cannot change. flags are MemLogDirtyPages and MemReadonly.
//
// Slots that exist before CreateIRQChip are a hundred times cheaper: later, the kernel waits for an SRCU grace period.
func (vm *VM) SetUserMemoryRegion(slot, flags uint32, gpa uint64, b []byte) error {
	r := userMemoryRegion{slot: slot, flags: flags, guestPhysAddr: gpa, memorySize: uint64(len(b)), userspaceAddr: address(b)}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if _, err := ioctlPtr(&vm.file, "KVM_SET_USER_MEMORY_REGION", nrSetUserMemoryRegion, &r); err != nil {
		return fmt.Errorf("memory slot %d at %#x, %d bytes: %w", slot, gpa, len(b), err)
	}
	if len(b) == 0 {
		delete(vm.slots, slot)
	} else {
		vm.slots[slot] = uint64(len(b))
	}
	return nil
}

// GetDirtyLog is KVM_GET_DIRTY_LOG (0x4010ae42): sets in bitmap a bit for each page of slot, which has MemLogDirtyPages,
// that the guest has written since the last call. Bit 0 of word 0 is the first page. bitmap has at least a bit for each.
func (vm *VM) GetDirtyLog(slot uint32, bitmap []uint64) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	size, ok := vm.slots[slot]
	if words := (size/4096 + 63) / 64; !ok || uint64(len(bitmap)) < words { // else the kernel would write beyond it
		return fmt.Errorf("KVM_GET_DIRTY_LOG: slot %d of %d bytes: bitmap of %d words", slot, size, len(bitmap))
	}
	_, err := ioctlPtr(&vm.file, "KVM_GET_DIRTY_LOG", nrGetDirtyLog, &dirtyLog{slot: slot, bitmap: &bitmap[0]})
	return err
}

// SetTSSAddr is KVM_SET_TSS_ADDR (0xae47): where below 4 GiB Intel CPUs may put three pages to run real-mode code.
func (vm *VM) SetTSSAddr(gpa uint64) error {
	_, err := vm.ioctl("KVM_SET_TSS_ADDR", nrSetTSSAddr, uintptr(gpa))
	return err
}

// SetIdentityMapAddr is KVM_SET_IDENTITY_MAP_ADDR (0x4008ae48): where below 4 GiB Intel CPUs may put a page table to run
// real-mode code. Call it before CreateVCPU.
func (vm *VM) SetIdentityMapAddr(gpa uint64) error {
	_, err := ioctlPtr(&vm.file, "KVM_SET_IDENTITY_MAP_ADDR", nrSetIdentityMapAddr, &gpa)
	return err
}

// GetClock is KVM_GET_CLOCK (0x8030ae7c).
func (vm *VM) GetClock() (ClockData, error) {
	var c ClockData
	_, err := ioctlPtr(&vm.file, "KVM_GET_CLOCK", nrGetClock, &c)
	return c, err
}

// SetClock is KVM_SET_CLOCK (0x4030ae7b). Of the flags only ClockRealtime may be set.
func (vm *VM) SetClock(c ClockData) error {
	_, err := ioctlPtr(&vm.file, "KVM_SET_CLOCK", nrSetClock, &c)
	return err
}
