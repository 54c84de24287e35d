package virtiogpu

import (
	"image"

	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/vgpu/display"
)

// cursor is the pointer on a scanout.
type cursor struct {
	shown *display.Cursor // nil: hidden
	at    image.Point     // of its upper left corner
}

// pointer is what serving the cursor queue needs.
type pointer struct {
	chain   virtio.Chain
	cursors []cursor // one for each scanout
}

// serveCursor executes the commands of the cursor queue. They have no response (§5.7.6.10), so what is wrong is ignored.
func (d *Device) serveCursor(q *virtio.Queue) error {
	c := &d.pointer.chain
	for {
		ok, err := q.Next(c)
		if !ok || err != nil {
			return err
		}
		var b [headerSize + cursorSize]byte
		if _, err := c.Read(b[:]); err != nil {
			return virtio.Protocolf("graphics: a cursor command is shorter than %d bytes", len(b))
		}
		d.moveCursor(parseHeader(b[:]).typ, b[headerSize:])
		q.Done(c)
	}
}

// moveCursor executes a command: struct virtio_gpu_update_cursor. The position is that of the upper left corner, as the
// planes of Linux and Windows have it, and may be negative.
func (d *Device) moveCursor(typ uint32, p fields) {
	n := p.u32(0)
	if typ != cmdUpdateCursor && typ != cmdMoveCursor || uint64(n) >= uint64(len(d.pointer.cursors)) {
		return
	}
	c, screen := &d.pointer.cursors[n], d.cfg.Screens[n]
	c.at = image.Pt(int(int32(p.u32(4))), int(int32(p.u32(8))))
	if typ == cmdUpdateCursor {
		if shown, ok := d.cursorOf(p.u32(16), p.u32(20), p.u32(24)); ok {
			c.shown = shown
			screen.Cursor(shown)
		}
	}
	screen.MoveCursor(c.hot())
}

// hot returns the position of the pixel that points.
func (c *cursor) hot() image.Point {
	if c.shown == nil {
		return c.at
	}
	return c.at.Add(c.shown.Hot)
}

// cursorOf returns the picture in resource id, nil for resource 0, or reports that there is none.
func (d *Device) cursorOf(id, hotX, hotY uint32) (*display.Cursor, bool) {
	if id == 0 {
		return nil, true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.resources[id]
	if r == nil {
		return nil, false
	}
	c := &display.Cursor{Width: cursorSide, Height: cursorSide}
	format := display.ARGB8888
	if r.blob {
		const size = display.BytesPerPixel * cursorSide * cursorSide
		if !holds(min(r.size, r.backing.size), 0, size, size, 1) {
			return nil, false
		}
		c.Pixels = make([]byte, size)
		r.backing.copyRows(c.Pixels, size, 0, size, size, 1)
	} else {
		if r.width > maxCursorSide || r.height > maxCursorSide {
			return nil, false
		}
		format = formatOf(r.format)
		c.Width, c.Height = int(r.width), int(r.height)
		c.Pixels = append([]byte(nil), r.picture.pixels...)
	}
	toARGB(c.Pixels, format)
	c.Hot = image.Pt(int(min(hotX, uint32(c.Width-1))), int(min(hotY, uint32(c.Height-1))))
	return c, true
}

// toARGB makes pixels of a format those of display.ARGB8888: bytes B, G, R, A.
func toARGB(p []byte, format display.Format) {
	var b, g, r, a int // where the bytes are; a is -1 if all is opaque
	switch format {
	case display.ARGB8888:
		return
	case display.XRGB8888:
		b, g, r, a = 0, 1, 2, -1
	case display.ABGR8888:
		b, g, r, a = 2, 1, 0, 3
	case display.XBGR8888:
		b, g, r, a = 2, 1, 0, -1
	case display.RGBA8888:
		b, g, r, a = 1, 2, 3, 0
	case display.RGBX8888:
		b, g, r, a = 1, 2, 3, -1
	case display.BGRA8888:
		b, g, r, a = 3, 2, 1, 0
	case display.BGRX8888:
		b, g, r, a = 3, 2, 1, -1
	}
	for ; len(p) >= display.BytesPerPixel; p = p[display.BytesPerPixel:] {
		q := [...]byte{p[b], p[g], p[r], 0xff}
		if a >= 0 {
			q[3] = p[a]
		}
		copy(p, q[:])
	}
}

// hideCursors forgets the cursors. The device is stopped.
func (d *Device) hideCursors() {
	for i := range d.pointer.cursors {
		if c := &d.pointer.cursors[i]; c.shown != nil {
			d.cfg.Screens[i].Cursor(nil)
		}
		d.pointer.cursors[i] = cursor{}
	}
}
