package kms

import (
	"image"
	"log/slog"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/dmabuf"
)

// TestVKMS shows a picture without a copy on the kernel's virtual card (module vkms, with enable_overlay=1): scattered pages of
// a memfd, as guests' memory is, become a dmabuf, which the driver imports and puts into its overlay. That driver is one that
// reads by the CPU, for which udmabuf has what it takes since Linux 6.3.
func TestVKMS(t *testing.T) {
	card := vkms(t)
	maker, err := dmabuf.Open()
	if card == nil || err != nil {
		t.Skip("needs vkms with overlays and /dev/udmabuf")
	}
	defer maker.Close()
	why := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := newDisplay(card, Options{Log: why})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	screens := scan(t, d)
	if len(screens) == 0 || screens[0].crtc.over.id == 0 {
		t.Skip("needs vkms with overlays and /dev/udmabuf")
	}
	s := screens[0]
	size := s.Mode().Size().Max
	rect := image.Rect(0, 28, size.X, size.Y)
	p := &display.Surface{Width: rect.Dx(), Height: rect.Dy(), Stride: 4 * rect.Dx(), Format: display.ARGB8888}
	buf, err := maker.Make(pages(t, int64(p.Stride*p.Height)))
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Close()
	p.DMABuf = buf.File
	b := buffer(t, s)
	present(t, s, b)
	refresh(t, d, s)
	for range 3 {
		if err := s.PresentDirect(b, nil, output.Direct{Surface: p, Rect: rect, Damage: []image.Rectangle{rect}}); err != nil {
			t.Fatal(err)
		}
		refresh(t, d, s)
		if fb, crtc := overlayOf(t, s); fb == 0 || crtc != s.crtc.id {
			t.Errorf("the overlay shows framebuffer %d on CRTC %d", fb, crtc)
		}
	}
	present(t, s, b)
	refresh(t, d, s)
	if fb, crtc := overlayOf(t, s); fb != 0 || crtc != 0 {
		t.Errorf("after a copy the overlay shows framebuffer %d on CRTC %d", fb, crtc)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// vkms opens the virtual card, nil if there is none.
func vkms(t *testing.T) *Card {
	t.Helper()
	paths, err := Cards()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		c, err := Open(path)
		if err != nil {
			continue
		}
		if name, err := c.Driver(); err == nil && name == "vkms" {
			return c
		}
		c.Close()
	}
	return nil
}

// overlayOf returns what a screen's overlay shows.
func overlayOf(t *testing.T, s *Screen) (fb, crtc uint32) {
	t.Helper()
	planes, err := s.d.card.Planes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range planes {
		if p.ID == s.crtc.over.id {
			return p.FB, p.CRTC
		}
	}
	t.Fatal("there is no such plane")
	return 0, 0
}

// pages returns n bytes of a memfd and no more, in pieces of which no two adjoin.
func pages(t *testing.T, n int64) (list []dmabuf.Range) {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	t.Cleanup(func() { f.Close() })
	const piece = 16 << 10
	if err := f.Truncate(4 * n); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); n > 0; off += 2 * piece {
		size := min(piece, (n+4095)&^4095)
		list = append(list, dmabuf.Range{File: f, Off: off, Size: size})
		n -= size
	}
	return list
}
