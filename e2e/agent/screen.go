package main

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// screen writes what the kernel has on the first monitor, as PNG: the picture as the desktop has drawn it, read from the
// kernel's frame buffer. The pointer is not in it.
func screen(_ context.Context, args []string) error {
	if err := need(args); err != nil {
		return err
	}
	fb, err := openFramebuffer()
	if err != nil {
		return err
	}
	defer fb.close()
	e := png.Encoder{CompressionLevel: png.BestSpeed}
	return e.Encode(os.Stdout, fb.copy())
}

// paint draws the PNG picture on standard input over the desktop, behind its back, for a while: whatever the desktop draws
// there, and whichever of its buffers it shows, the picture comes back.
func paint(ctx context.Context, args []string) error {
	if err := need(args, "X", "Y", "DURATION"); err != nil {
		return err
	}
	x, errX := strconv.Atoi(args[0])
	y, errY := strconv.Atoi(args[1])
	d, errD := time.ParseDuration(args[2])
	img, errPNG := png.Decode(os.Stdin)
	if err := errors.Join(errX, errY, errD, errPNG); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		fb, err := openFramebuffer()
		if err != nil {
			return err
		}
		fb.draw(img, image.Pt(x, y))
		fb.close()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// DRM's requests and structures, of linux/drm.h and linux/drm_mode.h.
const (
	drmModeGetResources = 0xc04064a0
	drmModeGetCRTC      = 0xc06864a1
	drmModeGetFB        = 0xc01c64ad
	drmModeMapDumb      = 0xc01064b3
)

type drmResources struct {
	fbs, crtcs, connectors, encoders         uint64 // addresses
	nFBs, nCRTCs, nConnectors, nEncoders     uint32
	minWidth, maxWidth, minHeight, maxHeight uint32
}

type drmCRTC struct {
	connectors                  uint64
	nConnectors, crtc, fb, x, y uint32
	gamma, valid                uint32
	mode                        [68]byte
}

type drmFB struct{ fb, width, height, pitch, bpp, depth, handle uint32 }

type drmMapDumb struct {
	handle, pad uint32
	offset      uint64
}

// framebuffer is what a CRTC shows: 32-bit pixels, mapped.
type framebuffer struct {
	card *os.File
	drmFB
	pixels []byte
}

func openFramebuffer() (*framebuffer, error) {
	card, err := os.OpenFile("/dev/dri/card0", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	f := &framebuffer{card: card}
	if err := f.find(); err != nil {
		return nil, errors.Join(err, card.Close())
	}
	return f, nil
}

func (f *framebuffer) find() error {
	var crtcs [16]uint32
	var pinner runtime.Pinner // the kernel gets its address in a structure
	pinner.Pin(&crtcs)
	defer pinner.Unpin()
	r := drmResources{crtcs: uint64(uintptr(unsafe.Pointer(&crtcs[0]))), nCRTCs: uint32(len(crtcs))}
	if err := f.ioctl("GETRESOURCES", drmModeGetResources, unsafe.Pointer(&r)); err != nil {
		return err
	}
	for _, id := range crtcs[:min(r.nCRTCs, uint32(len(crtcs)))] {
		c := drmCRTC{crtc: id}
		if err := f.ioctl("GETCRTC", drmModeGetCRTC, unsafe.Pointer(&c)); err != nil {
			return err
		}
		if c.fb != 0 {
			return f.openFB(c.fb)
		}
	}
	return errors.New("no monitor shows anything")
}

func (f *framebuffer) openFB(id uint32) error {
	f.fb = id
	if err := f.ioctl("GETFB", drmModeGetFB, unsafe.Pointer(&f.drmFB)); err != nil {
		return err
	}
	if f.bpp != 32 {
		return fmt.Errorf("a frame buffer with %d bits a pixel", f.bpp)
	}
	m := drmMapDumb{handle: f.handle}
	if err := f.ioctl("MAP_DUMB", drmModeMapDumb, unsafe.Pointer(&m)); err != nil {
		return err
	}
	var err error
	f.pixels, err = unix.Mmap(int(f.card.Fd()), int64(m.offset), int(f.pitch*f.height), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

func (f *framebuffer) ioctl(name string, request uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.card.Fd(), request, uintptr(arg)); e != 0 {
		return fmt.Errorf("DRM_IOCTL_MODE_%s: %w", name, e)
	}
	return nil
}

func (f *framebuffer) close() {
	_ = unix.Munmap(f.pixels) // it was mapped
	_ = f.card.Close()
}

// copy returns the picture.
func (f *framebuffer) copy() *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, int(f.width), int(f.height)))
	for y := range int(f.height) {
		from, to := f.pixels[y*int(f.pitch):], img.Pix[y*img.Stride:]
		for x := 0; x < int(f.width)*4; x += 4 { // XRGB8888, little-endian
			to[x], to[x+1], to[x+2], to[x+3] = from[x+2], from[x+1], from[x], 255
		}
	}
	return img
}

// draw draws a picture at a place.
func (f *framebuffer) draw(img image.Image, at image.Point) {
	all := image.Rect(0, 0, int(f.width), int(f.height))
	to := img.Bounds().Sub(img.Bounds().Min).Add(at).Intersect(all)
	rgba := image.NewRGBA(to)
	draw.Draw(rgba, to, img, img.Bounds().Min.Add(to.Min).Sub(at), draw.Src)
	for y := to.Min.Y; y < to.Max.Y; y++ {
		for x := to.Min.X; x < to.Max.X; x++ {
			c, _ := rgba.At(x, y).(color.RGBA)
			copy(f.pixels[y*int(f.pitch)+x*4:], []byte{c.B, c.G, c.R, 255})
		}
	}
}
