package qdisplay

import "github.com/lodgehv/lodge/vgpu/display"

// Types of pixman's formats: how the channels are ordered (pixman.h, PIXMAN_TYPE_*).
const (
	pixmanARGB = 2
	pixmanABGR = 3
	pixmanBGRA = 8
	pixmanRGBA = 9
)

// pixmanFormat is pixman's PIXMAN_FORMAT for four channels of 8 bits, the first of which may be unused.
func pixmanFormat(kind, alpha uint32) uint32 { return 32<<24 | kind<<16 | alpha<<12 | 8<<8 | 8<<4 | 8 }

// pixmanCode returns the format as pixman has it: both name the channels from the most significant bits. 0 is none.
func pixmanCode(f display.Format) uint32 {
	switch f {
	case display.XRGB8888:
		return pixmanFormat(pixmanARGB, 0)
	case display.ARGB8888:
		return pixmanFormat(pixmanARGB, 8)
	case display.XBGR8888:
		return pixmanFormat(pixmanABGR, 0)
	case display.ABGR8888:
		return pixmanFormat(pixmanABGR, 8)
	case display.RGBX8888:
		return pixmanFormat(pixmanRGBA, 0)
	case display.RGBA8888:
		return pixmanFormat(pixmanRGBA, 8)
	case display.BGRX8888:
		return pixmanFormat(pixmanBGRA, 0)
	case display.BGRA8888:
		return pixmanFormat(pixmanBGRA, 8)
	}
	return 0
}

// formats are all that there are.
var formats = [...]display.Format{
	display.XRGB8888, display.ARGB8888, display.XBGR8888, display.ABGR8888,
	display.RGBX8888, display.RGBA8888, display.BGRX8888, display.BGRA8888,
}

// modifierLinear is DRM_FORMAT_MOD_LINEAR: pixels lie in rows, one behind the other.
const modifierLinear = 0

// formatOf is the inverse of pixmanCode.
func formatOf(code uint32) (display.Format, bool) {
	for _, f := range formats {
		if pixmanCode(f) == code {
			return f, true
		}
	}
	return 0, false
}
