package vga

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/hypervisor/bus"
)

// Ports of the Bochs VBE interface, 16 bits wide. The data register is at both 0x1cf and 0x1d0.
const (
	vbePortIndex = 0x1ce
	vbePortData  = 0x1cf
	vbePortData2 = 0x1d0
	vbePortsSize = 4
)

// Registers of the Bochs VBE interface.
const (
	vbeID = iota
	vbeXRes
	vbeYRes
	vbeBPP
	vbeEnable
	vbeBank
	vbeVirtWidth
	vbeVirtHeight
	vbeXOffset
	vbeYOffset
	vbeMemory64K
	numVBE

	vbeID0 = 0xb0c0
	vbeID5 = 0xb0c5

	vbeEnabled    = 1 << 0
	vbeGetCaps    = 1 << 1
	vbe8BitDAC    = 1 << 5
	vbeLFB        = 1 << 6 // read back only: the linear frame buffer is always there
	vbeNoClearMem = 1 << 7
	vbeEnableMask = vbeEnabled | vbeGetCaps | vbe8BitDAC | vbeLFB | vbeNoClearMem
)

// Limits of a mode: no surface is larger than 64 MiB, whatever the guest asks for.
const (
	vbeMaxX      = 16384
	vbeMaxY      = 16384
	vbeMaxBPP    = 32
	vbeMaxPixels = 16 << 20
)

// vbe are the registers of the interface. While it is enabled they always describe a mode that fits into video memory:
// there is no way to refuse one, so that what does not fit is made to.
type vbe struct {
	index     uint16
	regs      [numVBE]uint16
	bigEndian bool // how pixels lie in memory
}

func (v *vbe) powerOn(memory int) {
	*v = vbe{regs: [numVBE]uint16{vbeID: vbeID5, vbeMemory64K: uint16(memory >> 16)}}
}

func (v *vbe) on() bool { return v.regs[vbeEnable]&vbeEnabled != 0 }

// planar reports whether it is on with 16 colours in four planes, as a VGA has them.
func (v *vbe) planar() bool { return v.on() && v.regs[vbeBPP] == 4 }

// linear reports whether it is on with pixels one behind the other.
func (v *vbe) linear() bool { return v.on() && v.regs[vbeBPP] != 4 }

func (v *vbe) read(i uint16) uint16 {
	if i >= numVBE {
		return 0
	}
	if v.regs[vbeEnable]&vbeGetCaps != 0 {
		switch i {
		case vbeXRes:
			return vbeMaxX
		case vbeYRes:
			return vbeMaxY
		case vbeBPP:
			return vbeMaxBPP
		}
	}
	return v.regs[i]
}

// fit makes the mode one that memory bytes can hold.
func (v *vbe) fit(memory int) {
	r := &v.regs
	switch r[vbeBPP] {
	case 4, 8, 15, 16, 24, 32:
	default:
		r[vbeBPP] = 8
	}
	step := uint16(1)
	if r[vbeBPP] == 4 {
		step = 8
	}
	r[vbeXRes] = min(max(r[vbeXRes], 8), vbeMaxX) &^ (step - 1)
	r[vbeVirtWidth] = min(max(r[vbeVirtWidth], r[vbeXRes]), vbeMaxX) &^ (step - 1)
	lines := memory / v.pitch()
	r[vbeVirtHeight] = uint16(min(lines, 0xffff))
	r[vbeYRes] = uint16(min(max(int(r[vbeYRes]), 1), lines, vbeMaxY, vbeMaxPixels/int(r[vbeXRes])))
	if v.end() > memory {
		r[vbeYOffset] = 0
	}
	if v.end() > memory {
		r[vbeXOffset] = 0
	}
}

// bytes returns how many bytes n pixels take up from the start of a line.
func (v *vbe) bytes(n int) int {
	if v.regs[vbeBPP] == 4 {
		return (n + 7) / 8 * 4
	}
	return n * ((int(v.regs[vbeBPP]) + 7) / 8)
}

func (v *vbe) pitch() int { return v.bytes(int(v.regs[vbeVirtWidth])) }

// pan returns how many pixels of the first byte of each plane lie left of the picture.
func (v *vbe) pan() int {
	if v.regs[vbeBPP] == 4 {
		return int(v.regs[vbeXOffset] & 7)
	}
	return 0
}

// origin returns where in memory the picture begins, lineBytes what each of its lines takes, end where it ends.
func (v *vbe) origin() int {
	return int(v.regs[vbeYOffset])*v.pitch() + v.bytes(int(v.regs[vbeXOffset])-v.pan())
}

func (v *vbe) lineBytes() int { return v.bytes(int(v.regs[vbeXRes]) + v.pan()) }

func (v *vbe) end() int { return v.origin() + (int(v.regs[vbeYRes])-1)*v.pitch() + v.lineBytes() }

// writeVBE writes register i.
func (c *Card) writeVBE(i, x uint16) {
	v, memory := &c.vbe, len(c.video.memory)
	switch i {
	case vbeID:
		if x >= vbeID0 && x <= vbeID5 {
			v.regs[i] = x
		}
		return
	case vbeXRes, vbeYRes, vbeBPP, vbeVirtWidth, vbeXOffset, vbeYOffset:
		v.regs[i] = x
		if v.on() {
			v.fit(memory)
		}
	case vbeBank: // of 64 KiB, or as many in each plane
		banks := memory >> 16
		if v.regs[vbeBPP] == 4 {
			banks /= 4
		}
		v.regs[i] = x & uint16(banks-1)
		return
	case vbeEnable:
		was := v.on()
		v.regs[i] = x & vbeEnableMask
		switch {
		case v.on() && !was:
			c.enableVBE()
		case was && !v.on():
			v.regs[vbeBank] = 0
		}
	default:
		return
	}
	c.touch()
}

// enableVBE enters the mode that the registers name. Guests may have set up nothing of the VGA, or look there for what
// the mode is.
func (c *Card) enableVBE() {
	v, r := &c.vbe, &c.regs
	v.regs[vbeVirtWidth], v.regs[vbeXOffset], v.regs[vbeYOffset] = 0, 0, 0
	v.fit(len(c.video.memory))
	if v.regs[vbeEnable]&vbeNoClearMem == 0 {
		c.clearVideo(v.end())
	}
	w, h := int(v.regs[vbeXRes]), int(v.regs[vbeYRes])
	r.crtc[crtcHDisplayEnd] = uint8(w/8 - 1)
	r.crtc[crtcOffset] = uint8(v.pitch() / 8)
	r.crtc[crtcVDisplayEnd] = uint8(h - 1)
	r.crtc[crtcOverflow] = r.crtc[crtcOverflow]&^0x42 | uint8((h-1)>>7&0x02|(h-1)>>3&0x40) | overflowLineCompare8
	r.crtc[crtcMaxScan] = r.crtc[crtcMaxScan]&^(maxScanDouble|0x1f) | maxScanLineCompare9
	r.crtc[crtcLineCompare] = 0xff
	r.crtc[crtcMode] |= modeBank13 | modeBank14
	r.gfx[gfxMisc] = gfxMiscGraphics | 1<<2 // the window is 64 KiB at 0xa0000
	r.gfx[gfxMode] &^= gfxMode256 | gfxModeInterleave
	if v.planar() {
		r.seq[seqMemoryMode] &^= memoryChain4
		return
	}
	r.gfx[gfxMode] |= gfxMode256
	r.seq[seqMemoryMode] |= memoryChain4
	r.seq[seqMapMask] = 0xf
}

// vbePorts answers for the ports of the interface.
type vbePorts struct{ c *Card }

// Read implements bus.Device.
func (d vbePorts) Read(a bus.Access, p []byte) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	v := &d.c.vbe
	for i := range p {
		p[i] = 0xff
	}
	if len(p) != 2 {
		return
	}
	switch a.Addr {
	case vbePortIndex:
		binary.LittleEndian.PutUint16(p, v.index)
	case vbePortData, vbePortData2:
		binary.LittleEndian.PutUint16(p, v.read(v.index))
	}
}

// Write implements bus.Device.
func (d vbePorts) Write(a bus.Access, p []byte) {
	if len(p) != 2 {
		return
	}
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	x := binary.LittleEndian.Uint16(p)
	switch a.Addr {
	case vbePortIndex:
		d.c.vbe.index = x
	case vbePortData, vbePortData2:
		d.c.writeVBE(d.c.vbe.index, x)
	}
}
