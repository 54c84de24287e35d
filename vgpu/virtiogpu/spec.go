package virtiogpu

import (
	"encoding/binary"
	"image"

	"github.com/lodgehv/lodge/vgpu/display"
)

// Queues, virtio 1.2 §5.7.2.
const (
	controlQueue = 0
	cursorQueue  = 1
)

// Feature bits, §5.7.3.
const (
	featureVirgl        = 1 << 0 // not offered
	featureEDID         = 1 << 1
	featureResourceUUID = 1 << 2
	featureResourceBlob = 1 << 3
	featureContextInit  = 1 << 4 // not offered
)

// The configuration, §5.7.4.
const (
	configEventsRead  = 0
	configEventsClear = 4
	configNumScanouts = 8
	configNumCapsets  = 12
	configSize        = 16

	eventDisplay = 1 << 0
)

// maxScanouts is VIRTIO_GPU_MAX_SCANOUTS, §5.7.6.8.
const maxScanouts = 16

// Commands, §5.7.6.7.
const (
	cmdGetDisplayInfo        = 0x0100
	cmdResourceCreate2D      = 0x0101
	cmdResourceUnref         = 0x0102
	cmdSetScanout            = 0x0103
	cmdResourceFlush         = 0x0104
	cmdTransferToHost2D      = 0x0105
	cmdResourceAttachBacking = 0x0106
	cmdResourceDetachBacking = 0x0107
	cmdGetEDID               = 0x010a
	cmdResourceAssignUUID    = 0x010b
	cmdResourceCreateBlob    = 0x010c
	cmdSetScanoutBlob        = 0x010d

	cmdUpdateCursor = 0x0300
	cmdMoveCursor   = 0x0301
)

// Responses, §5.7.6.7.
const (
	respOKNoData       = 0x1100
	respOKDisplayInfo  = 0x1101
	respOKEDID         = 0x1104
	respOKResourceUUID = 0x1105

	respErrUnspec            = 0x1200
	respErrOutOfMemory       = 0x1201
	respErrInvalidScanoutID  = 0x1202
	respErrInvalidResourceID = 0x1203
	respErrInvalidContextID  = 0x1204
	respErrInvalidParameter  = 0x1205
)

// Flags of a header, §5.7.6.7.
const (
	flagFence   = 1 << 0
	flagRingIdx = 1 << 1
)

// Kinds of memory of a blob resource, and what it may be used for, §5.7.6.8.
const (
	blobMemGuest  = 1
	blobFlagsMask = 1<<0 | 1<<1 | 1<<2 // mappable, shareable, cross-device: a blob in guest memory is all of it
)

// Sizes in bytes of what is on the wire, §5.7.6.7 and §5.7.6.8.
const (
	headerSize     = 24       // struct virtio_gpu_ctrl_hdr
	displayOneSize = 24       // struct virtio_gpu_display_one
	edidSize       = 8 + 1024 // what follows the header in struct virtio_gpu_resp_edid
	memEntrySize   = 16       // struct virtio_gpu_mem_entry
	cursorSize     = 16 + 16  // what follows the header in struct virtio_gpu_update_cursor
	maxRequest     = 16 + 56  // the longest of what follows the header in a command: set_scanout_blob
	maxReply       = 8 + 1024 // of what follows the header in a response
	cursorSide     = 64       // pixels: the size of a cursor in a blob resource, which does not know its own
	maxCursorSide  = 256      // pixels: what display.Cursor allows
)

// Pixel formats: the numbers that virglrenderer has for them, §5.7.6.8. Theirs name the bytes in memory, ours the
// little-endian word.
const (
	formatB8G8R8A8 = 1
	formatB8G8R8X8 = 2
	formatA8R8G8B8 = 3
	formatX8R8G8B8 = 4
	formatR8G8B8A8 = 67
	formatX8B8G8R8 = 68
	formatA8B8G8R8 = 121
	formatR8G8B8X8 = 134
)

// formatOf returns the format that the guest calls f; 0 if there is none.
func formatOf(f uint32) display.Format {
	switch f {
	case formatB8G8R8A8:
		return display.ARGB8888
	case formatB8G8R8X8:
		return display.XRGB8888
	case formatA8R8G8B8:
		return display.BGRA8888
	case formatX8R8G8B8:
		return display.BGRX8888
	case formatR8G8B8A8:
		return display.ABGR8888
	case formatX8B8G8R8:
		return display.RGBX8888
	case formatA8B8G8R8:
		return display.RGBA8888
	case formatR8G8B8X8:
		return display.XBGR8888
	}
	return 0
}

// fields are the bytes of a structure, read by offset.
type fields []byte

func (f fields) u32(off int) uint32 { return binary.LittleEndian.Uint32(f[off:]) }
func (f fields) u64(off int) uint64 { return binary.LittleEndian.Uint64(f[off:]) }

// rect reads a struct virtio_gpu_rect.
func (f fields) rect(off int) rect {
	return rect{f.u32(off), f.u32(off + 4), f.u32(off + 8), f.u32(off + 12)}
}

// rect is a rectangle as a guest names it.
type rect struct{ x, y, w, h uint32 }

// in reports whether r lies within w × h pixels.
func (r rect) in(w, h uint32) bool {
	return uint64(r.x)+uint64(r.w) <= uint64(w) && uint64(r.y)+uint64(r.h) <= uint64(h)
}

// image returns r as others know it, cut to what any surface can have.
func (r rect) image() image.Rectangle {
	const most = display.MaxSize
	x, y := min(uint64(r.x), most), min(uint64(r.y), most)
	return image.Rect(int(x), int(y), int(min(uint64(r.x)+uint64(r.w), most)), int(min(uint64(r.y)+uint64(r.h), most)))
}
