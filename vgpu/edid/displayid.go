package edid

import "encoding/binary"

// A DisplayID section in an extension block, DisplayID 1.3 §2.
const (
	tagDisplayID     = 0x70 // of the extension block, E-EDID §2.2.4
	displayIDVersion = 0x13
	displayIDMonitor = 3 // product type: a stand-alone monitor
	displayIDHeader  = 5 // with the extension's tag
	dataBlockHeader  = 3
)

// Data blocks, DisplayID 1.3 §4.
const (
	blockProduct    = 0x00
	blockParameters = 0x01
	blockType1      = 0x03 // detailed timings, clocks in 10 kHz
	blockInterface  = 0x0f
	blockType7      = 0x22 // the same with clocks in kHz: DisplayID 2.0

	typeTimingSize  = 20
	timingPreferred = 1 << 7
	timingPositive  = 1 << 15
)

// displayID returns an extension block with the preferred timing t and what DisplayID demands beside it.
func displayID(t timing, serial uint32, widthMM, heightMM int) []byte {
	le := binary.LittleEndian
	b := []byte{tagDisplayID, displayIDVersion, 0, displayIDMonitor, 0}
	block := func(tag byte, payload []byte) {
		b = append(append(b, tag, 0, byte(len(payload))), payload...)
	}

	p := le.AppendUint16([]byte(vendor), product)
	p = le.AppendUint32(p, serial)
	block(blockProduct, append(p, 0xff, modelYear-2000, 0)) // no name: the base block has it

	p = nil
	for _, v := range [...]int{10 * widthMM, 10 * heightMM, t.width, t.height} {
		p = le.AppendUint16(p, uint16(v))
	}
	ratio := min(max(100*t.width/t.height, 100), 355) // 1 to 3.55
	block(blockParameters, append(p, 0, gamma, byte(ratio-100), 7<<4|7))

	block(blockInterface, []byte{10<<4 | 4, 1<<4 | 2, 1 << 1, 0, 0, 0, 0, 0, 0, 0}) // DisplayPort 1.2, 4 lanes, 8 bits per colour

	clock := t.clock/clockUnit - 1 // every value is stored less one
	p = []byte{byte(clock), byte(clock >> 8), byte(clock >> 16), timingPreferred | aspect(t.width, t.height)}
	for _, v := range [...]int{
		t.width - 1, t.hBlank() - 1, t.hFront - 1 | timingPositive, t.hSync - 1,
		t.height - 1, t.vBlank() - 1, t.vFront - 1, t.vSync - 1,
	} {
		p = le.AppendUint16(p, uint16(v))
	}
	block(blockType1, p)

	b[2] = byte(len(b) - displayIDHeader)
	b = append(b, checksum(b[1:]))
	b = append(b, make([]byte, BlockSize-len(b))...)
	b[BlockSize-1] = checksum(b)
	return b
}

// aspect returns DisplayID's code of an aspect ratio.
func aspect(width, height int) byte {
	for i, a := range [...][2]int{{1, 1}, {5, 4}, {4, 3}, {15, 9}, {16, 9}, {16, 10}} {
		if width*a[1] == height*a[0] {
			return byte(i)
		}
	}
	return 8 // none of the list
}

// displayID takes the preferred mode from a DisplayID extension block: a detailed timing that is marked so.
func (i *Info) displayID(ext []byte) {
	blocks := ext[displayIDHeader:min(displayIDHeader+int(ext[2]), BlockSize-1)]
	for len(blocks) >= dataBlockHeader {
		tag, n := blocks[0], int(blocks[2])
		if blocks = blocks[dataBlockHeader:]; n > len(blocks) {
			return
		}
		unit := 0
		switch tag {
		case blockType1:
			unit = clockUnit
		case blockType7:
			unit = 1000
		}
		for d := blocks[:n]; unit != 0 && len(d) >= typeTimingSize; d = d[typeTimingSize:] {
			if d[3]&timingPreferred == 0 {
				continue
			}
			at := func(k int) int { return int(binary.LittleEndian.Uint16(d[k:])) + 1 }
			clock := (int(d[0]) | int(d[1])<<8 | int(d[2])<<16) + 1
			i.mode(at(4), at(12), at(6), at(14), clock*unit)
			return
		}
		blocks = blocks[n:]
	}
}
