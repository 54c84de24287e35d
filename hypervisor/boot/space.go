package boot

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// MemType says what a range of guest-physical addresses is, numbered as in ACPI 6.5 §15, table 15.9.
type MemType uint32

// Types of memory ranges.
const (
	RAM      MemType = 1
	Reserved MemType = 2
	ACPI     MemType = 3 // holds ACPI tables; RAM once the guest has read them
	NVS      MemType = 4 // ACPI non-volatile storage
	Unusable MemType = 5
)

// MemRange is one entry of the memory map that the guest is told.
type MemRange struct {
	Base, Size uint64
	Type       MemType
}

// span is a half-open interval of guest-physical addresses.
type span struct{ base, end uint64 }

func (s span) String() string { return fmt.Sprintf("[%#x, %#x)", s.base, s.end) }

// placed is a span with an owner, for messages.
type placed struct {
	span
	name string
}

// space hands out guest RAM to what a loader places, and writes there. Nothing is written before it was reserved.
type space struct {
	m      *mem.Memory
	zeroed bool
	ram    []span // ascending, adjacent ranges merged
	free   []span // ram without what is taken
	taken  []placed
}

// newSpace checks the memory map and takes the RAM of it as free.
func newSpace(m *mem.Memory, ranges []MemRange, zeroed bool) (*space, error) {
	if len(ranges) > maxMemRanges {
		return nil, fmt.Errorf("memory map: %d ranges, at most %d fit", len(ranges), maxMemRanges)
	}
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b MemRange) int {
		return cmp.Compare(a.Base, b.Base)
	})
	s := &space{m: m, zeroed: zeroed}
	var last uint64
	for i, r := range sorted {
		end := r.Base + r.Size
		if r.Size == 0 || end < r.Base {
			return nil, fmt.Errorf("memory map: range at %#x: size %#x is empty or wraps", r.Base, r.Size)
		}
		if i > 0 && r.Base < last {
			return nil, fmt.Errorf("memory map: range at %#x overlaps the one that ends at %#x", r.Base, last)
		}
		last = end
		if r.Type != RAM {
			continue
		}
		if n := len(s.ram); n > 0 && s.ram[n-1].end == r.Base {
			s.ram[n-1].end = end
		} else {
			s.ram = append(s.ram, span{r.Base, end})
		}
	}
	if len(s.ram) == 0 {
		return nil, fmt.Errorf("memory map: no RAM in it")
	}
	s.free = slices.Clone(s.ram)
	return s, nil
}

// reserve takes [base, base+size), which must be free RAM. A size of 0 takes nothing.
func (s *space) reserve(name string, base, size uint64) error {
	if size == 0 {
		return nil
	}
	want := span{base, base + size}
	if want.end < base {
		return fmt.Errorf("%s: %#x bytes at %#x wrap around the address space", name, size, base)
	}
	for i, f := range s.free {
		if f.base <= want.base && want.end <= f.end {
			s.take(i, name, want)
			return nil
		}
	}
	for _, t := range s.taken {
		if want.base < t.end && t.base < want.end {
			return fmt.Errorf("%s %v overlaps %s %v", name, want, t.name, t.span)
		}
	}
	if top := s.top(lowRAMMax); want.end > top && want.end <= lowRAMMax {
		return fmt.Errorf("%s %v lies outside the guest's memory, which ends at %#x: give the guest at least %d MiB", name, want, top, mib(want.end))
	}
	return fmt.Errorf("%s %v is not RAM in the guest's memory map", name, want)
}

// take moves want from free span i to the taken ones.
func (s *space) take(i int, name string, want span) {
	f := s.free[i]
	var rest []span
	if f.base < want.base {
		rest = append(rest, span{f.base, want.base})
	}
	if want.end < f.end {
		rest = append(rest, span{want.end, f.end})
	}
	s.free = slices.Replace(s.free, i, i+1, rest...)
	s.taken = append(s.taken, placed{want, name})
}

// highest takes size bytes, page-aligned, as high as possible with all of them below limit, and at 1 MiB or above.
func (s *space) highest(name string, size, limit uint64) (uint64, error) {
	for i := len(s.free) - 1; i >= 0; i-- {
		f := s.free[i]
		if top := min(f.end, limit); top >= size {
			if base := (top - size) &^ (mem.PageSize - 1); base >= max(f.base, highAddr) {
				s.take(i, name, span{base, base + size})
				return base, nil
			}
		}
	}
	return 0, s.noRoom(name, size, limit)
}

// lowest takes size bytes, page-aligned, as low as possible at or above floor with all of them below limit.
func (s *space) lowest(name string, size, floor, limit uint64) (uint64, error) {
	for i, f := range s.free {
		base := pageUp(max(f.base, floor))
		if top := min(f.end, limit); base >= f.base && base <= top && top-base >= size {
			s.take(i, name, span{base, base + size})
			return base, nil
		}
	}
	return 0, s.noRoom(name, size, limit)
}

// noRoom says what a user can do about size bytes that find no place below limit.
func (s *space) noRoom(name string, size, limit uint64) error {
	used := uint64(highAddr)
	for _, t := range s.taken {
		if t.end <= limit {
			used = max(used, t.end)
		}
	}
	need := pageUp(used) + pageUp(size)
	if limit = min(limit, lowRAMMax); size > limit || need > limit {
		return fmt.Errorf("%s: %d MiB find no room below %#x, where the kernel needs it: make it smaller", name, mib(size), limit)
	}
	return fmt.Errorf("%s: %d MiB find no room in guest memory, which ends at %#x: give the guest at least %d MiB", name, mib(size), s.top(limit), mib(need))
}

// top returns the end of the highest RAM that begins below limit.
func (s *space) top(limit uint64) uint64 {
	var top uint64
	for _, r := range s.ram {
		if r.base < limit {
			top = r.end
		}
	}
	return top
}

// mib returns n bytes in MiB, rounded up.
func mib(n uint64) uint64 {
	const m = 1 << 20
	if n%m != 0 {
		return n/m + 1
	}
	return n / m
}

// pageUp rounds n up to whole pages; for the last page of the address space the result is 0.
func pageUp(n uint64) uint64 { return (n + mem.PageSize - 1) &^ (mem.PageSize - 1) }

// part returns guest memory at gpa: n bytes, or fewer if the region that holds gpa ends earlier.
func (s *space) part(gpa, n uint64) ([]byte, error) {
	for _, r := range s.m.Regions() {
		if base, end := uint64(r.Base), uint64(r.End()); base <= gpa && gpa < end {
			return s.m.Slice(mem.GPA(gpa), int(min(n, end-gpa)))
		}
	}
	return nil, fmt.Errorf("memory map: RAM at %#x: %w", gpa, mem.ErrOutOfRange)
}

// write copies p to gpa.
func (s *space) write(gpa uint64, p []byte) error {
	if err := s.m.WriteAt(p, mem.GPA(gpa)); err != nil {
		return fmt.Errorf("memory map: RAM at %#x: %w", gpa, err)
	}
	return nil
}

// fill reads n bytes at offset off of img straight into guest memory at gpa.
func (s *space) fill(img Image, off, gpa, n uint64) error {
	for n > 0 {
		p, err := s.part(gpa, n)
		if err != nil {
			return err
		}
		if err := img.read(p, off); err != nil {
			return err
		}
		off, gpa, n = off+uint64(len(p)), gpa+uint64(len(p)), n-uint64(len(p))
	}
	return nil
}

// bounceSize is what fits a CPU's second-level cache, where a copy costs little beside a page fault.
const bounceSize = 128 << 10

// fillSparse is fill for images that hold many zeros. Half of a distribution's uncompressed kernel is pages of zeros; where
// guest memory is known to be zero they are left alone, and take neither a page fault nor a page frame. To see them before
// they are written, the file goes through a small buffer.
func (s *space) fillSparse(img Image, off, gpa, n uint64) error {
	if !s.zeroed {
		return s.fill(img, off, gpa, n)
	}
	var zeros [mem.PageSize]byte
	buf := make([]byte, min(n, bounceSize))
	for n > 0 {
		p, err := s.part(gpa, min(n, bounceSize-gpa%mem.PageSize)) // later pieces begin at whole pages
		if err != nil {
			return err
		}
		b := buf[:len(p)]
		if err := img.read(b, off); err != nil {
			return err
		}
		off, n = off+uint64(len(p)), n-uint64(len(p))
		for len(p) > 0 {
			page := min(len(p), int(mem.PageSize-gpa%mem.PageSize))
			if !bytes.Equal(b[:page], zeros[:page]) {
				copy(p, b[:page])
			}
			gpa, p, b = gpa+uint64(page), p[page:], b[page:]
		}
	}
	return nil
}

// zero clears n bytes at gpa, unless all of guest memory is known to be zero.
func (s *space) zero(gpa, n uint64) error {
	if s.zeroed {
		return nil
	}
	for n > 0 {
		p, err := s.part(gpa, n)
		if err != nil {
			return err
		}
		clear(p)
		gpa, n = gpa+uint64(len(p)), n-uint64(len(p))
	}
	return nil
}
