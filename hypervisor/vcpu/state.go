package vcpu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Limits of what a saved state may hold, well above what KVM has.
const (
	maxLeaves = 1024
	maxMSRs   = 4096
	maxXSAVE  = 1 << 20
)

// state is a vCPU's architectural state. KVM_GET_FPU's is part of the XSAVE area.
type state struct {
	cpuid     []kvm.CPUIDEntry
	mpState   uint32
	events    kvm.VCPUEvents
	regs      kvm.Regs
	sregs     kvm.SRegs2
	debugRegs kvm.DebugRegs
	xsave     []byte
	xcrs      kvm.XCRs
	msrs      []kvm.MSREntry
	lapic     kvm.LAPIC

	tscKHz uint32 // of the time-stamp counter; 0 if KVM does not tell
	read   int64  // when the counter was read, in nanoseconds since 1970
}

// SnapID names the vCPU among its machine's components.
func (c *CPU) SnapID() string { return fmt.Sprintf("vcpu.%d", c.index) }

// SnapVersion is the version of the state. Since version 2 it tells when the time-stamp counter was read.
func (c *CPU) SnapVersion() uint16 { return 2 }

// State saves or restores the vCPU, which is Created or Paused, by way of its thread. To restore, memory must be in
// place (setting kvmclock's registers writes to it), and the vCPU not have run; and all vCPUs are restored before
// VMState, whose IOAPIC sends what it holds pending to their local APICs.
//
// The time-stamp counter has gone on meanwhile as if the machine had run, as kvmclock has: a guest that is told that the
// counter is invariant keeps the time by it.
func (c *CPU) State(codec *snap.Codec) {
	if s := c.Status(); s != Created && s != Paused {
		codec.Fail("vcpu %d: is %v: pause it first", c.index, s)
		return
	}
	var s state
	if codec.Loading() {
		s.fields(codec)
		if codec.Err() == nil {
			if err := c.Do(func(k *kvm.VCPU) error {
				if err := c.setCPUID(s.cpuid); err != nil { // first: it decides which bits of the rest are valid
					return err
				}
				return s.set(k)
			}); err != nil {
				codec.Fail("%w", err)
			}
		}
		return
	}
	s.cpuid = c.cpuid
	if err := c.Do(s.get); err != nil {
		codec.Fail("%w", err)
		return
	}
	s.fields(codec)
}

// fields carries s.
func (s *state) fields(c *snap.Codec) {
	list(c, &s.cpuid, maxLeaves)
	c.U32(&s.mpState)
	fixed(c, &s.events)
	fixed(c, &s.regs)
	fixed(c, &s.sregs)
	fixed(c, &s.debugRegs)
	c.Bytes(&s.xsave, maxXSAVE)
	fixed(c, &s.xcrs)
	list(c, &s.msrs, maxMSRs)
	c.Fixed(s.lapic[:])
	if c.Version() >= 2 {
		c.U32(&s.tscKHz)
		c.I64(&s.read)
	}
}

// fixed carries a structure whose fields all have a fixed size, as they stand, reserved ones as zero.
func fixed[T any](c *snap.Codec, v *T) {
	b := make([]byte, binary.Size(v))
	encode := func(b []byte) {
		if _, err := binary.Encode(b, binary.LittleEndian, v); err != nil {
			c.Fail("encode %T: %w", v, err)
		}
	}
	if !c.Loading() {
		encode(b)
	}
	c.Fixed(b)
	if !c.Loading() || c.Err() != nil {
		return
	}
	if _, err := binary.Decode(b, binary.LittleEndian, v); err != nil {
		c.Fail("decode %T: %w", v, err)
	}
	known := make([]byte, len(b))
	if encode(known); !bytes.Equal(known, b) {
		c.Fail("reserved fields of %T are not zero", *v)
	}
}

// list carries up to limit such structures with their number.
func list[T any](c *snap.Codec, v *[]T, limit int) {
	n := c.Len(len(*v), limit)
	if c.Loading() {
		*v = make([]T, n)
	}
	for i := range *v {
		fixed(c, &(*v)[i])
	}
}

// get reads the state from v. The order is KVM's demand:
//   - KVM_GET_MP_STATE first: it handles an INIT or SIPI that has arrived, which changes everything else.
//   - KVM_GET_VCPU_EVENTS before the registers: an exception on its way may put its payload into CR2 or DR6 there.
//   - The registers before the local APIC: if the deadline timer expires in between, then the guest has one interrupt
//     too many, not one too few.
func (s *state) get(v *kvm.VCPU) (err error) {
	if s.mpState, err = v.GetMPState(); err != nil {
		return err
	}
	s.xsave = make([]byte, v.XSAVESize())
	if err := errors.Join(
		v.GetVCPUEvents(&s.events),
		v.GetRegs(&s.regs),
		v.GetSRegs2(&s.sregs),
		v.GetDebugRegs(&s.debugRegs),
		v.GetXSAVE2(s.xsave),
		v.GetXCRS(&s.xcrs),
	); err != nil {
		return err
	}
	if khz, err := v.GetTSCKHz(); err == nil {
		s.tscKHz = uint32(khz)
	}
	s.read = time.Now().UnixNano()
	if err := s.getMSRs(v); err != nil {
		return err
	}
	return v.GetLAPIC(&s.lapic)
}

// set puts the state into v. The order is KVM's demand:
//   - SREGS2 before the local APIC: it holds the APIC's base and mode, which decide the form of the rest.
//   - The local APIC before the MSRs: the deadline is ignored unless the APIC's timer is in deadline mode.
//   - REGS before VCPU_EVENTS: it drops a pending exception.
//   - MP_STATE after SREGS2, which wakes a boot processor that is at the reset vector; VCPU_EVENTS last.
func (s *state) set(v *kvm.VCPU) error {
	if len(s.xsave) != v.XSAVESize() {
		return fmt.Errorf("saved with an XSAVE area of %d bytes, where this CPU has one of %d", len(s.xsave), v.XSAVESize())
	}
	sregs := s.sregs
	if isAMD(s.cpuid) {
		// AMD's CPUs keep the task register without its busy bit, which KVM adds when it is asked (svm_get_segment). What
		// KVM is given it hands to the CPU as it is: silicon does not mind, QEMU's emulation of it aborts.
		sregs.TR.Type &^= 0x2
	}
	if err := s.setTSCKHz(v); err != nil {
		return err
	}
	for _, set := range []func() error{
		func() error { return v.SetRegs(&s.regs) },
		func() error { return v.SetSRegs2(&sregs) },
		func() error { return v.SetDebugRegs(&s.debugRegs) },
		func() error { return v.SetXCRS(&s.xcrs) },
		func() error { return v.SetXSAVE(s.xsave) },
		func() error { return v.SetLAPIC(&s.lapic) },
		func() error {
			s.advanceTSC(time.Now().UnixNano())
			return s.setMSRs(v)
		},
		func() error { return v.SetMPState(s.mpState) },
		func() error { return v.SetVCPUEvents(&s.events) },
	} {
		if err := set(); err != nil {
			return err
		}
	}
	// So that a watchdog in the guest does not take the time since it was saved for a lockup. EINVAL: it has no kvmclock.
	if err := v.KVMClockCtrl(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}
