package headless

import (
	"encoding/binary"
	"fmt"
	"image"
	"math/bits"
)

// pixelFormat is PIXEL_FORMAT (RFC 6143 §7.4).
type pixelFormat struct {
	bpp, depth uint8
	bigEndian  bool
	max        [3]uint16 // red, green, blue: a power of two less one
	shift      [3]uint8
	table      [3][256]uint32 // a channel's value, in its place
	asIs       bool           // XRGB8888, as our buffers
}

// ours returns the format of our buffers.
func ours() *pixelFormat {
	f := &pixelFormat{bpp: 32, depth: 24, max: [3]uint16{255, 255, 255}, shift: [3]uint8{16, 8, 0}}
	f.fill()
	return f
}

// parseFormat reads a client's format. Colour maps are of another century: they are refused.
func parseFormat(b *[16]byte) (*pixelFormat, error) {
	f := &pixelFormat{bpp: b[0], depth: b[1], bigEndian: b[2] != 0}
	if b[3] == 0 {
		return nil, fmt.Errorf("client wants a colour map: only true colour is possible")
	}
	if f.bpp != 8 && f.bpp != 16 && f.bpp != 32 {
		return nil, fmt.Errorf("client wants pixels of %d bits: 8, 16 and 32 are possible", f.bpp)
	}
	for i := range f.max {
		f.max[i], f.shift[i] = binary.BigEndian.Uint16(b[4+2*i:]), b[10+i]
		if n := bits.Len16(f.max[i]); f.max[i] != 1<<n-1 || n+int(f.shift[i]) > int(f.bpp) {
			return nil, fmt.Errorf("client wants a colour up to %d at bit %d of %d", f.max[i], f.shift[i], f.bpp)
		}
	}
	f.fill()
	return f, nil
}

// fill makes the tables.
func (f *pixelFormat) fill() {
	for c := range f.table {
		for v := range f.table[c] {
			f.table[c][v] = (uint32(v)*uint32(f.max[c]) + 127) / 255 << f.shift[c]
		}
	}
	f.asIs = f.bpp == 32 && !f.bigEndian && f.max == [3]uint16{255, 255, 255} && f.shift == [3]uint8{16, 8, 0}
}

// put writes the format as the protocol has it.
func (f *pixelFormat) put(b []byte) []byte {
	b = append(b, f.bpp, f.depth, 0, 1)
	if f.bigEndian {
		b[len(b)-2] = 1
	}
	for _, v := range f.max {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return append(b, f.shift[0], f.shift[1], f.shift[2], 0, 0, 0)
}

// bytes returns the size of a pixel.
func (f *pixelFormat) bytes() int { return int(f.bpp / 8) }

// convert appends a row of XRGB8888.
func (f *pixelFormat) convert(b, row []byte) []byte {
	if f.asIs {
		return append(b, row...)
	}
	for ; len(row) >= 4; row = row[4:] {
		v := f.table[0][row[2]] | f.table[1][row[1]] | f.table[2][row[0]]
		switch {
		case f.bpp == 8:
			b = append(b, byte(v))
		case f.bpp == 16 && f.bigEndian:
			b = binary.BigEndian.AppendUint16(b, uint16(v))
		case f.bpp == 16:
			b = binary.LittleEndian.AppendUint16(b, uint16(v))
		case f.bigEndian:
			b = binary.BigEndian.AppendUint32(b, v)
		default:
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	return b
}

// pixels appends what is on the screen within r; what of it is not there is black.
func (s *Screen) pixels(b []byte, r image.Rectangle, f *pixelFormat) []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	in := image.Rectangle{}
	if s.front != nil {
		in = r.Intersect(image.Rect(0, 0, s.front.Width, s.front.Height))
	}
	size := f.bytes()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		if in.Empty() || y < in.Min.Y || y >= in.Max.Y {
			b = append(b, make([]byte, r.Dx()*size)...)
			continue
		}
		b = append(b, make([]byte, (in.Min.X-r.Min.X)*size)...)
		b = f.convert(b, s.front.Pixels[y*s.front.Stride+4*in.Min.X:][:4*in.Dx()])
		b = append(b, make([]byte, (r.Max.X-in.Max.X)*size)...)
	}
	return b
}
