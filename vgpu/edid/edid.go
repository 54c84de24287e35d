// Package edid writes and reads what a monitor says of itself: VESA E-EDID Standard, release A, revision 2 (EDID 1.4).
//
// Encode describes the monitor that a guest is to see. Its preferred mode is timed by VESA's Coordinated Video Timings (CVT
// 1.2) with reduced blanking. A mode that the base block has no room for (wider or higher than 4095 pixels, or with a pixel
// clock above 655 MHz) follows in a DisplayID 1.3 extension block. Parse reads what one wants to know of a real monitor; it
// is no full decoder.
package edid

import (
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/lodgehv/lodge/vgpu/display"
)

// BlockSize is the size of the base block and of each extension block, in bytes.
const BlockSize = 128

// Offsets in the base block, E-EDID §3.1 table 3.1.
const (
	offVendor      = 8
	offProduct     = 10
	offSerial      = 12
	offWeek        = 16
	offYear        = 17
	offVersion     = 18
	offInput       = 20
	offSize        = 21
	offGamma       = 23
	offFeatures    = 24
	offChroma      = 25
	offEstablished = 35
	offStandard    = 38
	offDescriptors = 54
	offExtensions  = 126
	offChecksum    = 127

	numStandard    = 8
	numDescriptors = 4
	descriptorSize = 18
)

// Tags of display descriptors, §3.10.3.
const (
	tagSerial = 0xff
	tagRange  = 0xfd
	tagName   = 0xfc
	tagDummy  = 0x10
)

// What all monitors of ours have in common.
const (
	vendor      = "LDG"
	product     = 1
	modelYear   = 2025
	defaultName = "Lodge"

	input       = 0x80 | 2<<4 | 5 // digital, 8 bits per colour, DisplayPort
	gamma       = 220 - 100       // 2.2
	featureSRGB = 1 << 2
	// featureNative says that the first timing is the native one.
	featureNative = 1 << 1
)

func header() [8]byte { return [8]byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0} }

// chromaticity is that of sRGB, §3.7.
func chromaticity() [10]byte {
	return [10]byte{0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54}
}

// Encode returns the EDID of m, BlockSize bytes or twice as many. Values that EDID cannot express are brought to the nearest
// that it can: sides of 64 to display.MaxSize pixels, 40 to 480 Hz, a picture of up to 4095 mm.
func Encode(m display.Monitor) []byte {
	preferred := reducedBlanking(m.Width, m.Height, m.RefreshMilliHz)
	widthMM, heightMM := size(m)
	b := make([]byte, BlockSize, 2*BlockSize)
	h := header()
	copy(b, h[:])
	binary.BigEndian.PutUint16(b[offVendor:], encodeVendor(vendor))
	binary.LittleEndian.PutUint16(b[offProduct:], product)
	b[offWeek], b[offYear] = 0xff, modelYear-1990 // 0xff: the year is the model's
	b[offVersion], b[offVersion+1] = 1, 4
	b[offInput] = input
	if widthMM <= 2554 && heightMM <= 2554 { // in cm, or unknown
		b[offSize], b[offSize+1] = byte((widthMM+5)/10), byte((heightMM+5)/10)
	}
	b[offGamma] = gamma
	b[offFeatures] = featureSRGB | featureNative
	c := chromaticity()
	copy(b[offChroma:], c[:])
	putEstablished(b[offEstablished:], preferred)
	putStandard(b[offStandard:offDescriptors], preferred)

	first := preferred
	if !first.fits() {
		// The base block must have a timing (§3.10.1): one of the same shape, for those who do not read extensions.
		first = smaller(first)
		b[offFeatures] &^= featureNative
		b = append(b, displayID(preferred, m.Serial, widthMM, heightMM)...)
	}
	d := b[offDescriptors:]
	first.put(d, widthMM, heightMM)
	putRange(d[descriptorSize:], preferred, first)
	putText(d[2*descriptorSize:], tagName, name(m.Name))
	if m.Serial != 0 {
		binary.LittleEndian.PutUint32(b[offSerial:], m.Serial)
		putText(d[3*descriptorSize:], tagSerial, strconv.FormatUint(uint64(m.Serial), 10))
	} else {
		d[3*descriptorSize+3] = tagDummy
	}
	b[offExtensions] = byte(len(b)/BlockSize - 1)
	b[offChecksum] = checksum(b[:offChecksum])
	return b
}

// checksum returns the byte that makes the sum of b and itself zero.
func checksum(b []byte) (sum byte) {
	for _, v := range b {
		sum -= v
	}
	return sum
}

// encodeVendor packs three letters into 15 bits, §3.4.1.
func encodeVendor(v string) uint16 {
	return uint16(v[0]-'@')<<10 | uint16(v[1]-'@')<<5 | uint16(v[2]-'@')
}

// size returns the picture's size in millimetres, both zero if one of them is unknown.
func size(m display.Monitor) (width, height int) {
	if m.WidthMM <= 0 || m.HeightMM <= 0 {
		return 0, 0
	}
	return min(m.WidthMM, 4095), min(m.HeightMM, 4095)
}

// name makes s fit: 13 printable ASCII characters, none of them a space at an end.
func name(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if s = strings.TrimSpace(s[:min(len(s), textSize)]); s == "" {
		return defaultName
	}
	return s
}

const textSize = 13 // bytes of text in a descriptor

// putText writes a display descriptor of text: it ends with a line feed and is padded with spaces if it is short, §3.10.3.1.
func putText(d []byte, tag byte, s string) {
	d[3] = tag
	t := d[descriptorSize-textSize : descriptorSize]
	n := copy(t, s)
	for i := range t[n:] {
		t[n+i] = ' '
	}
	if n < textSize {
		t[n] = '\n'
	}
}

// putEstablished sets the bits of the well-known 60 Hz modes that are not larger than preferred, §3.8.
func putEstablished(b []byte, preferred timing) {
	for _, e := range [...]struct {
		width, height, at int
		bit               byte
	}{{640, 480, 0, 1 << 5}, {800, 600, 0, 1 << 0}, {1024, 768, 1, 1 << 3}} {
		if e.width <= preferred.width && e.height <= preferred.height {
			b[e.at] |= e.bit
		}
	}
}

// putStandard lists other usual modes with 60 Hz that are not larger than preferred, the largest first, §3.9.
func putStandard(b []byte, preferred timing) {
	const (
		aspect16to10 = 0 << 6
		aspect4to3   = 1 << 6
		aspect5to4   = 2 << 6
		aspect16to9  = 3 << 6
	)
	n := 0
	for _, s := range [...]struct {
		width, height int
		aspect        byte
	}{
		{2048, 1152, aspect16to9}, {1920, 1200, aspect16to10}, {1920, 1080, aspect16to9}, {1600, 1200, aspect4to3},
		{1680, 1050, aspect16to10}, {1600, 900, aspect16to9}, {1280, 1024, aspect5to4}, {1440, 900, aspect16to10},
		{1280, 960, aspect4to3}, {1280, 800, aspect16to10}, {1280, 720, aspect16to9},
	} {
		if n < numStandard && s.width <= preferred.width && s.height <= preferred.height {
			b[2*n], b[2*n+1] = byte(s.width/8-31), s.aspect
			n++
		}
	}
	for ; n < numStandard; n++ {
		b[2*n], b[2*n+1] = 1, 1 // unused
	}
}

// putRange writes the range limits, §3.10.3.3: those of usual 60 Hz modes, and wide enough for the given ones. If they have
// no room, there are none: only a monitor of continuous frequency must have them.
func putRange(d []byte, timings ...timing) {
	const hMax, vMax, clockMax = 255 + 255, 255 + 255, 2550 // kHz, Hz, MHz
	hLow, hHigh, vLow, vHigh, clock := 30, 80, 50, 76, 200
	for _, t := range timings {
		h := t.clock / t.totalWidth() // Hz
		v := h / t.totalHeight()
		hLow, hHigh = min(hLow, h/1000), max(hHigh, h/1000+1)
		vLow, vHigh = min(vLow, v), max(vHigh, v+1)
		clock = max(clock, (t.clock+9_999_999)/10_000_000*10)
	}
	if hHigh > hMax || vHigh > vMax || clock > clockMax {
		d[3] = tagDummy
		return
	}
	d[3] = tagRange
	put := func(at, v, shift int) {
		if v > 255 {
			d[4] |= 1 << shift // of the value, 255 are here
			v -= 255
		}
		d[at] = byte(v)
	}
	put(5, vLow, 0)
	put(6, vHigh, 1)
	put(7, hLow, 2)
	put(8, hHigh, 3)
	d[9] = byte(clock / 10)
	d[10] = 1 // no more than the limits
	d[11] = '\n'
	for i := 12; i < descriptorSize; i++ {
		d[i] = ' '
	}
}
