package mem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MapPrivate returns the memory that f, a RAM file of snapshot id, holds: mapped copy-on-write, so that nothing is read
// before it is used and f never changes. The RAM cannot be shared with another process. want is where the machine has
// its RAM. The errors are ErrForeign, ErrNewer, ErrTruncated, ErrDamaged and ErrMismatch.
//
// The Memory owns f from now on; on error f stays the caller's. As long as it is mapped, f must keep its length and
// content: replace such a file by renaming, never in place.
func MapPrivate(f *os.File, id [16]byte, want []Range) (*Memory, error) {
	h, err := openImage(f, id, want)
	if err != nil {
		return nil, err
	}
	image, err := unix.Mmap(int(f.Fd()), PageSize, int(h.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map RAM file %s: %w", f.Name(), err)
	}
	m, err := onImage(image, h.ranges, nil, &private{file: f, image: image})
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(image))
	}
	return m, nil
}

// private is the backing of a RAM file that is mapped copy-on-write.
type private struct {
	file  *os.File
	image []byte // all of it, mapped
	// The page map, open while saving, and whether it cannot be.
	pagemap   *os.File
	noPagemap bool
}

// discard drops the guest's own copies of p's pages: it then reads the file's.
func (b *private) discard(p []byte) error {
	if err := unix.Madvise(p, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("discard guest memory: %w", err)
	}
	return nil
}

func (b *private) close() error {
	err := errors.Join(unix.Munmap(b.image), b.file.Close())
	if b.pagemap != nil {
		err = errors.Join(err, b.pagemap.Close())
	}
	return err
}

// data returns what the file holds or the guest has written to: reading the file's holes through the mapping would fill
// the page cache with zeros.
func (b *private) data(r *Region, off int64) (start, end int64, err error) {
	size := int64(len(r.Bytes))
	if b.pagemap == nil && !b.noPagemap {
		if b.pagemap, err = os.Open("/proc/self/pagemap"); err != nil {
			b.noPagemap = true // no /proc in this jail: everything has to be looked at
		}
	}
	if b.noPagemap {
		return off, size, nil
	}
	base := PageSize + r.Off
	start, end, err = nextData(b.file, base+off, base+size)
	if err != nil {
		return 0, 0, fmt.Errorf("RAM file %s: %w", b.file.Name(), err)
	}
	start, end = start-base, end-base
	own, ownEnd, err := b.written(r.Bytes, off, start)
	if err != nil {
		return 0, 0, err
	}
	if own < start {
		return own, ownEnd, nil
	}
	return start, end, nil
}

// Bits of a page's entry in /proc/self/pagemap: Documentation/admin-guide/mm/pagemap.rst.
const (
	pageFileOrShared = 1 << 61
	pageSwapped      = 1 << 62
	pagePresent      = 1 << 63
)

// written returns the first run of pages of p in [off, limit) that are private copies, or limit twice.
func (b *private) written(p []byte, off, limit int64) (start, end int64, err error) {
	var buf [64 << 10]byte
	start = limit
	for at := off; at < limit; {
		n := min(int64(len(buf)), (limit-at)/PageSize*8)
		if _, err := b.pagemap.ReadAt(buf[:n], int64(address(p[at:])/PageSize*8)); err != nil {
			return 0, 0, fmt.Errorf("find changed guest memory: %w", err)
		}
		for i := int64(0); i < n; i, at = i+8, at+PageSize {
			e := binary.LittleEndian.Uint64(buf[i:])
			own := e&(pagePresent|pageSwapped) != 0 && e&pageFileOrShared == 0
			if own && start == limit {
				start = at
			} else if !own && start < limit {
				return start, at, nil
			}
		}
	}
	return start, limit, nil
}
