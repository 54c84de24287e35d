package vcpu_test

import (
	"testing"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
)

// The exit path allocates nothing: a guest makes thousands of exits while we count.
func TestExitPathAllocatesNothing(t *testing.T) {
	for name, main := range map[string]func(*kvmtest.Asm){"port": pioLoop, "memory": mmioLoop} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 1)
			dev := newCounter()
			if err := m.ports.Map(bus.Range{Base: port, Size: 4}, dev); err != nil {
				t.Fatal(err)
			}
			if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 4}, dev); err != nil {
				t.Fatal(err)
			}
			m.start(t, kvmtest.Program{Ring: kvmtest.Ring0, Main: main})
			dev.wait(1)
			if n := testing.AllocsPerRun(10, func() { dev.wait(1000) }); n != 0 {
				t.Errorf("1000 exits allocate %v times", n)
			}
		})
	}
}

func mmioLoop(a *kvmtest.Asm) {
	a.Mov(kvmtest.RDI, mmioAt)
	top := a.Here()
	a.Store32(kvmtest.RDI, kvmtest.RAX).Jmp(top)
}

// BenchmarkPIOExit is one OUT from ring 0 through the bus to a device and back, with a jump.
func BenchmarkPIOExit(b *testing.B) {
	m := newMachine(b, 1)
	dev := newCounter()
	if err := m.ports.Map(bus.Range{Base: port, Size: 4}, dev); err != nil {
		b.Fatal(err)
	}
	m.start(b, kvmtest.Program{Ring: kvmtest.Ring0, Main: pioLoop})
	dev.wait(1000)
	b.ResetTimer()
	dev.wait(int64(b.N))
}

// BenchmarkPauseResume is a vCPU taken out of native code and let in again.
func BenchmarkPauseResume(b *testing.B) {
	m := newMachine(b, 1)
	dev := newRecorder(0)
	if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 4}, dev); err != nil {
		b.Fatal(err)
	}
	m.start(b, kvmtest.Program{Ring: kvmtest.Ring3, Main: countInMemory})
	m.take(b, dev, 1)
	for b.Loop() {
		m.pause(b)
		m.resume(b)
	}
}
