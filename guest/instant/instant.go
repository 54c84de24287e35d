// Package instant makes the instant-on guest: a browser and a mail program on a system of Debian's packages that is never written to.
//
// What comes out is a directory: the kernel, an initramfs, the system as a squashfs image, a definition for lodged, the licences, and
// a list of packages. The system has no service manager: busybox's init starts udev, Weston and the programs. What is written is in
// memory and gone with the next start, but for the second disk, which a passphrase opens: what belongs to the user is there alone.
//
// The guest says "instant: ready" on its serial port when the browser's window is painted and nothing is computed any more: that is
// when lodged makes its template. By then it has no secret, and has not looked at the second disk.
package instant

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lodgehv/lodge/guest/debian"
)

//go:embed files
var files embed.FS

// What Build leaves in its directory.
const (
	FileKernel     = "vmlinux" // starts by PVH
	FileInitrd     = "initrd"
	FileSystem     = "root.squashfs"
	FileDefinition = "instant.toml"
	FileLicences   = "licences.txt"
	FilePackages   = "packages.txt" // package and version in each line
)

// base are the packages of both variants. dash, diffutils and gawk are what packages' own scripts expect of any Debian.
var base = []string{
	"acpid", "adwaita-icon-theme", "base-files", "base-passwd", "bash", "busybox-static", "ca-certificates", "coreutils", "cryptsetup-bin", "dash",
	"diffutils", "e2fsprogs", "findutils", "fonts-dejavu-core", "gawk", "grep", "gzip", "hostname", "iproute2", "kmod", "libc-bin", "librsvg2-common",
	"login", "mount", "sed", "shared-mime-info", "sysvinit-utils", "tar", "udev", "udhcpc", "util-linux", "weston", "xkb-data",
}

// Variant is what the guest's programs are.
type Variant struct {
	Name     string
	Browser  string // the program
	packages []string
	memory   string
}

// Light and Full return the variants: NetSurf and Claws Mail, for weak machines and tests; Firefox and Claws Mail.
func Light() Variant {
	return Variant{Name: "light", Browser: "netsurf-gtk", packages: []string{"netsurf-gtk", "claws-mail"}, memory: "384M"}
}

// Full has a browser for all of today's pages.
func Full() Variant {
	return Variant{Name: "full", Browser: "firefox-esr", packages: []string{"firefox-esr", "claws-mail"}, memory: "1536M"}
}

// modules are loaded by the initramfs: all that the machine has. dm-crypt and its ciphers are for the second disk.
var modules = []string{
	"virtio_pci", "virtio_blk", "squashfs", "overlay", "virtio-gpu", "virtio_input", "evdev", "psmouse", "virtio_net", "virtio_rng", "virtio_balloon",
	"crc32c_generic", "ext4", "dm-crypt", "xts", "aesni-intel", "sha256_generic", "af_alg", "algif_skcipher", "algif_hash", "button", "rtc-cmos",
}

// Options are of Build.
type Options struct {
	Variant Variant
	Log     io.Writer // is told of each step; nil is nobody
}

// Build makes the guest in dir, which is made if it is not there. Nothing but its own files is changed in it, and they are as before
// unless all is well. It needs mmdebstrap, squashfs-tools and a source of Debian packages, and not root.
func Build(ctx context.Context, dir string, o Options) error {
	if o.Log == nil {
		o.Log = io.Discard
	}
	for _, p := range [][2]string{{"mmdebstrap", "mmdebstrap"}, {"mksquashfs", "squashfs-tools"}, {"dpkg-deb", "dpkg"}, {"cpio", "cpio"}} {
		if _, err := exec.LookPath(p[0]); err != nil {
			return fmt.Errorf("%w: install the package %s", err, p[1])
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".lodge-new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	b := &build{Options: o, dir: tmp}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"fetch and unpack packages", b.system},
		{"take the kernel and its modules", b.kernel},
		{"compress the system", b.compress},
		{"write the definition", b.definition},
	} {
		begin := time.Now()
		fmt.Fprintf(o.Log, "%s ...\n", step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("instant-on guest: %s: %w", step.what, err)
		}
		fmt.Fprintf(o.Log, "%s: %.0f s\n", step.what, time.Since(begin).Seconds())
	}
	for _, name := range []string{FileKernel, FileInitrd, FileSystem, FileLicences, FilePackages, FileDefinition} {
		to := filepath.Join(dir, name)
		if err := os.Rename(filepath.Join(tmp, name), to); err != nil {
			return err
		}
		st, err := os.Stat(to)
		if err != nil {
			return err
		}
		fmt.Fprintf(o.Log, "%8.2f MiB  %s\n", float64(st.Size())/(1<<20), to)
	}
	return nil
}

// build makes a guest in a directory of its own.
type build struct {
	Options
	dir string
}

func (b *build) path(name string) string { return filepath.Join(b.dir, name) }

const archive = "root.tar"

// system makes the system, as an archive.
func (b *build) system(ctx context.Context) error {
	from, err := debian.Mirror(ctx)
	if err != nil {
		return err
	}
	if err := writeTree("files/root", b.path("over")); err != nil {
		return err
	}
	trim, err := files.ReadFile("files/trim")
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.path("trim"), trim, 0o755); err != nil {
		return err
	}
	packages := append(slices.Clone(base), b.Variant.packages...)
	args := []string{"--variant=custom", "--include=" + strings.Join(packages, ","),
		`--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/info/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/help/*", "--dpkgopt=path-exclude=/usr/share/gtk-doc/*"}
	args = append(args, debian.FetchKernel("linux-image-amd64", b.dir)...)
	args = append(args, `--customize-hook=copy-in `+b.path("over")+`/. /`, `--customize-hook=`+b.path("trim")+` "$1" `+b.Variant.Browser,
		"--customize-hook=copy-out /licences.txt /packages.txt "+b.dir, `--customize-hook=rm "$1"/licences.txt "$1"/packages.txt`,
		debian.Suite, b.path(archive), from)
	return b.run(ctx, "mmdebstrap", args...)
}

// kernel takes the kernel, and makes the initramfs.
func (b *build) kernel(ctx context.Context) error {
	if err := os.Mkdir(b.path("kernel"), 0o755); err != nil {
		return err
	}
	if err := debian.UnpackKernel(ctx, b.dir, b.path("kernel")); err != nil {
		return err
	}
	k, err := debian.OpenKernel(b.path("kernel"))
	if err != nil {
		return err
	}
	busybox, err := debian.FromTar(b.path(archive), "usr/bin/busybox")
	if err != nil {
		return err
	}
	init, err := files.ReadFile("files/initrd")
	if err != nil {
		return err
	}
	if err := k.WriteInitramfs(b.path(FileInitrd), busybox, init, modules...); err != nil {
		return err
	}
	return os.Rename(k.VMLinux, b.path(FileKernel))
}

// compress makes the system an image. The same archive gives the same image.
func (b *build) compress(ctx context.Context) error {
	in, err := os.Open(b.path(archive))
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := exec.CommandContext(ctx, "mksquashfs", "-", b.path(FileSystem), "-tar", "-comp", "zstd", "-Xcompression-level", "19", "-b", "256K",
		"-mkfs-time", "0", "-no-progress", "-quiet", "-noappend")
	cmd.Stdin = in
	return describe("mksquashfs", cmd)
}

// definition writes a definition that lodged takes as it is, once the files are where it says.
func (b *build) definition(context.Context) error {
	text, err := files.ReadFile("files/instant.toml")
	if err != nil {
		return err
	}
	text = bytes.ReplaceAll(text, []byte("@MEMORY@"), []byte(b.Variant.memory))
	return os.WriteFile(b.path(FileDefinition), text, 0o644)
}

func (b *build) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+os.TempDir())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it removes what it has made
	cmd.WaitDelay = time.Minute
	return describe(name, cmd)
}

// describe runs cmd. An error has the end of what it said.
func describe(name string, cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	out = bytes.TrimSpace(out)
	return errors.Join(fmt.Errorf("%s: %w", name, err), errors.New(string(out[max(0, len(out)-4000):])))
}

// writeTree writes a tree of embedded files; scripts become executable.
func writeTree(from, to string) error {
	return fs.WalkDir(files, from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(p, from))
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		data, err := files.ReadFile(p)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if bytes.HasPrefix(data, []byte("#!")) {
			mode = 0o755
		}
		return os.WriteFile(dst, data, mode)
	})
}

// Key changes when anything that this package makes of the same packages does.
func (v Variant) Key() string {
	h := sha256.New()
	fmt.Fprintln(h, v.Name, debian.Suite, slices.Concat(base, v.packages, modules), v.memory)
	_ = fs.WalkDir(files, ".", func(p string, d fs.DirEntry, err error) error { // of what is embedded nothing fails
		if err == nil && !d.IsDir() {
			data, _ := files.ReadFile(p)
			fmt.Fprintf(h, "%s %x\n", p, sha256.Sum256(data))
		}
		return err
	})
	return hex.EncodeToString(h.Sum(nil))
}
