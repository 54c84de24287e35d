package virtiogpu

import (
	"image"

	"github.com/lodgehv/lodge/vgpu/display"
)

// scanout is what a screen shows: a rectangle of a framebuffer in a resource.
//
// Pixels of the host are shown as they are, and so is a blob whose memory can be shared as a dmabuf (see Config.Share). Others
// are copied to a picture, each time as much as was flushed. That picture stays when the guest turns to another blob of the same
// form: the screen goes on with it, and gets the whole content at the next flush. The guest's memory itself is given to nobody:
// a viewer is to see a picture, and not all that the guest remembers.
type scanout struct {
	screen *display.Screen

	res     *resource // nil: off
	fb      framebuffer
	r       rect // the part of fb that is shown
	surface *display.Surface
	picture picture // copy of r, of a scattered blob
	stale   bool    // picture is still that of another blob
}

// framebuffer is how pixels lie in a resource.
type framebuffer struct {
	format        uint32
	width, height uint32 // pixels
	stride        uint32 // bytes
	offset        uint32 // of the first pixel, in bytes
}

// framebuffer returns the only one that a 2D resource is.
func (r *resource) framebuffer() framebuffer {
	return framebuffer{r.format, r.width, r.height, uint32(r.picture.width), 0}
}

// canShow reports whether r is a part of fb, and fb of res.
func canShow(res *resource, fb framebuffer, r rect) bool {
	if r.w < 1 || r.h < 1 || !r.in(fb.width, fb.height) {
		return false
	}
	if !res.blob {
		return fb == res.framebuffer()
	}
	n := display.BytesPerPixel * uint64(fb.width)
	return formatOf(fb.format) != 0 && fb.width <= display.MaxSize && fb.height <= display.MaxSize &&
		uint64(fb.stride) >= n && fb.stride%display.BytesPerPixel == 0 && fb.offset%display.BytesPerPixel == 0 &&
		holds(min(res.size, res.backing.size), uint64(fb.offset), uint64(fb.stride), n, int(fb.height))
}

// start returns the offset in the resource of the first pixel that s shows.
func (s *scanout) start() uint64 {
	return uint64(s.fb.offset) + uint64(s.r.y)*uint64(s.fb.stride) + display.BytesPerPixel*uint64(s.r.x)
}

// setScanout: struct virtio_gpu_set_scanout. Resource 0 turns the scanout off.
func (d *Device) setScanout(c *call) uint32 {
	r, res, s, resp := d.scanoutOf(c)
	switch {
	case resp != respOKNoData || res == nil:
		return resp
	case res.blob:
		return respErrInvalidParameter
	}
	return d.show(s, res, res.framebuffer(), r)
}

// setScanoutBlob: struct virtio_gpu_set_scanout_blob, of which all our formats have one plane.
func (d *Device) setScanoutBlob(c *call) uint32 {
	r, res, s, resp := d.scanoutOf(c)
	switch {
	case resp != respOKNoData || res == nil:
		return resp
	case !res.blob:
		return respErrInvalidParameter
	}
	fb := framebuffer{width: c.p.u32(24), height: c.p.u32(28), format: c.p.u32(32), stride: c.p.u32(40), offset: c.p.u32(56)}
	return d.show(s, res, fb, r)
}

// scanoutOf reads what both commands begin with. res is nil if there is no more to do.
func (d *Device) scanoutOf(c *call) (r rect, res *resource, s *scanout, resp uint32) {
	r, n, id := c.p.rect(0), c.p.u32(16), c.p.u32(20)
	if uint64(n) >= uint64(len(d.scanouts)) {
		return r, nil, nil, respErrInvalidScanoutID
	}
	s = &d.scanouts[n]
	if id == 0 {
		d.off(s)
		return r, nil, s, respOKNoData
	}
	if res = d.resources[id]; res == nil {
		return r, nil, s, respErrInvalidResourceID
	}
	return r, res, s, respOKNoData
}

// show makes s show r of fb of res.
func (d *Device) show(s *scanout, res *resource, fb framebuffer, r rect) uint32 {
	if !canShow(res, fb, r) {
		return respErrInvalidParameter
	}
	if s.res == res && s.fb == fb && s.r == r {
		return respOKNoData
	}
	next := scanout{screen: s.screen, res: res, fb: fb, r: r}
	if !d.makeSurface(&next) {
		if s.picture.pixels != nil && s.fb.format == fb.format && s.r.w == r.w && s.r.h == r.h {
			s.res, s.fb, s.r, s.stale = res, fb, r, true
			return respOKNoData
		}
		if !d.makeCopy(&next) {
			return respErrOutOfMemory
		}
	}
	s.screen.Scanout(next.surface)
	d.freePicture(s.picture)
	*s = next
	return respOKNoData
}

// makeCopy sets s.surface to a copy of the pixels, or reports that there is no memory for it.
func (d *Device) makeCopy(s *scanout) (ok bool) {
	if s.picture, ok = d.newPicture(display.BytesPerPixel*int(s.r.w), int(s.r.h)); ok {
		d.makeSurface(s)
		s.gather(s.surface.Bounds())
	}
	return ok
}

// makeSurface sets s.surface, if the pixels can be shown where they are or there is a picture to copy them to.
func (d *Device) makeSurface(s *scanout) bool {
	f := &display.Surface{
		Width: int(s.r.w), Height: int(s.r.h), Stride: int(s.fb.stride), Format: formatOf(s.fb.format),
	}
	start := s.start()
	n := uint64(f.Stride)*uint64(f.Height-1) + display.BytesPerPixel*uint64(f.Width)
	switch {
	case !s.res.blob:
		f.Pixels = s.res.picture.pixels[start : start+n : start+n]
		f.File, f.Offset = d.arena.file, int64(s.res.picture.extent.off)+int64(start)
	case s.picture.pixels != nil:
		f.Stride = s.picture.width
		f.Pixels = s.picture.pixels
		f.File, f.Offset = d.arena.file, int64(s.picture.extent.off)
	default:
		if start > 0 { // who gets a dmabuf takes its first byte for the first pixel
			return false
		}
		buf := d.share(s.res)
		if buf == nil {
			return false
		}
		f.Pixels, f.DMABuf = buf.Bytes[:n:n], buf.File
	}
	s.surface = f
	return true
}

// off turns s off, if it is on.
func (d *Device) off(s *scanout) {
	if s.res == nil {
		return
	}
	s.screen.Scanout(nil)
	d.freePicture(s.picture)
	*s = scanout{screen: s.screen}
}

// offAll turns off what shows res.
func (d *Device) offAll(res *resource) {
	for i := range d.scanouts {
		if d.scanouts[i].res == res {
			d.off(&d.scanouts[i])
		}
	}
}

// lock locks the surfaces that show res.
func (d *Device) lock(res *resource) {
	for i := range d.scanouts {
		if s := &d.scanouts[i]; s.res == res {
			s.surface.Mu.Lock()
		}
	}
}

func (d *Device) unlock(res *resource) {
	for i := range d.scanouts {
		if s := &d.scanouts[i]; s.res == res {
			s.surface.Mu.Unlock()
		}
	}
}

// gather copies a part of what s shows from the guest's memory to its picture.
func (s *scanout) gather(r image.Rectangle) {
	first := display.BytesPerPixel * r.Min.X
	dst := s.picture.pixels[r.Min.Y*s.picture.width+first:]
	src := s.start() + uint64(r.Min.Y)*uint64(s.fb.stride) + uint64(first)
	s.surface.Mu.Lock()
	defer s.surface.Mu.Unlock()
	s.res.backing.copyRows(dst, s.picture.width, src, uint64(s.fb.stride), display.BytesPerPixel*r.Dx(), r.Dy())
}

// resourceFlush tells the screens what has changed: struct virtio_gpu_resource_flush. The rectangle is in pixels of the
// framebuffer.
func (d *Device) resourceFlush(c *call) uint32 {
	r, res := c.p.rect(0), d.resources[c.p.u32(16)]
	switch {
	case res == nil:
		return respErrInvalidResourceID
	case !res.blob && !r.in(res.width, res.height): // a blob has no size of its own
		return respErrInvalidParameter
	}
	for i := range d.scanouts {
		s := &d.scanouts[i]
		if s.res != res {
			continue
		}
		part := r.image().Sub(image.Pt(int(s.r.x), int(s.r.y))).Intersect(s.surface.Bounds())
		if part.Empty() {
			continue
		}
		if s.picture.pixels != nil {
			if s.stale {
				part, s.stale = s.surface.Bounds(), false
			}
			s.gather(part)
		}
		s.screen.Update(part)
	}
	return respOKNoData
}
