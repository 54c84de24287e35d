package client

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// Pool is a pool of images.
type Pool struct {
	Name, Path, Fault string
	Level             string // of free space: enough, low or critical
}

// Usage is how full a pool is, in bytes.
type Usage struct {
	Total, Free        uint64 // of the file system
	Images             uint32
	Virtual, Allocated uint64 // of all disks, and what their files take up
}

// Image is an image of a pool.
type Image struct {
	Name                           string
	Size, Allocated                uint64
	ReadOnly                       bool
	Modified, Created              time.Time
	Origin, Format, SHA256, Parent string
}

func (p properties) pool() Pool {
	return Pool{Name: value[string](p, "Name"), Path: value[string](p, "Path"), Fault: value[string](p, "Fault"),
		Level: value[string](p, "Level")}
}

func (p properties) image() Image {
	return Image{Name: value[string](p, "Name"), Size: value[uint64](p, "Size"), Allocated: value[uint64](p, "Allocated"),
		ReadOnly: value[bool](p, "ReadOnly"), Modified: p.time("Modified"), Created: p.time("Created"), Origin: value[string](p, "Origin"),
		Format: value[string](p, "Format"), SHA256: value[string](p, "SHA256"), Parent: value[string](p, "Parent")}
}

// Pools returns all pools by name.
func (c *Client) Pools(ctx context.Context) ([]Pool, error) {
	return list(ctx, c, ManagerPath, ManagerInterface, "ListPools", properties.pool)
}

// list calls a method that returns objects with their properties.
func list[T any](ctx context.Context, c *Client, path dbus.ObjectPath, iface, method string, of func(properties) T) ([]T, error) {
	var entries []entry
	if err := c.call(ctx, path, iface, method, nil, &entries); err != nil {
		return nil, err
	}
	objects := make([]T, len(entries))
	for n, e := range entries {
		objects[n] = of(e.Properties)
	}
	return objects, nil
}

// checkName returns an error for what cannot be part of a path.
func checkName(what, name string) error {
	if name == "" || strings.ContainsRune(name, 0) {
		return &Error{ErrorPrefix + "InvalidName", fmt.Sprintf("%q is no name of %s", name, what)}
	}
	return nil
}

// poolCall calls a method of a pool.
func (c *Client) poolCall(ctx context.Context, pool, method string, args []any, out ...any) error {
	if err := checkName("a pool", pool); err != nil {
		return err
	}
	return c.call(ctx, PoolPath(pool), PoolInterface, method, args, out...)
}

// Pool returns a pool.
func (c *Client) Pool(ctx context.Context, pool string) (Pool, error) {
	if err := checkName("a pool", pool); err != nil {
		return Pool{}, err
	}
	p, err := c.all(ctx, PoolPath(pool), PoolInterface)
	return p.pool(), err
}

// Usage returns how full a pool is.
func (c *Client) Usage(ctx context.Context, pool string) (u Usage, err error) {
	return u, c.poolCall(ctx, pool, "GetUsage", nil, &u.Total, &u.Free, &u.Images, &u.Virtual, &u.Allocated)
}

// Images returns the images of a pool by name.
func (c *Client) Images(ctx context.Context, pool string) ([]Image, error) {
	if err := checkName("a pool", pool); err != nil {
		return nil, err
	}
	return list(ctx, c, PoolPath(pool), PoolInterface, "ListImages", properties.image)
}

// CreateImage makes an image of size bytes of zeros.
func (c *Client) CreateImage(ctx context.Context, pool, image string, size uint64) error {
	var path dbus.ObjectPath
	return c.poolCall(ctx, pool, "CreateImage", []any{image, size}, &path)
}

// imageCall calls a method of an image.
func (c *Client) imageCall(ctx context.Context, pool, image, method string, args []any, out ...any) error {
	if err := checkName("a pool", pool); err != nil {
		return err
	}
	if err := checkName("an image", image); err != nil {
		return err
	}
	return c.call(ctx, ImagePath(pool, image), ImageInterface, method, args, out...)
}

// beginImage calls a method of an image that begins a job.
func (c *Client) beginImage(ctx context.Context, pool, image, method string, args ...any) (job uint64, err error) {
	var path dbus.ObjectPath
	if err := c.imageCall(ctx, pool, image, method, args, &path); err != nil {
		return 0, err
	}
	return jobID(path)
}

// DeleteImage removes an image.
func (c *Client) DeleteImage(ctx context.Context, pool, image string) error {
	return c.imageCall(ctx, pool, image, "Delete", nil)
}

// GrowImage makes an image larger.
func (c *Client) GrowImage(ctx context.Context, pool, image string, size uint64) error {
	return c.imageCall(ctx, pool, image, "Grow", []any{size})
}

// CloneImage begins to make a copy of an image and returns the job. So do the next ones.
func (c *Client) CloneImage(ctx context.Context, pool, image, name string) (job uint64, err error) {
	return c.beginImage(ctx, pool, image, "Clone", name)
}

// SnapshotImage makes the image IMAGE@SNAPSHOT.
func (c *Client) SnapshotImage(ctx context.Context, pool, image, snapshot string) (job uint64, err error) {
	return c.beginImage(ctx, pool, image, "Snapshot", snapshot)
}

// RevertImage gives an image the content of a snapshot.
func (c *Client) RevertImage(ctx context.Context, pool, image, snapshot string) (job uint64, err error) {
	return c.beginImage(ctx, pool, image, "Revert", snapshot)
}

// ExportImage writes an image to a file, in a format of docs/api.
func (c *Client) ExportImage(ctx context.Context, pool, image string, to *os.File, format, compression string) (job uint64, err error) {
	return c.beginImage(ctx, pool, image, "Export", dbus.UnixFD(to.Fd()), format, compression)
}

// ExportGuest writes a guest to a file as an OVA.
func (c *Client) ExportGuest(ctx context.Context, guest string, to *os.File) (job uint64, err error) {
	return c.begin(ctx, guest, "Export", dbus.UnixFD(to.Fd()))
}

// Import says what is imported: one of File and URL, as what, and where to.
type Import struct {
	Pool, Name     string // without a name it gets that of the file
	File           *os.File
	URL            string
	Format, SHA256 string // see docs/api; may be empty
}

// ImportImage begins to make an image of a file and returns the job.
func (c *Client) ImportImage(ctx context.Context, i Import) (job uint64, err error) {
	method, from := "ImportURL", any(i.URL)
	if i.File != nil {
		method, from = "ImportImage", dbus.UnixFD(i.File.Fd())
	}
	var path dbus.ObjectPath
	if err := c.poolCall(ctx, i.Pool, method, []any{i.Name, from, i.Format, i.SHA256}, &path); err != nil {
		return 0, err
	}
	return jobID(path)
}

// ImportGuest begins to make a guest of a file, an OVA or a disk image, and returns the job.
func (c *Client) ImportGuest(ctx context.Context, i Import) (job uint64, err error) {
	method, from := "ImportGuestURL", any(i.URL)
	if i.File != nil {
		method, from = "ImportGuest", dbus.UnixFD(i.File.Fd())
	}
	var path dbus.ObjectPath
	if err := c.call(ctx, ManagerPath, ManagerInterface, method, []any{i.Pool, i.Name, from, i.Format, i.SHA256}, &path); err != nil {
		return 0, err
	}
	return jobID(path)
}

// CloneGuest begins to make a guest like another, or like that was at a snapshot unless it is "", and returns the job.
func (c *Client) CloneGuest(ctx context.Context, guest, name, snapshot string) (job uint64, err error) {
	return c.begin(ctx, guest, "Clone", name, snapshot)
}

// SnapshotDisks begins to make a snapshot without memory and returns the job.
func (c *Client) SnapshotDisks(ctx context.Context, guest, snapshot string) (job uint64, err error) {
	return c.begin(ctx, guest, "SnapshotDisks", snapshot)
}

// SnapshotPicture returns the guest's screen as it was at a snapshot, as PNG.
func (c *Client) SnapshotPicture(ctx context.Context, guest, snapshot string) (png []byte, err error) {
	return png, c.call(ctx, SnapshotPath(guest, snapshot), SnapshotInterface, "GetPicture", nil, &png)
}
