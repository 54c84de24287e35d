package mem

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// hugePage is the size in bytes of what KVM maps at once if memory of the host lies so.
const hugePage = 2 << 20

// AllocPrivate returns RAM of the given ranges, all zero, that cannot be shared with another process. The ranges lie in
// it one behind the other in the order of their addresses. No page takes up memory before its first use.
//
// It is anonymous memory, since most hosts back only that by huge pages: they spare a guest most of its page faults, each
// some thousand instructions of KVM's, and later of its TLB misses. It asks for them, for hosts that leave the choice to
// programs.
func AllocPrivate(ranges []Range) (*Memory, error) {
	size, err := check(ranges)
	if err != nil {
		return nil, err
	}
	// More than needed, so that the image can begin at a multiple of the huge pages' size. The rest is never touched.
	whole, err := unix.Mmap(-1, 0, int(size)+hugePage, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d MiB of guest memory: %w", size>>20, err)
	}
	skip := -address(whole) & (hugePage - 1)
	image := whole[skip : uint64(skip)+size]
	b := &anonymous{whole: whole}
	m, err := onImage(image, ranges, nil, b)
	if err == nil {
		err = adviseHuge(image)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return m, nil
}

// adviseHuge asks for huge pages. It is a hint: a kernel built without them answers EINVAL.
func adviseHuge(image []byte) error {
	if err := unix.Madvise(image, unix.MADV_HUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("ask for huge pages: %w", err)
	}
	return nil
}

// anonymous is the backing of private memory without a file.
type anonymous struct {
	whole []byte // as mapped
	pages pageMap
}

func (b *anonymous) discard(p []byte) error { return discardPrivate(p) }

// data returns what has been written to: reading the rest would map pages of zeros.
func (b *anonymous) data(r *Region, off int64) (start, end int64, err error) {
	size := int64(len(r.Bytes))
	if !b.pages.open() {
		return off, size, nil
	}
	return b.pages.written(r.Bytes, off, size)
}

func (b *anonymous) close() error { return errors.Join(unix.Munmap(b.whole), b.pages.close()) }
