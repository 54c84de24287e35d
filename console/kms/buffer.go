package kms

import (
	"errors"
	"fmt"
	"os"

	"github.com/lodgehv/lodge/vgpu/display"
)

// dumb is a dumb buffer: memory of the card that the CPU writes.
type dumb struct {
	width, height int
	handle, pitch uint32
	mem           []byte
}

// createDumb makes a dumb buffer of 32 bits a pixel and maps it (DRM_IOCTL_MODE_CREATE_DUMB, MAP_DUMB). It is black.
func (c *Card) createDumb(width, height int) (*dumb, error) {
	a := createDumb{width: uint32(width), height: uint32(height), bpp: 32}
	if err := ioctl(c.dev, "DRM_IOCTL_MODE_CREATE_DUMB", nrCreateDumb, &a); err != nil {
		return nil, fmt.Errorf("buffer of %d×%d pixels: %w", width, height, err)
	}
	d := &dumb{width: width, height: height, handle: a.handle, pitch: a.pitch}
	m := mapDumb{handle: a.handle}
	err := ioctl(c.dev, "DRM_IOCTL_MODE_MAP_DUMB", nrMapDumb, &m)
	switch {
	case err != nil:
	case uint64(a.pitch) < 4*uint64(width) || a.size < uint64(a.pitch)*uint64(height) || a.size > 1<<32:
		err = fmt.Errorf("driver makes it %d bytes large, a row %d", a.size, a.pitch)
	default:
		d.mem, err = c.dev.mmap(m.offset, int(a.size))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("buffer of %d×%d pixels: %w", width, height, err), c.destroyDumb(d))
	}
	return d, nil
}

// destroyDumb unmaps and removes a buffer (DRM_IOCTL_MODE_DESTROY_DUMB).
func (c *Card) destroyDumb(d *dumb) error {
	var err error
	if d.mem != nil {
		err = c.dev.munmap(d.mem)
		d.mem = nil
	}
	return errors.Join(err, ioctl(c.dev, "DRM_IOCTL_MODE_DESTROY_DUMB", nrDestroyDumb, &d.handle))
}

// addFB makes a framebuffer of memory that a handle names (DRM_IOCTL_MODE_ADDFB2).
func (c *Card) addFB(handle uint32, width, height int, pitch uint32, f display.Format) (uint32, error) {
	a := fbCmd2{width: uint32(width), height: uint32(height), format: uint32(f)}
	a.handles[0], a.pitches[0] = handle, pitch
	err := ioctl(c.dev, "DRM_IOCTL_MODE_ADDFB2", nrAddFB2, &a)
	return a.id, err
}

// RmFB removes a framebuffer (DRM_IOCTL_MODE_RMFB). A CRTC that shows it is turned off.
func (c *Card) RmFB(id uint32) error { return ioctl(c.dev, "DRM_IOCTL_MODE_RMFB", nrRmFB, &id) }

// ErrNoImport is wrapped by the errors of Import: the picture has to be copied.
var ErrNoImport = errors.New("the card cannot show another's memory")

// Import makes a framebuffer of a dmabuf (DRM_IOCTL_PRIME_FD_TO_HANDLE), to be removed by RmFB, which keeps the memory.
// Whether it can depends on the card, its driver and where the memory is: a driver may refuse at any step, which is an
// ErrNoImport that says so.
func (c *Card) Import(dmabuf *os.File, width, height, stride int, f display.Format) (fb uint32, err error) {
	if c.GetCap(CapPrime)&primeImport == 0 {
		return 0, fmt.Errorf("%w: its driver has no PRIME import", ErrNoImport)
	}
	raw, err := dmabuf.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("dmabuf: %w", err)
	}
	// One memory has one handle, however often it is imported: nobody else closes it in between.
	c.importing.Lock()
	defer c.importing.Unlock()
	var a primeHandle
	var failed error
	if err := raw.Control(func(fd uintptr) {
		a.fd = int32(fd)
		failed = ioctl(c.dev, "DRM_IOCTL_PRIME_FD_TO_HANDLE", nrPrimeFDToHandle, &a)
	}); err != nil {
		return 0, fmt.Errorf("dmabuf: %w", err)
	}
	if failed != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoImport, failed)
	}
	fb, err = c.addFB(a.handle, width, height, uint32(stride), f)
	if err != nil {
		err = fmt.Errorf("%w: picture of %d×%d pixels, %v, with a stride of %d: %w", ErrNoImport, width, height, f, stride, err)
	}
	return fb, errors.Join(err, ioctl(c.dev, "DRM_IOCTL_GEM_CLOSE", nrGEMClose, &gemClose{handle: a.handle}))
}
