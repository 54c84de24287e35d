package vcpu_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
)

const memorySize = 1 << 20

// machine is a small machine around the vCPUs under test.
type machine struct {
	vm          *kvm.VM
	ram         []byte
	cpus        []*vcpu.CPU
	ports, mmio bus.Bus
	events      chan vcpu.Event
}

// newMachine makes a machine of n vCPUs with KVM's interrupt controllers.
func newMachine(t testing.TB, n int) *machine {
	t.Helper()
	supported, err := kvmtest.Open(t).GetSupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	return newMachineOn(t, supported, n)
}

// newMachineOn makes a machine on a host that supports no more than the given leaves of CPUID.
func newMachineOn(t testing.TB, supported []kvm.CPUIDEntry, n int) *machine {
	t.Helper()
	sys := kvmtest.Open(t)
	m := &machine{ram: kvmtest.RAM(t, memorySize), events: make(chan vcpu.Event, 16)}
	var err error
	if m.vm, err = sys.CreateVM(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range m.cpus {
			if err := c.Stop(); err != nil {
				t.Error(err)
			}
		}
		m.vm.Close()
	})
	if err := errors.Join(
		m.vm.SetUserMemoryRegion(0, 0, 0, m.ram),
		m.vm.CreateIRQChip(),
		m.vm.CreatePIT2(0),
	); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		k, err := m.vm.CreateVCPU(i)
		if err != nil {
			t.Fatal(err)
		}
		cpuid, err := vcpu.CPUID(supported, i, n, true)
		if err != nil {
			t.Fatal(err)
		}
		c, err := vcpu.New(k, i, cpuid, &m.ports, &m.mmio, func(e vcpu.Event) { m.events <- e })
		if err != nil {
			t.Fatal(err)
		}
		m.cpus = append(m.cpus, c)
	}
	return m
}

// start loads p and lets all vCPUs run.
func (m *machine) start(t testing.TB, p kvmtest.Program) {
	t.Helper()
	entry := kvmtest.Load(m.ram, p)
	if err := m.cpus[0].Do(entry.SetRegisters); err != nil {
		t.Fatal(err)
	}
	m.resume(t)
}

func (m *machine) resume(t testing.TB) {
	t.Helper()
	for _, c := range m.cpus {
		if err := c.Resume(); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *machine) pause(t testing.TB) {
	t.Helper()
	for _, c := range m.cpus {
		if err := c.Pause(); err != nil {
			t.Fatal(err)
		}
	}
}

// write is a write that a guest made.
type write struct {
	Addr, Value uint64
	Size, VCPU  int
}

// recorder is a device that tells what was written and answers reads with a value.
type recorder struct {
	writes chan write
	value  uint64
}

func newRecorder(value uint64) *recorder { return &recorder{make(chan write, 64), value} }

func (r *recorder) Read(a bus.Access, p []byte) {
	for i := range p {
		p[i] = byte(r.value >> (8 * i))
	}
}

func (r *recorder) Write(a bus.Access, p []byte) {
	w := write{Addr: a.Addr, Size: len(p), VCPU: a.VCPU}
	for i, b := range p {
		w.Value |= uint64(b) << (8 * i)
	}
	r.writes <- w
}

// counter is a device that counts the writes to it and tells when there were as many as asked for.
type counter struct {
	n, until atomic.Int64 // until is 0 when nobody waits
	reached  chan struct{}
}

func newCounter() *counter { return &counter{reached: make(chan struct{}, 1)} }

func (c *counter) Read(bus.Access, []byte) {}

func (c *counter) Write(bus.Access, []byte) {
	n := c.n.Add(1)
	if until := c.until.Load(); until != 0 && n >= until && c.until.CompareAndSwap(until, 0) {
		c.reached <- struct{}{}
	}
}

// wait returns after at least n more writes.
func (c *counter) wait(n int64) {
	c.until.Store(c.n.Load() + n)
	<-c.reached
}
