// Package dmabuftest stands for /dev/udmabuf on machines whose kernel does not have it, for tests and benchmarks.
package dmabuftest

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/vgpu/dmabuf"
)

// Make returns a buffer that is mapped as a dmabuf of the ranges is, whole pages of memfds, but whose file is none.
func Make(ranges []dmabuf.Range) (*dmabuf.Buffer, error) {
	var size int64
	for _, r := range ranges {
		size += r.Size
	}
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	// The kernel replaces this mapping by those of the ranges, piece by piece.
	at := uintptr(unsafe.Pointer(&b[0]))
	for _, r := range ranges {
		if _, _, errno := unix.Syscall6(unix.SYS_MMAP, at, uintptr(r.Size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED, r.File.Fd(), uintptr(r.Off)); errno != 0 {
			return nil, errors.Join(os.NewSyscallError("mmap", errno), unix.Munmap(b))
		}
		at += uintptr(r.Size)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(b))
	}
	return &dmabuf.Buffer{File: f, Bytes: b}, nil
}
