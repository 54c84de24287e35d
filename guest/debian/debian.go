// Package debian makes what guests of Debian's packages consist of: it finds where this machine gets packages from, unpacks a kernel,
// and writes initramfs archives. It runs mmdebstrap's helpers, dpkg-deb and depmod; none of that needs root.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

// Suite is the release that guests are made of.
const Suite = "bookworm"

// Mirror returns where this machine gets the suite from.
func Mirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Codename: "+Suite, "Component: main").Output()
	uri, _, _ := strings.Cut(string(out), "\n")
	if err != nil || uri == "" {
		return "", fmt.Errorf("apt has no source of Debian %s (%w): add one to its sources", Suite, err)
	}
	return uri, nil
}

// kernelDir is where a hook of mmdebstrap's leaves the kernel's package in the root.
const kernelDir = "/var/tmp/lodge-kernel"

// FetchKernel returns the arguments by which mmdebstrap also fetches the package of the kernel that pkg, such as linux-image-amd64,
// depends on, and leaves it in dir. To install it as usual would make an initramfs with all drivers, which costs more time than all
// other packages.
func FetchKernel(pkg, dir string) []string {
	return []string{`--customize-hook=cd "$1" && mkdir -p .` + kernelDir + ` && cd .` + kernelDir + ` &&
p=$(APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-cache depends --important ` + pkg + ` | sed -n 's/.*Depends: *//p') &&
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -q download $p`,
		"--customize-hook=sync-out " + kernelDir + " " + dir,
		`--customize-hook=rm -r "$1"` + kernelDir}
}

// Kernel is an unpacked kernel package.
type Kernel struct {
	Dir     string // holds lib/modules/VERSION with its indices
	Version string
	BzImage string
	VMLinux string
}

// UnpackKernel unpacks into dir the package of a kernel that FetchKernel has left in packages.
func UnpackKernel(ctx context.Context, packages, dir string) error {
	pkg, err := one(filepath.Join(packages, "linux-image-*.deb"))
	if err != nil {
		return err
	}
	if err := run(ctx, "dpkg-deb", "-x", pkg, dir); err != nil {
		return err
	}
	modules, err := one(filepath.Join(dir, "lib/modules/*"))
	if err != nil {
		return err
	}
	if err := run(ctx, "depmod", "-b", dir, filepath.Base(modules)); err != nil {
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
}

// OpenKernel returns the kernel that UnpackKernel has left in dir.
func OpenKernel(dir string) (*Kernel, error) {
	modules, err := one(filepath.Join(dir, "lib/modules/*"))
	if err != nil {
		return nil, err
	}
	return &Kernel{Dir: dir, Version: filepath.Base(modules), BzImage: filepath.Join(dir, "vmlinuz"), VMLinux: filepath.Join(dir, "vmlinux")}, nil
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

// run runs a program, which may be one where only root's PATH looks. An error has the end of what it said.
func run(ctx context.Context, name string, args ...string) error {
	file, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			file, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, file, args...).CombinedOutput()
	if err != nil {
		out = bytes.TrimSpace(out)
		return fmt.Errorf("%s: %w\n%s", name, err, out[max(0, len(out)-2000):])
	}
	return nil
}

// Modules returns files of the kernel's modules, relative to lib/modules/VERSION, in an order in which they can be inserted.
func (k *Kernel) Modules(names ...string) ([]string, error) {
	m, err := bootimage.ReadModules(filepath.Join(k.Dir, "lib/modules", k.Version))
	if err != nil {
		return nil, err
	}
	return m.Resolve(names...)
}

// WriteInitramfs makes an initramfs: busybox, kernel modules with /modules listing them in the order of insertion, and init as /init.
// It is not compressed, for an emulated processor copies faster than it unpacks.
func (k *Kernel) WriteInitramfs(out string, busybox, init []byte, modules ...string) error {
	files, err := k.Modules(modules...)
	if err != nil {
		return err
	}
	records := []cpio.Record{
		cpio.Directory("bin", 0o755), cpio.Directory("dev", 0o755), cpio.Directory("proc", 0o755),
		cpio.Directory("sys", 0o755), cpio.Directory("new", 0o755), cpio.Directory("mod", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1), // what the kernel opens for /init
		cpio.StaticFile("bin/busybox", string(busybox), 0o755),
		cpio.Symlink("bin/sh", "busybox"),
		cpio.StaticFile("init", string(init), 0o755),
	}
	var list strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(k.Dir, "lib/modules", k.Version, f))
		if err != nil {
			return err
		}
		name := path.Join("mod", path.Base(f))
		records = append(records, cpio.StaticFile(name, string(data), 0o644))
		fmt.Fprintln(&list, "/"+name)
	}
	records = append(records, cpio.StaticFile("modules", list.String(), 0o644))
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	w := cpio.Newc.Writer(f)
	for _, r := range records {
		if err := w.WriteRecord(cpio.MakeReproducible(r)); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(cpio.WriteTrailer(w), f.Close())
}
