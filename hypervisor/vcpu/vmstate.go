package vcpu

import (
	"fmt"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// VMState is the state that KVM keeps for a whole machine: its two PICs, IOAPIC, PIT and kvmclock. Restore it after all
// vCPUs: the IOAPIC sends what it holds pending to their local APICs, and the clock is set once their TSCs are.
type VMState struct {
	VM *kvm.VM // after CreateIRQChip and CreatePIT2
}

// SnapID names the component.
func (s *VMState) SnapID() string { return "kvm" }

// SnapVersion is the version of the state.
func (s *VMState) SnapVersion() uint16 { return 1 }

// Pause does nothing: what KVM keeps moves only while vCPUs run and lines change.
func (s *VMState) Pause() error { return nil }

// Resume does nothing.
func (s *VMState) Resume() error { return nil }

// State saves or restores the chips and the clock. kvmclock goes on as if the machine had run all the while, so that the
// guest's clock is right.
func (s *VMState) State(c *snap.Codec) {
	var f vmFields
	if !c.Loading() {
		if err := f.get(s.VM); err != nil {
			c.Fail("%w", err)
			return
		}
	}
	f.fields(c)
	if c.Loading() && c.Err() == nil {
		if err := f.set(s.VM); err != nil {
			c.Fail("%w", err)
		}
	}
}

type vmFields struct {
	irqchips [3]kvm.IRQChip // PIC master and slave, IOAPIC: in the order of their IDs
	pit      kvm.PITState2
	clock    kvm.ClockData
}

func (f *vmFields) fields(c *snap.Codec) {
	for i := range f.irqchips {
		fixed(c, &f.irqchips[i])
	}
	fixed(c, &f.pit)
	fixed(c, &f.clock)
}

func (f *vmFields) get(vm *kvm.VM) (err error) {
	for i := range f.irqchips {
		if f.irqchips[i], err = vm.GetIRQChip(uint32(i)); err != nil {
			return err
		}
	}
	if f.pit, err = vm.GetPIT2(); err != nil {
		return err
	}
	if f.clock, err = vm.GetClock(); err != nil {
		return err
	}
	// KVM tells the real time only where the host keeps it by the TSC, but what matters are whole milliseconds.
	if f.clock.Flags&kvm.ClockRealtime == 0 {
		f.clock.Realtime = uint64(time.Now().UnixNano())
	}
	return nil
}

func (f *vmFields) set(vm *kvm.VM) error {
	for i := range f.irqchips {
		if id := f.irqchips[i].ID; id != uint32(i) {
			return fmt.Errorf("interrupt controller %d where %d belongs", id, i)
		}
		if err := vm.SetIRQChip(&f.irqchips[i]); err != nil {
			return err
		}
	}
	if err := vm.SetPIT2(&f.pit); err != nil {
		return err
	}
	// KVM could add the time itself, by ClockRealtime, since Linux 5.16 only.
	clock := f.clock.Clock
	if now := uint64(time.Now().UnixNano()); f.clock.Realtime != 0 && now > f.clock.Realtime {
		clock += now - f.clock.Realtime
	}
	return vm.SetClock(kvm.ClockData{Clock: clock})
}
