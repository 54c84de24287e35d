package dmabuf

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls, and flags of theirs (include/uapi/linux/udmabuf.h and dma-buf.h).
const (
	nrCreateList = 0x40087543 // UDMABUF_CREATE_LIST
	nrSync       = 0x40086200 // DMA_BUF_IOCTL_SYNC

	flagCloexec = 1 // UDMABUF_FLAGS_CLOEXEC

	syncRead  = 1 << 0
	syncStart = 0 << 2
	syncEnd   = 1 << 2
)

// item is struct udmabuf_create_item.
type item struct {
	memfd     uint32
	_         uint32
	off, size uint64
}

// createList is struct udmabuf_create_list, with room for its items behind it.
type createList []item // the first has flags and count, in its upper half

// listHead is the fixed part of struct udmabuf_create_list.
type listHead struct{ flags, count uint32 }

// newList returns a list of n items. Its head lies just before the second element, so that the items follow it as the kernel
// wants.
func newList(n int) createList { return make(createList, n+1) }

func (l createList) head() *listHead { return (*listHead)(unsafe.Pointer(&l[0].size)) }

func (l createList) set(i int, r Range) {
	l[i+1] = item{memfd: uint32(r.File.Fd()), off: uint64(r.Off), size: uint64(r.Size)}
}

// create issues UDMABUF_CREATE_LIST and returns the new descriptor.
func (l createList) create(dev *os.File) (fd int, err error) {
	*l.head() = listHead{flagCloexec, uint32(len(l) - 1)}
	err = control(dev, func(devfd int) error {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(devfd), nrCreateList, uintptr(unsafe.Pointer(l.head())))
		if errno != 0 {
			return os.NewSyscallError("UDMABUF_CREATE_LIST", errno)
		}
		fd = int(r)
		return nil
	})
	return fd, err
}

// syncCPU issues DMA_BUF_IOCTL_SYNC.
func syncCPU(fd int, flags uint64) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), nrSync, uintptr(unsafe.Pointer(&flags)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return os.NewSyscallError("DMA_BUF_IOCTL_SYNC", errno)
		}
	}
}
