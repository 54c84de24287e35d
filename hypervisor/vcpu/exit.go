package vcpu

import (
	"math/bits"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// exit does what the exit of the last KVM_RUN asks for. It returns true with an event if the guest cannot go on. It
// allocates nothing unless it does.
func (c *CPU) exit() (Event, bool) {
	switch reason := c.k.ExitReason(); reason {
	case kvm.ExitIO:
		c.portIO(c.k.IO())
	case kvm.ExitMMIO:
		c.memoryIO(c.k.MMIO())
	case kvm.ExitIntr, kvm.ExitIRQWindowOpen:
	case kvm.ExitHLT:
		return Event{CPU: c.index, Kind: Halt}, true
	case kvm.ExitShutdown:
		return Event{CPU: c.index, Kind: TripleFault}, true
	case kvm.ExitSystemEvent:
		switch s := c.k.SystemEvent(); s.Type {
		case kvm.SystemEventShutdown:
			return Event{CPU: c.index, Kind: Shutdown}, true
		case kvm.SystemEventReset:
			return Event{CPU: c.index, Kind: Reset}, true
		case kvm.SystemEventCrash:
			return Event{CPU: c.index, Kind: Crash}, true
		}
		fallthrough
	default:
		return c.failed(0), true
	}
	return Event{}, false
}

func (c *CPU) portIO(a kvm.IO) {
	for p := a.Data; a.Size > 0 && len(p) >= a.Size; p = p[a.Size:] {
		if a.Out {
			c.ports.Write(c.index, uint64(a.Port), p[:a.Size])
		} else {
			c.ports.Read(c.index, uint64(a.Port), p[:a.Size])
		}
	}
}

// memoryIO makes one access of KVM's, or several where KVM's has a length that no instruction has: of an access that
// crosses a page's end, KVM hands over either part by itself, and they can be 3, 5, 6 or 7 bytes long.
func (c *CPU) memoryIO(a kvm.MMIO) {
	for addr, p := a.Addr, a.Data; len(p) > 0; {
		n := 1 << (bits.Len(uint(len(p))) - 1)
		if a.Write {
			c.mmio.Write(c.index, addr, p[:n])
		} else {
			c.mmio.Read(c.index, addr, p[:n])
		}
		addr, p = addr+uint64(n), p[n:]
	}
}
