package vga

import (
	"fmt"
	"image"
	"testing"
)

// textScreen fills a text mode: fonts, all attributes, line graphics, blinking text and a cursor.
func textScreen(r *rig, m vgaMode) {
	r.set(m)
	r.loadFont(0, 16, barcode)
	r.loadFont(4, 16, hatched)
	columns := int(m.crtc[crtcHDisplayEnd]) + 1
	for i := range columns * 25 {
		r.poke(0xb8000+2*uint64(i), ' ', 0x07)
	}
	r.print(0, 0x07, "The quick brown fox jumps over")
	for bg := range 8 {
		for fg := range 16 {
			r.print((bg+2)*columns+2*fg, uint8(bg<<4|fg), "A\xc4")
		}
	}
	r.print(11*columns, 0x8f, "blinking")
	r.print(11*columns+20, 0x01, "underlined")
	r.print(13*columns, 0x70, "\xc3\xc4\xc4\xc4\xb4 \xdf\xe0")
	for row := 15; row < 25; row++ {
		r.print(row*columns, 0x02, fmt.Sprintf("line %d", row))
	}
	r.indexed(portCRTCIndex, crtcCursorHigh, uint8(columns*5>>8))
	r.indexed(portCRTCIndex, crtcCursorLow, uint8(columns*5+3))
}

func TestText(t *testing.T) {
	r := newRig(t)
	textScreen(r, mode03)
	r.golden("text80")
	r.time = blinkPeriod // the cursor is gone
	r.golden("text80-nocursor")
	r.time = 2 * blinkPeriod // and there again, but what blinks is gone
	r.golden("text80-hidden")
	r.time = 0
	r.indexed(portSeqIndex, seqFont, 0x20) // attribute bit 3: font 4
	r.attr(attrVideo|attrMode, 0x04)       // attribute bit 7: a bright background
	r.indexed(portCRTCIndex, crtcUnderline, 0x0e)
	r.golden("text80-fonts")
	r.indexed(portCRTCIndex, crtcCursorStart, 0x20)
	r.indexed(portSeqIndex, seqClocking, clocking8Dots)
	r.attr(attrVideo|attrPan, 0)
	r.golden("text80-8dots")
}

func TestText40(t *testing.T) {
	r := newRig(t)
	textScreen(r, mode01)
	r.golden("text40")
}

// Smooth scrolling above a part of the screen that stands still.
func TestTextSplit(t *testing.T) {
	r := newRig(t)
	textScreen(r, mode03)
	const start = 80 * 30
	for i := range 80 * 26 {
		r.print(start+i, uint8(i%15+1), string(rune('A'+i%26)))
	}
	r.indexed(portCRTCIndex, crtcStartHigh, start>>8)
	r.indexed(portCRTCIndex, crtcStartLow, start&0xff)
	r.indexed(portCRTCIndex, crtcPresetRow, 5)
	r.indexed(portCRTCIndex, crtcOverflow, 0x0f)
	r.indexed(portCRTCIndex, crtcMaxScan, 0x0f)
	r.indexed(portCRTCIndex, crtcLineCompare, 199)
	r.attr(attrVideo|attrPan, 3)
	r.golden("text80-split")
	r.attr(attrVideo|attrMode, 0x0c|attrPanSplit)
	r.golden("text80-split-pan")
}

// Each write mode leaves its traces; see what they are at each line.
func TestPlanar(t *testing.T) {
	r := newRig(t)
	r.set(mode12)
	at := func(x, y int) uint64 { return windowBase + uint64(80*y+x/8) }
	bar := func(y int, draw func(addr uint64, i int)) {
		for line := range 24 {
			for i := range 64 {
				draw(at(64+8*i, y+line), i)
			}
		}
	}
	gfx := func(i, v uint8) { r.indexed(portGfxIndex, i, v) }
	// Colours by planes.
	bar(16, func(addr uint64, i int) {
		r.indexed(portSeqIndex, seqMapMask, uint8(i/4))
		r.poke(addr, 0xf0|uint8(i))
	})
	r.indexed(portSeqIndex, seqMapMask, 0xf)
	// Mode 0: set/reset in two planes, the CPU's byte rotated in the others, through a bit mask.
	gfx(gfxSetReset, 0x1)
	gfx(gfxEnableSetReset, 0x3)
	gfx(gfxRotate, 3)
	gfx(gfxBitMask, 0x7e)
	bar(56, func(addr uint64, i int) { r.peek(addr); r.poke(addr, uint8(i)) })
	// Mode 0 with a function: the latches of the first bar, xor, and, or.
	gfx(gfxEnableSetReset, 0)
	gfx(gfxBitMask, 0xff)
	for f, y := range []int{96, 136, 176} {
		gfx(gfxRotate, uint8(f+1)<<3)
		bar(y, func(addr uint64, i int) { r.peek(addr - 80*uint64(y-16)); r.poke(addr, 0x3c) })
	}
	gfx(gfxRotate, 0)
	// Mode 1: a copy of the first bar, each byte from its neighbour's.
	gfx(gfxMode, 1)
	bar(216, func(addr uint64, i int) { r.peek(addr - 80*200 + 1); r.poke(addr, 0xff) })
	// Mode 2: a colour, in every second pixel.
	gfx(gfxMode, 2)
	gfx(gfxBitMask, 0xaa)
	bar(256, func(addr uint64, i int) { r.peek(addr); r.poke(addr, uint8(i/4)) })
	// Mode 3: set/reset where the byte and the mask say.
	gfx(gfxMode, 3)
	gfx(gfxSetReset, 0xe)
	gfx(gfxBitMask, 0xfc)
	bar(296, func(addr uint64, i int) { r.peek(addr); r.poke(addr, uint8(255-4*i)) })
	r.golden("planar")

	// Reading: a plane, or a comparison of colours. Here the first bar has 0xff in planes 0, 1 and 3.
	gfx(gfxMode, 0)
	for plane, want := range []uint8{0xff, 0xff, 0x00, 0xff} {
		gfx(gfxReadMap, uint8(plane))
		if v := r.peek(at(64+8*47, 16)); v != want {
			t.Errorf("plane %d reads %#x, want %#x", plane, v, want)
		}
	}
	gfx(gfxMode, gfxModeRead1)
	for _, c := range []struct{ compare, care, want uint8 }{
		{0x0b, 0x0f, 0xff}, {0x0b, 0x04, 0xff}, {0x0f, 0x0b, 0xff}, {0x0a, 0x0f, 0x00}, {0x0a, 0x01, 0x00}, {0, 0, 0xff},
	} {
		gfx(gfxColourCompare, c.compare)
		gfx(gfxDontCare, c.care)
		if v := r.peek(at(64+8*47, 16)); v != c.want {
			t.Errorf("compare %#x with care for %#x: %#x, want %#x", c.compare, c.care, v, c.want)
		}
	}
}

// The same bytes, panned by three pixels and split, at other sizes.
func TestPlanarModes(t *testing.T) {
	for name, m := range map[string]vgaMode{"planar-320x200": mode0D, "planar-640x350": mode10} {
		r := newRig(t)
		r.set(m)
		pitch := 2 * int(m.crtc[crtcOffset])
		for y := range 360 {
			r.indexed(portSeqIndex, seqMapMask, uint8(y/8%15+1))
			for x := range pitch {
				if x == y%pitch || y%8 == 0 {
					r.poke(windowBase+uint64(pitch*y+x), 0xfd)
				}
			}
		}
		r.attr(attrVideo|attrPan, 3)
		r.indexed(portCRTCIndex, crtcStartLow, uint8(pitch*2))
		r.golden(name)
	}
}

func TestCGA(t *testing.T) {
	for name, m := range map[string]vgaMode{"cga-320x200": mode04, "cga-640x200": mode06} {
		r := newRig(t)
		r.set(m)
		for y := range 200 {
			for x := range 80 {
				r.poke(0xb8000+uint64(y%2*0x2000+y/2*80+x), uint8(x)^uint8(y/10*0x1b))
			}
		}
		r.golden(name)
	}
}

func Test256Colours(t *testing.T) {
	r := newRig(t)
	r.set(mode13)
	for y := range 200 {
		for x := range 320 {
			r.poke(windowBase+uint64(320*y+x), uint8(x/20+y/13*16))
		}
	}
	for x := range 320 {
		r.poke(windowBase+uint64(320*(x*5/8)+x), 15)
	}
	r.golden("256-320x200")

	r.set(modeX)
	for y := range 240 {
		for x := range 320 {
			r.indexed(portSeqIndex, seqMapMask, 1<<(x%4))
			r.poke(windowBase+uint64(80*y+x/4), uint8(x/20+y/15*16))
		}
	}
	// A row of the picture, copied four pixels at a time by the latches.
	r.indexed(portSeqIndex, seqMapMask, 0xf)
	r.indexed(portGfxIndex, gfxMode, 0x41)
	for i := range uint64(80 * 8) {
		r.peek(windowBase + 80*100 + i%80)
		r.poke(windowBase+80*20+i, 0)
	}
	r.attr(attrVideo|attrPan, 2)
	r.golden("256-320x240")
}

// gradient fills a linear mode: red to the right, green downwards, blue in stripes.
func gradient(r *rig, w, h, bpp, pitch int, bigEndian bool) {
	row := make([]byte, 8*((w*((bpp+7)/8)+7)/8))
	for y := range h {
		for x := range w {
			red, green, blue := uint32(255*x/(w-1)), uint32(255*y/(h-1)), uint32(x/8%2*255)
			var v uint32
			switch bpp {
			case 8:
				v = 64 + red*6>>8<<5 + green>>5<<2 + blue>>6
			case 15:
				v = red>>3<<10 | green>>3<<5 | blue>>3
			case 16:
				v = red>>3<<11 | green>>2<<5 | blue>>3
			default:
				v = red<<16 | green<<8 | blue
			}
			n := (bpp + 7) / 8
			for i := range n {
				at := i
				if bigEndian {
					at = n - 1 - i
				}
				row[n*x+at] = byte(v >> (8 * i))
			}
		}
		for i := 0; i < len(row); i += 8 {
			r.mmio.Write(0, lfbBase+uint64(y*pitch+i), row[i:i+8])
		}
	}
}

func TestLinear(t *testing.T) {
	for _, bpp := range []int{8, 15, 16, 24, 32} {
		for _, big := range []bool{false, true} {
			if big && bpp == 8 {
				continue
			}
			r := newRig(t)
			r.set(mode13)
			if big {
				r.mmio.Write(0, mmioBase+extOrder, []byte{0xbe, 0xbe, 0xbe, 0xbe})
			}
			r.vbeMode(400, 300, uint16(bpp))
			gradient(r, 400, 300, bpp, 400*((bpp+7)/8), big)
			r.golden(fmt.Sprintf("linear-%d", bpp)) // the same either way
		}
	}
}

// 16 colours in planes, as SVGA: through the window by banks, and panned by pixels.
func TestLinearPlanar(t *testing.T) {
	r := newRig(t)
	r.set(mode12)
	r.vbeMode(800, 600, 4)
	r.vbe(vbeVirtWidth, 1024)
	const pitch = 1024 / 8
	for y := range 600 {
		r.vbe(vbeBank, uint16(y*pitch>>16))
		for x := range pitch {
			r.indexed(portSeqIndex, seqMapMask, 0xf)
			r.poke(windowBase+uint64(y*pitch+x)&0xffff, 0)
			r.indexed(portSeqIndex, seqMapMask, uint8(x/8^y/40)&0xf)
			r.poke(windowBase+uint64(y*pitch+x)&0xffff, 0x7f)
		}
	}
	r.golden("linear-4")
	r.vbe(vbeXOffset, 13)
	r.vbe(vbeYOffset, 20)
	r.golden("linear-4-offset")
}

// A wider virtual screen, of which the picture is a part; with eight bits for each part of a colour.
func TestOffset(t *testing.T) {
	r := newRig(t)
	r.set(mode13)
	r.vbeMode(320, 200, 8)
	r.vbe(vbeEnable, vbeEnabled|vbe8BitDAC)
	r.vbe(vbeVirtWidth, 512)
	r.out8(portDACWrite, 64)
	for i := range 192 {
		for _, v := range []int{i, 255 - i, i / 2} {
			r.out8(portDACData, uint8(v))
		}
	}
	gradient(r, 512, 400, 8, 512, false)
	r.vbe(vbeXOffset, 100)
	r.vbe(vbeYOffset, 150)
	r.golden("offset-8")
	r.vbeMode(320, 200, 32)
	r.vbe(vbeVirtWidth, 512)
	gradient(r, 512, 400, 32, 2048, false)
	r.vbe(vbeXOffset, 100)
	r.vbe(vbeYOffset, 150)
	r.golden("offset-32")
}

// Memory in banks, through the window, is where the linear frame buffer has it.
func TestBanks(t *testing.T) {
	r := newRig(t)
	r.vbeMode(640, 480, 32)
	for bank := range uint16(4) {
		r.vbe(vbeBank, bank)
		r.poke(windowBase+0xfffc, 1, 2, 3, byte(bank))
		if v := r.peek(lfbBase + uint64(bank)<<16 + 0xffff); v != byte(bank) {
			t.Errorf("bank %d: %d", bank, v)
		}
		if v := r.peek(windowBase + 0xffff); v != byte(bank) {
			t.Errorf("bank %d reads %d", bank, v)
		}
	}
}

func TestBlank(t *testing.T) {
	r := newRig(t)
	if r.picture() != nil {
		t.Error("a picture before anybody has programmed one")
	}
	textScreen(r, mode03)
	bright := func() bool {
		for _, v := range r.picture().Pix {
			if v != 0 && v != 0xff {
				return true
			}
		}
		return false
	}
	if !bright() {
		t.Error("no text")
	}
	r.in8(portStatus1)
	r.out8(portAttrIndex, 0)
	if bright() {
		t.Error("video is off")
	}
	r.out8(portAttrIndex, 0)
	r.in8(portStatus1)
	r.out8(portAttrIndex, attrVideo)
	r.indexed(portSeqIndex, seqClocking, clockingOff)
	if bright() {
		t.Error("the screen is off")
	}
	r.indexed(portSeqIndex, seqClocking, 0)
	r.golden("text80")
	r.vbeMode(64, 64, 32)
	r.poke(lfbBase, 1, 2, 3)
	if !bright() {
		t.Error("no pixel")
	}
	r.in8(portStatus1)
	r.out8(portAttrIndex, 0)
	if p := r.picture(); bright() || p.Rect != image.Rect(0, 0, 64, 64) {
		t.Errorf("%v, not black", p.Rect)
	}
}
