package vcpu_test

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
)

// save returns the state of a component.
func save(t testing.TB, s snap.Component) []byte {
	t.Helper()
	c := snap.NewEncoder(s.SnapVersion())
	s.State(c)
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	return c.Data()
}

func restore(t testing.TB, s snap.Component, b []byte) {
	t.Helper()
	c := snap.NewDecoder(b, s.SnapVersion())
	s.State(c)
	c.Done()
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
}

// countAndTell counts in RAX, which nothing but the saved registers holds, and tells a device.
func countAndTell(a *kvmtest.Asm) {
	a.Mov(kvmtest.RDI, mmioAt).Mov(kvmtest.RAX, 0)
	top := a.Here()
	a.Inc(kvmtest.RAX).Store64(kvmtest.RDI, kvmtest.RAX).Jmp(top)
}

// A guest that counts is saved at some instruction of its loop, and goes on in a new VM: no number is told twice, none
// is left out.
func TestSaveRestore(t *testing.T) {
	var last uint64
	check := &sequence{t: t, last: &last, reached: make(chan struct{})}
	m := newMachine(t, 1)
	if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 8}, check); err != nil {
		t.Fatal(err)
	}
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring3, Main: countAndTell})
	for range 5 {
		<-check.reached
		m.pause(t)
		cpu, vm := save(t, m.cpus[0]), save(t, &vcpu.VMState{VM: m.vm})
		saved := last

		n := newMachine(t, 1)
		copy(n.ram, m.ram)
		restore(t, n.cpus[0], cpu)
		restore(t, &vcpu.VMState{VM: n.vm}, vm)
		if diff := cmp.Diff(registers(t, m), registers(t, n)); diff != "" {
			t.Errorf("registers (-saved +restored):\n%s", diff)
		}
		check.reached = make(chan struct{})
		check.until = saved + 100
		if err := n.mmio.Map(bus.Range{Base: mmioAt, Size: 8}, check); err != nil {
			t.Fatal(err)
		}
		n.resume(t)
		m = n
	}
	<-check.reached
	m.pause(t)
}

func registers(t testing.TB, m *machine) (all struct {
	Regs  kvm.Regs
	SRegs kvm.SRegs2
	FPU   kvm.FPU
	CPUID []kvm.CPUIDEntry
}) {
	t.Helper()
	if err := m.cpus[0].Do(func(k *kvm.VCPU) (err error) {
		if err := k.GetRegs(&all.Regs); err != nil {
			return err
		}
		if err := k.GetFPU(&all.FPU); err != nil {
			return err
		}
		if all.CPUID, err = k.GetCPUID2(); err != nil {
			return err
		}
		return k.GetSRegs2(&all.SRegs)
	}); err != nil {
		t.Fatal(err)
	}
	all.SRegs.TR.Type &^= 0x2 // busy: a restore on AMD leaves it out, and not every KVM adds it again
	return all
}

// sequence is a device to which one number after the other is written.
type sequence struct {
	t       *testing.T
	last    *uint64
	until   uint64
	reached chan struct{} // closed when until was written
}

func (s *sequence) Read(bus.Access, []byte) {}

func (s *sequence) Write(_ bus.Access, p []byte) {
	v := binary.LittleEndian.Uint64(p)
	if v != *s.last+1 {
		s.t.Errorf("%d came after %d", v, *s.last)
	}
	*s.last = v
	if v == max(s.until, 100) {
		close(s.reached)
	}
}

// A guest goes on where the host can do more than where it was saved, told of no more than it was; but not where it can
// do less.
func TestRestoreOnAnotherHost(t *testing.T) {
	rich, err := kvmtest.Open(t).GetSupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	const x2apic = 1 << 21 // ECX of leaf 1, which KVM emulates on all hosts
	poor := slices.Clone(rich)
	leaf1 := slices.IndexFunc(poor, func(e kvm.CPUIDEntry) bool { return e.Function == 1 })
	if leaf1 < 0 || poor[leaf1].ECX&x2apic == 0 {
		t.Fatal("KVM lists no x2APIC")
	}
	poor[leaf1].ECX &^= x2apic

	onRich, onPoor := newMachineOn(t, rich, 1).cpus[0], newMachineOn(t, poor, 1).cpus[0]
	c := snap.NewDecoder(save(t, onRich), onPoor.SnapVersion())
	onPoor.State(c)
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "CPUID 0x1.0 ECX 0x200000") {
		t.Errorf("restored where x2APIC is missing: %v, want it named", err)
	}

	saved := save(t, onPoor)
	restore(t, onRich, saved)
	if err := onRich.Do(func(k *kvm.VCPU) error {
		now, err := k.GetCPUID2()
		if err == nil && now[leaf1].ECX&x2apic != 0 {
			t.Error("the guest was told of x2APIC, which it did not have")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestStateOfARunningCPU(t *testing.T) {
	m := newMachine(t, 1)
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring3, Main: func(a *kvmtest.Asm) { a.Spin() }})
	c := snap.NewEncoder(1)
	m.cpus[0].State(c)
	if c.Err() == nil {
		t.Error("saved while it ran")
	}
}

// Whatever a file says, restoring it succeeds or fails with an error, and the vCPU can be stopped.
func TestDamagedState(t *testing.T) {
	m := newMachine(t, 1)
	good := save(t, m.cpus[0])
	for _, n := range []int{0, 1, 4, 100, len(good) / 2, len(good) - 1} {
		c := snap.NewDecoder(good[:n], m.cpus[0].SnapVersion())
		m.cpus[0].State(c)
		if c.Err() == nil {
			t.Errorf("took the first %d of %d bytes", n, len(good))
		}
	}
	for i := 0; i < len(good); i += len(good)/200 + 1 {
		bad := append([]byte(nil), good...)
		bad[i] ^= 0xff
		m.cpus[0].State(snap.NewDecoder(bad, m.cpus[0].SnapVersion()))
	}
}
