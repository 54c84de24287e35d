package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// System is /dev/kvm.
type System struct {
	file
	vcpuMmapSize int
	msrs         []uint32
}

// Open opens path, which is /dev/kvm nearly always.
func Open(path string) (*System, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("%w (enable virtualisation in the firmware's setup and load kvm_intel or kvm_amd)", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w (make the user a member of the group that owns %s)", err, path)
	case err != nil:
		return nil, err
	}
	s, err := NewSystem(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

// NewSystem makes a System of an open /dev/kvm, such as one that was inherited. It owns f unless it fails.
func NewSystem(f *os.File) (*System, error) {
	s := &System{file: newFile(f)}
	v, err := s.GetAPIVersion()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if v != apiVersion {
		return nil, fmt.Errorf("%s: KVM's API has version %d, where %d is needed", f.Name(), v, apiVersion)
	}
	if s.vcpuMmapSize, err = s.GetVCPUMmapSize(); err != nil {
		return nil, err
	}
	if s.msrs, err = s.GetMSRIndexList(); err != nil {
		return nil, err
	}
	return s, nil
}

// Close closes the descriptor. VMs stay as they are.
func (s *System) Close() error { return s.f.Close() }

// GetAPIVersion is KVM_GET_API_VERSION (0xae00). Every usable kernel returns 12.
func (s *System) GetAPIVersion() (int, error) {
	v, err := s.ioctl("KVM_GET_API_VERSION", nrGetAPIVersion, 0)
	return int(v), err
}

// CheckExtension is KVM_CHECK_EXTENSION (0xae03). It returns 0 for what KVM does not have, 1 for what it has, and for
// some capabilities a quantity. An error counts as not having it.
func (s *System) CheckExtension(c Cap) int { return s.checkExtension(c) }

func (f *file) checkExtension(c Cap) int {
	n, err := f.ioctl("KVM_CHECK_EXTENSION", nrCheckExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return int(n)
}

// GetVCPUMmapSize is KVM_GET_VCPU_MMAP_SIZE (0xae04): the length in bytes of a vCPU's shared run structure.
func (s *System) GetVCPUMmapSize() (int, error) {
	n, err := s.ioctl("KVM_GET_VCPU_MMAP_SIZE", nrGetVCPUMmapSize, 0)
	if err == nil && n < minRunSize {
		return 0, fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %d bytes, where %d are needed", n, minRunSize)
	}
	return int(n), err
}

// GetSupportedCPUID is KVM_GET_SUPPORTED_CPUID (0xc008ae05): what CPUID may tell a guest, by this CPU and this KVM.
func (s *System) GetSupportedCPUID() ([]CPUIDEntry, error) {
	return getCPUID(&s.file, "KVM_GET_SUPPORTED_CPUID", nrGetSupportedCPUID)
}

func getCPUID(f *file, name string, nr uintptr) ([]CPUIDEntry, error) {
	for n := 128; ; n *= 2 {
		l := newList(make([]CPUIDEntry, n))
		_, err := ioctlPtr(f, name, nr, &l[0])
		if errors.Is(err, unix.E2BIG) && n < 4096 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return elemsOf[CPUIDEntry](l, int(*l.count())), nil
	}
}

// GetMSRIndexList is KVM_GET_MSR_INDEX_LIST (0xc004ae02): the model-specific registers that make up a vCPU's state.
func (s *System) GetMSRIndexList() ([]uint32, error) { return s.getMSRIndexList() }

// CreateVM is KVM_CREATE_VM (0xae01): a machine without memory, interrupt controllers or vCPUs.
func (s *System) CreateVM() (*VM, error) {
	for {
		fd, err := s.ioctl("KVM_CREATE_VM", nrCreateVM, 0)
		if errors.Is(err, unix.EINTR) { // a signal came while the kernel allocated
			continue
		}
		if err != nil {
			return nil, err
		}
		vm := &VM{file: newFile(os.NewFile(fd, "kvm-vm")), vcpuMmapSize: s.vcpuMmapSize, msrs: s.msrs}
		vm.slots = make(map[uint32]uint64)
		vm.hasSRegs2 = vm.CheckExtension(CapSRegs2) > 0
		vm.hasXSAVE2 = vm.CheckExtension(CapXSAVE2) > 0
		vm.scalesTSC = vm.CheckExtension(CapTSCControl) > 0
		return vm, nil
	}
}
