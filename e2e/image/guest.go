package image

import (
	"context"
	"embed"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lodgehv/lodge/guest/debian"
)

//go:embed files
var files embed.FS

// Guest is a Debian system for a virtual machine.
type Guest struct {
	Arch   Arch
	Kernel *debian.Kernel
	Initrd string // for Kernel; finds the root by root=, /dev/vda unless told
	Disk   string // ext4, no partitions; raw and sparse; never written by tests
	Key    string // changes when anything of it does
}

// guestDiskSize leaves a few hundred MiB for what tests write.
const guestDiskSize = "1536M"

// Desktop builds a guest with a graphical desktop: Weston, drawn by the processor. It boots as the one of Guest does;
// lodge.color=RRGGBB on its command line is the colour of its wallpaper.
func (b *Builder) Desktop(ctx context.Context) (*Guest, error) {
	a := AMD64()
	a.desktop = true
	return b.Guest(ctx, a)
}

// Guest builds the guest of an architecture.
func (b *Builder) Guest(ctx context.Context, a Arch) (*Guest, error) {
	agent, agentKey, err := b.GoProgram(ctx, "./e2e/agent", a.GoArch)
	if err != nil {
		return nil, err
	}
	deb, err := b.debian(ctx, a)
	if err != nil {
		return nil, err
	}
	plain := a
	plain.desktop = false
	k, err := b.kernel(ctx, plain) // a desktop's is the same
	if err != nil {
		return nil, err
	}
	overlay, err := hashFS(files)
	if err != nil {
		return nil, err
	}
	key := Key("2", agentKey, filepath.Base(deb), filepath.Base(k.Dir), overlay, guestDiskSize)
	dir, err := b.Result(ctx, "guest-"+a.system(), key, func(ctx context.Context, dir string) error {
		busybox, err := debian.FromTar(filepath.Join(deb, "root.tar"), "usr/bin/busybox")
		if err != nil {
			return err
		}
		init, err := files.ReadFile("files/guest-initrd")
		if err != nil {
			return err
		}
		err = k.WriteInitramfs(filepath.Join(dir, "initrd"), busybox, init, "virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
		if err != nil {
			return err
		}
		if err := copyEmbedded("files/guest", filepath.Join(dir, "over")); err != nil {
			return err
		}
		if a.desktop {
			if err := copyEmbedded("files/desktop", filepath.Join(dir, "over")); err != nil {
				return err
			}
		}
		// Modules are hard links in the staging tree, so that they cost nothing.
		return asRoot(ctx, dir, `
mkdir root
tar -C root -xf "$1/root.tar"
chown -R 0:0 over
cp -a over/. root/
cp "$2" root/usr/lib/lodge/agent
mkdir -p root/lib/modules
cp -al "$3"/lib/modules/* root/lib/modules/ 2>/dev/null || cp -a "$3"/lib/modules/* root/lib/modules/
rm -rf root/dev/* root/var/cache/apt/*
mke2fs -q -t ext4 -E root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1 -L root -d root disk.img "$4"
rm -rf root over`, deb, agent, k.Dir, guestDiskSize)
	})
	if err != nil {
		return nil, err
	}
	return &Guest{Arch: a, Kernel: k, Initrd: filepath.Join(dir, "initrd"), Disk: filepath.Join(dir, "disk.img"), Key: key}, nil
}

// copyEmbedded writes a tree of embedded files; scripts become executable.
func copyEmbedded(from, to string) error {
	return fs.WalkDir(files, from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		data, err := files.ReadFile(p)
		if err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if len(data) > 2 && string(data[:2]) == "#!" {
			mode = 0o755
		}
		return os.WriteFile(dst, data, mode)
	})
}
