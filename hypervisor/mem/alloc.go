package mem

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Range is where a piece of RAM lies in the guest: what Region is without the memory.
type Range struct {
	Base GPA
	Size uint64 // in bytes
}

// maxRanges is how many a RAM file's header has room for. A board needs two: below the hole under 4 GiB, and above it.
const maxRanges = 64

// AllocOptions changes how RAM is allocated. The zero value is right for most guests.
type AllocOptions struct {
	// Huge asks for transparent huge pages, which a host gives to memfds if it has "advise" in
	// /sys/kernel/mm/transparent_hugepage/shmem_enabled. KVM can use them only if Base is congruent to the offset in the
	// image modulo 2 MiB.
	Huge bool
}

// Alloc returns RAM of the given ranges, all zero, in one sealed memfd that can be given to other processes. The ranges
// lie in it at consecutive offsets in the order of their addresses. No page takes up memory before its first use.
func Alloc(ranges []Range, opt AllocOptions) (*Memory, error) {
	size, err := check(ranges)
	if err != nil {
		return nil, err
	}
	file, err := newMemfd(size)
	if err != nil {
		return nil, err
	}
	image, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("map %d MiB of guest memory: %w", size>>20, err)
	}
	b := &memfd{file: file, image: image}
	m, err := onImage(image, ranges, file, b)
	if err == nil && opt.Huge {
		err = adviseHuge(image)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return m, nil
}

// check returns the sum of the ranges' sizes, or why no memory can be made of them. New checks the rest.
func check(ranges []Range) (size uint64, err error) {
	if len(ranges) == 0 || len(ranges) > maxRanges {
		return 0, fmt.Errorf("%d memory ranges: from 1 to %d are possible", len(ranges), maxRanges)
	}
	for _, r := range ranges {
		if r.Size == 0 || r.Size%PageSize != 0 || r.Size > maxImage || size+r.Size > maxImage {
			return 0, fmt.Errorf("memory range of %#x bytes at %#x: not whole pages, or more than %d TiB", r.Size, r.Base, maxImage>>40)
		}
		size += r.Size
	}
	return size, nil
}

// maxImage is the most RAM a guest can have, in bytes: what 46 address bits reach, well below what mmap can map.
const maxImage = 1 << 46

// onImage returns a Memory of ranges that lie in image one behind the other. file is the memfd behind image, or nil.
func onImage(image []byte, ranges []Range, file *os.File, b backing) (*Memory, error) {
	// Guest memory in a core dump would be large and the guest's secret.
	if err := unix.Madvise(image, unix.MADV_DONTDUMP); err != nil {
		return nil, fmt.Errorf("keep guest memory out of core dumps: %w", err)
	}
	regions := make([]Region, len(ranges))
	var off uint64
	for i, r := range sorted(ranges) {
		regions[i] = Region{Base: r.Base, Bytes: image[off : off+r.Size : off+r.Size], File: file, Off: int64(off)}
		off += r.Size
	}
	m, err := New(regions...)
	if err != nil {
		return nil, err
	}
	m.backing = b
	return m, nil
}

// newMemfd returns a memfd of size bytes that nobody who gets it can shrink: a shorter file under a mapping would kill
// this process with SIGBUS.
func newMemfd(size uint64) (*os.File, error) {
	fd, err := unix.MemfdCreate("lodge-ram", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("create guest memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest memory")
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("size guest memory to %d MiB: %w", size>>20, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal guest memory: %w", err)
	}
	return f, nil
}

// memfd is the backing of shared memory.
type memfd struct {
	file  *os.File
	image []byte // all of it, mapped
}

// discard punches a hole: MADV_REMOVE is fallocate(PUNCH_HOLE|KEEP_SIZE) on the file behind the mapping.
func (b *memfd) discard(p []byte) error {
	if err := unix.Madvise(p, unix.MADV_REMOVE); err != nil {
		return fmt.Errorf("discard guest memory: %w", err)
	}
	return nil
}

func (b *memfd) data(r *Region, off int64) (int64, int64, error) {
	start, end, err := nextData(b.file, r.Off+off, r.Off+int64(len(r.Bytes)))
	if err == ErrTruncated { // a memfd may well end in a hole
		err = nil
	}
	return start - r.Off, end - r.Off, err
}

func (b *memfd) close() error { return errors.Join(unix.Munmap(b.image), b.file.Close()) }

// nextData returns the first piece of f in [off, limit) that is not a hole, in whole pages, or limit twice. Where holes
// are unknown, all is data. When no data follows at all, not even after limit, it says so with ErrTruncated: in a RAM file
// the table always follows. It moves f's offset, which nobody else uses.
func nextData(f *os.File, off, limit int64) (start, end int64, err error) {
	start, err = f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return limit, limit, ErrTruncated
	case err == nil && start >= limit:
		return limit, limit, nil
	case err == nil:
		end, err = f.Seek(start, unix.SEEK_HOLE)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find data: %w", err)
	}
	// A file system's blocks may be smaller than pages.
	return start &^ (PageSize - 1), min((end+PageSize-1)&^(PageSize-1), limit), nil
}
