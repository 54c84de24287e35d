package virtiogpu

import (
	"os"
	"slices"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/vgpu/dmabuf"
)

// maxShared is how many dmabufs are kept beside those that are shown: compositors draw into two or three buffers in turn. A
// dmabuf keeps the pages that it was made of, also when the guest's memory has others there since a balloon took them: their
// number and size bound what a guest can have the host keep that way.
const maxShared = 4

// shared is the memory of a blob as a dmabuf.
type shared struct {
	res *resource
	buf *dmabuf.Buffer
}

// share returns all of a blob's memory as a dmabuf, or nil if there can be none. It is there until unshare, or until others
// were shown more recently. d.mu is held.
func (d *Device) share(res *resource) *dmabuf.Buffer {
	i := slices.IndexFunc(d.shared, func(s shared) bool { return s.res == res })
	if i >= 0 {
		s := d.shared[i]
		d.shared = append(slices.Delete(d.shared, i, i+1), s) // the latest last
		return s.buf
	}
	if d.cfg.Share == nil || !d.mem.Filled() {
		return nil
	}
	ranges, ok := fileRanges(d.mem, &res.backing)
	if !ok || !d.roomFor(int64(res.backing.size)) {
		return nil
	}
	buf, err := d.cfg.Share(ranges)
	if err != nil {
		if d.unshared.CompareAndSwap(false, true) {
			d.cfg.Log.Warn("graphics: a picture is copied; more will not be logged", "err", err)
		}
		return nil
	}
	d.shared = append(d.shared, shared{res, buf})
	return buf
}

// roomFor lets go of dmabufs that are not shown until there is room for another of size bytes.
func (d *Device) roomFor(size int64) bool {
	shown := func(s shared) bool {
		return slices.ContainsFunc(d.scanouts, func(k scanout) bool { return k.res == s.res })
	}
	for {
		hidden, total := 0, size
		for _, s := range d.shared {
			if total += int64(len(s.buf.Bytes)); !shown(s) {
				hidden++
			}
		}
		if hidden < maxShared && total <= d.cfg.MaxBytes {
			return true
		}
		if hidden == 0 {
			return false
		}
		d.unshare(d.shared[slices.IndexFunc(d.shared, func(s shared) bool { return !shown(s) })].res)
	}
}

// unshare lets go of a blob's dmabuf, which is not shown.
func (d *Device) unshare(res *resource) {
	if i := slices.IndexFunc(d.shared, func(s shared) bool { return s.res == res }); i >= 0 {
		if err := d.shared[i].buf.Close(); err != nil {
			d.complain(err)
		}
		d.shared = slices.Delete(d.shared, i, i+1)
	}
}

// fileRanges returns where in files a backing lies, or reports that it is not whole pages of files.
func fileRanges(m *mem.Memory, b *backing) ([]dmabuf.Range, bool) {
	ranges := make([]dmabuf.Range, 0, len(b.pieces))
	for _, p := range b.pieces {
		f, off := fileOf(m, p.gpa)
		if f == nil || off%mem.PageSize != 0 || p.size%mem.PageSize != 0 {
			return nil, false
		}
		ranges = append(ranges, dmabuf.Range{File: f, Off: off, Size: int64(p.size)})
	}
	return ranges, len(ranges) > 0
}

// fileOf returns the file behind the guest's memory at gpa, if it has one.
func fileOf(m *mem.Memory, gpa mem.GPA) (*os.File, int64) {
	for _, r := range m.Regions() {
		if r.Base <= gpa && gpa < r.End() && r.File != nil {
			return r.File, r.Off + int64(gpa-r.Base)
		}
	}
	return nil, 0
}
