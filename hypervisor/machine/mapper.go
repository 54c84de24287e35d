package machine

import (
	"fmt"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// maxMappings bounds how much memory of its devices' a guest can have at once, by far.
const maxMappings = 64

// mapper implements bus.Mapper by the memory slots after those of RAM.
type mapper struct {
	vm    *kvm.VM
	first uint32 // slot number

	mu   sync.Mutex
	used [maxMappings]bool
}

// Map implements bus.Mapper. The kernel refuses what overlaps another slot.
func (m *mapper) Map(base uint64, memory []byte) (bus.Mapping, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.used {
		if m.used[i] {
			continue
		}
		s := &mapping{m: m, i: i, base: base}
		if err := m.vm.SetUserMemoryRegion(s.slot(), kvm.MemLogDirtyPages, base, memory); err != nil {
			return nil, err
		}
		m.used[i] = true
		return s, nil
	}
	return nil, fmt.Errorf("memory of a device at %#x: all %d slots are taken", base, maxMappings)
}

// mapping is one slot.
type mapping struct {
	m    *mapper
	i    int
	base uint64
}

func (s *mapping) slot() uint32 { return s.m.first + uint32(s.i) }

// Dirty implements bus.Mapping.
func (s *mapping) Dirty(pages []uint64) error { return s.m.vm.GetDirtyLog(s.slot(), pages) }

// Unmap implements bus.Mapping.
func (s *mapping) Unmap() error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if err := s.m.vm.SetUserMemoryRegion(s.slot(), 0, s.base, nil); err != nil {
		return err
	}
	s.m.used[s.i] = false
	return nil
}
