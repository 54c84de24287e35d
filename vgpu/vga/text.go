package vga

import (
	"encoding/binary"
	"image"

	"github.com/lodgehv/lodge/vgpu/display"
)

// glyphLines is how many lines each character has in a font's memory, whatever its height.
const glyphLines = 32

// text is what is known of a text mode's picture: what has been drawn in each cell, and the fonts as they were then.
type text struct {
	cells []uint32 // row by row
	fonts [2][256 * glyphLines]uint8
}

// A cell's value is its character, its attribute (bits 8 to 15) and these.
const (
	cellHidden = 1 << 16 // it blinks, and is not seen now
	cellCursor = 1 << 17 // the cursor is in it, from its first line (bits 18 to 22) to its last (bits 23 to 27)

	cellUnknown = ^uint32(0) // nothing that is drawn
)

// drawText draws what has changed in the text mode m; all of it if full.
func (c *Card) drawText(m *mode, full bool, phase int, d *damage) {
	t := &c.picture.text
	stride := m.columns + 1
	if n := stride * m.height; full && len(t.cells) != n {
		t.cells = make([]uint32, n) // a row may be one scan line high
	}
	if c.loadFonts(m, full) || full {
		for i := range t.cells {
			t.cells[i] = cellUnknown
		}
	}
	cursor := c.cursor(phase)
	c.picture.blinks = c.regs.crtc[crtcCursorStart]&cursorOff == 0
	columns, pan := m.columns, m.pan
	if pan > 0 {
		columns++
	}
	addr, first, row := m.start, m.preset, 0
	for y := 0; y < m.height; row++ {
		if y == m.split+1 {
			addr, first = 0, 0
			if m.panSplit {
				pan = 0
			}
		}
		lines := min(m.lines-first, m.height-y)
		if y <= m.split {
			lines = min(lines, m.split+1-y)
		}
		x0, x1 := columns, 0
		for col := range columns {
			at := (addr + 4*col) & (legacySize - 1)
			cell := uint32(c.video.memory[at]) | uint32(c.video.memory[at+1])<<8
			if m.blink && cell&0x8000 != 0 {
				c.picture.blinks = true
				if phase&2 != 0 {
					cell |= cellHidden
				}
			}
			if cursor.at == at {
				cell |= cursor.cell
			}
			if known := &t.cells[row*stride+col]; *known != cell {
				*known = cell
				x0, x1 = min(x0, col), col+1
				c.drawCell(m, cell, col*m.cell*m.scale-pan*m.scale, y, first, lines)
			}
		}
		if x1 > 0 {
			width := m.cell * m.scale
			d.add(image.Rect(x0*width-pan*m.scale, y, x1*width-pan*m.scale, y+lines).Intersect(c.picture.surface.Bounds()))
		}
		y += lines
		addr, first = addr+m.pitch, 0
	}
}

// cursorCell is where the text cursor is, in bytes of memory, and what it adds to the cell; at is -1 if it is not seen.
type cursorCell struct {
	at   int
	cell uint32
}

func (c *Card) cursor(phase int) cursorCell {
	r := &c.regs.crtc
	from, to := uint32(r[crtcCursorStart]&0x1f), uint32(r[crtcCursorEnd]&0x1f)
	if r[crtcCursorStart]&cursorOff != 0 || from > to || phase&1 != 0 {
		return cursorCell{at: -1}
	}
	return cursorCell{4 * (int(r[crtcCursorHigh])<<8 | int(r[crtcCursorLow])), cellCursor | from<<18 | to<<23}
}

// loadFonts copies the two fonts in use out of plane 2, if what they lie in has been written to, and reports whether they
// are others than before.
func (c *Card) loadFonts(m *mode, full bool) (changed bool) {
	for i, off := range m.fonts {
		font := &c.picture.text.fonts[i]
		if i == 1 && off == m.fonts[0] { // as most often
			if changed || full {
				*font = c.picture.text.fonts[0]
			}
			continue
		}
		if !full && !c.video.dirty.any(off, 4*len(font)) {
			continue
		}
		plane := c.video.memory[off+2 : off+4*len(font)]
		for i := range font {
			v := plane[4*i]
			changed = changed || font[i] != v
			font[i] = v
		}
	}
	return changed
}

// drawCell draws the given number of scan lines of a cell, from first on, to x and y. It may reach over the picture's left
// and right.
func (c *Card) drawCell(m *mode, cell uint32, x, y, first, lines int) {
	s, t := c.picture.surface, &c.picture.text
	char, attr := int(cell&0xff), cell>>8&0xff
	fg, bg := c.picture.colour[attr&0xf], c.picture.colour[attr>>4]
	if m.blink {
		bg = c.picture.colour[attr>>4&7]
	}
	glyph := t.fonts[attr>>3&1][char*glyphLines:][:glyphLines]
	cursorFrom, cursorTo := -1, -1
	if cell&cellCursor != 0 {
		cursorFrom, cursorTo = int(cell>>18&0x1f), int(cell>>23&0x1f)
	}
	from, to := max(0, -x), min(m.cell*m.scale, s.Width-x)
	half := m.scale >> 1 // 0 or 1
	for i := range lines {
		line := (first + i) >> m.double
		bits := uint32(glyph[line]) << 1
		if m.wide && char&0xe0 == 0xc0 {
			bits |= bits >> 1 & 1
		}
		if attr&0x77 == 1 && line == m.underline {
			bits = 0x1ff
		}
		if cell&cellHidden != 0 {
			bits = 0
		}
		if line >= cursorFrom && line <= cursorTo {
			bits = 0x1ff
		}
		row := s.Pixels[(y+i)*s.Stride+(x+from)*display.BytesPerPixel:]
		for o := from; o < to && len(row) >= display.BytesPerPixel; o++ {
			dot := bits << (o >> half & 15) >> 8 & 1
			binary.LittleEndian.PutUint32(row, bg^(bg^fg)&-dot) // without a branch, which could not be predicted
			row = row[display.BytesPerPixel:]
		}
	}
}
