// Package mem is a guest's physical memory: a sorted list of RAM regions in which every access by guest-physical
// address is range-checked.
//
// The bytes of a region live outside the Go heap (a sealed memfd, or a saved file mapped privately) or, in tests, on it:
// the rest of the VMM cannot tell which. Regions never move and are never resized, so a slice that Slice returned
// stays valid until Close.
//
// The guest writes to this memory while we read it. A caller copies what it validates (descriptors, headers) exactly
// once and never looks at the guest's copy again.
package mem

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// GPA is a guest-physical address in bytes.
type GPA uint64

// PageSize is the granularity, in bytes, of regions, of discarding and of saved memory.
const PageSize = 4096

var (
	// ErrOutOfRange reports an access to an address that no region holds.
	ErrOutOfRange = errors.New("guest-physical address out of range")
	// ErrNotContiguous reports a Slice that would span two regions.
	ErrNotContiguous = errors.New("guest-physical range is not contiguous")
)

// Region is one contiguous piece of RAM.
type Region struct {
	Base  GPA      // first guest-physical address, page-aligned
	Bytes []byte   // the memory itself; its length is a multiple of PageSize
	File  *os.File // the memfd behind Bytes, or nil: heap memory and private mappings have none
	Off   int64    // offset of Bytes in File
}

// End returns the first guest-physical address after r.
func (r Region) End() GPA { return r.Base + GPA(len(r.Bytes)) }

// Memory is the RAM of one guest. Its methods may be called from any goroutine; Close may not run beside another.
type Memory struct {
	regions []Region // sorted by Base, not overlapping, never changed
	discard func(b []byte) error
	close   func() error
}

// New returns a Memory of the given regions, which it sorts. It is an error if they overlap or are not page-aligned.
func New(regions ...Region) (*Memory, error) {
	rs := slices.Clone(regions)
	slices.SortFunc(rs, func(a, b Region) int {
		switch {
		case a.Base < b.Base:
			return -1
		case a.Base > b.Base:
			return 1
		}
		return 0
	})
	for i, r := range rs {
		if r.Base%PageSize != 0 || len(r.Bytes)%PageSize != 0 || len(r.Bytes) == 0 || r.End() < r.Base {
			return nil, fmt.Errorf("memory region [%#x, %#x): not whole pages", r.Base, r.End())
		}
		if i > 0 && rs[i-1].End() > r.Base {
			return nil, fmt.Errorf("memory region [%#x, %#x): overlaps the one that ends at %#x", r.Base, r.End(), rs[i-1].End())
		}
	}
	return &Memory{regions: rs}, nil
}

// NewHeap returns size bytes of RAM at address 0 on the Go heap, where the race detector sees it. For tests.
// It panics if size is not a positive multiple of PageSize.
func NewHeap(size int) *Memory {
	m, err := New(Region{Bytes: make([]byte, size)})
	if err != nil {
		panic(err)
	}
	return m
}

// Regions returns the regions in ascending order. The caller must not change the slice.
func (m *Memory) Regions() []Region { return m.regions }

// Size returns the sum of the regions' lengths in bytes.
func (m *Memory) Size() uint64 {
	var n uint64
	for _, r := range m.regions {
		n += uint64(len(r.Bytes))
	}
	return n
}

// find returns the region that holds gpa and gpa's offset in it.
func (m *Memory) find(gpa GPA) (*Region, uint64, bool) {
	for i := range m.regions { // two or three regions: a scan beats a search
		r := &m.regions[i]
		if off := uint64(gpa - r.Base); gpa >= r.Base && off < uint64(len(r.Bytes)) {
			return r, off, true
		}
	}
	return nil, 0, false
}

// Slice returns the n bytes at gpa, aliasing guest memory. The error is ErrOutOfRange or ErrNotContiguous. A zero n
// returns an empty slice for any address that a region holds.
func (m *Memory) Slice(gpa GPA, n int) ([]byte, error) {
	r, off, ok := m.find(gpa)
	if !ok || n < 0 {
		return nil, ErrOutOfRange
	}
	if uint64(n) > uint64(len(r.Bytes))-off {
		end := gpa + GPA(n) - 1
		if end < gpa {
			return nil, ErrOutOfRange
		}
		if _, _, ok := m.find(end); ok {
			return nil, ErrNotContiguous
		}
		return nil, ErrOutOfRange
	}
	return r.Bytes[off : off+uint64(n) : off+uint64(n)], nil
}

// ReadAt copies len(p) bytes at gpa into p. It may cross from a region into the one that begins where it ends. On
// error, what p holds is undefined.
func (m *Memory) ReadAt(p []byte, gpa GPA) error {
	return m.each(p, gpa, func(guest, p []byte) { copy(p, guest) })
}

// WriteAt copies p to gpa. Like ReadAt it may cross regions; on error a prefix of p may have been written.
func (m *Memory) WriteAt(p []byte, gpa GPA) error {
	return m.each(p, gpa, func(guest, p []byte) { copy(guest, p) })
}

func (m *Memory) each(p []byte, gpa GPA, do func(guest, p []byte)) error {
	for len(p) > 0 {
		r, off, ok := m.find(gpa)
		if !ok {
			return ErrOutOfRange
		}
		n := min(uint64(len(p)), uint64(len(r.Bytes))-off)
		do(r.Bytes[off:off+n], p[:n])
		p, gpa = p[n:], gpa+GPA(n)
		if gpa == 0 && len(p) > 0 {
			return ErrOutOfRange
		}
	}
	return nil
}

// Discard tells the host that the guest has no use for the n bytes at gpa: their page frames are given back and their
// content becomes undefined (zero, or what a saved file holds). gpa and n are multiples of PageSize, within one region.
// On heap memory the bytes become zero.
func (m *Memory) Discard(gpa GPA, n int) error {
	if gpa%PageSize != 0 || n%PageSize != 0 {
		return fmt.Errorf("discard [%#x, +%#x): not whole pages", gpa, n)
	}
	b, err := m.Slice(gpa, n)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return nil
	}
	if m.discard == nil {
		clear(b)
		return nil
	}
	return m.discard(b)
}

// Close unmaps the memory. No slice that Slice returned may be used afterwards.
func (m *Memory) Close() error {
	if m.close == nil {
		return nil
	}
	err := m.close()
	m.close, m.regions = nil, nil
	return err
}
