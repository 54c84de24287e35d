package qdisplay

import (
	"errors"
	"fmt"
	"image"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/vgpu/display"
)

// mapping is a surface in memory of the server. Memory that the server has sealed against shrinking is mapped. What could be
// cut off would then kill us by a signal when it is read: that is copied, by system calls, which fail instead.
type mapping struct {
	key     mapKey
	surface *display.Surface
	file    *os.File
	mem     []byte // what is mapped; nil if it is copied
	buf     bool   // file is a dmabuf
}

// mapKey tells mappings apart: a guest that draws into two surfaces in turn has the same two mapped all the time.
type mapKey struct {
	dev, ino              uint64
	offset                uint32
	width, height, stride int
	format                display.Format
}

// identify checks that a file is memory (a memfd, or a file on a tmpfs: reading and mapping it waits for nobody) and that
// the surface lies within it. sealed says that it always will: the seals are looked at before the size, or the file could be
// cut off between the two and sealed then.
func identify(f *os.File, offset uint32, s *display.Surface) (key mapKey, sealed bool, err error) {
	fd := int(f.Fd())
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return mapKey{}, false, errors.New("it is no memfd")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return mapKey{}, false, os.NewSyscallError("fstat", err)
	}
	if end := uint64(offset) + need(s); st.Size < 0 || end > uint64(st.Size) {
		return mapKey{}, false, fmt.Errorf("the picture ends at byte %d of %d", end, st.Size)
	}
	return mapKey{st.Dev, st.Ino, offset, s.Width, s.Height, s.Stride, s.Format}, seals&unix.F_SEAL_SHRINK != 0, nil
}

// newMapping maps or copies s, which identify has found in f. It takes f over.
func newMapping(f *os.File, key mapKey, sealed bool, s *display.Surface) (*mapping, error) {
	m := &mapping{key: key, surface: s, file: f}
	fd := int(f.Fd())
	var fs unix.Statfs_t
	// A hole in a file of huge pages cannot be filled if there are none left.
	if sealed && unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.TMPFS_MAGIC {
		first := int64(key.offset) &^ int64(os.Getpagesize()-1)
		skip := int(int64(key.offset) - first)
		var err error
		m.mem, err = unix.Mmap(fd, first, skip+int(need(s)), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			f.Close()
			return nil, os.NewSyscallError("mmap", err)
		}
		s.Pixels = m.mem[skip:]
		s.File, s.Offset = f, int64(key.offset)
		return m, nil
	}
	s.Pixels = make([]byte, need(s))
	if err := m.copy(s.Bounds()); err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

// identifyDMABuf checks that a file is a dmabuf and that the surface lies at its beginning. size returns that of a dmabuf.
func identifyDMABuf(f *os.File, s *display.Surface, size func(*os.File) (int64, error)) (mapKey, error) {
	n, err := size(f)
	if err != nil {
		return mapKey{}, err
	}
	if n < 0 || need(s) > uint64(n) {
		return mapKey{}, fmt.Errorf("the picture ends at byte %d of %d", need(s), n)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return mapKey{}, os.NewSyscallError("fstat", err)
	}
	return mapKey{st.Dev, st.Ino, 0, s.Width, s.Height, s.Stride, s.Format}, nil
}

// newDMABuf maps s, which identifyDMABuf has found in f. It takes f over. The memory cannot be cut off: who has a dmabuf keeps
// its pages.
func newDMABuf(f *os.File, key mapKey, s *display.Surface) (*mapping, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, int(need(s)), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, os.NewSyscallError("mmap", err)
	}
	s.Pixels, s.DMABuf = b, f
	return &mapping{key: key, surface: s, file: f, mem: b, buf: true}, nil
}

// copy reads a part of the surface. What has been cut off is zero.
func (m *mapping) copy(r image.Rectangle) error {
	s := m.surface
	row := r.Dx() * display.BytesPerPixel
	whole := r.Dx() == s.Width // rows are read together, with what is between them
	size := row
	if whole {
		size = s.Stride
	}
	for first, end := range bands(s, size, r.Dy()) {
		n, step := row, 1
		if whole {
			n, step = s.Stride*(end-first-1)+row, end-first
		}
		for y := first; y < end; y += step {
			at := (r.Min.Y+y)*s.Stride + r.Min.X*display.BytesPerPixel
			to := s.Pixels[at : at+n]
			got, err := m.file.ReadAt(to, int64(m.key.offset)+int64(at))
			if err != nil && err != io.EOF {
				return err
			}
			clear(to[got:])
		}
	}
	return nil
}

// close unmaps the memory: nobody may use it any more.
func (m *mapping) close() {
	if m.mem != nil {
		unix.Munmap(m.mem)
		m.mem = nil
	}
	m.surface.Pixels = nil
	m.file.Close()
}
