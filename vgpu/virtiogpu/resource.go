package virtiogpu

import (
	"crypto/rand"

	"github.com/lodgehv/lodge/vgpu/display"
)

// resource is what a guest can have shown: pixels of the host, or a blob of the guest's memory.
type resource struct {
	id      uint32
	uuid    [16]byte // all zero: none was assigned
	backing backing

	// 2D
	format        uint32
	width, height uint32 // pixels
	picture       picture

	// blob
	blob bool
	size uint64 // bytes
}

// picture is memory of the host: rows of pixels without gaps between them.
type picture struct {
	extent extent
	pixels []byte
	width  int // bytes in a row
	rows   int
	// pending are the rows that a restore takes from the guest's memory when the device starts.
	pending []rows
}

// rows are n rows of a picture.
type rows struct{ first, n int }

// newPicture returns a picture, all zero, or reports that there is no memory for it. d.mu is held.
func (d *Device) newPicture(width, rows int) (picture, bool) {
	if d.arena == nil {
		a, err := d.newArena(d.cfg.MaxBytes)
		if err != nil {
			d.complain(err)
			return picture{}, false
		}
		d.arena = a
	}
	n := width * rows // at most 4 × display.MaxSize²
	e, ok := d.arena.alloc(int64(n))
	if !ok {
		return picture{}, false
	}
	return picture{extent: e, pixels: d.arena.slice(e)[:n:n], width: width, rows: rows}, true
}

// freePicture frees what newPicture returned, if it did.
func (d *Device) freePicture(p picture) {
	if p.pixels != nil {
		d.arena.free(p.extent)
	}
}

// mayAdd returns respOKNoData if a resource of that id can be added, else why not.
func (d *Device) mayAdd(id uint32) uint32 {
	switch {
	case id == 0 || d.resources[id] != nil:
		return respErrInvalidResourceID
	case len(d.resources) >= maxResources:
		return respErrOutOfMemory
	}
	return respOKNoData
}

// resourceCreate2D: struct virtio_gpu_resource_create_2d.
func (d *Device) resourceCreate2D(c *call) uint32 {
	r := &resource{id: c.p.u32(0), format: c.p.u32(4), width: c.p.u32(8), height: c.p.u32(12)}
	if resp := d.mayAdd(r.id); resp != respOKNoData {
		return resp
	}
	return d.create2D(r)
}

func (d *Device) create2D(r *resource) uint32 {
	if formatOf(r.format) == 0 || r.width < 1 || r.width > display.MaxSize || r.height < 1 || r.height > display.MaxSize {
		return respErrInvalidParameter
	}
	var ok bool
	if r.picture, ok = d.newPicture(display.BytesPerPixel*int(r.width), int(r.height)); !ok {
		return respErrOutOfMemory
	}
	d.resources[r.id] = r
	return respOKNoData
}

// resourceCreateBlob: struct virtio_gpu_resource_create_blob, and the entries of its backing.
func (d *Device) resourceCreateBlob(c *call) uint32 {
	r := &resource{id: c.p.u32(0), blob: true, size: c.p.u64(24)}
	memory, flags, entries := c.p.u32(4), c.p.u32(8), c.p.u32(12)
	if resp := d.mayAdd(r.id); resp != respOKNoData {
		return resp
	}
	if memory != blobMemGuest || flags&^blobFlagsMask != 0 || r.size == 0 {
		return respErrInvalidParameter
	}
	if resp := d.attach(c, r, entries); resp != respOKNoData {
		return resp
	}
	d.resources[r.id] = r
	return respOKNoData
}

// resourceUnref: struct virtio_gpu_resource_unref. Scanouts that show the resource are turned off.
func (d *Device) resourceUnref(c *call) uint32 {
	r := d.resources[c.p.u32(0)]
	if r == nil {
		return respErrInvalidResourceID
	}
	d.offAll(r)
	d.detach(r)
	d.freePicture(r.picture)
	delete(d.resources, r.id)
	return respOKNoData
}

// resourceAttachBacking: struct virtio_gpu_resource_attach_backing, and the entries.
func (d *Device) resourceAttachBacking(c *call) uint32 {
	r := d.resources[c.p.u32(0)]
	if r == nil {
		return respErrInvalidResourceID
	}
	if len(r.backing.pieces) > 0 {
		return respErrUnspec
	}
	return d.attach(c, r, c.p.u32(4))
}

// attach reads entries from c and makes them r's backing, all of a blob at least.
func (d *Device) attach(c *call, r *resource, entries uint32) uint32 {
	if entries > maxEntries {
		return respErrOutOfMemory
	}
	spans, err := readEntries(c.chain, entries, d.control.spans)
	d.control.spans = spans
	if err != nil {
		return respErrInvalidParameter
	}
	b, err := resolve(d.mem, spans)
	if err != nil || b.size == 0 || b.size < r.size {
		return respErrInvalidParameter
	}
	if d.entries+len(b.pieces) > maxTotalEntries {
		return respErrOutOfMemory
	}
	d.entries += len(b.pieces)
	r.backing = b
	return respOKNoData
}

// resourceDetachBacking: struct virtio_gpu_resource_detach_backing. A blob without memory cannot be shown.
func (d *Device) resourceDetachBacking(c *call) uint32 {
	r := d.resources[c.p.u32(0)]
	if r == nil {
		return respErrInvalidResourceID
	}
	if len(r.backing.pieces) == 0 {
		return respErrUnspec
	}
	if r.blob {
		d.offAll(r)
	}
	d.detach(r)
	return respOKNoData
}

func (d *Device) detach(r *resource) {
	d.unshare(r)
	d.entries -= len(r.backing.pieces)
	r.backing = backing{}
}

// resourceAssignUUID: struct virtio_gpu_resource_assign_uuid. The same resource keeps what it got.
func (d *Device) resourceAssignUUID(c *call) uint32 {
	r := d.resources[c.p.u32(0)]
	if r == nil {
		return respErrInvalidResourceID
	}
	if r.uuid == [16]byte{} {
		rand.Read(r.uuid[:])
		r.uuid[6] = r.uuid[6]&0x0f | 0x40 // random, RFC 9562 §5.4
		r.uuid[8] = r.uuid[8]&0x3f | 0x80
	}
	copy(c.use(len(r.uuid)), r.uuid[:])
	return respOKResourceUUID
}

// transferToHost2D copies a rectangle from the backing: struct virtio_gpu_transfer_to_host_2d. Rows of the guest's are as
// long as those of the resource.
func (d *Device) transferToHost2D(c *call) uint32 {
	r, offset, res := c.p.rect(0), c.p.u64(16), d.resources[c.p.u32(24)]
	switch {
	case res == nil:
		return respErrInvalidResourceID
	case res.blob:
		return respOKNoData // Linux sends it for these too; there is nothing to copy
	case !r.in(res.width, res.height):
		return respErrInvalidParameter
	case r.w == 0 || r.h == 0:
		return respOKNoData // its corner may be where no pixel is
	}
	stride, n := res.picture.width, display.BytesPerPixel*int(r.w)
	if !holds(res.backing.size, offset, uint64(stride), uint64(n), int(r.h)) {
		return respErrInvalidParameter
	}
	d.lock(res)
	dst := res.picture.pixels[int(r.y)*stride+display.BytesPerPixel*int(r.x):]
	res.backing.copyRows(dst, stride, offset, uint64(stride), n, int(r.h))
	d.unlock(res)
	return respOKNoData
}
