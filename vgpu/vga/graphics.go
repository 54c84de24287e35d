package vga

import (
	"encoding/binary"
	"image"
	"math/bits"
)

// drawGraphics draws what has changed in the graphics mode m, as far as the dirty pages tell; all of it if full.
func (c *Card) drawGraphics(m *mode, full bool, d *damage) {
	p := &c.picture
	p.blinks = false
	addr, line, pan := m.start, m.preset, m.pan
	drawn, shown := -1, false // the row that was looked at last, and whether it is in p.line
	for y := range m.height {
		if y == m.split+1 {
			addr, line, drawn = 0, 0, -1
			if m.panSplit {
				pan = 0
			}
		}
		if at := m.row(addr, line>>m.double); at != drawn {
			drawn, shown = at, full || c.rowDirty(m, at)
			if shown {
				c.render(m, at)
			}
		}
		if shown {
			if x0, x1 := blit(p.surface, y, p.line[4*pan*m.scale:]); x0 < x1 {
				d.add(image.Rect(x0, y, x1, y+1))
			}
		}
		if line++; line == m.lines {
			line, addr = 0, addr+m.pitch
		}
	}
}

// rowDirty reports whether the row at addr may have changed.
func (c *Card) rowDirty(m *mode, addr int) bool {
	if m.wraps && addr+m.rowBytes > legacySize {
		return c.video.dirty.any(addr, legacySize-addr) || c.video.dirty.any(0, addr+m.rowBytes-legacySize)
	}
	return c.video.dirty.any(addr, m.rowBytes)
}

// directDamage finds what has changed of a picture that is shown where it lies.
func (c *Card) directDamage(m *mode, d *damage) {
	for y := range m.height {
		if c.video.dirty.any(m.start+y*m.pitch, m.rowBytes) {
			d.add(image.Rect(0, y, m.width, y+1))
		}
	}
}

// render makes pixels of the row at addr, in the line, from its left end.
func (c *Card) render(m *mode, addr int) {
	p := &c.picture
	src := c.video.memory[addr:]
	if m.wraps && addr+m.rowBytes > legacySize {
		p.row = append(append(p.row[:0], c.video.memory[addr:legacySize]...), c.video.memory[:addr+m.rowBytes-legacySize]...)
		src = p.row
	}
	src = src[:m.rowBytes]
	pixels := 0
	switch m.kind {
	case kindPlanar:
		pixels = planar(p.line, src, &p.colour)
	case kindInterleaved:
		pixels = interleaved(p.line, src, &p.colour)
	case kindPacked:
		pixels = packed(p.line, src, &p.colour)
	case kind15:
		pixels = highColour(p.line, src, m.bigEndian, false)
	case kind16:
		pixels = highColour(p.line, src, m.bigEndian, true)
	case kind24:
		pixels = trueColour(p.line, src, m.bigEndian)
	}
	widen(p.line, pixels, m.scale)
}

// planar makes eight pixels of each unit.
func planar(dst, src []byte, colour *palette) (pixels int) {
	for ; len(src) >= 4; src = src[4:] {
		v := spread(src[0]) | spread(src[1])<<1 | spread(src[2])<<2 | spread(src[3])<<3
		out := dst[4*pixels:][:32]
		for i := 0; i < 32; i += 4 {
			binary.LittleEndian.PutUint32(out[i:], colour[v&0xf])
			v >>= 8
		}
		pixels += 8
	}
	return pixels
}

// spread returns a byte of 0 or 1 for each bit of b, the highest bit's lowest.
func spread(b byte) uint64 {
	const each, ones = 0x0102040810204080, 0x0101010101010101
	single := uint64(b) * ones & each // one bit in each byte, or none
	return (single + 0x7f*ones) >> 7 & ones
}

// interleaved makes eight pixels of each unit: four of planes 0 and 2, and four of planes 1 and 3, with two bits from each.
func interleaved(dst, src []byte, colour *palette) (pixels int) {
	for ; len(src) >= 4; src = src[4:] {
		for plane := range 2 {
			for shift := 6; shift >= 0; shift -= 2 {
				setPixel(dst, pixels, colour[src[plane]>>shift&3|src[plane+2]>>shift&3<<2])
				pixels++
			}
		}
	}
	return pixels
}

// packed makes a pixel of each byte.
func packed(dst, src []byte, colour *palette) (pixels int) {
	for _, v := range src {
		if len(dst) < 4 {
			break // never
		}
		binary.LittleEndian.PutUint32(dst, colour[v])
		dst = dst[4:]
	}
	return len(src)
}

// highColour makes a pixel of each two bytes, in which green has five bits or six.
func highColour(dst, src []byte, bigEndian, six bool) (pixels int) {
	for pixels = len(src) / 2; len(src) >= 2 && len(dst) >= 4; dst, src = dst[4:], src[2:] {
		v := binary.LittleEndian.Uint16(src)
		if bigEndian {
			v = bits.ReverseBytes16(v)
		}
		if six {
			binary.LittleEndian.PutUint32(dst, widen565(uint32(v)))
		} else {
			binary.LittleEndian.PutUint32(dst, widen555(uint32(v)))
		}
	}
	return pixels
}

// trueColour makes a pixel of each three bytes: blue, green and red.
func trueColour(dst, src []byte, bigEndian bool) (pixels int) {
	for pixels = len(src) / 3; len(src) >= 3 && len(dst) >= 4; dst, src = dst[4:], src[3:] {
		b, g, r := uint32(src[0]), uint32(src[1]), uint32(src[2])
		if bigEndian {
			b, r = r, b
		}
		binary.LittleEndian.PutUint32(dst, r<<16|g<<8|b)
	}
	return pixels
}

// widen makes each pixel of a line scale pixels wide.
func widen(line []byte, pixels, scale int) {
	if scale == 1 {
		return
	}
	for i := pixels - 1; i >= 0; i-- {
		v := pixel(line, i)
		for j := range scale {
			setPixel(line, i*scale+j, v)
		}
	}
}
