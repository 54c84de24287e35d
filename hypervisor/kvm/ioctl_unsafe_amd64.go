package kvm

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// file is the descriptor of a KVM object. fd is taken once, so that the run path does not ask os.File for it; f keeps
// the descriptor open, since the garbage collector closes the descriptors of files that nothing refers to.
type file struct {
	f  *os.File
	fd uintptr
}

func newFile(f *os.File) file { return file{f, f.Fd()} }

// ioctl issues an ioctl whose argument is a number.
func (f *file) ioctl(name string, nr, arg uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, f.fd, nr, arg)
	runtime.KeepAlive(f.f)
	if errno != 0 {
		return 0, fmt.Errorf("%s: %w", name, errno)
	}
	return r, nil
}

// ioctlPtr issues an ioctl whose argument is the structure at p, of exactly the size that the kernel expects.
func ioctlPtr[T any](f *file, name string, nr uintptr, p *T) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, f.fd, nr, uintptr(unsafe.Pointer(p)))
	runtime.KeepAlive(f.f)
	if errno != 0 {
		return 0, fmt.Errorf("%s: %w", name, errno)
	}
	return r, nil
}

// list is the argument of the ioctls that take a header of eight bytes, which begins with the number of elements, and
// then the elements. Its words keep the elements aligned.
type list []uint64

func newList[T any](elems []T) list {
	var t T
	l := make(list, 1+(len(elems)*int(unsafe.Sizeof(t))+7)/8)
	*l.count() = uint32(len(elems))
	copy(elemsOf[T](l, len(elems)), elems)
	return l
}

// count is the number of elements, which some ioctls change.
func (l list) count() *uint32 { return (*uint32)(unsafe.Pointer(&l[0])) }

// elemsOf returns the first n elements, at most as many as fit, aliasing l.
func elemsOf[T any](l list, n int) []T {
	var t T
	n = min(n, (len(l)-1)*8/int(unsafe.Sizeof(t)))
	return unsafe.Slice((*T)(unsafe.Add(unsafe.Pointer(&l[0]), 8)), n)
}

// getMSRIndexList issues KVM_GET_MSR_INDEX_LIST, whose list differs from all others: its header has four bytes.
func (f *file) getMSRIndexList() ([]uint32, error) {
	buf := make([]uint32, 1+256)
	for {
		buf[0] = uint32(len(buf) - 1)
		_, err := ioctlPtr(f, "KVM_GET_MSR_INDEX_LIST", nrGetMSRIndexList, &buf[0])
		n := int(buf[0])
		if err == nil {
			return buf[1 : 1+min(n, len(buf)-1)], nil
		}
		if n < len(buf) || n > 1<<16 { // not E2BIG, in which case the kernel stores the number that it has
			return nil, err
		}
		buf = make([]uint32, 1+n)
	}
}

// address returns where b begins, as the kernel is told it. b is memory outside the Go heap.
func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
