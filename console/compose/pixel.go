package compose

import (
	"encoding/binary"
	"math/bits"

	"github.com/lodgehv/lodge/vgpu/display"
)

// pixels is a picture in memory, of 4 bytes a pixel.
type pixels struct {
	stride int
	data   []byte
}

// row returns the pixels x0 to x1 of a row.
func (p *pixels) row(y, x0, x1 int) []byte {
	o := y*p.stride + 4*x0
	return p.data[o : o+4*(x1-x0)]
}

// copyRow converts a row of pixels to XRGB8888. from and to are equally long, a multiple of 4.
func copyRow(to, from []byte, f display.Format) {
	switch f {
	case display.XRGB8888, display.ARGB8888:
		copy(to, from)
		return
	case display.XBGR8888, display.ABGR8888:
		const low = 0x000000ff000000ff
		for len(from) >= block && len(to) >= block {
			a, b := (*[block]byte)(from), (*[block]byte)(to)
			for i := 0; i < block; i += 8 {
				v := binary.LittleEndian.Uint64(a[i:])
				binary.LittleEndian.PutUint64(b[i:], v&^(low|low<<16)|v>>16&low|v&low<<16)
			}
			from, to = from[block:], to[block:]
		}
	case display.RGBX8888, display.RGBA8888:
		for len(from) >= block && len(to) >= block {
			a, b := (*[block]byte)(from), (*[block]byte)(to)
			for i := 0; i < block; i += 8 {
				v := binary.LittleEndian.Uint64(a[i:])
				binary.LittleEndian.PutUint64(b[i:], v>>8&0x00ffffff00ffffff)
			}
			from, to = from[block:], to[block:]
		}
	default: // BGRX8888, BGRA8888
		for len(from) >= block && len(to) >= block {
			a, b := (*[block]byte)(from), (*[block]byte)(to)
			for i := 0; i < block; i += 8 {
				v := bits.ReverseBytes64(binary.LittleEndian.Uint64(a[i:]))
				binary.LittleEndian.PutUint64(b[i:], v>>32|v<<32)
			}
			from, to = from[block:], to[block:]
		}
	}
	for i := 0; i+4 <= min(len(from), len(to)); i += 4 {
		binary.LittleEndian.PutUint32(to[i:], toXRGB(binary.LittleEndian.Uint32(from[i:]), f))
	}
}

// block is how many bytes of a row are converted at once: two pixels a word, and few enough checks of bounds.
const block = 64

// toXRGB converts one pixel. The unused byte of the result may be anything.
func toXRGB(v uint32, f display.Format) uint32 {
	switch f {
	case display.XRGB8888, display.ARGB8888:
		return v
	case display.XBGR8888, display.ABGR8888:
		return v&0xff00ff00 | v>>16&0xff | v&0xff<<16
	case display.RGBX8888, display.RGBA8888:
		return v >> 8
	default: // BGRX8888, BGRA8888
		return bits.ReverseBytes32(v)
	}
}

// over puts a pixel with alpha multiplied in over an opaque one.
func over(top, bottom uint32) uint32 {
	rest := 0xff - top>>24
	// Two channels at once; v×(1+1/256+…)/256 is v/255, rounded.
	rb := bottom&0x00ff00ff*rest + 0x00800080
	rb = (rb + rb>>8&0x00ff00ff) >> 8 & 0x00ff00ff
	g := bottom >> 8 & 0xff * rest
	g = (g + 0x80 + (g+0x80)>>8) >> 8 & 0xff
	return add(top&0xff, rb&0xff) | add(top>>8&0xff, g)<<8 | add(top>>16&0xff, rb>>16)<<16
}

// add adds two channels. A picture whose alpha is not multiplied in would overflow: cursors come from guests.
func add(a, b uint32) uint32 { return min(a+b, 0xff) }
