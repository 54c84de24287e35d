package edid

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/vgpu/display"
)

// Limits of what Encode expresses.
const (
	minSide     = 64     // pixels: Linux takes less for garbage
	minRefresh  = 40_000 // mHz
	maxRefresh  = 480_000
	usualRate   = 60_000
	minClock    = 10_000_000 // Hz: decoders take less for garbage
	clockStep   = 250_000    // Hz, of CVT
	clockUnit   = 10_000     // Hz, of both kinds of detailed timings
	maxDTDSide  = 1<<12 - 1  // pixels
	maxDTDClock = (1<<16 - 1) * clockUnit
)

// Reduced blanking, CVT 1.2 §3.4.2: pixels and lines; the vertical blanking takes at least rbMinTime nanoseconds.
const (
	rbHFront  = 48
	rbHSync   = 32
	rbHBack   = 80
	rbVFront  = 3
	rbMinBack = 6
	rbMinTime = 460_000
)

// timing is a video mode in pixels and lines. Its horizontal sync is positive, its vertical one negative: that is how CVT
// marks reduced blanking.
type timing struct {
	width, hFront, hSync, hBack  int
	height, vFront, vSync, vBack int
	clock                        int // pixels per second
}

func (t timing) hBlank() int      { return t.hFront + t.hSync + t.hBack }
func (t timing) vBlank() int      { return t.vFront + t.vSync + t.vBack }
func (t timing) totalWidth() int  { return t.width + t.hBlank() }
func (t timing) totalHeight() int { return t.height + t.vBlank() }

// reducedBlanking returns the CVT timing for a mode, whose width need not be a multiple of CVT's eight pixels. A refresh rate
// of 0 is 60 Hz.
func reducedBlanking(width, height, milliHz int) timing {
	if milliHz <= 0 {
		milliHz = usualRate
	}
	milliHz = min(max(milliHz, minRefresh), maxRefresh)
	t := timing{
		width: min(max(width, minSide), display.MaxSize), hFront: rbHFront, hSync: rbHSync, hBack: rbHBack,
		height: min(max(height, minSide), display.MaxSize), vFront: rbVFront,
	}
	t.vSync = syncWidth(t.width, t.height)
	period := 1_000_000_000_000 / milliHz // of a frame, in nanoseconds
	blank := rbMinTime*t.height/(period-rbMinTime) + 1
	t.vBack = max(blank-t.vFront-t.vSync, rbMinBack)
	clock := func() int { return milliHz * t.totalWidth() * t.totalHeight() / 1000 }
	if t.clock = clock() / clockStep * clockStep; t.clock < minClock {
		t.hBack += (minClock*1000+milliHz*t.totalHeight()-1)/(milliHz*t.totalHeight()) - t.totalWidth()
		t.clock = clock() / clockUnit * clockUnit
	}
	return t
}

// syncWidth returns the lines of vertical sync, by which CVT tells the aspect ratio, CVT 1.2 §3.4 table 3-2.
func syncWidth(width, height int) int {
	for _, a := range [...]struct{ w, h, lines int }{{4, 3, 4}, {16, 9, 5}, {16, 10, 6}, {5, 4, 7}, {15, 9, 7}} {
		if width*a.h == height*a.w {
			return a.lines
		}
	}
	return 10
}

// fits reports whether a detailed timing descriptor has room for t.
func (t timing) fits() bool {
	return t.width <= maxDTDSide && t.height <= maxDTDSide && t.clock <= maxDTDClock
}

// smaller returns a timing that fits and has the shape of t.
func smaller(t timing) timing {
	for w, h := t.width, t.height; ; w, h = w/2, h/2 {
		if t = reducedBlanking(w, h, usualRate); t.fits() {
			return t
		}
	}
}

// put writes t as a detailed timing descriptor, E-EDID §3.10.2. t fits.
func (t timing) put(d []byte, widthMM, heightMM int) {
	binary.LittleEndian.PutUint16(d, uint16(t.clock/clockUnit))
	low := func(at, v int) { d[at] = byte(v) }
	low(2, t.width)
	low(3, t.hBlank())
	low(4, t.width>>8<<4|t.hBlank()>>8)
	low(5, t.height)
	low(6, t.vBlank())
	low(7, t.height>>8<<4|t.vBlank()>>8)
	low(8, t.hFront)
	low(9, t.hSync)
	low(10, t.vFront&15<<4|t.vSync&15)
	low(11, t.hFront>>8<<6|t.hSync>>8<<4|t.vFront>>4<<2|t.vSync>>4)
	low(12, widthMM)
	low(13, heightMM)
	low(14, widthMM>>8<<4|heightMM>>8)
	d[17] = 3<<3 | 1<<1 // digital separate sync; horizontal positive, vertical negative
}
