package vcpu

import (
	"fmt"
	"slices"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// getMSRs reads the registers that KVM lists, but for those that this vCPU does not have. The time-stamp counter comes
// first and the deadline, which is an instant of it, last.
func (s *state) getMSRs(v *kvm.VCPU) error {
	s.msrs = append(s.msrs, kvm.MSREntry{Index: msrTSC})
	for _, i := range v.MSRIndexList() {
		if i != msrTSC && i != msrTSCDeadline {
			s.msrs = append(s.msrs, kvm.MSREntry{Index: i})
		}
	}
	s.msrs = append(s.msrs, kvm.MSREntry{Index: msrTSCDeadline})

	good := s.msrs[:0]
	for rest := s.msrs; len(rest) > 0; {
		n, err := v.GetMSRs(rest)
		if err != nil {
			return err
		}
		good = append(good, rest[:n]...)
		rest = rest[min(n+1, len(rest)):] // without the one that it stopped at
	}
	s.msrs = good
	return nil
}

// setMSRs sets what was read. KVM refuses to write some that it lets read, with the value that they have.
func (s *state) setMSRs(v *kvm.VCPU) error {
	for rest := s.msrs; len(rest) > 0; {
		n, err := v.SetMSRs(rest)
		if err != nil {
			return err
		}
		if n == len(rest) {
			return nil
		}
		refused := rest[n]
		now := []kvm.MSREntry{{Index: refused.Index}}
		if got, err := v.GetMSRs(now); err != nil || got != 1 || now[0].Data != refused.Data {
			return fmt.Errorf("KVM_SET_MSRS: register %#x cannot be set to %#x", refused.Index, refused.Data)
		}
		rest = rest[n+1:]
	}
	return nil
}

// setCPUID restores what the guest was told of its CPU when it started, however this KVM would describe it. A feature
// that is missing here is an error. Where nothing changes, as on the same computer, KVM is spared the work.
func (c *CPU) setCPUID(saved []kvm.CPUIDEntry) error {
	if err := missingFeatures(saved, c.able); err != nil {
		return err
	}
	if slices.Equal(saved, c.cpuid) {
		return nil
	}
	if err := c.k.SetCPUID2(saved); err != nil {
		return err
	}
	c.cpuid = saved
	return nil
}

// featureWords returns EAX, EBX, ECX and EDX of e, without those bits that are no features. Left out are also
// those that follow the guest's own CR4 and APIC base: OSXSAVE, OSPKE and APIC.
func featureWords(e *kvm.CPUIDEntry) [4]uint32 {
	switch {
	case e.Function == leafFeatures:
		const apic, osxsave = 1 << 9, 1 << 27
		return [4]uint32{2: e.ECX &^ osxsave, 3: e.EDX &^ apic}
	case e.Function == 7 && e.Index == 0:
		const ospke = 1 << 4
		return [4]uint32{1: e.EBX, 2: e.ECX &^ ospke, 3: e.EDX}
	case e.Function == 7 && e.Index == 1:
		return [4]uint32{0: e.EAX}
	case e.Function == 0xd && e.Index == 0: // components of the XSAVE area
		return [4]uint32{0: e.EAX, 3: e.EDX}
	case e.Function == 0xd && e.Index == 1:
		return [4]uint32{0: e.EAX}
	case e.Function == leafExtFeatures:
		return [4]uint32{2: e.ECX, 3: e.EDX}
	}
	return [4]uint32{}
}

// missingFeatures returns an error that names the first word of saved with a feature that here does not have.
func missingFeatures(saved, here []kvm.CPUIDEntry) error {
	for i := range saved {
		s := &saved[i]
		missing := featureWords(s)
		for j := range here {
			if h := &here[j]; h.Function == s.Function && h.Index == s.Index {
				for w, have := range featureWords(h) {
					missing[w] &^= have
				}
			}
		}
		for w, m := range missing {
			if m != 0 {
				return fmt.Errorf("saved on a CPU with features that this one lacks: CPUID %#x.%d %s %#x",
					s.Function, s.Index, [...]string{"EAX", "EBX", "ECX", "EDX"}[w], m)
			}
		}
	}
	return nil
}
