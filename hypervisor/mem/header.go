package mem

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
)

// A RAM file is, all integers little-endian:
//
//	0        header, one page
//	PageSize image: the regions one behind the other, in the order of their addresses; zero pages are holes
//	...      table: the CRC-32C of every 1 MiB of the image (the last piece may be shorter), 4 bytes each
//
// and the header is:
//
//	0    8  magic
//	8    4  format version
//	12   4  page size
//	16  16  snapshot id, the same as in the state file beside it
//	32   8  size of the image in bytes
//	40   4  CRC-32C of the table
//	44   4  number of regions, 1 to 64
//	48  16  for each region its base and its size in bytes
//	...     zeros
//	4092 4  CRC-32C of all before
//
// Restoring reads only the header: the table is for VerifyFile.
const (
	magic         = "LODGERAM"
	formatVersion = 1
	chunkSize     = 1 << 20
	headerRanges  = 48
	headerSum     = PageSize - 4
)

var (
	// ErrForeign reports a file that is not a RAM file, or is that of another snapshot.
	ErrForeign = errors.New("not the RAM file of this snapshot")
	// ErrNewer reports a RAM file of a later format.
	ErrNewer = errors.New("written by a newer version of lodge: update lodge to use it")
	// ErrTruncated reports a RAM file that is shorter than its header says.
	ErrTruncated = errors.New("cut short: restore another snapshot or start the guest afresh")
	// ErrDamaged reports a RAM file whose content is not what was written.
	ErrDamaged = errors.New("damaged: restore another snapshot or start the guest afresh")
	// ErrMismatch reports a RAM file of a machine whose memory lies elsewhere.
	ErrMismatch = errors.New("saved with other memory: give the guest the memory that it was saved with")
)

// header is what a RAM file says of itself.
type header struct {
	id     [16]byte
	size   uint64 // of the image
	table  uint32 // CRC-32C of the table
	ranges []Range
}

func (h *header) chunks() int64     { return int64((h.size + chunkSize - 1) / chunkSize) }
func (h *header) tableOff() int64   { return PageSize + int64(h.size) }
func (h *header) fileSize() int64   { return h.tableOff() + 4*h.chunks() }
func castagnoli() *crc32.Table      { return crc32.MakeTable(crc32.Castagnoli) }
func sorted(ranges []Range) []Range { return slices.SortedFunc(slices.Values(ranges), byBase) }
func byBase(a, b Range) int         { return cmp.Compare(a.Base, b.Base) }

func (h *header) encode() []byte {
	b := make([]byte, 0, PageSize)
	le := binary.LittleEndian
	b = append(b, magic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, PageSize)
	b = append(b, h.id[:]...)
	b = le.AppendUint64(b, h.size)
	b = le.AppendUint32(b, h.table)
	b = le.AppendUint32(b, uint32(len(h.ranges)))
	for _, r := range h.ranges {
		b = le.AppendUint64(b, uint64(r.Base))
		b = le.AppendUint64(b, r.Size)
	}
	b = b[:headerSum]
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

// parseHeader reads a header page. The errors are ErrForeign, ErrNewer and ErrDamaged.
func parseHeader(b []byte) (*header, error) {
	le := binary.LittleEndian
	if !bytes.HasPrefix(b, []byte(magic)) {
		return nil, ErrForeign
	}
	if v := le.Uint32(b[8:]); v > formatVersion {
		return nil, fmt.Errorf("format %d: %w", v, ErrNewer)
	}
	if crc32.Checksum(b[:headerSum], castagnoli()) != le.Uint32(b[headerSum:]) {
		return nil, fmt.Errorf("header: %w", ErrDamaged)
	}
	n := le.Uint32(b[44:])
	h := &header{id: [16]byte(b[16:]), size: le.Uint64(b[32:]), table: le.Uint32(b[40:])}
	// The checksum says that these are as written. They are still checked: the writer may have been another program.
	if le.Uint32(b[8:]) == 0 || le.Uint32(b[12:]) != PageSize || n > maxRanges {
		return nil, fmt.Errorf("header: %w", ErrDamaged)
	}
	for i := range int(n) {
		at := b[headerRanges+16*i:]
		h.ranges = append(h.ranges, Range{Base: GPA(le.Uint64(at)), Size: le.Uint64(at[8:])})
	}
	size, err := check(h.ranges)
	if err != nil || size != h.size || !slices.IsSortedFunc(h.ranges, byBase) {
		return nil, fmt.Errorf("header: %w", ErrDamaged)
	}
	return h, nil
}

// readHeader reads the header of f and checks it against f's size. Its errors name f.
func readHeader(f *os.File) (*header, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("RAM file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("RAM file %s: not a regular file: %w", f.Name(), ErrForeign)
	}
	b := make([]byte, PageSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("RAM file: %w", err)
	}
	if k := min(n, len(magic)); n < PageSize && string(b[:k]) == magic[:k] {
		return nil, fmt.Errorf("RAM file %s: %w", f.Name(), ErrTruncated)
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, fmt.Errorf("RAM file %s: %w", f.Name(), err)
	}
	if st.Size() < h.fileSize() {
		return nil, fmt.Errorf("RAM file %s: has %d bytes of %d: %w", f.Name(), st.Size(), h.fileSize(), ErrTruncated)
	}
	if st.Size() > h.fileSize() {
		return nil, fmt.Errorf("RAM file %s: has %d bytes instead of %d: %w", f.Name(), st.Size(), h.fileSize(), ErrDamaged)
	}
	return h, nil
}

// openImage reads the header of f, which must be of snapshot id and hold the ranges want.
func openImage(f *os.File, id [16]byte, want []Range) (*header, error) {
	h, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	if err := h.isOf(f, id); err != nil {
		return nil, err
	}
	if !slices.Equal(h.ranges, sorted(want)) {
		return nil, fmt.Errorf("RAM file %s: holds %s where the machine has %s: %w",
			f.Name(), rangesString(h.ranges), rangesString(sorted(want)), ErrMismatch)
	}
	return h, nil
}

// isOf returns an error that names f unless h, its header, is of snapshot id.
func (h *header) isOf(f *os.File, id [16]byte) error {
	if h.id != id {
		return fmt.Errorf("RAM file %s: is of snapshot %x, the state beside it of %x: %w", f.Name(), h.id, id, ErrForeign)
	}
	return nil
}

func rangesString(ranges []Range) string {
	var b []byte
	for i, r := range ranges {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = fmt.Appendf(b, "%d KiB at %#x", r.Size>>10, r.Base)
	}
	return string(b)
}
