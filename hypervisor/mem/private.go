package mem

import (
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
	pages pageMap
}

// discard drops the guest's own copies of p's pages: it then reads the file's.
func (b *private) discard(p []byte) error { return discardPrivate(p) }

func (b *private) close() error {
	return errors.Join(unix.Munmap(b.image), b.file.Close(), b.pages.close())
}

// data returns what the file holds or the guest has written to: reading the file's holes through the mapping would fill
// the page cache with zeros.
func (b *private) data(r *Region, off int64) (start, end int64, err error) {
	size := int64(len(r.Bytes))
	if !b.pages.open() {
		return off, size, nil
	}
	base := PageSize + r.Off
	start, end, err = nextData(b.file, base+off, base+size)
	if err != nil {
		return 0, 0, fmt.Errorf("RAM file %s: %w", b.file.Name(), err)
	}
	start, end = start-base, end-base
	own, ownEnd, err := b.pages.written(r.Bytes, off, start)
	if err != nil {
		return 0, 0, err
	}
	if own < start {
		return own, ownEnd, nil
	}
	return start, end, nil
}
