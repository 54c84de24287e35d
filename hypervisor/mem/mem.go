// Package mem is a guest's physical memory: a sorted list of RAM regions in which every access by guest-physical
// address is range-checked.
//
// The bytes of a region live outside the Go heap (anonymous, in a sealed memfd, or a saved file mapped privately) or, in
// tests, on it: the rest of the VMM cannot tell which. Regions never move and are never resized, so a slice that Slice returned
// stays valid until Close.
//
// The guest writes to this memory while we read it. A caller copies what it validates (descriptors, headers) exactly
// once and never looks at the guest's copy again.
package mem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
)

// GPA is a guest-physical address in bytes.
type GPA uint64

// PageSize is the granularity, in bytes, of regions, of discarding and of saved memory.
const PageSize = 4096

var (
	// ErrOutOfRange reports an access to an address that no region holds.
	ErrOutOfRange = errors.New("guest-physical address out of range")
	// ErrNotContiguous reports a Slice that would span adjoining regions: ReadAt and WriteAt can reach those bytes.
	ErrNotContiguous = errors.New("guest-physical range is not contiguous")
)

// Region is one contiguous piece of RAM.
type Region struct {
	Base  GPA      // first guest-physical address, page-aligned
	Bytes []byte   // the memory itself; its length is a multiple of PageSize
	File  *os.File // the memfd behind Bytes, or nil: heap memory and private mappings have none
	Off   int64    // offset of Bytes in File, and in the image that Save writes
}

// End returns the first guest-physical address after r.
func (r Region) End() GPA { return r.Base + GPA(len(r.Bytes)) }

// Memory is the RAM of one guest. Its methods may be called from any goroutine; Close may not run beside another.
type Memory struct {
	regions []Region // sorted by Base, not overlapping, never changed
	backing backing
	filling atomic.Pointer[filler] // not nil while a lazily restored image is still being read
}

// backing is what keeps the bytes of a Memory.
type backing interface {
	// discard gives back the page frames of b, which is whole pages of one region.
	discard(b []byte) error
	// data returns the first piece [start, end) of r at or after offset off that may hold anything but zeros. Both are
	// the length of r when there is none.
	data(r *Region, off int64) (start, end int64, err error)
	close() error
}

// heap is the backing of memory that somebody else allocated.
type heap struct{}

func (heap) discard(b []byte) error                          { clear(b); return nil }
func (heap) data(r *Region, off int64) (int64, int64, error) { return off, int64(len(r.Bytes)), nil }
func (heap) close() error                                    { return nil }

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
	return &Memory{regions: rs, backing: heap{}}, nil
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

// fill makes sure that n bytes at off in r are in memory, when the image is still being read. Our own code must never
// take a userfault: the fault would hold a scheduler slot that the goroutine serving it may need (see filler).
func (m *Memory) fill(r *Region, off, n uint64) error {
	if f := m.filling.Load(); f != nil {
		return f.need(uint64(r.Off)+off, n)
	}
	return nil
}

// Slice returns the n bytes at gpa, aliasing guest memory. The error is ErrOutOfRange or ErrNotContiguous or, while a
// lazily restored memory fills, ErrDamaged. A zero n returns an empty slice for any address that a region holds.
func (m *Memory) Slice(gpa GPA, n int) ([]byte, error) {
	r, off, ok := m.find(gpa)
	if !ok || n < 0 {
		return nil, ErrOutOfRange
	}
	if uint64(n) > uint64(len(r.Bytes))-off {
		return nil, m.whyNot(r, uint64(n)-(uint64(len(r.Bytes))-off))
	}
	if err := m.fill(r, off, uint64(n)); err != nil {
		return nil, err
	}
	return r.Bytes[off : off+uint64(n) : off+uint64(n)], nil
}

// whyNot tells whether the n bytes behind r are memory.
func (m *Memory) whyNot(r *Region, n uint64) error {
	for {
		next, _, ok := m.find(r.End())
		if !ok {
			return ErrOutOfRange
		}
		if n <= uint64(len(next.Bytes)) {
			return ErrNotContiguous
		}
		n -= uint64(len(next.Bytes))
		r = next
	}
}

// ReadAt copies len(p) bytes at gpa into p. It may cross from a region into the one that begins where it ends. The
// errors are Slice's; then what p holds is undefined.
func (m *Memory) ReadAt(p []byte, gpa GPA) error {
	for len(p) > 0 {
		b, err := m.Piece(gpa, len(p))
		if err != nil {
			return err
		}
		n := copy(p, b)
		p, gpa = p[n:], gpa+GPA(n) // no region ends at 2^64: this does not wrap
	}
	return nil
}

// WriteAt copies p to gpa. Like ReadAt it may cross regions; on error a prefix of p may have been written.
func (m *Memory) WriteAt(p []byte, gpa GPA) error {
	for len(p) > 0 {
		b, err := m.Piece(gpa, len(p))
		if err != nil {
			return err
		}
		n := copy(b, p)
		p, gpa = p[n:], gpa+GPA(n)
	}
	return nil
}

// Piece returns the bytes at gpa, aliasing guest memory: n of them (n > 0), or as many as its region has. The errors are
// Slice's. ReadAt and WriteAt share this rather than a loop that calls a function: p would escape, and every caller's
// stack buffer with it.
func (m *Memory) Piece(gpa GPA, n int) ([]byte, error) {
	r, off, ok := m.find(gpa)
	if !ok {
		return nil, ErrOutOfRange
	}
	k := min(uint64(n), uint64(len(r.Bytes))-off)
	if err := m.fill(r, off, k); err != nil {
		return nil, err
	}
	return r.Bytes[off : off+k], nil
}

// Discard tells the host that the guest has no use for the n bytes at gpa: their page frames are given back and their
// content becomes undefined. gpa and n are multiples of PageSize, within one region.
//
// What the guest then reads depends on where the memory came from: zeros from Alloc, AllocPrivate or the heap; from MapPrivate what
// the saved file holds there, since its pages reappear under the guest's own; from Lazy zeros or, in a burst of
// discards while it still fills, what was there.
func (m *Memory) Discard(gpa GPA, n int) error {
	if gpa%PageSize != 0 || n%PageSize != 0 || n < 0 {
		return fmt.Errorf("discard %#x bytes at %#x: not whole pages", n, gpa)
	}
	r, off, ok := m.find(gpa)
	if !ok {
		return ErrOutOfRange
	}
	if have := uint64(len(r.Bytes)) - off; uint64(n) > have {
		return m.whyNot(r, uint64(n)-have)
	}
	if n == 0 {
		return nil
	}
	return m.backing.discard(r.Bytes[off : off+uint64(n)])
}

// WaitFilled waits until every byte of a lazily restored memory is in, and returns why not if that failed. Only then may
// another process map a region's File: what it touched before, it would find zero. Other memory is always filled.
func (m *Memory) WaitFilled(ctx context.Context) error {
	if f := m.filling.Load(); f != nil {
		return f.wait(ctx)
	}
	return ctx.Err()
}

// Filled reports whether WaitFilled would return at once, without an error.
func (m *Memory) Filled() bool { return m.filling.Load() == nil }

// Close unmaps the memory. No slice that Slice returned may be used afterwards, and no vCPU may run.
func (m *Memory) Close() error {
	if m.regions == nil {
		return nil
	}
	if f := m.filling.Load(); f != nil {
		f.stop()
	}
	m.regions = nil
	return m.backing.close()
}
