package kms

import (
	"errors"
	"image"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/vgpu/display"
)

// maxImports is how many pictures of guests a screen knows of: more than compositors draw into in turn.
const maxImports = 8

// direct is what a screen knows of pictures that it may show without a copy.
type direct struct {
	on      bool        // the last frame that was presented has one
	imports []*imported // the one that was shown last is last
	damage  damageBlob
	moved   []image.Rectangle // for setOver
}

// imported is a guest's picture as a framebuffer, or the knowledge that it cannot be one.
type imported struct {
	key  importKey
	fb   uint32          // 0: it is refused
	fits image.Rectangle // where the driver can show it
}

// importKey tells pictures apart. A dmabuf that is imported exists, so that no other has its number.
type importKey struct {
	dev, ino              uint64
	width, height, stride int
	format                display.Format
}

// plane is a framebuffer in an overlay.
type plane struct {
	fb     uint32
	rect   image.Rectangle // of the screen; the framebuffer's upper left part is as large
	damage []image.Rectangle
}

// PresentDirect implements output.Director: the picture is imported, and shown in an overlay plane. The driver is first asked
// whether it can (DRM_MODE_ATOMIC_TEST_ONLY).
func (s *Screen) PresentDirect(b *output.Buffer, damage []image.Rectangle, d output.Direct) error {
	if !s.d.atomic || s.crtc.over.id == 0 || d.Surface.DMABuf == nil || !d.Rect.In(s.Mode().Size()) ||
		d.Rect.Dx() > d.Surface.Width || d.Rect.Dy() > d.Surface.Height || d.Rect.Empty() {
		return output.ErrNoDirect
	}
	if err := s.usable(); err != nil {
		return err
	}
	s.mu.Lock()
	modeset := s.modeset
	s.mu.Unlock()
	if modeset { // the driver would refuse what it can show as soon as the mode is set
		return output.ErrNoDirect
	}
	p := s.importOf(d.Surface)
	if p == nil || p.fb == 0 {
		return output.ErrNoDirect
	}
	over := &plane{p.fb, d.Rect, d.Damage}
	if p.fits != d.Rect {
		err := s.try(b.ID, over)
		switch {
		case isDenied(err):
			return output.ErrInactive
		case err != nil:
			s.refuse(p, err)
			return output.ErrNoDirect
		}
		p.fits = d.Rect
	}
	err := s.present(b, damage, over)
	switch {
	case err == nil, errors.Is(err, output.ErrBusy), errors.Is(err, output.ErrInactive), errors.Is(err, output.ErrNoDirect):
		return err
	}
	s.refuse(p, err)
	return output.ErrNoDirect
}

// try asks the driver whether it can show a picture over a framebuffer.
func (s *Screen) try(fb uint32, over *plane) error {
	s.request.Reset()
	s.request.Set(s.crtc.plane, s.crtc.planeIDs["FB_ID"], uint64(fb))
	if blob := s.setOver(&plane{over.fb, over.rect, nil}); blob != 0 {
		return errors.Join(s.d.card.Commit(s.request, flagTestOnly, 0), s.direct.damage.done(s.d.card))
	}
	return s.d.card.Commit(s.request, flagTestOnly, 0)
}

// setOver has the request show a picture in the overlay plane, and returns the blob of its damage, 0 if there is none.
func (s *Screen) setOver(p *plane) (blob uint32) {
	o, r := &s.crtc.over, p.rect
	s.request.Set(o.id, o.props["CRTC_ID"], uint64(s.crtc.id))
	for _, k := range [...]struct {
		name  string
		value int
	}{
		{"SRC_X", 0}, {"SRC_Y", 0}, {"SRC_W", r.Dx() << 16}, {"SRC_H", r.Dy() << 16}, // in 1/65536 pixels
		{"CRTC_X", r.Min.X}, {"CRTC_Y", r.Min.Y}, {"CRTC_W", r.Dx()}, {"CRTC_H", r.Dy()},
	} {
		s.request.Set(o.id, o.props[k.name], uint64(k.value))
	}
	moved := s.direct.moved[:0]
	for _, d := range p.damage {
		moved = append(moved, d.Sub(r.Min)) // to pixels of the framebuffer
	}
	s.direct.moved = moved
	return s.setPlane(o.id, o.props, p.fb, moved, &s.direct.damage)
}

// opaque returns the format without alpha: what lies below a guest's picture is another's.
func opaque(f display.Format) display.Format {
	switch f {
	case display.ARGB8888:
		return display.XRGB8888
	case display.ABGR8888:
		return display.XBGR8888
	case display.RGBA8888:
		return display.RGBX8888
	case display.BGRA8888:
		return display.BGRX8888
	}
	return f
}

// importOf returns a surface's memory as a framebuffer, or that it is refused; nil if it is not there.
func (s *Screen) importOf(f *display.Surface) *imported {
	var st unix.Stat_t
	if err := fstat(f, &st); err != nil {
		return nil
	}
	key := importKey{st.Dev, st.Ino, f.Width, f.Height, f.Stride, opaque(f.Format)}
	d := &s.direct
	if i := slices.IndexFunc(d.imports, func(p *imported) bool { return p.key == key }); i >= 0 {
		p := d.imports[i]
		d.imports = append(slices.Delete(d.imports, i, i+1), p)
		return p
	}
	if len(d.imports) >= maxImports { // neither of the two that were shown last, which may be on the screen
		s.drop(d.imports[0])
		d.imports = slices.Delete(d.imports, 0, 1)
	}
	p := &imported{key: key}
	var err error
	if p.fb, err = s.d.card.Import(f.DMABuf, f.Width, f.Height, f.Stride, key.format); err != nil {
		s.refuse(p, err)
	}
	d.imports = append(d.imports, p)
	return p
}

func fstat(f *display.Surface, st *unix.Stat_t) error {
	raw, err := f.DMABuf.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.Fstat(int(fd), st) })
	return errors.Join(err, failed)
}

// refuse notes down that a picture has to be copied.
func (s *Screen) refuse(p *imported, err error) {
	s.d.opt.Log.Debug("a guest's picture is copied", "connector", s.conn.Name(), "err", err)
	s.drop(p)
}

// drop gives up a framebuffer, which is not on the screen.
func (s *Screen) drop(p *imported) {
	if p.fb == 0 {
		return
	}
	if err := s.d.card.RmFB(p.fb); err != nil {
		s.d.opt.Log.Warn("a guest's picture cannot be given up", "connector", s.conn.Name(), "err", err)
	}
	p.fb = 0
}

// forget gives up all pictures, of which none is on the screen: they keep memory of guests. What is refused stays so.
func (s *Screen) forget() {
	s.direct.imports = slices.DeleteFunc(s.direct.imports, func(p *imported) bool {
		refused := p.fb == 0
		s.drop(p)
		return !refused
	})
}
