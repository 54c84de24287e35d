package vga

import (
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
)

// The ports of a VGA. Those of the CRT controller, input status 1 and the feature control are at 0x3dx or, as a monochrome
// card's, at 0x3bx: bit 0 of the miscellaneous output register chooses. 0x3bc and up belong to a printer port.
const (
	monoPorts     = 0x3b0
	monoPortsSize = 0x0c
	vgaPorts      = 0x3c0
	vgaPortsSize  = 0x20

	portAttrIndex = 0x3c0 // index and data in turn
	portAttrData  = 0x3c1 // read only
	portStatus0   = 0x3c2 // read; write: miscellaneous output
	portSeqIndex  = 0x3c4
	portSeqData   = 0x3c5
	portDACMask   = 0x3c6
	portDACState  = 0x3c7 // read; write: index to read from
	portDACWrite  = 0x3c8 // index to write to
	portDACData   = 0x3c9
	portFeature   = 0x3ca // read; written at status 1
	portMisc      = 0x3cc // read
	portGfxIndex  = 0x3ce
	portGfxData   = 0x3cf
	portCRTCIndex = 0x3d4
	portCRTCData  = 0x3d5
	portStatus1   = 0x3da

	miscColour = 1 << 0
)

// Input status registers.
const (
	status0Sense   = 1 << 4 // a monitor is there
	status1Blanked = 1 << 0 // between two lines or pictures
	status1Retrace = 1 << 3 // between two pictures
)

// Sequencer.
const (
	seqReset = iota
	seqClocking
	seqMapMask
	seqFont
	seqMemoryMode
	numSeq

	clocking8Dots = 1 << 0 // a character is 8 dots wide, else 9
	clockingHalf  = 1 << 3 // each dot is two wide
	clockingOff   = 1 << 5 // the screen is off

	memoryChain4 = 1 << 3
)

// CRT controller.
const (
	crtcHTotal = iota
	crtcHDisplayEnd
	crtcHBlankStart
	crtcHBlankEnd
	crtcHSyncStart
	crtcHSyncEnd
	crtcVTotal
	crtcOverflow
	crtcPresetRow
	crtcMaxScan
	crtcCursorStart
	crtcCursorEnd
	crtcStartHigh
	crtcStartLow
	crtcCursorHigh
	crtcCursorLow
	crtcVSyncStart
	crtcVSyncEnd
	crtcVDisplayEnd
	crtcOffset
	crtcUnderline
	crtcVBlankStart
	crtcVBlankEnd
	crtcMode
	crtcLineCompare
	numCRTC

	overflowLineCompare8 = 1 << 4
	maxScanLineCompare9  = 1 << 6
	maxScanDouble        = 1 << 7
	cursorOff            = 1 << 5
	vSyncEndProtect      = 1 << 7 // of registers 0 to 7
	modeBank13           = 1 << 0 // clear: address bit 13 is bit 0 of the line within its row
	modeBank14           = 1 << 1 // clear: address bit 14 is bit 1 of it
	modeByte             = 1 << 6
)

// Graphics controller.
const (
	gfxSetReset = iota
	gfxEnableSetReset
	gfxColourCompare
	gfxRotate
	gfxReadMap
	gfxMode
	gfxMisc
	gfxDontCare
	gfxBitMask
	numGfx

	gfxModeRead1      = 1 << 3
	gfxModeOddEven    = 1 << 4
	gfxModeInterleave = 1 << 5
	gfxMode256        = 1 << 6
	gfxMiscGraphics   = 1 << 0
)

// Attribute controller.
const (
	attrMode        = 0x10
	attrOverscan    = 0x11
	attrPlaneEnable = 0x12
	attrPan         = 0x13
	attrColour      = 0x14
	numAttr         = 0x15

	attrVideo     = 1 << 5 // of the index: the palette is the screen's, not the CPU's
	attrWide      = 1 << 2 // of the mode: line graphics are 9 dots wide
	attrBlink     = 1 << 3
	attrPanSplit  = 1 << 5 // the lower half of a split screen does not pan
	attrColourP54 = 1 << 7 // bits 4 and 5 of the palette come from the colour select register
)

// Bits that the registers have; the others read as zero. The CRT controller's registers have all.
var (
	seqMask  = [numSeq]uint8{0x03, 0x3d, 0x0f, 0x3f, 0x0e}
	gfxMask  = [numGfx]uint8{0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff}
	attrMask = [numAttr]uint8{
		0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f,
		0xef, 0xff, 0x3f, 0x0f, 0x0f,
	}
)

const (
	miscMask    = 0xef
	featureMask = 0x10
)

// registers are those of a VGA.
type registers struct {
	misc, feature uint8
	status1       uint8 // as it was read last

	seqIndex uint8
	seq      [numSeq]uint8

	crtcIndex uint8
	crtc      [numCRTC]uint8

	gfxIndex uint8
	gfx      [numGfx]uint8
	latch    uint32 // of the four planes, plane 0 lowest

	attrIndex uint8
	attrData  bool // the next write to attrIndex's port is data
	attr      [numAttr]uint8

	dacMask     uint8
	dacReading  bool // the data port is being read
	dacRead     uint8
	dacWrite    uint8
	dacPart     uint8 // 0 red, 1 green, 2 blue
	dacIncoming [3]uint8
	dac         [256 * 3]uint8
}

func (r *registers) powerOn() { *r = registers{dacMask: 0xff} }

// decodes reports whether a port is one of those that the card answers now.
func (r *registers) decodes(port uint16) bool {
	if r.misc&miscColour != 0 {
		return port >= vgaPorts
	}
	return port < 0x3d0
}

// read returns what the port reads.
func (r *registers) read(port uint16, now func() time.Duration) uint8 {
	if !r.decodes(port) {
		return 0xff
	}
	if port < vgaPorts {
		port += 0x20
	}
	switch port {
	case portAttrIndex:
		if !r.attrData {
			return r.attrIndex
		}
	case portAttrData:
		if i := r.attrIndex &^ attrVideo; i < numAttr {
			return r.attr[i]
		}
	case portStatus0:
		return status0Sense
	case portSeqIndex:
		return r.seqIndex
	case portSeqData:
		if r.seqIndex < numSeq {
			return r.seq[r.seqIndex]
		}
	case portDACMask:
		return r.dacMask
	case portDACState:
		if r.dacReading {
			return 3
		}
	case portDACWrite:
		return r.dacWrite
	case portDACData:
		return r.readDAC()
	case portFeature:
		return r.feature
	case portMisc:
		return r.misc
	case portGfxIndex:
		return r.gfxIndex
	case portGfxData:
		if r.gfxIndex < numGfx {
			return r.gfx[r.gfxIndex]
		}
	case portCRTCIndex:
		return r.crtcIndex
	case portCRTCData:
		if r.crtcIndex < numCRTC {
			return r.crtc[r.crtcIndex]
		}
	case portStatus1:
		r.attrData = false
		r.status1 = status1(r.status1, now())
		return r.status1
	}
	return 0
}

// write takes v at a port. index reports that v only chose a register.
func (r *registers) write(port uint16, v uint8) (index bool) {
	if !r.decodes(port) {
		return true
	}
	if port < vgaPorts {
		port += 0x20
	}
	switch port {
	case portAttrIndex:
		r.attrData = !r.attrData
		if r.attrData {
			r.attrIndex = v & (attrVideo | 0x1f)
		} else if i := r.attrIndex &^ attrVideo; i < numAttr {
			r.attr[i] = v & attrMask[i]
		}
	case portStatus0:
		r.misc = v & miscMask
	case portSeqIndex:
		r.seqIndex = v & 7
		return true
	case portSeqData:
		if r.seqIndex < numSeq {
			r.seq[r.seqIndex] = v & seqMask[r.seqIndex]
		}
	case portDACMask:
		r.dacMask = v
	case portDACState:
		r.dacRead, r.dacPart, r.dacReading = v, 0, true
		return true
	case portDACWrite:
		r.dacWrite, r.dacPart, r.dacReading = v, 0, false
		return true
	case portDACData:
		return r.writeDAC(v)
	case portGfxIndex:
		r.gfxIndex = v & 0xf
		return true
	case portGfxData:
		if r.gfxIndex < numGfx {
			r.gfx[r.gfxIndex] = v & gfxMask[r.gfxIndex]
		}
	case portCRTCIndex:
		r.crtcIndex = v
		return true
	case portCRTCData:
		r.writeCRTC(v)
	case portStatus1:
		r.feature = v & featureMask
	}
	return false
}

// writeCRTC writes the chosen register of the CRT controller. The first eight can be protected, all but one bit.
func (r *registers) writeCRTC(v uint8) {
	i := r.crtcIndex
	switch {
	case i >= numCRTC:
	case i > crtcOverflow || r.crtc[crtcVSyncEnd]&vSyncEndProtect == 0:
		r.crtc[i] = v
	case i == crtcOverflow:
		r.crtc[i] = r.crtc[i]&^overflowLineCompare8 | v&overflowLineCompare8
	}
}

func (r *registers) readDAC() uint8 {
	v := r.dac[3*int(r.dacRead)+int(r.dacPart)]
	if r.dacPart++; r.dacPart == 3 {
		r.dacPart = 0
		r.dacRead++
	}
	return v
}

// writeDAC takes one part of a colour, which changes when all three are there. incomplete reports that it has not.
func (r *registers) writeDAC(v uint8) (incomplete bool) {
	r.dacIncoming[r.dacPart] = v
	if r.dacPart++; r.dacPart < 3 {
		return true
	}
	copy(r.dac[3*int(r.dacWrite):], r.dacIncoming[:])
	r.dacPart = 0
	r.dacWrite++
	return false
}

// A picture takes a sixtieth of a second, of which a tenth passes between it and the next: long enough for a guest that
// polls by slow exits to see it.
const (
	framePeriod   = time.Second / 60
	retraceLength = framePeriod / 10
)

// status1 returns the input status. The lines are too fast for anybody to count, so that their bit changes each time.
func status1(last uint8, now time.Duration) uint8 {
	if now%framePeriod >= framePeriod-retraceLength {
		return status1Retrace | status1Blanked
	}
	return ^last & status1Blanked
}

// ports answers for the ports of the VGA. An access of several bytes is as many accesses: guests write an index and its
// data at once.
type ports struct{ c *Card }

// Read implements bus.Device.
func (d ports) Read(a bus.Access, p []byte) { d.c.readPorts(uint16(a.Addr), p) }

// Write implements bus.Device.
func (d ports) Write(a bus.Access, p []byte) { d.c.writePorts(uint16(a.Addr), p) }

func (c *Card) readPorts(port uint16, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range p {
		p[i] = c.regs.read(port+uint16(i), c.now)
	}
}

func (c *Card) writePorts(port uint16, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, v := range p {
		if !c.regs.write(port+uint16(i), v) {
			c.touch()
		}
	}
}
