package vcpu

import (
	"bytes"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

func TestStateRefusesReserved(t *testing.T) {
	c := snap.NewEncoder(new(CPU).SnapVersion())
	new(state).fields(c)
	b := c.Data()
	b[4+4+8+4+3] = 1 // after the NMI's three fields, of the events, which follow the length of a list and the MP state
	c = snap.NewDecoder(b, new(CPU).SnapVersion())
	new(state).fields(c)
	if err := c.Err(); err == nil || err.Error() != "reserved fields of kvm.VCPUEvents are not zero" {
		t.Error(err)
	}
}

// What decodes encodes to the same bytes; what does not is an error.
func FuzzState(f *testing.F) {
	full := state{cpuid: make([]kvm.CPUIDEntry, 3), msrs: make([]kvm.MSREntry, 2), xsave: make([]byte, 64)}
	for _, s := range []state{{}, full} {
		c := snap.NewEncoder(new(CPU).SnapVersion())
		s.fields(c)
		f.Add(c.Data())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s state
		c := snap.NewDecoder(b, new(CPU).SnapVersion())
		s.fields(c)
		if c.Done(); c.Err() != nil {
			return
		}
		again := snap.NewEncoder(new(CPU).SnapVersion())
		if s.fields(again); !bytes.Equal(again.Data(), b) {
			t.Fatalf("saved again it is another state:\n%x\n%x", b, again.Data())
		}
	})
}

func FuzzVMState(f *testing.F) {
	c := snap.NewEncoder(1)
	new(vmFields).fields(c)
	f.Add(c.Data())
	f.Fuzz(func(t *testing.T, b []byte) {
		var v vmFields
		c := snap.NewDecoder(b, 1)
		v.fields(c)
		if c.Done(); c.Err() != nil {
			return
		}
		again := snap.NewEncoder(1)
		if v.fields(again); !bytes.Equal(again.Data(), b) {
			t.Fatalf("saved again it is another state:\n%x\n%x", b, again.Data())
		}
	})
}
