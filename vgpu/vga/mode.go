package vga

// kind is how pixels are made of memory.
type kind uint8

const (
	kindOff         kind = iota // no picture
	kindBlank                   // a black one
	kindText                    // characters
	kindPlanar                  // 16 colours, a bit of each pixel in each plane
	kindInterleaved             // 4 or 16 colours, two bits at a time from two planes
	kindPacked                  // 256 colours, a byte each
	kind15                      // 5 bits each of red, green and blue
	kind16                      // 5, 6 and 5 bits
	kind24                      // a byte each
	kindDirect                  // 32 bits, shown where they lie
)

// legacySize is the memory that a VGA's address counter reaches, in bytes: 64 Ki units.
const legacySize = 4 << 16

// mode is all that the registers say of how memory becomes a picture, save for the colours and the text cursor.
type mode struct {
	kind          kind
	width, height int  // pixels of the surface
	start, pitch  int  // bytes of memory: where the picture begins, and from one row to the next
	rowBytes      int  // of which so many are shown
	wraps         bool // addresses wrap around at legacySize
	lines         int  // scan lines of a row
	double        int  // 1: each line of a font, or of a row with banks, is two scan lines high
	scale         int  // dots of a pixel, or of a dot of a character: 1, 2 or 4
	pan           int  // pixels that lie left of the picture
	panSplit      bool // not in the lower half of a split screen
	preset        int  // first scan line of the first row
	split         int  // after this scan line comes the row at address 0
	bank13        int  // address bit that is bit 0 of the line within its row, and likewise bit 1; 0 is none
	bank14        int
	bigEndian     bool

	// Of text.
	columns   int
	cell      int    // dots of a character: 8 or 9
	fonts     [2]int // where the fonts of characters with attribute bit 3 clear and set begin
	blink     bool   // attribute bit 7 is not a colour's
	wide      bool   // line graphics go on into the ninth dot
	underline int    // line within the character
}

// scan returns the mode that the registers describe.
func (c *Card) scan() mode {
	var m mode
	switch r := &c.regs; {
	case c.vbe.on():
		m = c.vbe.mode()
	case r.crtc[crtcHDisplayEnd] == 0: // nobody has programmed it yet
		return mode{}
	case r.gfx[gfxMisc]&gfxMiscGraphics != 0:
		m = r.graphicsMode()
	default:
		m = r.textMode()
	}
	if c.regs.attrIndex&attrVideo == 0 || c.regs.seq[seqClocking]&clockingOff != 0 {
		return mode{kind: kindBlank, width: m.width, height: m.height}
	}
	return m
}

// mode returns the mode of the VBE registers.
func (v *vbe) mode() mode {
	m := mode{
		width: int(v.regs[vbeXRes]), height: int(v.regs[vbeYRes]), start: v.origin(), pitch: v.pitch(), rowBytes: v.lineBytes(),
		lines: 1, scale: 1, pan: v.pan(), split: int(v.regs[vbeYRes]), bigEndian: v.bigEndian,
	}
	switch v.regs[vbeBPP] {
	case 4:
		m.kind = kindPlanar
	case 8:
		m.kind = kindPacked
	case 15:
		m.kind = kind15
	case 16:
		m.kind = kind16
	case 24:
		m.kind = kind24
	case 32:
		m.kind = kindDirect
	}
	return m
}

// frame returns what text and graphics modes share.
func (r *registers) frame() mode {
	overflow, maxScan := int(r.crtc[crtcOverflow]), int(r.crtc[crtcMaxScan])
	m := mode{
		height:   int(r.crtc[crtcVDisplayEnd]) | overflow&0x02<<7 | overflow&0x40<<3 + 1,
		start:    4 * (int(r.crtc[crtcStartHigh])<<8 + int(r.crtc[crtcStartLow]) + int(r.crtc[crtcPresetRow]>>5&3)),
		pitch:    8 * int(r.crtc[crtcOffset]),
		wraps:    true,
		double:   maxScan >> 7,
		scale:    1 << (r.seq[seqClocking] >> 3 & 1),
		split:    int(r.crtc[crtcLineCompare]) | overflow&overflowLineCompare8<<4 | maxScan&maxScanLineCompare9<<3,
		panSplit: r.attr[attrMode]&attrPanSplit != 0,
	}
	m.lines = (maxScan&0x1f + 1) << m.double
	m.preset = int(r.crtc[crtcPresetRow]&0x1f) << m.double % m.lines
	return m
}

func (r *registers) textMode() mode {
	m := r.frame()
	m.kind = kindText
	m.columns, m.cell = int(r.crtc[crtcHDisplayEnd])+1, 9
	if r.seq[seqClocking]&clocking8Dots != 0 {
		m.cell = 8
	}
	m.width = m.columns * m.cell * m.scale
	// Of 9 dots all are shown at 8; the other values move one dot more.
	switch pan := int(r.attr[attrPan]); {
	case m.cell == 8:
		m.pan = pan & 7
	case pan < 8:
		m.pan = pan + 1
	}
	font := r.seq[seqFont]
	m.fonts = [2]int{fontOffset(font&3 | font>>2&4), fontOffset(font>>2&3 | font>>3&4)}
	m.blink = r.attr[attrMode]&attrBlink != 0
	m.wide = r.attr[attrMode]&attrWide != 0
	m.underline = int(r.crtc[crtcUnderline] & 0x1f)
	return m
}

// fontOffset returns where font i of 8 begins, in bytes of memory. Each has 8 KiB of plane 2; the last four lie between
// the first.
func fontOffset(i uint8) int {
	return 4 * (int(i&3)<<14 | int(i&4)<<11)
}

func (r *registers) graphicsMode() mode {
	m := r.frame()
	units := int(r.crtc[crtcHDisplayEnd]) + 1
	m.width = 8 * units * m.scale
	m.rowBytes = 4 * units
	m.pan = int(r.attr[attrPan] & 7)
	switch mode := r.gfx[gfxMode]; {
	case mode&gfxMode256 != 0: // a pixel takes two dots
		m.kind = kindPacked
		m.scale *= 2
		m.pan /= 2
	case mode&gfxModeInterleave != 0:
		m.kind = kindInterleaved
	default:
		m.kind = kindPlanar
	}
	if m.pan > 0 {
		m.rowBytes += 4
	}
	if mode := r.crtc[crtcMode]; mode&modeBank13 == 0 || mode&modeBank14 == 0 {
		// The bits are those of the byte address, which is that of the unit or, by words, twice that.
		bit := 4 << 12
		if mode&modeByte != 0 {
			bit = 4 << 13
		}
		if mode&modeBank13 == 0 {
			m.bank13 = bit
		}
		if mode&modeBank14 == 0 {
			m.bank14 = 2 * bit
		}
	}
	return m
}

// row returns the address of the given line of the row that begins at addr.
func (m *mode) row(addr, line int) int {
	if m.bank13 != 0 {
		addr = addr&^m.bank13 | line&1*m.bank13
	}
	if m.bank14 != 0 {
		addr = addr&^m.bank14 | line>>1&1*m.bank14
	}
	if m.wraps {
		addr &= legacySize - 1
	}
	return addr
}
