package mem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// uffd is a userfaultfd: ioctl_userfaultfd(2), include/uapi/linux/userfaultfd.h. It is read through the runtime's poller,
// so that waiting for faults takes up no thread.
type uffd struct {
	file *os.File
	fd   uintptr // file's; valid until close
}

const (
	userfaultfdIocNew = 0xaa00
	uffdioAPI         = 0xc018aa3f
	uffdioRegister    = 0xc020aa00
	uffdioUnregister  = 0x8010aa01
	uffdioWake        = 0x8010aa02
	uffdioCopy        = 0xc028aa03
	uffdioZeropage    = 0xc020aa04

	uffdAPI                 = 0xaa
	uffdFeatureMissingShmem = 1 << 5
	uffdioRegisterMissing   = 1 << 0
	uffdEventPagefault      = 0x12
	uffdMsgSize             = 32
	uffdMsgAddress          = 16 // offset of arg.pagefault.address
	uffdFlags               = unix.O_CLOEXEC | unix.O_NONBLOCK
	needPrivilege           = "lazy restore serves page faults of the kernel: run with CAP_SYS_PTRACE, allow access to /dev/userfaultfd, set the sysctl vm.unprivileged_userfaultfd to 1, or restore privately"
)

type uffdioRange struct{ start, len uint64 }

// newUffd makes a userfaultfd that also serves faults of the kernel: a UFFD_USER_MODE_ONLY one, which needs no privilege,
// would be blind to KVM's. device is /dev/userfaultfd, or nil.
func newUffd(device *os.File) (*uffd, error) {
	var fd uintptr
	var errno unix.Errno
	if device != nil {
		fd, _, errno = unix.Syscall(unix.SYS_IOCTL, device.Fd(), userfaultfdIocNew, uffdFlags)
		runtime.KeepAlive(device)
	} else if fd, _, errno = unix.Syscall(unix.SYS_USERFAULTFD, uffdFlags, 0, 0); errno == unix.EPERM {
		if device, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0); err == nil {
			fd, _, errno = unix.Syscall(unix.SYS_IOCTL, device.Fd(), userfaultfdIocNew, uffdFlags)
			device.Close()
		}
	}
	switch errno {
	case 0:
	case unix.EPERM, unix.EACCES:
		return nil, fmt.Errorf("userfaultfd: %w (%s)", errno, needPrivilege)
	default:
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	// Before UFFDIO_API the descriptor polls as broken, which the runtime's poller would hold against it forever.
	u := &uffd{fd: fd}
	api := struct{ api, features, ioctls uint64 }{api: uffdAPI, features: uffdFeatureMissingShmem}
	if err := u.ioctl(uffdioAPI, unsafe.Pointer(&api)); err != nil {
		unix.Close(int(fd))
		return nil, fmt.Errorf("userfaultfd: shared memory: %w", err)
	}
	u.file = os.NewFile(fd, "userfaultfd")
	return u, nil
}

func (u *uffd) ioctl(req uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, u.fd, req, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// address returns where b begins. The memory of this package does not move.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func rangeOf(b []byte) uffdioRange {
	return uffdioRange{start: uint64(address(b)), len: uint64(len(b))}
}

// register asks for a fault whenever a page of b is missing.
func (u *uffd) register(b []byte) error {
	arg := struct {
		r            uffdioRange
		mode, ioctls uint64
	}{r: rangeOf(b), mode: uffdioRegisterMissing}
	if err := u.ioctl(uffdioRegister, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("userfaultfd: register: %w", err)
	}
	return nil
}

// unregister undoes register for b and wakes who waits there.
func (u *uffd) unregister(b []byte) error {
	arg := rangeOf(b)
	return u.ioctl(uffdioUnregister, unsafe.Pointer(&arg))
}

// wake lets threads that wait for pages of b try again.
func (u *uffd) wake(b []byte) error {
	arg := rangeOf(b)
	return u.ioctl(uffdioWake, unsafe.Pointer(&arg))
}

// copy puts src's bytes into the missing pages of dst.
func (u *uffd) copy(dst, src []byte) error {
	return eachMissing(len(dst), func(off, n int) (int, error) {
		arg := struct {
			dst, src, len, mode uint64
			copied              int64
		}{dst: uint64(address(dst[off:])), src: uint64(address(src[off:])), len: uint64(n)}
		err := u.ioctl(uffdioCopy, unsafe.Pointer(&arg))
		return int(arg.copied), err
	})
}

// zero puts zeros into the missing pages of dst.
func (u *uffd) zero(dst []byte) error {
	return eachMissing(len(dst), func(off, n int) (int, error) {
		arg := struct {
			r      uffdioRange
			mode   uint64
			zeroed int64
		}{r: rangeOf(dst[off : off+n])}
		err := u.ioctl(uffdioZeropage, unsafe.Pointer(&arg))
		return int(arg.zeroed), err
	})
}

// eachMissing calls do until size bytes are there. do returns how many it provided, which may be fewer than asked for, or
// a negative number.
func eachMissing(size int, do func(off, n int) (int, error)) error {
	for off, limit := 0, size; off < size; {
		n, err := do(off, min(limit, size-off))
		switch {
		case n > 0:
			off += n
		case err == unix.EAGAIN: // the mapping was changing
		case err == unix.EEXIST: // the page is there
			off += PageSize
		case err == unix.ENOENT && min(limit, size-off) > PageSize:
			limit = PageSize // not all of this is registered any more: page by page
		case err == unix.ENOENT:
			off += PageSize
		case err != nil:
			return err
		default:
			return errors.New("userfaultfd: no progress")
		}
	}
	return nil
}

// faults waits for faults and returns their addresses.
func (u *uffd) faults(addrs []uintptr) (int, error) {
	var buf [16 * uffdMsgSize]byte
	n, err := u.file.Read(buf[:min(len(buf), len(addrs)*uffdMsgSize)])
	if err != nil {
		return 0, err
	}
	k := 0
	for at := 0; at+uffdMsgSize <= n; at += uffdMsgSize {
		if buf[at] == uffdEventPagefault {
			addrs[k] = uintptr(binary.NativeEndian.Uint64(buf[at+uffdMsgAddress:]))
			k++
		}
	}
	return k, nil
}
