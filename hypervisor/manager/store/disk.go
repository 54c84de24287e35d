package store

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/definition"
)

// Disk is a disk as people write it: a machine's, an image of a pool, or what qemu-storage-daemon is to serve. Of a guest's
// Definition the disks are those that its VMM gets.
type Disk struct {
	definition.Disk
	Image  string          `toml:"image,omitempty"`  // of a pool, in place of a path: NAME or POOL/NAME
	Create definition.Size `toml:"create,omitempty"` // of an image that is not there: the size that it is made with at the start
	URL    string          `toml:"url,omitempty"`    // an NBD export, in place of a path
	Keep   bool            `toml:"keep,omitempty"`   // of a disposable guest: what it writes to this disk stays
	Format string          `toml:"format,omitempty"` // of what the path or URL names: raw, qcow2 or luks. raw if it is missing
}

// DefaultPool is the pool of images that are named without one.
const DefaultPool = "default"

// SplitImage returns the pool and the name in it of an image.
func SplitImage(image string) (pool, name string) {
	if pool, name, ok := strings.Cut(image, "/"); ok {
		return pool, name
	}
	return DefaultPool, image
}

// Formats of a disk.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
	LUKS  = "luks"
)

// Served reports whether a storage daemon stands between the disk and the VMM.
func (k *Disk) Served() bool { return k.URL != "" || k.Format != "" && k.Format != Raw }

// Images returns the path of an image's file, which need not be there. The error is for people.
type Images func(pool, name string) (path string, err error)

// placeDisks gives the machine its disks. Faults are told to fail by key.
func (g *Guest) placeDisks(s Sockets, images Images, fail func(key, format string, args ...any)) {
	g.Definition.Disks = make([]definition.Disk, len(g.Disks))
	for i := range g.Disks {
		k, at := &g.Disks[i], fmt.Sprintf("disk[%d]", i)
		n := 0
		for _, source := range []string{k.Path, k.Socket, k.Image, k.URL} {
			if source != "" {
				n++
			}
		}
		if n != 1 {
			fail(at, "disk %q: set exactly one of path, image, url and socket", k.Name)
			g.Definition.Disks[i] = definition.Disk{Name: k.Name, Path: k.Name} // no more is to be said of it
			continue
		}
		if f := []string{"", Raw, QCOW2, LUKS}; !slices.Contains(f, k.Format) {
			fail(at+".format", "disk %q: format %q: one of %s", k.Name, k.Format, strings.Join(f[1:], ", "))
		}
		switch {
		case k.Socket != "" && k.Format != "":
			fail(at+".format", "disk %q: format belongs to a path, an image or a url: who serves the socket knows what it serves", k.Name)
		case k.Create != 0 && (k.Image == "" || k.ReadOnly || k.Served()):
			fail(at+".create", "disk %q: create is for an image of a pool that is raw, and that the guest may write to", k.Name)
		case k.Image != "" && k.Format == QCOW2:
			fail(at+".format", "disk %q: images of pools are raw: import it, or give its path", k.Name)
		case k.Served() && !k.ReadOnly && !k.Keep && g.Disposable:
			fail(at, "disk %q: a disposable guest writes to a copy, which only raw files can have: set readonly = true, or import it", k.Name)
		}
		if k.Image != "" {
			k.Path = k.Image
			pool, name := SplitImage(k.Image)
			if path, err := images(pool, name); err != nil {
				fail(at+".image", "disk %q: %v", k.Name, err)
			} else {
				k.Path = path
			}
		}
		d := k.Disk
		if k.Served() {
			d.Path, d.Socket = "", filepath.Join(s.Run, "disk."+k.Name+".sock")
		}
		g.Definition.Disks[i] = d
	}
}

// completeDisks gives the disks what the machine's were completed with.
func (g *Guest) completeDisks(dir string) {
	for i := range g.Disks {
		switch k := &g.Disks[i]; {
		case !k.Served():
			k.Disk = g.Definition.Disks[i]
		case k.Path != "" && !filepath.IsAbs(k.Path):
			k.Path = filepath.Join(dir, k.Path)
		}
	}
}

// noImages are those of a host without pools.
func noImages(pool, _ string) (string, error) {
	return "", fmt.Errorf("there is no pool %q here", pool)
}
