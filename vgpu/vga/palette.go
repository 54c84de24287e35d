package vga

// palette is the colour of each value of a pixel, as XRGB8888.
type palette [256]uint32

// colours returns the palette of a mode with at most 256 colours.
func (c *Card) colours(k kind) (p palette) {
	switch k {
	case kindText, kindPlanar, kindInterleaved:
		for i := range 16 {
			p[i] = c.colour(c.regs.attribute(uint8(i)))
		}
	case kindPacked:
		for i := range p {
			p[i] = c.colour(uint8(i))
		}
	}
	return p
}

// attribute returns the colour's number that the attribute controller makes of four bits.
func (r *registers) attribute(v uint8) uint8 {
	i, high := r.attr[v&r.attr[attrPlaneEnable]&0xf], r.attr[attrColour]
	if r.attr[attrMode]&attrColourP54 != 0 {
		i = i&0x0f | high&3<<4
	}
	return i | high&0xc<<4
}

// colour returns the colour with number i.
func (c *Card) colour(i uint8) uint32 {
	rgb := c.regs.dac[3*int(i&c.regs.dacMask):]
	r, g, b := uint32(rgb[0]), uint32(rgb[1]), uint32(rgb[2])
	if c.vbe.regs[vbeEnable]&vbe8BitDAC == 0 {
		r, g, b = widen6(r), widen6(g), widen6(b)
	}
	return r<<16 | g<<8 | b
}

// widen6 makes 8 bits of 6: none stays none and all stay all.
func widen6(v uint32) uint32 { return v<<2&0xff | v>>4&3 }

// widen555 and widen565 do the same for the parts of a pixel of 15 and of 16 bits.
func widen555(v uint32) uint32 {
	v = v&0x7c00<<9 | v&0x03e0<<6 | v&0x001f<<3
	return v | v>>5&0x070707
}

func widen565(v uint32) uint32 {
	v = v&0xf800<<8 | v&0x07e0<<5 | v&0x001f<<3
	return v | v>>5&0x070007 | v>>6&0x000300
}
