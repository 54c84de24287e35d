// Package dmabuf is memory that the kernel's drivers share as a file (Documentation/driver-api/dma-buf.rst in Linux): making
// one of pages of a memfd, by /dev/udmabuf, and reading one by the CPU. Such a file has a size that nobody can change, and
// its pages stay as long as somebody has it.
package dmabuf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pageSize is the granularity of Range, in bytes.
const pageSize = 4096

// MaxRanges bounds the ranges of a buffer. The kernel's own bound is lower as a rule: its parameter udmabuf.list_limit, which is
// 1024 unless it is set. A picture of 1920×1080 pixels in scattered pages has 2025.
const MaxRanges = 1 << 14

// Range is a piece of a memfd, of whole pages.
type Range struct {
	File      *os.File // sealed against shrinking (F_SEAL_SHRINK), and not against writing
	Off, Size int64    // bytes
}

// Buffer is a dmabuf, mapped for reading.
type Buffer struct {
	File  *os.File
	Bytes []byte
}

// Close unmaps and closes the buffer. Others who have the file keep the memory.
func (b *Buffer) Close() error { return errors.Join(unix.Munmap(b.Bytes), b.File.Close()) }

// Maker makes dmabufs. Its methods may be called by any goroutine.
type Maker struct{ dev *os.File }

// Open opens /dev/udmabuf. Kernels without CONFIG_UDMABUF do not have it.
func Open() (*Maker, error) {
	f, err := os.OpenFile("/dev/udmabuf", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("sharing memory with drivers: %w", err)
	}
	return &Maker{f}, nil
}

// Close closes the device. Buffers stay.
func (m *Maker) Close() error { return m.dev.Close() }

// Make returns a buffer of the ranges, one behind the other (UDMABUF_CREATE_LIST). It keeps the pages that are in the file
// now, even if the file gets others later. The kernel bounds the number of ranges and, by its parameter
// udmabuf.size_limit_mb (64 unless set), the size.
func (m *Maker) Make(ranges []Range) (*Buffer, error) {
	if len(ranges) == 0 || len(ranges) > MaxRanges {
		return nil, fmt.Errorf("dmabuf of %d ranges: from 1 to %d are possible", len(ranges), MaxRanges)
	}
	list := newList(len(ranges))
	var size int64
	for i, r := range ranges {
		if r.Off < 0 || r.Size <= 0 || r.Off%pageSize != 0 || r.Size%pageSize != 0 {
			return nil, fmt.Errorf("dmabuf of %d bytes at %d of a file: not whole pages", r.Size, r.Off)
		}
		list.set(i, r)
		size += r.Size
	}
	fd, err := list.create(m.dev)
	runtime.KeepAlive(ranges) // their files are open until here
	if err != nil {
		return nil, fmt.Errorf("dmabuf of %d bytes in %d ranges: %w", size, len(ranges), err)
	}
	f := os.NewFile(uintptr(fd), "dmabuf")
	b, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map a dmabuf of %d bytes: %w", size, err), f.Close())
	}
	return &Buffer{f, b}, nil
}

// magic is the type of the file system that the kernel keeps dmabufs in (DMA_BUF_MAGIC, include/uapi/linux/magic.h).
const magic = 0x444d4142

// Size returns the size of a dmabuf in bytes. It is an error if f is something else.
func Size(f *os.File) (int64, error) {
	var fs unix.Statfs_t
	if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return 0, os.NewSyscallError("fstatfs", err)
	}
	if fs.Type != magic {
		return 0, errors.New("it is no dmabuf")
	}
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of a dmabuf: %w", err)
	}
	return n, nil
}

// patience is how long a reader waits for a device that writes to the memory.
const patience = 100 * time.Millisecond

// BeginRead is called before the CPU reads a mapped dmabuf, so that it finds what devices have written (DMA_BUF_IOCTL_SYNC).
// A device that takes too long is not waited for: what is read then is half of the old and half of the new.
func BeginRead(f *os.File) error {
	return control(f, func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // ready when nobody writes
		n, err := unix.Poll(p, int(patience/time.Millisecond))
		if err != nil || n == 0 {
			return err
		}
		return syncCPU(fd, syncRead|syncStart)
	})
}

// EndRead is called after BeginRead, when the CPU has read.
func EndRead(f *os.File) error {
	return control(f, func(fd int) error { return syncCPU(fd, syncRead|syncEnd) })
}

// control calls do with f's descriptor, which stays open meanwhile.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = do(int(fd)) })
	return errors.Join(err, failed)
}
