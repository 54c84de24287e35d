package virtiogpu

import (
	"cmp"
	"fmt"
	"image"
	"maps"
	"math"
	"slices"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/vgpu/display"
)

// StateVersion returns 1.
func (*Device) StateVersion() uint16 { return 1 }

// State carries all that a guest has told the card, with the pixels.
//
// Nearly all pixels of the host are copies of what still lies in the guest's memory, which is saved with it: rows that are
// the same there are only named, and copied again when the device starts on the restored memory. A desktop's state is so
// some kilobytes, and not the tens of megabytes that a state file has no room for.
func (d *Device) State(c *snap.Codec) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.Match("number of screens", uint64(len(d.scanouts)))
	events := d.events.Load()
	c.U32(&events)
	d.events.Store(events)
	d.monitorState(c)
	d.resourcesState(c)
	for i := range d.scanouts {
		d.scanoutState(c, &d.scanouts[i])
	}
	for i := range d.pointer.cursors {
		d.pointer.cursors[i].state(c)
	}
	if c.Loading() {
		d.restored = true
	}
}

// monitorState carries what the driver knows of its monitors: after a restore others may stand there.
func (d *Device) monitorState(c *snap.Codec) {
	known := d.told != nil
	if c.Bool(&known); !known {
		return
	}
	if c.Loading() {
		d.told = make([]display.Monitor, len(d.scanouts))
	}
	for i := range d.told {
		m := &d.told[i]
		c.Bool(&m.Connected)
		for _, v := range []*int{&m.Width, &m.Height, &m.WidthMM, &m.HeightMM, &m.RefreshMilliHz, &m.X, &m.Y} {
			c.Int(v)
		}
		c.String(&m.Name, math.MaxUint16)
		c.U32(&m.Serial)
	}
}

// resourcesState carries the resources in the order of their ids.
func (d *Device) resourcesState(c *snap.Codec) {
	n := c.Len(len(d.resources), maxResources)
	if !c.Loading() {
		byID := func(a, b *resource) int { return cmp.Compare(a.id, b.id) }
		for _, r := range slices.SortedFunc(maps.Values(d.resources), byID) {
			d.resourceState(c, r)
		}
		return
	}
	last := uint32(0)
	for i := 0; i < n && c.Err() == nil; i++ {
		r := &resource{}
		d.resourceState(c, r)
		if r.id <= last {
			c.Fail("graphics resource %d after %d", r.id, last)
		}
		last = r.id
	}
}

// resourceState carries a resource. Decoding, it adds r to the others.
func (d *Device) resourceState(c *snap.Codec, r *resource) {
	c.U32(&r.id)
	c.Fixed(r.uuid[:])
	c.Bool(&r.blob)
	c.U64(&r.size)
	c.U32(&r.format)
	c.U32(&r.width)
	c.U32(&r.height)
	if c.Loading() && c.Err() == nil {
		resp := d.mayAdd(r.id)
		switch {
		case resp != respOKNoData:
		case r.blob == (r.size == 0) || r.blob && (r.format|r.width|r.height) != 0:
			resp = respErrInvalidParameter
		case r.blob:
			d.resources[r.id] = r
		default:
			resp = d.create2D(r)
		}
		if resp != respOKNoData {
			c.Fail("graphics resource %d (%d×%d pixels, %d bytes): error %#x", r.id, r.width, r.height, r.size, resp)
		}
	}
	d.backingState(c, r)
	if !r.blob {
		d.pictureState(c, &r.picture, &r.backing, 0, uint64(r.picture.width))
	}
}

// backingState carries the addresses of a backing. Decoding, the memory comes with the start.
func (d *Device) backingState(c *snap.Codec, r *resource) {
	n := c.Len(len(r.backing.pieces), maxTotalEntries)
	for i := range n {
		var p piece
		if !c.Loading() {
			p = r.backing.pieces[i]
		}
		c.U64((*uint64)(&p.gpa))
		c.U64(&p.size)
		if !c.Loading() {
			continue
		}
		p.start = r.backing.size
		if p.size == 0 || p.size > math.MaxInt64-p.start || uint64(p.gpa) > math.MaxUint64-p.size || d.entries == maxTotalEntries {
			c.Fail("graphics resource %d: %d bytes of guest memory at %#x", r.id, p.size, p.gpa)
		}
		if c.Err() != nil {
			return
		}
		r.backing.pieces = append(r.backing.pieces, p)
		r.backing.size += p.size
		d.entries++
	}
	if c.Loading() && (n > 0 && r.backing.size < r.size) {
		c.Fail("graphics resource %d: %d bytes of guest memory for %d", r.id, r.backing.size, r.size)
	}
}

// pictureState carries pixels, whose rows may also be in b: one every stride bytes from off on.
func (d *Device) pictureState(c *snap.Codec, p *picture, b *backing, off, stride uint64) {
	same := p.pending
	if !c.Loading() && !d.restored {
		same = p.sameAs(b, off, stride)
	}
	n, done := c.Len(len(same), p.rows), 0
	for i := range n {
		var r rows
		if !c.Loading() {
			r = same[i]
		}
		c.Int(&r.first)
		c.Int(&r.n)
		if r.first < done || r.n < 1 || r.n > p.rows-r.first ||
			!holds(b.size, off+uint64(r.first)*stride, stride, uint64(p.width), r.n) {
			c.Fail("rows [%d, %d+%d) of a picture of %d are not in the guest's memory", r.first, r.first, r.n, p.rows)
		}
		if c.Err() != nil {
			return
		}
		c.Fixed(p.pixels[done*p.width : r.first*p.width])
		if done = r.first + r.n; c.Loading() {
			p.pending = append(p.pending, r)
		}
	}
	c.Fixed(p.pixels[done*p.width:])
}

// sameAs returns the rows of p that are the same in b.
func (p *picture) sameAs(b *backing, off, stride uint64) (same []rows) {
	for y := range p.rows {
		at := off + uint64(y)*stride
		if !holds(b.size, at, stride, uint64(p.width), 1) || !b.equal(p.pixels[y*p.width:][:p.width], at) {
			continue
		}
		if n := len(same) - 1; n >= 0 && same[n].first+same[n].n == y {
			same[n].n++
		} else {
			same = append(same, rows{y, 1})
		}
	}
	return same
}

func (d *Device) scanoutState(c *snap.Codec, s *scanout) {
	on, copied := s.res != nil, s.picture.pixels != nil
	if c.Bool(&on); !on {
		return
	}
	var id uint32
	if s.res != nil {
		id = s.res.id
	}
	for _, v := range []*uint32{
		&id, &s.r.x, &s.r.y, &s.r.w, &s.r.h, &s.fb.format, &s.fb.width, &s.fb.height, &s.fb.stride, &s.fb.offset,
	} {
		c.U32(v)
	}
	c.Bool(&copied)
	c.Bool(&s.stale)
	if c.Err() != nil {
		return
	}
	if c.Loading() {
		res := d.resources[id]
		if res == nil || !canShow(res, s.fb, s.r) || copied && !res.blob || s.stale && !copied {
			c.Fail("a screen shows %d×%d pixels of graphics resource %d, which it cannot", s.r.w, s.r.h, id)
			return
		}
		if copied {
			var ok bool
			if s.picture, ok = d.newPicture(display.BytesPerPixel*int(s.r.w), int(s.r.h)); !ok {
				c.Fail("no memory for a screen of %d×%d pixels", s.r.w, s.r.h)
				return
			}
		}
		s.res = res
	}
	if copied {
		d.pictureState(c, &s.picture, &s.res.backing, s.start(), uint64(s.fb.stride))
	}
}

func (k *cursor) state(c *snap.Codec) {
	c.Int(&k.at.X)
	c.Int(&k.at.Y)
	shown := k.shown != nil
	if c.Bool(&shown); !shown {
		return
	}
	s := k.shown
	if s == nil {
		s = &display.Cursor{}
	}
	c.Int(&s.Width)
	c.Int(&s.Height)
	c.Int(&s.Hot.X)
	c.Int(&s.Hot.Y)
	c.Bytes(&s.Pixels, display.BytesPerPixel*maxCursorSide*maxCursorSide)
	if s.Width < 1 || s.Width > maxCursorSide || s.Height < 1 || s.Height > maxCursorSide ||
		len(s.Pixels) != display.BytesPerPixel*s.Width*s.Height || !s.Hot.In(image.Rect(0, 0, s.Width, s.Height)) {
		c.Fail("a cursor of %d×%d pixels in %d bytes that points with %v", s.Width, s.Height, len(s.Pixels), s.Hot)
		return
	}
	k.shown = s
}

// complete finishes a restore, now that the guest's memory is there, and shows what was shown. d.mu is held.
func (d *Device) complete() error {
	if !d.restored {
		return nil
	}
	for _, r := range d.resources {
		var spans []span
		for _, p := range r.backing.pieces {
			spans = append(spans, p.span)
		}
		b, err := resolve(d.mem, spans)
		if err != nil {
			return fmt.Errorf("graphics resource %d: %w: the saved state is not that of this memory", r.id, err)
		}
		d.entries += len(b.pieces) - len(r.backing.pieces)
		r.backing = b
		r.picture.complete(&r.backing, 0, uint64(r.picture.width))
	}
	for i := range d.scanouts {
		s := &d.scanouts[i]
		if s.res == nil {
			continue
		}
		s.picture.complete(&s.res.backing, s.start(), uint64(s.fb.stride))
		if !d.makeSurface(s) && !d.makeCopy(s) {
			return fmt.Errorf("graphics: no memory for a screen of %d×%d pixels", s.r.w, s.r.h)
		}
		s.screen.Scanout(s.surface)
	}
	for i, k := range d.pointer.cursors {
		if k.shown != nil {
			d.cfg.Screens[i].Cursor(k.shown)
		}
		d.cfg.Screens[i].MoveCursor(k.hot())
	}
	d.restored = false
	return nil
}

// complete copies the rows that are pending.
func (p *picture) complete(b *backing, off, stride uint64) {
	for _, r := range p.pending {
		b.copyRows(p.pixels[r.first*p.width:], p.width, off+uint64(r.first)*stride, stride, p.width, r.n)
	}
	p.pending = nil
}
