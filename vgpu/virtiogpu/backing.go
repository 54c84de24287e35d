package virtiogpu

import (
	"bytes"
	"errors"
	"math"
	"slices"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// span is a range of guest-physical addresses, in bytes.
type span struct {
	gpa  mem.GPA
	size uint64
}

// piece is a contiguous part of a backing.
type piece struct {
	span
	start uint64 // its offset in the backing
	b     []byte // the guest's memory; nil after a restore, until complete
}

func (p *piece) end() uint64 { return p.start + p.size }

// backing is the guest's memory behind a resource, one piece behind the other.
type backing struct {
	pieces []piece
	size   uint64
}

// resolve returns the backing that spans name. Neighbours become one piece, as large as a region of memory holds it.
func resolve(m *mem.Memory, spans []span) (backing, error) {
	b := backing{pieces: make([]piece, 0, len(spans))}
	for _, s := range spans {
		if s.size > math.MaxInt-b.size {
			return backing{}, mem.ErrOutOfRange
		}
		for at, left := s.gpa, s.size; left > 0; {
			p, err := m.Piece(at, int(left))
			if err != nil {
				return backing{}, err
			}
			n := uint64(len(p))
			b.pieces = append(b.pieces, piece{span{at, n}, b.size, p})
			b.size += n
			at, left = at+mem.GPA(n), left-n
		}
	}
	return b, nil
}

// add appends a span to a list, or extends the last one.
func add(spans []span, s span) []span {
	if n := len(spans) - 1; n >= 0 && spans[n].gpa+mem.GPA(spans[n].size) == s.gpa && s.gpa != 0 {
		spans[n].size += s.size
		return spans
	}
	return append(spans, s)
}

// readEntries reads n entries (struct virtio_gpu_mem_entry, §5.7.6.8) from c into spans, whose storage it reuses.
func readEntries(c *virtio.Chain, n uint32, spans []span) ([]span, error) {
	spans = spans[:0]
	if int64(c.Readable()) < int64(n)*memEntrySize {
		return spans, errors.New("entries are missing")
	}
	for range n {
		var b [memEntrySize]byte
		if _, err := c.Read(b[:]); err != nil {
			return spans, err
		}
		if size := fields(b[:]).u32(8); size > 0 {
			spans = add(spans, span{mem.GPA(fields(b[:]).u64(0)), uint64(size)})
		}
	}
	return spans, nil
}

// holds reports whether rows of n bytes, one every stride bytes from off on, lie in the first size bytes. n ≤ stride < 2³²
// and rows < 2³².
func holds(size, off, stride, n uint64, rows int) bool {
	return rows == 0 || n == 0 || off <= size && stride*uint64(rows-1)+n <= size-off
}

// find returns the index of the piece with the byte at off, which is there.
func (b *backing) find(off uint64) int {
	i, ok := slices.BinarySearchFunc(b.pieces, off, func(p piece, off uint64) int {
		switch {
		case p.start < off:
			return -1
		case p.start > off:
			return 1
		}
		return 0
	})
	if !ok {
		i--
	}
	return i
}

// copyRows copies rows of n bytes, one every stride bytes from off on, which are all there, to dst, one every dstStride
// bytes. n is at most either stride.
func (b *backing) copyRows(dst []byte, dstStride int, off, stride uint64, n, rows int) {
	if n == 0 || rows == 0 {
		return
	}
	if n == dstStride && uint64(n) == stride {
		n, rows = n*rows, 1
	}
	i := b.find(off)
	for y := range rows {
		d, at := dst[y*dstStride:][:n], off+uint64(y)*stride
		for b.pieces[i].end() <= at {
			i++
		}
		k := copy(d, b.pieces[i].b[at-b.pieces[i].start:])
		for k < n {
			i++
			k += copy(d[k:], b.pieces[i].b)
		}
	}
}

// equal reports whether the bytes at off, which are there, are those of p.
func (b *backing) equal(p []byte, off uint64) bool {
	for i := b.find(off); len(p) > 0; i++ {
		q := b.pieces[i].b[off-b.pieces[i].start:]
		n := min(len(p), len(q))
		if !bytes.Equal(p[:n], q[:n]) {
			return false
		}
		p, off = p[n:], off+uint64(n)
	}
	return true
}
