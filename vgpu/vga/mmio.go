package vga

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/vgpu/display"
)

// The registers in memory (QEMU, docs/specs/standard-vga).
const (
	mmioSize = 0x1000

	edidOff   = 0x000
	edidSize  = 0x400
	portsOff  = 0x400 // ports 0x3c0 to 0x3df
	vbeOff    = 0x500 // the VBE registers one behind the other
	vbeEnd    = vbeOff + 2*numVBE
	extOff    = 0x600 // extended registers, 32 bits each: their size in bytes, the byte order of pixels
	extSize   = 8
	extOrder  = extOff + 4
	extBig    = 0xbebebebe
	extLittle = 0x1e1e1e1e
)

// mmio answers for them.
type mmio struct{ c *Card }

// Read implements bus.Device.
func (m mmio) Read(a bus.Access, p []byte) {
	c := m.c
	clear(p)
	switch off := int(a.Off); {
	case off < edidOff+edidSize:
		copy(p, c.edid.Load()[off:])
	case off >= portsOff && off+len(p) <= portsOff+vgaPortsSize:
		c.readPorts(uint16(vgaPorts+off-portsOff), p)
	case off >= vbeOff && off < vbeEnd:
		c.mu.Lock()
		defer c.mu.Unlock()
		for i := range p {
			at := off - vbeOff + i
			p[i] = byte(c.vbe.read(uint16(at/2)) >> (at % 2 * 8))
		}
	case off >= extOff && off < extOff+extSize:
		c.mu.Lock()
		defer c.mu.Unlock()
		var b [extSize]byte
		binary.LittleEndian.PutUint32(b[:], extSize)
		order := uint32(extLittle)
		if c.vbe.bigEndian {
			order = extBig
		}
		binary.LittleEndian.PutUint32(b[4:], order)
		copy(p, b[off-extOff:])
	}
}

// Write implements bus.Device.
func (m mmio) Write(a bus.Access, p []byte) {
	c := m.c
	switch off := int(a.Off); {
	case off >= portsOff && off+len(p) <= portsOff+vgaPortsSize:
		c.writePorts(uint16(vgaPorts+off-portsOff), p)
	case off >= vbeOff && off < vbeEnd && off%2 == 0:
		c.mu.Lock()
		defer c.mu.Unlock()
		for i := 0; i+2 <= len(p) && off+i < vbeEnd; i += 2 {
			c.writeVBE(uint16((off-vbeOff+i)/2), binary.LittleEndian.Uint16(p[i:]))
		}
	case off == extOrder && len(p) == 4:
		c.mu.Lock()
		defer c.mu.Unlock()
		switch binary.LittleEndian.Uint32(p) {
		case extBig:
			c.vbe.bigEndian = true
		case extLittle:
			c.vbe.bigEndian = false
		}
		c.touch()
	}
}

// setMonitor makes the EDID that of m. The screen may be locked.
func (c *Card) setMonitor(m display.Monitor) {
	b := new([edidSize]byte)
	if c.cfg.EDID != nil && m.Connected {
		copy(b[:], c.cfg.EDID(m))
	}
	c.edid.Store(b)
}
