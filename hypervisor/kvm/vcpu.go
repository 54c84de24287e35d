package kvm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// VCPU is one virtual CPU. Its methods must all be called from one thread, since the kernel makes others wait while
// the vCPU runs; SetImmediateExit alone is for any thread.
type VCPU struct {
	file
	mmap      []byte // the whole run structure, shared with the kernel
	run       *run   // its head
	msrs      []uint32
	xsaveSize int
	hasSRegs2 bool
	hasXSAVE2 bool
	scalesTSC bool
}

// CreateVCPU is KVM_CREATE_VCPU (0xae41). id is also the initial APIC ID, from 0 to one less than CapMaxVCPUs.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := vm.ioctl("KVM_CREATE_VCPU", nrCreateVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("vcpu %d: %w", id, err)
	}
	f := os.NewFile(fd, fmt.Sprintf("kvm-vcpu:%d", id))
	m, err := unix.Mmap(int(fd), 0, vm.vcpuMmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("vcpu %d: mmap: %w", id, err)
	}
	v := &VCPU{
		file: newFile(f), mmap: m, run: runOf(m), msrs: vm.msrs,
		hasSRegs2: vm.hasSRegs2, hasXSAVE2: vm.hasXSAVE2, scalesTSC: vm.scalesTSC,
	}
	v.xsaveSize = xsaveMinSize
	if v.hasXSAVE2 {
		v.xsaveSize = max(v.xsaveSize, vm.CheckExtension(CapXSAVE2))
	}
	return v, nil
}

// Close unmaps the run structure and closes the descriptor. Nothing that Exit's accessors returned may be used later.
func (v *VCPU) Close() error {
	if v.mmap == nil {
		return nil
	}
	err := unix.Munmap(v.mmap)
	v.mmap, v.run = nil, nil
	if e := v.f.Close(); err == nil {
		err = e
	}
	return err
}

// SetCPUID2 is KVM_SET_CPUID2 (0x4008ae90): what the guest's CPUID answers. Once, before all other state.
func (v *VCPU) SetCPUID2(entries []CPUIDEntry) error {
	l := newList(entries)
	_, err := ioctlPtr(&v.file, "KVM_SET_CPUID2", nrSetCPUID2, &l[0])
	return err
}

// GetCPUID2 is KVM_GET_CPUID2 (0xc008ae91).
func (v *VCPU) GetCPUID2() ([]CPUIDEntry, error) {
	return getCPUID(&v.file, "KVM_GET_CPUID2", nrGetCPUID2)
}

// GetTSCKHz is KVM_GET_TSC_KHZ (0xaea3): the frequency in kHz of the guest's time-stamp counter.
func (v *VCPU) GetTSCKHz() (int, error) {
	n, err := v.ioctl("KVM_GET_TSC_KHZ", nrGetTSCKHz, 0)
	return int(n), err
}

// SetTSCKHz is KVM_SET_TSC_KHZ (0xaea2): has the guest's time-stamp counter count with that frequency in kHz. It fails
// with ENOTSUP where the CPU cannot scale the counter: KVM would push it forward at each exit instead, if at all.
func (v *VCPU) SetTSCKHz(khz int) error {
	if !v.scalesTSC {
		return fmt.Errorf("KVM_SET_TSC_KHZ: the CPU does not scale its counter: %w", unix.ENOTSUP)
	}
	_, err := v.ioctl("KVM_SET_TSC_KHZ", nrSetTSCKHz, uintptr(khz))
	return err
}

// KVMClockCtrl is KVM_KVMCLOCK_CTRL (0xaead): tells the guest that it was paused, so that its watchdogs do not bark. It
// fails with EINVAL if the guest does not use kvmclock.
func (v *VCPU) KVMClockCtrl() error {
	_, err := v.ioctl("KVM_KVMCLOCK_CTRL", nrKVMClockCtrl, 0)
	return err
}

// NMI is KVM_NMI (0xae9a): queues a non-maskable interrupt.
func (v *VCPU) NMI() error {
	_, err := v.ioctl("KVM_NMI", nrNMI, 0)
	return err
}
