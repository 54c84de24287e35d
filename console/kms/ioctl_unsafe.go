package kms

import (
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device is what a Card talks to: the kernel, or what stands for it in tests.
type device interface {
	ioctl(nr uintptr, arg unsafe.Pointer) unix.Errno
	mmap(offset uint64, size int) ([]byte, error)
	munmap(b []byte) error
	read(p []byte) (int, error) // events; blocks
	wake() error                // a read that blocks, and all that follow, fail
	close() error
}

// file is an open /dev/dri/card*.
type file struct {
	f  *os.File
	fd uintptr
}

// openFile opens a card. Its descriptor does not block, so that Go's poller waits for its events.
func openFile(path string) (*file, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &file{os.NewFile(uintptr(fd), path), uintptr(fd)}, nil
}

func (f *file) ioctl(nr uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.fd, nr, uintptr(arg))
	runtime.KeepAlive(f.f)
	return errno
}

func (f *file) mmap(offset uint64, size int) ([]byte, error) {
	defer runtime.KeepAlive(f.f)
	return unix.Mmap(int(f.fd), int64(offset), size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func (f *file) munmap(b []byte) error { return unix.Munmap(b) }

func (f *file) read(p []byte) (int, error) { return f.f.Read(p) }

func (f *file) wake() error { return f.f.SetReadDeadline(time.Unix(0, 1)) }

func (f *file) close() error { return f.f.Close() }

// ioctl issues an ioctl with the structure at arg, of exactly the size that the kernel expects; nil is none. Signals and
// busy drivers make ioctls of DRM fail for the moment: they are to be issued again.
func ioctl[T any](d device, name string, nr uintptr, arg *T) error {
	for {
		switch errno := d.ioctl(nr, unsafe.Pointer(arg)); errno {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return fmt.Errorf("%s: %w", name, errno)
		}
	}
}

// address returns where s begins, as the kernel is told it, and 0 if s is empty. The memory does not move until pin is
// unpinned.
func address[T any](pin *runtime.Pinner, s []T) uint64 {
	if len(s) == 0 {
		return 0
	}
	pin.Pin(&s[0])
	return uint64(uintptr(unsafe.Pointer(&s[0])))
}

// bytesOf returns the memory of s.
func bytesOf[T any](s []T) []byte {
	if len(s) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), len(s)*int(unsafe.Sizeof(s[0])))
}
