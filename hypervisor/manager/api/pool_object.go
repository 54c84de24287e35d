package api

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
)

// What is said of arguments of imports.
const importDoc = " The file is of the format, or tells its own if that is empty: raw, also compressed by gzip, xz, zstd or bzip2; iso, " +
	"qcow2, vmdk or ova. Its SHA-256 in hexadecimal digits is checked unless it is empty. To cancel the job leaves nothing."

func poolMethodsOfManager() []method {
	return []method{
		{name: "ListPools", action: View, out: []arg{{"pools", listSignature, 0}}, doc: "All pools of images by name.", call: listPools},
		{name: "ImportGuest", action: Define, call: importGuest, out: jobResult(),
			in: []arg{{"pool", "s", 0}, {"name", "s", 0}, {"file", "h", 0}, {"format", "s", 0}, {"sha256", "s", 0}},
			doc: "Makes a guest of an OVA, with the machine that it describes, or of a disk image, with one processor and 1 GiB. Its disks " +
				"become images of the pool. Without a name it gets that of the file." + importDoc},
		{name: "ImportGuestURL", action: Define, call: importGuestURL, out: jobResult(),
			in:  []arg{{"pool", "s", 0}, {"name", "s", 0}, {"url", "s", 0}, {"format", "s", 0}, {"sha256", "s", 0}},
			doc: "The same of what is at an http or https address."},
	}
}

func poolInterface() *iface {
	return &iface{
		name: client.PoolInterface,
		doc:  "A pool: a directory of images, at " + string(client.PoolsPath) + "/NAME.",
		methods: []method{
			{name: "ListImages", action: View, out: []arg{{"images", listSignature, 0}}, doc: "Its images by name.", call: listImages},
			{name: "GetUsage", action: View, call: poolUsage,
				out: []arg{{"total", "t", 0}, {"free", "t", 0}, {"images", "u", 0}, {"virtual", "t", 0}, {"allocated", "t", 0}},
				doc: "How full it is: the size of its file system and what is free, in bytes; how many images there are, the size of their " +
					"disks, and what their files take up, where what clones share counts in each."},
			{name: "CreateImage", action: Define, in: []arg{{"name", "s", 0}, {"size", "t", 0}}, out: []arg{{"image", "o", 0}}, call: createImage,
				doc: "Makes an image of that many bytes, a multiple of 512: zeros, which take up no space."},
			{name: "ImportImage", action: Define, call: importImage, out: jobResult(),
				in: []arg{{"name", "s", 0}, {"file", "h", 0}, {"format", "s", 0}, {"sha256", "s", 0}},
				doc: "Makes an image of what a file or a pipe has; of the disks of an OVA NAME, NAME-2 and so on. Without a name it gets that " +
					"of the file." + importDoc},
			{name: "ImportURL", action: Define, call: importURL, out: jobResult(),
				in:  []arg{{"name", "s", 0}, {"url", "s", 0}, {"format", "s", 0}, {"sha256", "s", 0}},
				doc: "The same of what is at an http or https address."},
		},
		signals: []signal{
			{name: "ImagesChanged", doc: "Its images are others."},
			{name: "SpaceChanged", args: []arg{{"level", "s", 0}}, doc: "The level of free space is another: enough, low or critical."},
		},
		properties: []property{
			{"Name", "s", true, "Its name."},
			{"Path", "s", false, "Its directory."},
			{"Fault", "s", false, "Why it cannot be used."},
			{"Level", "s", false, "How much space is left: enough, low or critical. At critical nothing new is made in it."},
		},
		values: func(r *request) (props, error) {
			for _, p := range r.Manager.Pools() {
				if p.Name == r.object.Pool {
					return poolProps(&p), nil
				}
			}
			return nil, fmt.Errorf("%w: %.80q", manager.ErrNoPool, r.object.Pool)
		},
	}
}

func poolProps(p *manager.Pool) props {
	v := dbus.MakeVariant
	return props{"Name": v(p.Name), "Path": v(text(p.Path, maxErrorText)), "Fault": v(text(p.Fault, maxErrorText)), "Level": v(p.Level.String())}
}

func imageInterface() *iface {
	return &iface{
		name: client.ImageInterface,
		doc:  "An image of a pool, at the pool's path and /images/NAME. A snapshot of one is called NAME@SNAPSHOT.",
		methods: []method{
			{name: "Clone", action: Define, in: []arg{{"name", "s", 0}}, out: jobResult(), call: cloneImage,
				doc: "Makes an image of that name with its content: at once where the file system has reflinks, else by a copy."},
			{name: "Snapshot", action: Define, in: []arg{{"name", "s", 0}}, out: jobResult(), call: snapshotImage,
				doc: "Makes a snapshot of it, at the same cost. No guest may write to it meanwhile: a guest's own snapshots are for that."},
			{name: "Revert", action: Define, in: []arg{{"snapshot", "s", 0}}, out: jobResult(), call: revertImage,
				doc: "Gives it the content of its snapshot. What it held is lost when the job ends, and not before."},
			{name: "Grow", action: Define, in: []arg{{"size", "t", 0}}, call: growImage,
				doc: "Makes it larger. A guest that runs sees that when it is started again."},
			{name: "Export", action: Define, in: []arg{{"file", "h", 0}, {"format", "s", 0}, {"compression", "s", 0}}, out: jobResult(), call: exportImage,
				doc: "Writes it to an empty file as raw, qcow2, vmdk-stream or ova; raw and vmdk-stream also to a pipe. The compression is of " +
					"qcow2: none if it is empty, deflate or zstd. After an error, or if the job is cancelled, the file is empty."},
			{name: "Delete", action: Define, doc: "Removes it, if no guest has it. Its snapshots stay.", call: deleteImage},
		},
		properties: []property{
			{"Name", "s", true, "Its name."},
			{"Size", "t", false, "Bytes of the disk."},
			{"Allocated", "t", false, "Bytes that its file takes up; what is shared with others counts in each."},
			{"ReadOnly", "b", true, "It is a CD or a snapshot."},
			{"Modified", "t", false, "When it was written to last, in microseconds since 1970."},
			{"Created", "t", true, "When it was made here, in microseconds since 1970, or 0."},
			{"Origin", "s", true, "The file or address that it was imported from."},
			{"Format", "s", true, "The format that it had there."},
			{"SHA256", "s", true, "The checksum that it had there, if it was looked at."},
			{"Parent", "s", true, "The image that it was cloned from."},
		},
		values: func(r *request) (props, error) {
			i, err := r.Manager.Image(r.object.Pool, r.object.Image)
			if err != nil {
				return nil, err
			}
			return imageProps(&i), nil
		},
	}
}

func imageProps(i *pool.Image) props {
	v := dbus.MakeVariant
	str := func(s string) dbus.Variant { return v(text(s, maxErrorText)) }
	return props{"Name": v(i.Name), "Size": v(uint64(max(i.Size, 0))), "Allocated": v(uint64(max(i.Allocated, 0))), "ReadOnly": v(i.ReadOnly),
		"Modified": v(micros(i.Modified)), "Created": v(micros(i.Created)), "Origin": str(i.Origin), "Format": str(i.Format),
		"SHA256": str(i.SHA256), "Parent": str(i.Parent)}
}

func listPools(_ context.Context, r *request) ([]any, error) {
	pools := r.Manager.Pools()
	list := make([]entry, len(pools))
	for n := range pools {
		list[n] = entry{client.PoolPath(pools[n].Name), poolProps(&pools[n])}
	}
	return []any{list}, nil
}

func listImages(_ context.Context, r *request) ([]any, error) {
	images, err := r.Manager.Images(r.object.Pool)
	list := make([]entry, len(images))
	for n := range images {
		list[n] = entry{client.ImagePath(r.object.Pool, images[n].Name), imageProps(&images[n])}
	}
	return []any{list}, err
}

func poolUsage(_ context.Context, r *request) ([]any, error) {
	u, err := r.Manager.PoolUsage(r.object.Pool)
	n := func(n int64) uint64 { return uint64(max(n, 0)) }
	return []any{n(u.Total), n(u.Free), number(u.Images), n(u.Virtual), n(u.Allocated)}, err
}

// size is an argument as the pool takes it, which says what is too large.
func (r *request) size(n int) int64 { return int64(min(r.uint64(n), math.MaxInt64)) }

func createImage(_ context.Context, r *request) ([]any, error) {
	name := r.str(0)
	err := r.Manager.CreateImage(r.object.Pool, name, r.size(1))
	return []any{client.ImagePath(r.object.Pool, name)}, err
}

func growImage(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.GrowImage(r.object.Pool, r.object.Image, r.size(0))
}

func deleteImage(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.DeleteImage(r.object.Pool, r.object.Image)
}

func cloneImage(_ context.Context, r *request) ([]any, error) {
	return jobPath(r.Manager.CloneImage(r.object.Pool, r.object.Image, r.str(0)))
}

func snapshotImage(_ context.Context, r *request) ([]any, error) {
	return jobPath(r.Manager.SnapshotImage(r.object.Pool, r.object.Image, r.str(0)))
}

func revertImage(_ context.Context, r *request) ([]any, error) {
	return jobPath(r.Manager.RevertImage(r.object.Pool, r.object.Image, r.str(0)))
}

// importOptions are the format and the checksum, at n and after it.
func (r *request) importOptions(n int) (opt pool.ImportOptions, err error) {
	opt = pool.ImportOptions{Format: format.Format(r.str(n)), SHA256: r.str(n + 1)}
	if opt.Format != "" && !slices.Contains(format.Formats(), opt.Format) {
		err = standard(invalidArgsError, fmt.Sprintf("format %.40q: leave it empty, or give one of %v", opt.Format, format.Formats()))
	}
	return opt, err
}

func importImage(_ context.Context, r *request) ([]any, error) {
	opt, err := r.importOptions(2)
	if err != nil {
		return nil, err
	}
	f, err := r.file(1, false)
	if err != nil {
		return nil, err
	}
	return jobPath(r.Manager.ImportImage(r.object.Pool, r.str(0), manager.Source{File: f}, opt))
}

func importURL(_ context.Context, r *request) ([]any, error) {
	opt, err := r.importOptions(2)
	if err != nil {
		return nil, err
	}
	return jobPath(r.Manager.ImportImage(r.object.Pool, r.str(0), manager.Source{URL: r.str(1)}, opt))
}

func importGuest(_ context.Context, r *request) ([]any, error) {
	opt, err := r.importOptions(3)
	if err != nil {
		return nil, err
	}
	f, err := r.file(2, false)
	if err != nil {
		return nil, err
	}
	return jobPath(r.Manager.ImportGuest(r.str(0), r.str(1), manager.Source{File: f}, opt))
}

func importGuestURL(_ context.Context, r *request) ([]any, error) {
	opt, err := r.importOptions(3)
	if err != nil {
		return nil, err
	}
	return jobPath(r.Manager.ImportGuest(r.str(0), r.str(1), manager.Source{URL: r.str(2)}, opt))
}

func exportImage(_ context.Context, r *request) ([]any, error) {
	f, err := r.file(0, true)
	if err != nil {
		return nil, err
	}
	opt := pool.ExportOptions{Format: format.Format(r.str(1)), Compression: format.Compression(r.str(2))}
	return jobPath(r.Manager.ExportImage(r.object.Pool, r.object.Image, f, opt))
}

func exportGuest(_ context.Context, r *request) ([]any, error) {
	f, err := r.file(0, true)
	if err != nil {
		return nil, err
	}
	return jobPath(r.Manager.ExportGuest(r.object.Guest, f))
}

func cloneGuest(_ context.Context, r *request) ([]any, error) {
	if err := guestName(r.str(0)); err != nil {
		return nil, err
	}
	return jobPath(r.Manager.CloneGuest(r.object.Guest, r.str(0), r.str(1)))
}

func snapshotDisks(_ context.Context, r *request) ([]any, error) {
	if err := guestName(r.str(0)); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return jobPath(r.Manager.SnapshotDisks(r.object.Guest, r.str(0)))
}

// pool tells of a pool that is another, or gone.
func (p *pump) pool(name string) {
	send, path := p.s.subs.sendAll, client.PoolPath(name)
	var now props
	for _, o := range p.s.Manager.Pools() {
		if o.Name == name {
			now = poolProps(&o)
		}
	}
	old := p.pools[name]
	p.pools[name] = now
	switch {
	case now == nil:
		delete(p.pools, name)
		if old != nil {
			send(client.ManagerPath, client.ManagerInterface, "PoolRemoved", path, name)
		}
		return
	case old == nil:
		send(client.ManagerPath, client.ManagerInterface, "PoolAdded", path, name)
		return
	}
	changed := difference(old, now)
	if len(changed) > 0 {
		send(path, propertiesInterface, "PropertiesChanged", client.PoolInterface, changed, []string{})
	}
	if level, ok := changed["Level"]; ok {
		send(path, client.PoolInterface, "SpaceChanged", level.Value())
	}
}

// poolErrors are the names of errors of pools.
func poolErrors() []namedError {
	return []namedError{
		{pool.ErrName, "InvalidName"}, {pool.ErrNotFound, "NotFound"}, {manager.ErrNoPool, "NotFound"}, {pool.ErrExists, "Exists"},
		{pool.ErrInUse, "Busy"}, {pool.ErrNoSpace, "NoSpace"}, {format.ErrUnsupported, "Unsupported"},
		{format.ErrDamaged, "Damaged"}, {format.ErrChecksum, "Damaged"},
	}
}
