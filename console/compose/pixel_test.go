package compose

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/lodgehv/lodge/vgpu/display"
)

// encode returns a colour as a pixel of f, by what the format's name says.
func encode(r, g, b byte, f display.Format) []byte {
	const unused = 0x5a
	switch f {
	case display.XRGB8888, display.ARGB8888:
		return []byte{b, g, r, unused}
	case display.XBGR8888, display.ABGR8888:
		return []byte{r, g, b, unused}
	case display.RGBX8888, display.RGBA8888:
		return []byte{unused, b, g, r}
	default:
		return []byte{unused, r, g, b}
	}
}

func formats() []display.Format {
	return []display.Format{
		display.XRGB8888, display.ARGB8888, display.XBGR8888, display.ABGR8888,
		display.RGBX8888, display.RGBA8888, display.BGRX8888, display.BGRA8888,
	}
}

func TestFormats(t *testing.T) {
	for _, f := range formats() {
		for _, width := range []int{0, 1, 2, 3, 15, 16, 17, 33} {
			t.Run(fmt.Sprint(f, width), func(t *testing.T) {
				var from []byte
				var want []uint32
				for x := range width {
					r, g, b := byte(0x11+x), byte(0x44+x), byte(0x88+x)
					from = append(from, encode(r, g, b, f)...)
					want = append(want, uint32(r)<<16|uint32(g)<<8|uint32(b))
				}
				to := make([]byte, 4*width)
				copyRow(to, from, f)
				for x, w := range want {
					if got := binary.LittleEndian.Uint32(to[4*x:]) & 0xffffff; got != w {
						t.Errorf("pixel %d of a row: %06x, want %06x", x, got, w)
					}
					if got := toXRGB(binary.LittleEndian.Uint32(from[4*x:]), f) & 0xffffff; got != w {
						t.Errorf("pixel %d alone: %06x, want %06x", x, got, w)
					}
				}
			})
		}
	}
}

func TestOver(t *testing.T) {
	for _, tt := range []struct{ top, bottom, want uint32 }{
		{0x00000000, 0x00123456, 0x123456},
		{0xff123456, 0x00ffffff, 0x123456},
		{0x80000000, 0x00ffffff, 0x7f7f7f},
		{0x80800000, 0x000000ff, 0x80007f},
		{0x40404040, 0x00808080, 0xa0a0a0},
		{0x00ffffff, 0x00ff80ff, 0xffffff}, // not premultiplied
	} {
		if got := over(tt.top, tt.bottom); got != tt.want {
			t.Errorf("%08x over %06x: %06x, want %06x", tt.top, tt.bottom, got, tt.want)
		}
	}
	for a := range uint32(256) {
		for v := range uint32(256) {
			want := ((255-a)*v + 127) / 255
			if got := over(a<<24, v*0x010101); got != want*0x010101 {
				t.Fatalf("alpha %d over %d: %06x, want %d", a, v, got, want)
			}
		}
	}
}

func BenchmarkRow(b *testing.B) {
	for _, f := range []display.Format{display.XRGB8888, display.XBGR8888, display.RGBX8888, display.BGRX8888} {
		b.Run(f.String(), func(b *testing.B) {
			from, to := make([]byte, 4*1920), make([]byte, 4*1920)
			b.SetBytes(int64(len(to)))
			for b.Loop() {
				copyRow(to, from, f)
			}
		})
	}
}
