// Package bus routes a guest's accesses, port I/O and memory-mapped I/O alike, to the devices that answer them.
//
// A lookup takes no lock and allocates nothing: the table is an immutable sorted slice behind an atomic pointer, and
// mapping a device, which is rare, replaces it.
package bus

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Access is one access of a vCPU.
type Access struct {
	Addr uint64 // absolute port number or guest-physical address
	Off  uint64 // Addr relative to the range that the device is mapped at
	VCPU int    // index of the vCPU that made it
}

// Device answers accesses. len(p) is 1, 2, 4 or 8 and the access lies within the device's range. p belongs to the
// caller: a device copies what it keeps. All vCPUs call concurrently; a device locks itself.
type Device interface {
	Read(a Access, p []byte)  // fills all of p, little-endian
	Write(a Access, p []byte) // takes all of p
}

// Range is a half-open interval [Base, Base+Size) of ports or of guest-physical addresses.
type Range struct{ Base, Size uint64 }

// End returns the first address after r.
func (r Range) End() uint64 { return r.Base + r.Size }

// String returns r as [base, end) in hexadecimal.
func (r Range) String() string { return fmt.Sprintf("[%#x, %#x)", r.Base, r.End()) }

type entry struct {
	Range
	dev Device
}

// Bus is one address space. The zero value is an empty bus.
type Bus struct {
	table atomic.Pointer[[]entry]
	mu    sync.Mutex // serialises Map and Unmap
}

// Map puts dev at r. It is an error if r is empty, wraps around, or overlaps a range that is mapped already.
func (b *Bus) Map(r Range, dev Device) error {
	if r.Size == 0 || r.End() < r.Base {
		return fmt.Errorf("map %v: empty or wrapping range", r)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.entries()
	i, _ := slices.BinarySearchFunc(old, r.Base, func(e entry, base uint64) int {
		if e.Base < base {
			return -1
		}
		return 1
	})
	if i > 0 && old[i-1].End() > r.Base {
		return fmt.Errorf("map %v: overlaps %v", r, old[i-1].Range)
	}
	if i < len(old) && r.End() > old[i].Base {
		return fmt.Errorf("map %v: overlaps %v", r, old[i].Range)
	}
	table := slices.Insert(slices.Clone(old), i, entry{r, dev})
	b.table.Store(&table)
	return nil
}

// Unmap removes the range that starts at base. An access that is under way may still reach the device. Unmapping what
// is not mapped does nothing.
func (b *Bus) Unmap(base uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.entries()
	i := slices.IndexFunc(old, func(e entry) bool { return e.Base == base })
	if i < 0 {
		return
	}
	table := slices.Delete(slices.Clone(old), i, i+1)
	b.table.Store(&table)
}

// Read fills p from the device at addr. Where none is, or where the access straddles a device's end, all bits read as
// one, as on an undriven bus.
func (b *Bus) Read(vcpu int, addr uint64, p []byte) {
	if e := b.find(addr, len(p)); e != nil {
		e.dev.Read(Access{Addr: addr, Off: addr - e.Base, VCPU: vcpu}, p)
		return
	}
	for i := range p {
		p[i] = 0xff
	}
}

// Write hands p to the device at addr. Where none is, the write is lost.
func (b *Bus) Write(vcpu int, addr uint64, p []byte) {
	if e := b.find(addr, len(p)); e != nil {
		e.dev.Write(Access{Addr: addr, Off: addr - e.Base, VCPU: vcpu}, p)
	}
}

// Ranges returns what is mapped, in ascending order.
func (b *Bus) Ranges() []Range {
	var rs []Range
	for _, e := range b.entries() {
		rs = append(rs, e.Range)
	}
	return rs
}

func (b *Bus) entries() []entry {
	if t := b.table.Load(); t != nil {
		return *t
	}
	return nil
}

// find returns the entry that holds all n bytes at addr, or nil.
func (b *Bus) find(addr uint64, n int) *entry {
	t := b.entries()
	lo, hi := 0, len(t)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); t[mid].End() <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(t) || addr < t[lo].Base || uint64(n) > t[lo].End()-addr {
		return nil
	}
	return &t[lo]
}
