package virtiogpu

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// maxArena is the most that a card's pictures can take up, in bytes.
const maxArena = 1 << 36

// sparse is how much larger than its limit an arena is, so that there is a gap for every picture, whatever was freed.
const sparse = 4

// arena is the memory of pictures: one file in memory, sealed, that a viewer maps once for all of them. A page takes up
// memory from its first use until it is freed. For that there is no seal against writing: the kernel frees no page of a file
// with F_SEAL_FUTURE_WRITE, so that a viewer which means ill can spoil the guest's picture. It gets nowhere else by that.
type arena struct {
	file  *os.File // nil on the heap
	bytes []byte
	used  []extent // by offset
	total int      // sum of used
	limit int      // of total
	punch func(b []byte) error
	unmap func()
}

// extent is a piece of an arena, in bytes, whole pages.
type extent struct{ off, size int }

// newArena returns an arena for up to limit bytes.
func newArena(limit int64) (*arena, error) {
	limit = roundUp(limit)
	size := sparse * limit
	fd, err := unix.MemfdCreate("lodge-gpu", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory for pictures: %w", err)
	}
	f := os.NewFile(uintptr(fd), "graphics memory")
	var b []byte
	if err = unix.Ftruncate(fd, size); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err == nil {
		b, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("memory for pictures: %d MiB: %w", size>>20, err)
	}
	_ = unix.Madvise(b, unix.MADV_DONTDUMP) // what a guest shows is its secret
	return &arena{
		file: f, bytes: b, limit: int(limit),
		punch: func(b []byte) error { return unix.Madvise(b, unix.MADV_REMOVE) },
		unmap: func() { unix.Munmap(b); f.Close() },
	}, nil
}

func roundUp(n int64) int64 { return (n + mem.PageSize - 1) &^ (mem.PageSize - 1) }

// alloc returns n bytes (n > 0), all zero, or reports that there is no room.
func (a *arena) alloc(n int64) (extent, bool) {
	if n > int64(a.limit) {
		return extent{}, false
	}
	size := int(roundUp(n))
	if a.total+size > a.limit {
		return extent{}, false
	}
	off, i := 0, 0
	for ; i < len(a.used) && a.used[i].off-off < size; i++ {
		off = a.used[i].off + a.used[i].size
	}
	if off+size > len(a.bytes) {
		return extent{}, false
	}
	e := extent{off, size}
	a.used = slices.Insert(a.used, i, e)
	a.total += size
	return e, true
}

// slice returns the bytes of e.
func (a *arena) slice(e extent) []byte { return a.bytes[e.off : e.off+e.size : e.off+e.size] }

// free gives e back, if it is one.
func (a *arena) free(e extent) {
	if e.size == 0 {
		return
	}
	i, ok := slices.BinarySearchFunc(a.used, e.off, func(u extent, off int) int { return u.off - off })
	if !ok {
		return
	}
	if b := a.slice(e); a.punch(b) != nil {
		clear(b) // it stays, but says nothing to the next one
	}
	a.used = slices.Delete(a.used, i, i+1)
	a.total -= e.size
}

// close gives all back. Nothing may use a slice of it any more.
func (a *arena) close() { a.unmap() }
