package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/kms"
	"github.com/lodgehv/lodge/vgpu/display"
)

// vgem is the driver of memory that is shared between drivers, and of nothing else: it has dmabufs for tests.
type vgem struct{ f *os.File }

// openVGEM opens the card of the module vgem.
func openVGEM() (*vgem, error) {
	paths, err := kms.Cards()
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		c, err := kms.Open(p)
		if err != nil {
			return nil, err
		}
		name, err := c.Driver()
		if err = errors.Join(err, c.Close()); err != nil {
			return nil, err
		}
		if name == "vgem" {
			f, err := os.OpenFile(filepath.Clean(p), os.O_RDWR, 0)
			return &vgem{f}, err
		}
	}
	return nil, errors.New("there is no card of vgem: load the module")
}

// The ioctls (include/uapi/drm/drm.h and drm_mode.h).
const (
	nrCreateDumb      = 0xc02064b2
	nrPrimeHandleToFD = 0xc00c642d
)

// createDumb is struct drm_mode_create_dumb.
type createDumb struct {
	height, width, bpp, flags uint32
	handle, pitch             uint32
	size                      uint64
}

// primeHandle is struct drm_prime_handle.
type primeHandle struct {
	handle, flags uint32
	fd            int32
}

func (v *vgem) ioctl(nr uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, v.f.Fd(), nr, uintptr(arg)); errno != 0 {
		return fmt.Errorf("vgem: ioctl %#x: %w", nr, errno)
	}
	return nil
}

// surface returns a surface in a dmabuf, which lives until the program ends.
func (v *vgem) surface(width, height int) (*display.Surface, error) {
	a := createDumb{width: uint32(width), height: uint32(height), bpp: 8 * display.BytesPerPixel}
	if err := v.ioctl(nrCreateDumb, unsafe.Pointer(&a)); err != nil {
		return nil, err
	}
	p := primeHandle{handle: a.handle, flags: unix.O_CLOEXEC | unix.O_RDWR}
	if err := v.ioctl(nrPrimeHandleToFD, unsafe.Pointer(&p)); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(p.fd), 0, int(a.pitch)*height, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &display.Surface{
		Width: width, Height: height, Stride: int(a.pitch), Format: display.XRGB8888, Pixels: b,
		DMABuf: os.NewFile(uintptr(p.fd), "dmabuf"),
	}, nil
}
