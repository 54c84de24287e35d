package virtionet

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVector is the largest number of elements in an I/O vector that the kernel takes (UIO_MAXIOV).
const maxVector = 1024

// vectorOf returns the element that describes b, which is not empty.
func vectorOf(b []byte) unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return v
}

// bytesOf returns what v describes.
func bytesOf(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

// skip drops the first n bytes that v describes, and whole elements where those are used up. It changes v's elements.
func skip(v []unix.Iovec, n int) []unix.Iovec {
	for n > 0 && len(v) > 0 {
		if have := int(v[0].Len); have > n {
			v[0] = vectorOf(bytesOf(v[0])[n:])
			return v
		} else {
			n -= have
			v = v[1:]
		}
	}
	return v
}

// length returns how many bytes v describes.
func length(v []unix.Iovec) (n int) {
	for i := range v {
		n += int(v[i].Len)
	}
	return n
}

// vectored is one readv or writev on a non-blocking descriptor.
func vectored(trap, fd uintptr, v []unix.Iovec) (int, unix.Errno) {
	for {
		n, _, errno := unix.Syscall(trap, fd, uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
