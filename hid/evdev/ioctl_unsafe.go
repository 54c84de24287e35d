package evdev

import (
	"encoding/binary"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// node is an open device. Tests have devices of their own.
type node interface {
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
	Close() error
	ioctl(nr uintptr, p []byte) (int, error) // p is the argument's memory, as large as nr says
	ioctlInt(nr uintptr, v int) error        // the argument is a number
	setMask(typ uint16, codes []byte) error  // EVIOCSMASK
}

// fileNode is the kernel's. Its descriptor stays with the runtime's poller: os.File.Fd would take it away.
type fileNode struct{ *os.File }

func (n fileNode) ioctl(nr uintptr, p []byte) (int, error) {
	return n.control(func(fd uintptr) (uintptr, uintptr, unix.Errno) {
		return unix.Syscall(unix.SYS_IOCTL, fd, nr, uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	})
}

func (n fileNode) ioctlInt(nr uintptr, v int) error {
	_, err := n.control(func(fd uintptr) (uintptr, uintptr, unix.Errno) {
		return unix.Syscall(unix.SYS_IOCTL, fd, nr, uintptr(v))
	})
	return err
}

// setMask passes a structure that points to another: both are pinned, since the kernel sees only their addresses.
func (n fileNode) setMask(typ uint16, codes []byte) error {
	var arg [sizeMask]byte
	var pin runtime.Pinner
	defer pin.Unpin()
	binary.NativeEndian.PutUint32(arg[0:], uint32(typ))
	binary.NativeEndian.PutUint32(arg[4:], uint32(len(codes)))
	if len(codes) > 0 {
		pin.Pin(unsafe.SliceData(codes))
		binary.NativeEndian.PutUint64(arg[8:], uint64(uintptr(unsafe.Pointer(unsafe.SliceData(codes)))))
	}
	_, err := n.ioctl(evioCSMask(), arg[:])
	return err
}

// control makes a system call, and makes it again if a signal interrupts it.
func (n fileNode) control(call func(fd uintptr) (uintptr, uintptr, unix.Errno)) (int, error) {
	conn, err := n.SyscallConn()
	if err != nil {
		return 0, err
	}
	var r uintptr
	errno := unix.EINTR
	err = conn.Control(func(fd uintptr) {
		for errno == unix.EINTR {
			r, _, errno = call(fd)
		}
	})
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, errno
	}
	return int(r), nil
}
