package vcpu_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

const (
	tscMSR      = 0x10
	deadlineMSR = 0x6e0
)

// The state of a vCPU ends with the frequency of its counter and the time at which that was read.
const (
	tscKHzAt = -12
	readAt   = -8
)

// earlier returns a state as it would be if it had been saved d ago.
func earlier(state []byte, d time.Duration) []byte {
	b := append([]byte(nil), state...)
	at := b[len(b)+readAt:]
	binary.LittleEndian.PutUint64(at, binary.LittleEndian.Uint64(at)-uint64(d))
	return b
}

// tsc returns the time-stamp counter of vCPU i and its frequency in kHz.
func (m *machine) tsc(t testing.TB, i int) (count, khz uint64) {
	t.Helper()
	if err := m.cpus[i].Do(func(k *kvm.VCPU) error {
		r := []kvm.MSREntry{{Index: tscMSR}}
		if n, err := k.GetMSRs(r); err != nil || n != 1 {
			t.Fatalf("cannot read the time-stamp counter: %v", err)
		}
		f, err := k.GetTSCKHz()
		count, khz = r[0].Data, uint64(f)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return count, khz
}

// A vCPU that was saved an hour ago has counted on for an hour, and all vCPUs by the same.
func TestCounterGoesOn(t *testing.T) {
	const hour = 3600
	m, n := newMachine(t, 2), newMachine(t, 2)
	begun := time.Now()
	before, khz := m.tsc(t, 0)
	for i := range m.cpus {
		restore(t, n.cpus[i], earlier(save(t, m.cpus[i]), hour*time.Second))
	}
	first, _ := n.tsc(t, 0)
	second, _ := n.tsc(t, 1)
	again, _ := n.tsc(t, 0)
	if second < first || again < second {
		t.Errorf("vCPU 0 counts %d, then vCPU 1 %d, then vCPU 0 %d", first, second, again)
	}
	if !n.ownCounter(t) {
		return // TestDeadlinePasses shows the same by the timer, which KVM works out by the counter that it was given
	}
	took := uint64(time.Since(begun).Seconds()*1.1 + 1)
	if passed := (first - before) / khz / 1000; passed < hour-1 || passed > hour+took {
		t.Errorf("the counter went on by %d s, want an hour", passed)
	}
}

// ownCounter reports whether KVM gives the guest a time-stamp counter of its own. PVM does not: its guest has the CPU's.
func (m *machine) ownCounter(t testing.TB) bool {
	t.Helper()
	before, _ := m.tsc(t, 0)
	const ahead = 1 << 50
	if err := m.cpus[0].Do(func(k *kvm.VCPU) error {
		_, err := k.SetMSRs([]kvm.MSREntry{{Index: tscMSR, Data: before + ahead}})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	after, _ := m.tsc(t, 0)
	return after-before >= ahead
}

// A deadline that has passed while the guest was saved interrupts it.
func TestDeadlinePasses(t *testing.T) {
	const vector, fired = 0x41, mmioAt + 0x100
	handler := func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RDI, fired).Mov(kvmtest.RAX, 1).Store32(kvmtest.RDI, kvmtest.RAX)
		kvmtest.EndOfInterrupt(a).Iretq()
	}
	running := newCounter()
	m := newMachine(t, 1)
	if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 8}, running); err != nil {
		t.Fatal(err)
	}
	m.start(t, kvmtest.Program{
		Ring: kvmtest.Ring3, Main: countAndTell, Handlers: map[byte]func(*kvmtest.Asm){vector: handler},
	})
	running.wait(100)
	m.pause(t)
	now, khz := m.tsc(t, 0)
	if err := m.cpus[0].Do(func(k *kvm.VCPU) error {
		const timer, deadlineMode = 0x320, 2 << 17
		var l kvm.LAPIC
		if err := k.GetLAPIC(&l); err != nil {
			return err
		}
		binary.LittleEndian.PutUint32(l[timer:], deadlineMode|vector)
		if err := k.SetLAPIC(&l); err != nil {
			return err
		}
		const minutes = 10 * 60
		n, err := k.SetMSRs([]kvm.MSREntry{{Index: deadlineMSR, Data: now + minutes*1000*khz}})
		if n != 1 {
			t.Fatalf("there is no deadline timer: %v", err)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}

	n := newMachine(t, 1)
	copy(n.ram, m.ram)
	timer := newRecorder(0)
	if err := n.mmio.Map(bus.Range{Base: fired, Size: 4}, timer); err != nil {
		t.Fatal(err)
	}
	restore(t, n.cpus[0], earlier(save(t, m.cpus[0]), time.Hour))
	n.resume(t)
	select {
	case <-timer.writes:
	case <-time.After(10 * time.Second):
		t.Error("the deadline has passed, and nothing came of it")
	}
}

// A counter of another frequency is scaled, or refused by name.
func TestCounterOfAnotherFrequency(t *testing.T) {
	m := newMachine(t, 1)
	_, khz := m.tsc(t, 0)
	state := save(t, m.cpus[0])
	binary.LittleEndian.PutUint32(state[len(state)+tscKHzAt:], uint32(khz/2))
	n := newMachine(t, 1)
	c := snap.NewDecoder(state, n.cpus[0].SnapVersion())
	n.cpus[0].State(c)
	if err := c.Err(); err != nil {
		if !strings.Contains(err.Error(), "time-stamp counter") {
			t.Error(err)
		}
		return
	}
	if _, now := n.tsc(t, 0); now > khz*3/4 {
		t.Errorf("counts with %d kHz, want %d", now, khz/2)
	}
}

// What version 1 saved has no time: its counter goes on from where it was.
func TestStateVersion1(t *testing.T) {
	m, n := newMachine(t, 1), newMachine(t, 1)
	state := save(t, m.cpus[0])
	c := snap.NewDecoder(state[:len(state)+tscKHzAt], 1)
	n.cpus[0].State(c)
	c.Done()
	if err := c.Err(); err != nil {
		t.Error(err)
	}
}
