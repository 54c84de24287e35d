package vga

import (
	"encoding/binary"
	"math/bits"

	"github.com/lodgehv/lodge/hypervisor/bus"
)

// The window through which a CPU in real mode reaches video memory.
const (
	windowBase = 0xa0000
	windowSize = 0x20000
	bankSize   = 0x10000
)

// window answers for the window.
//
// Video memory is one array whose every fourth byte is of the same plane: unit u of four bytes has byte u of each plane. A
// pixel of a linear mode is therefore where a guest that uses the window with chained planes finds it too.
type window struct{ c *Card }

// Read implements bus.Device.
func (w window) Read(a bus.Access, p []byte) {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range p {
		p[i] = c.readWindow(uint32(a.Off) + uint32(i))
	}
}

// Write implements bus.Device.
func (w window) Write(a bus.Access, p []byte) {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.picture.inVideo(); s != nil {
		s.Mu.Lock()
		defer s.Mu.Unlock()
	}
	for i, v := range p {
		c.writeWindow(uint32(a.Off)+uint32(i), v)
	}
	c.touch()
}

// place returns where in the part of the window that is decoded off lies.
func (r *registers) place(off uint32) (uint32, bool) {
	switch r.gfx[gfxMisc] >> 2 & 3 {
	case 0: // all of it
		return off, true
	case 1:
		return off, off < 0x10000
	case 2:
		return off - 0x10000, off >= 0x10000 && off < 0x18000
	default:
		return off - 0x18000, off >= 0x18000
	}
}

// unit returns the unit of video memory that a byte of the window is in, and of its planes the one that is read and those,
// as bits, that can be written.
func (c *Card) unit(off uint32) (u, plane uint32, writable uint8) {
	r := &c.regs
	bank := uint32(c.vbe.regs[vbeBank]) * bankSize
	switch {
	case r.seq[seqMemoryMode]&memoryChain4 != 0:
		off += bank
		return off >> 2, off & 3, r.seq[seqMapMask] & (1 << (off & 3))
	case r.gfx[gfxMode]&gfxModeOddEven != 0:
		return off>>1 + bank, uint32(r.gfx[gfxReadMap])&2 | off&1, r.seq[seqMapMask] & (0x5 << (off & 1))
	}
	return off + bank, uint32(r.gfx[gfxReadMap]), r.seq[seqMapMask]
}

func (c *Card) readWindow(off uint32) uint8 {
	off, ok := c.regs.place(off)
	if !ok {
		return 0xff
	}
	memory := c.video.memory
	if c.vbe.linear() {
		if at := int(off) + int(c.vbe.regs[vbeBank])*bankSize; at < len(memory) {
			return memory[at]
		}
		return 0xff
	}
	u, plane, _ := c.unit(off)
	at := 4 * int(u)
	if at >= len(memory) {
		return 0xff
	}
	return c.regs.load(binary.LittleEndian.Uint32(memory[at:]), plane)
}

func (c *Card) writeWindow(off uint32, v uint8) {
	off, ok := c.regs.place(off)
	if !ok {
		return
	}
	memory := c.video.memory
	if c.vbe.linear() {
		if at := int(off) + int(c.vbe.regs[vbeBank])*bankSize; at < len(memory) {
			memory[at] = v
			c.video.dirty.mark(at, 1)
		}
		return
	}
	u, _, writable := c.unit(off)
	at := 4 * int(u)
	if at >= len(memory) {
		return
	}
	old := binary.LittleEndian.Uint32(memory[at:])
	mask := planes(writable)
	binary.LittleEndian.PutUint32(memory[at:], old&^mask|c.regs.store(v)&mask)
	c.video.dirty.mark(at, 4)
}

// planes spreads the four low bits of n to the four bytes of the result: 0xff for a bit that is set.
func planes(n uint8) uint32 { return uint32(n&0xf) * 0x00204081 & 0x01010101 * 0xff }

// load is a read by the CPU of a unit: it fills the latches, and returns a plane or, in read mode 1, which of the eight
// pixels have the colour of the compare register in the planes that matter.
func (r *registers) load(unit, plane uint32) uint8 {
	r.latch = unit
	if r.gfx[gfxMode]&gfxModeRead1 == 0 {
		return uint8(unit >> (8 * plane))
	}
	differ := (unit ^ planes(r.gfx[gfxColourCompare])) & planes(r.gfx[gfxDontCare])
	return ^uint8(differ | differ>>8 | differ>>16 | differ>>24)
}

// store returns what the CPU's write of v makes of a unit, by the write mode.
func (r *registers) store(v uint8) uint32 {
	mask := r.gfx[gfxBitMask]
	rotated := bits.RotateLeft8(v, -int(r.gfx[gfxRotate]&7))
	var unit uint32
	switch r.gfx[gfxMode] & 3 {
	case 0: // the byte to all planes, save for those that set/reset is enabled in
		enabled := planes(r.gfx[gfxEnableSetReset])
		unit = uint32(rotated)*0x01010101&^enabled | planes(r.gfx[gfxSetReset])&enabled
	case 1: // the latches
		return r.latch
	case 2: // a colour
		unit = planes(v)
	case 3: // set/reset, in the bits that are set
		mask &= rotated
		unit = planes(r.gfx[gfxSetReset])
	}
	switch r.gfx[gfxRotate] >> 3 {
	case 1:
		unit &= r.latch
	case 2:
		unit |= r.latch
	case 3:
		unit ^= r.latch
	}
	bitMask := uint32(mask) * 0x01010101
	return unit&bitMask | r.latch&^bitMask
}
