package vcpu

import (
	"fmt"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

const (
	msrTSC         = 0x10
	msrTSCDeadline = 0x6e0
)

// tscTolerance is by how many millionths two frequencies may differ and still count as one: what KVM allows too, and what
// NTP evens out. The host measures its counter anew at each of its boots.
const tscTolerance = 250

// setTSCKHz makes the time-stamp counter count with the saved frequency. A guest that measured it keeps its time by it.
func (s *state) setTSCKHz(v *kvm.VCPU) error {
	if s.tscKHz == 0 {
		return nil
	}
	here, err := v.GetTSCKHz()
	if err != nil {
		return err
	}
	if sameTSC(int64(s.tscKHz), int64(here)) {
		return nil
	}
	if err := v.SetTSCKHz(int(s.tscKHz)); err != nil {
		return fmt.Errorf("saved where the time-stamp counter has %d kHz, here it has %d: restore on that computer: %w", s.tscKHz, here, err)
	}
	return nil
}

// sameTSC reports whether two frequencies are the same but for tscTolerance.
func sameTSC(saved, here int64) bool {
	return max(saved-here, here-saved)*1e6 <= here*tscTolerance
}

// advanceTSC adds to the time-stamp counter what it would have counted from when it was read until now, in nanoseconds
// since 1970. What is set of an instant of it, the deadline of the local APIC's timer, stays: one that has passed expires
// at once. TSC_ADJUST stays too: it is what the guest has added to the counter, not what the counter counts.
//
// Each vCPU's counter was read at a moment of its own, and is set at one. If what the vCPUs get then differs from what the
// first got by less than a second, KVM takes it for the same and makes it so.
func (s *state) advanceTSC(now int64) {
	if s.tscKHz == 0 || now <= s.read || s.read <= 0 { // a clock that was set back does not turn the counter back
		return
	}
	const second = uint64(time.Second)
	passed, khz := uint64(now-s.read), uint64(s.tscKHz)
	for i := range s.msrs {
		if s.msrs[i].Index == msrTSC { // in two parts, so that a year does not overflow
			s.msrs[i].Data += passed/second*khz*1e3 + passed%second*khz/1e6
		}
	}
}
