package blk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// blkDiscard is ioctl BLKDISCARD. fallocate's PUNCH_HOLE would do for a disk that reads zeros afterwards, and only there.
func blkDiscard(fd int, off, n uint64) error {
	r := [2]uint64{off, n}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}
