package vcpu

import (
	"bytes"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// What decodes encodes to the same bytes, save reserved fields; what does not is an error.
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
		if c.Err() != nil {
			return
		}
		once := encode(&s)
		var again state
		c = snap.NewDecoder(once, new(CPU).SnapVersion())
		again.fields(c)
		c.Done()
		if c.Err() != nil || !bytes.Equal(encode(&again), once) {
			t.Fatalf("does not survive a round trip: %v", c.Err())
		}
	})
}

func encode(s *state) []byte {
	c := snap.NewEncoder(new(CPU).SnapVersion())
	s.fields(c)
	return c.Data()
}

func FuzzVMState(f *testing.F) {
	c := snap.NewEncoder(1)
	new(vmFields).fields(c)
	f.Add(c.Data())
	f.Fuzz(func(t *testing.T, b []byte) {
		new(vmFields).fields(snap.NewDecoder(b, 1))
	})
}
