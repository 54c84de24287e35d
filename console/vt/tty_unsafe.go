package vt

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctls of include/uapi/linux/vt.h and kd.h.
const (
	nrKDSetMode = 0x4b3a
	nrKDGetMode = 0x4b3b
	nrKDGKBMode = 0x4b44
	nrKDSKBMode = 0x4b45

	nrOpenQry     = 0x5600
	nrSetMode     = 0x5602
	nrGetState    = 0x5603
	nrRelDisp     = 0x5605
	nrActivate    = 0x5606
	nrDisallocate = 0x5608
)

// Arguments of them.
const (
	kdText     = 0
	kdGraphics = 1

	kOff = 4 // keyboard mode

	vtAuto    = 0
	vtProcess = 1
	vtAckAcq  = 2 // of VT_RELDISP: acquired
)

// mode is struct vt_mode.
type mode struct {
	mode, waitV           int8
	relSig, acqSig, frSig int16
}

// state is struct vt_stat.
type state struct{ active, signal, inUse uint16 }

// terminal is a virtual terminal, or what stands for one in tests.
type terminal interface {
	get(name string, nr uintptr) (int, error) // an ioctl that stores an int
	set(name string, nr uintptr, v int) error // one that takes a number
	setMode(m mode) error
	state() (state, error)
	file() *os.File // for the guardian
	close() error
}

// tty is an open /dev/tty*.
type tty struct{ f *os.File }

func openTTY(path string) (*tty, error) {
	// Blocking: there is no poller for a terminal that nobody reads.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &tty{os.NewFile(uintptr(fd), path)}, nil
}

// ioctl issues an ioctl with the number arg or, if p is not nil, with what is there.
func (t *tty) ioctl(name string, nr uintptr, arg int, p unsafe.Pointer) error {
	defer runtime.KeepAlive(t.f)
	for {
		var errno unix.Errno
		if p != nil {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, t.f.Fd(), nr, uintptr(p))
		} else {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, t.f.Fd(), nr, uintptr(arg))
		}
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("%s: %s: %w", t.f.Name(), name, errno)
		}
	}
}

func (t *tty) get(name string, nr uintptr) (int, error) {
	var v int32
	err := t.ioctl(name, nr, 0, unsafe.Pointer(&v))
	return int(v), err
}

func (t *tty) set(name string, nr uintptr, v int) error { return t.ioctl(name, nr, v, nil) }

func (t *tty) setMode(m mode) error { return t.ioctl("VT_SETMODE", nrSetMode, 0, unsafe.Pointer(&m)) }

func (t *tty) state() (s state, err error) {
	err = t.ioctl("VT_GETSTATE", nrGetState, 0, unsafe.Pointer(&s))
	return s, err
}

func (t *tty) file() *os.File { return t.f }

func (t *tty) close() error { return t.f.Close() }
