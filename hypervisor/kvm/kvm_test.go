package kvm_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

func open(t testing.TB) *kvm.System {
	t.Helper()
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	t.Cleanup(func() { sys.Close() })
	return sys
}

func createVM(t testing.TB) *kvm.VM {
	t.Helper()
	vm, err := open(t).CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	return vm
}

// ram returns n bytes outside the Go heap.
func ram(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

func TestOpenSaysWhatToDo(t *testing.T) {
	_, err := kvm.Open("/nonexistent/kvm")
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "firmware") {
		t.Errorf("got %v", err)
	}
	if s, err := kvm.Open("/dev/null"); err == nil {
		s.Close()
		t.Error("/dev/null is no KVM")
	} else if !errors.Is(err, unix.ENOTTY) || !strings.Contains(err.Error(), "KVM_GET_API_VERSION") {
		t.Errorf("got %v", err)
	}
}

func TestSystem(t *testing.T) {
	sys := open(t)
	for _, c := range []kvm.Cap{
		kvm.CapIRQChip, kvm.CapUserMemory, kvm.CapIRQFD, kvm.CapIOEventFD, kvm.CapSignalMSI,
		kvm.CapReadonlyMem, kvm.CapImmediateExit, kvm.CapNrMemslots, kvm.CapMaxVCPUs,
	} {
		if sys.CheckExtension(c) == 0 {
			t.Errorf("capability %d is missing", c)
		}
	}
	if n := sys.CheckExtension(1 << 30); n != 0 {
		t.Errorf("an unknown capability counts %d", n)
	}
	msrs, err := sys.GetMSRIndexList()
	if err != nil || len(msrs) == 0 {
		t.Errorf("GetMSRIndexList: %d registers, %v", len(msrs), err)
	}
	leaves, err := sys.GetSupportedCPUID()
	if err != nil || len(leaves) == 0 {
		t.Errorf("GetSupportedCPUID: %d leaves, %v", len(leaves), err)
	}
}

func TestMemorySlots(t *testing.T) {
	vm, b := createVM(t), ram(t, 1<<20)
	if err := vm.SetUserMemoryRegion(0, kvm.MemLogDirtyPages, 0, b); err != nil {
		t.Fatal(err)
	}
	if err := vm.SetUserMemoryRegion(1, 0, 1<<19, b); !errors.Is(err, unix.EEXIST) {
		t.Errorf("an overlapping slot: %v", err)
	}
	if err := vm.SetUserMemoryRegion(1, 0, 1<<30, b[:100]); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a slot of 100 bytes: %v", err)
	}
	if err := vm.GetDirtyLog(0, make([]uint64, 3)); err == nil {
		t.Error("GetDirtyLog let the kernel write beyond the bitmap")
	}
	if err := vm.GetDirtyLog(7, make([]uint64, 64)); err == nil {
		t.Error("GetDirtyLog of a slot that is not")
	}
	if err := vm.GetDirtyLog(0, make([]uint64, 4)); err != nil {
		t.Error(err)
	}
	if err := vm.SetUserMemoryRegion(0, 0, 0, nil); err != nil {
		t.Errorf("deleting: %v", err)
	}
	if err := vm.SetUserMemoryRegion(1, 0, 1<<19, b); err != nil {
		t.Errorf("after deleting: %v", err)
	}
}

func TestIRQChip(t *testing.T) {
	vm := createVM(t)
	if err := vm.CreateIRQChip(); err != nil {
		t.Fatal(err)
	}
	if err := vm.CreatePIT2(kvm.PITSpeakerDummy); err != nil {
		t.Fatal(err)
	}
	for id := range uint32(3) {
		c, err := vm.GetIRQChip(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.SetIRQChip(&c); err != nil {
			t.Error(err)
		}
	}
	pit, err := vm.GetPIT2()
	if err != nil {
		t.Fatal(err)
	}
	pit.Channels[2].Count = 1234
	if err := vm.SetPIT2(&pit); err != nil {
		t.Fatal(err)
	}
	if got, _ := vm.GetPIT2(); got.Channels[2].Count != 1234 {
		t.Errorf("PIT channel 2 counts from %d, want 1234", got.Channels[2].Count)
	}
	if err := vm.SetGSIRouting([]kvm.RoutingEntry{
		kvm.RouteIRQChip(4, kvm.IRQChipIOAPIC, 4), kvm.RouteMSI(24, 0xfee00000, 0x41),
	}); err != nil {
		t.Error(err)
	}
	// A device raises lines while vCPUs wait for it: it must not allocate.
	if n := testing.AllocsPerRun(100, func() {
		if err := errors.Join(vm.IRQLine(4, true), vm.IRQLine(4, false)); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("IRQLine allocates %v times", n)
	}
	if err := vm.SetClock(kvm.ClockData{Clock: 1e15}); err != nil {
		t.Fatal(err)
	}
	if c, err := vm.GetClock(); err != nil || c.Clock < 1e15 || c.Clock > 1e15+1e12 {
		t.Errorf("clock is %d ns after setting 1e15: %v", c.Clock, err)
	}
}

func TestEventFDs(t *testing.T) {
	vm := createVM(t)
	if err := vm.CreateIRQChip(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	irq := kvm.IRQFD{FD: uint32(fd), GSI: 5}
	if err := vm.IRQFD(irq); err != nil {
		t.Fatal(err)
	}
	irq.Flags = kvm.IRQFDDeassign
	if err := vm.IRQFD(irq); err != nil {
		t.Error(err)
	}
	io := kvm.IOEventFD{Addr: 0x10, Len: 2, FD: int32(fd), Datamatch: 3, Flags: kvm.IOEventFDPIO | kvm.IOEventFDDatamatch}
	if err := vm.IOEventFD(io); err != nil {
		t.Fatal(err)
	}
	if err := vm.IOEventFD(io); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same again: %v", err)
	}
	io.Flags |= kvm.IOEventFDDeassign
	if err := vm.IOEventFD(io); err != nil {
		t.Error(err)
	}
}

func TestVCPUState(t *testing.T) {
	sys := open(t)
	vm := createVM(t)
	if err := vm.CreateIRQChip(); err != nil {
		t.Fatal(err)
	}
	v, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	cpuid, err := sys.GetSupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.SetCPUID2(cpuid); err != nil {
		t.Fatal(err)
	}
	if got, err := v.GetCPUID2(); err != nil || len(got) == 0 {
		t.Errorf("GetCPUID2: %d leaves, %v", len(got), err)
	}
	want := kvm.Regs{RAX: 1, R15: 15, RIP: 0x1234, RFLAGS: 2}
	var got kvm.Regs
	if err := errors.Join(v.SetRegs(&want), v.GetRegs(&got)); err != nil || got != want {
		t.Errorf("registers %+v, want %+v: %v", got, want, err)
	}
	var (
		sregs  kvm.SRegs2
		fpu    kvm.FPU
		xcrs   kvm.XCRs
		lapic  kvm.LAPIC
		events kvm.VCPUEvents
		debug  kvm.DebugRegs
		xsave  = make([]byte, v.XSAVESize())
	)
	if err := errors.Join(
		v.GetSRegs2(&sregs), v.SetSRegs2(&sregs), v.GetFPU(&fpu), v.SetFPU(&fpu), v.GetXSAVE2(xsave), v.SetXSAVE(xsave),
		v.GetXCRS(&xcrs), v.SetXCRS(&xcrs), v.GetLAPIC(&lapic), v.SetLAPIC(&lapic),
		v.GetVCPUEvents(&events), v.SetVCPUEvents(&events), v.GetDebugRegs(&debug), v.SetDebugRegs(&debug),
		v.SetMPState(kvm.MPStateHalted),
	); err != nil {
		t.Error(err)
	}
	if s, err := v.GetMPState(); err != nil || s != kvm.MPStateHalted {
		t.Errorf("MP state %d: %v", s, err)
	}
	if err := v.GetXSAVE2(xsave[:100]); err == nil {
		t.Error("GetXSAVE2 let the kernel write beyond the slice")
	}
	const sysenterCS = 0x174
	msr := []kvm.MSREntry{{Index: sysenterCS, Data: 0x10}, {Index: 0xdeadbeef}}
	if n, err := v.SetMSRs(msr); n != 1 || err != nil {
		t.Errorf("SetMSRs took %d of a good and a bad register: %v", n, err)
	}
	msr[0].Data = 0
	if n, err := v.GetMSRs(msr); n != 1 || err != nil || msr[0].Data != 0x10 {
		t.Errorf("GetMSRs gave %d, %+v: %v", n, msr[0], err)
	}
	if khz, err := v.GetTSCKHz(); err != nil || khz == 0 {
		t.Errorf("TSC at %d kHz: %v", khz, err)
	}
	if err := v.KVMClockCtrl(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("KVM_KVMCLOCK_CTRL without a kvmclock: %v", err)
	}
	if err := v.NMI(); err != nil {
		t.Error(err)
	}
}

func TestImmediateExit(t *testing.T) {
	vm := createVM(t)
	v, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	v.SetImmediateExit(true)
	if errno := v.Run(); errno != unix.EINTR {
		t.Errorf("Run: %v, want EINTR", errno)
	}
}
