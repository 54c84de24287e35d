package image

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lodgehv/lodge/guest/debian"
)

// Arch is one kind of guest.
type Arch struct {
	Name   string // Debian's name
	GoArch string
	Linux  string // the package that depends on the current kernel

	desktop bool // with desktopPackages
}

// system names the root file system.
func (a Arch) system() string {
	if a.desktop {
		return a.Name + "-desktop"
	}
	return a.Name
}

// AMD64 and I386 return the two kinds of guests.
func AMD64() Arch { return Arch{Name: "amd64", GoArch: "amd64", Linux: "linux-image-amd64"} }

// I386 is the 32-bit kind, without PAE.
func I386() Arch { return Arch{Name: "i386", GoArch: "386", Linux: "linux-image-686"} }

// guestPackages are what a guest has beyond Debian's minimal base.
var guestPackages = [...]string{
	"sysvinit-core", "acpid", "busybox-static", "curl", "e2fsprogs", "ethtool", "iproute2",
	"iputils-ping", "kmod", "netbase", "pciutils", "udhcpc",
}

// desktopPackages are what a guest with a desktop has beyond guestPackages.
var desktopPackages = [...]string{"evtest", "fonts-dejavu-core", "libdrm-tests", "udev", "weston", "xkb-data"}

// debian fetches a root file system and the kernel package that goes with it.
func (b *Builder) debian(ctx context.Context, a Arch) (string, error) {
	packages := guestPackages[:]
	if a.desktop {
		packages = append(slices.Clone(packages), desktopPackages[:]...)
	}
	args := []string{
		"--variant=minbase", "--arch=" + a.Name, "--include=" + strings.Join(packages, ","),
		`--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
	}
	key := Key(append(args, append(debian.FetchKernel(a.Linux, "."), debian.Suite)...)...)
	return b.Result(ctx, "debian-"+a.system(), key, func(ctx context.Context, dir string) error {
		from, err := debian.Mirror(ctx)
		if err != nil {
			return err
		}
		args := append(append(args, debian.FetchKernel(a.Linux, dir)...), debian.Suite, filepath.Join(dir, "root.tar"), from)
		_, err = run(ctx, dir, nil, "mmdebstrap", args...)
		return err
	})
}

// kernel unpacks it.
func (b *Builder) kernel(ctx context.Context, a Arch) (*debian.Kernel, error) {
	deb, err := b.debian(ctx, a)
	if err != nil {
		return nil, err
	}
	dir, err := b.Result(ctx, "kernel-"+a.Name, Key("1", filepath.Base(deb)), func(ctx context.Context, dir string) error {
		return debian.UnpackKernel(ctx, deb, dir)
	})
	if err != nil {
		return nil, err
	}
	return debian.OpenKernel(dir)
}
