package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/boot"
)

// suite is what guests are made of: the release alone, which changes a few
// times a year, so that a cached image stays what a new one would be.
const suite = "bookworm"

// mirror returns where this machine gets the suite from.
func mirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Codename: "+suite, "Component: main").Output()
	uri, _, _ := strings.Cut(string(out), "\n")
	if err != nil || uri == "" {
		return "", fmt.Errorf("apt has no source of Debian %s (%w): add one to its sources", suite, err)
	}
	return uri, nil
}

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

// kernelDir is where mmdebstrap's hook leaves the kernel's package in the root.
const kernelDir = "/var/tmp/lodge-kernel"

// debian fetches a root file system and the kernel package that goes with it.
func (b *Builder) debian(ctx context.Context, a Arch) (string, error) {
	// The kernel is unpacked by us: installed as usual it would make an initrd
	// with all drivers, which costs more time than all other packages.
	download := `cd "$1" && mkdir -p .` + kernelDir + ` && cd .` + kernelDir + ` &&
p=$(APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-cache depends --important ` + a.Linux + ` | sed -n 's/.*Depends: *//p') &&
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -q download $p`
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
		"--customize-hook=" + download,
	}
	return b.Result(ctx, "debian-"+a.system(), Key(append(args, suite)...), func(ctx context.Context, dir string) error {
		from, err := mirror(ctx)
		if err != nil {
			return err
		}
		args := append(args,
			"--customize-hook=sync-out "+kernelDir+" "+dir,
			`--customize-hook=rm -r "$1"`+kernelDir,
			suite, filepath.Join(dir, "root.tar"), from)
		_, err = run(ctx, dir, nil, "mmdebstrap", args...)
		return err
	})
}

// Kernel is an unpacked kernel package.
type Kernel struct {
	Dir     string // holds lib/modules/VERSION with its indices
	Version string
	BzImage string
	VMLinux string
}

func (b *Builder) kernel(ctx context.Context, a Arch) (*Kernel, error) {
	deb, err := b.debian(ctx, a)
	if err != nil {
		return nil, err
	}
	dir, err := b.Result(ctx, "kernel-"+a.Name, Key("1", filepath.Base(deb)), func(ctx context.Context, dir string) error {
		pkg, err := one(filepath.Join(deb, "linux-image-*.deb"))
		if err != nil {
			return err
		}
		if _, err := run(ctx, dir, nil, "dpkg-deb", "-x", pkg, dir); err != nil {
			return err
		}
		modules, err := one(filepath.Join(dir, "lib/modules/*"))
		if err != nil {
			return err
		}
		if err := asRoot(ctx, dir, `depmod -b . "$1"`, filepath.Base(modules)); err != nil {
			return err
		}
		bz, err := one(filepath.Join(dir, "boot/vmlinuz-*"))
		if err != nil {
			return err
		}
		data, err := os.ReadFile(bz)
		if err != nil {
			return err
		}
		elf, err := boot.ExtractVMLinux(boot.BytesImage(bz, data))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "vmlinux"), elf, 0o644); err != nil {
			return err
		}
		return os.Rename(bz, filepath.Join(dir, "vmlinuz"))
	})
	if err != nil {
		return nil, err
	}
	modules, err := one(filepath.Join(dir, "lib/modules/*"))
	if err != nil {
		return nil, err
	}
	return &Kernel{
		Dir: dir, Version: filepath.Base(modules),
		BzImage: filepath.Join(dir, "vmlinuz"), VMLinux: filepath.Join(dir, "vmlinux"),
	}, nil
}

// one returns the single file that matches.
func one(pattern string) (string, error) {
	m, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(m) != 1 {
		return "", fmt.Errorf("%s: %d files match, want 1", pattern, len(m))
	}
	return m[0], nil
}
