package main

import (
	"cmp"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lodgehv/lodge/guest/bundle"
	"github.com/lodgehv/lodge/hypervisor/appliance"
	"github.com/lodgehv/lodge/hypervisor/bootimage"
	"github.com/lodgehv/lodge/hypervisor/bootimage/system"
)

// What build writes into its directory.
const (
	fileGuests  = "guests.img"
	fileSystem  = "system.img"
	fileUKI     = "lodge.efi"
	fileManager = "bootx64.efi"
	fileDisk    = "lodge.img"
	fileFlash   = "lodge.rom"
	fileSBOM    = "sbom.json"
)

// buildCommand is the command "build".
type buildCommand struct {
	Out     string   `arg:"" help:"Directory for the images. Files of another build in it are replaced."`
	Guest   []string `placeholder:"DIR" sep:"none" help:"A guest that comes along: a directory with its files and its definition, as lodge-image guest makes it. May be repeated."`
	Without []string `placeholder:"NAME" help:"Kernel modules of Lodge's own to leave out, such as amdgpu, for a machine that has no such device."`
	Init    string   `placeholder:"FILE" help:"In place of Lodge: the first program, a static binary."`
	File    []string `placeholder:"FILE:PATH" sep:"none" help:"A file, and its path in the image, such as bin/lodge-vmm:bin/lodge-vmm. May be repeated."`
	Module  []string `placeholder:"NAME" help:"A kernel module; those that it depends on come along."`
	Blob    []string `name:"firmware" placeholder:"PATH" help:"A firmware file, as its driver asks for it, such as i915/kbl_dmc_ver1_04.bin."`
	Cmdline string   `default:"quiet" help:"The kernel's parameters."`
	Encrypt bool     `help:"Have the state encrypted: the first start asks for a passphrase. A TPM opens it if the image has --pcr-key."`
	Release string   `default:"0" help:"The release that the boot manager's menu shows."`
	Media   []string `default:"uki,disk,flash" enum:"uki,disk,flash" help:"Which to make, of uki, disk and flash."`
	ESP     int64    `name:"esp" default:"128" placeholder:"MIB" help:"Size of the disk image's ESP in MiB, 64 to 4096."`
	Key     string   `placeholder:"FILE" and:"sign" help:"Private RSA key to sign for Secure Boot with, PEM or DER."`
	Cert    string   `placeholder:"FILE" and:"sign" help:"Its certificate."`
	PCRKey  string   `name:"pcr-key" placeholder:"FILE" help:"Private RSA key, PEM, to sign what a TPM will measure of the UKI with."`

	Programs    string `placeholder:"DIR" help:"Lodge's programs, linked statically; where lodge-image itself is if not given."`
	Kernel      string `placeholder:"FILE" help:"The kernel, a bzImage; this machine's Debian kernel if not given."`
	Modules     string `placeholder:"DIR" help:"Its modules; /lib/modules/VERSION if not given."`
	FirmwareDir string `default:"/lib/firmware" help:"Where firmware files are."`
	Stub        string `default:"/usr/lib/systemd/boot/efi/linuxx64.efi.stub" help:"What a UKI begins with (Debian's package systemd-boot-efi)."`
	BootManager string `default:"/usr/lib/systemd/boot/efi/systemd-bootx64.efi" help:"What chooses among the slots of an ESP (systemd-boot-efi)."`
	OVMFCode    string `name:"ovmf-code" default:"/usr/share/OVMF/OVMF_CODE_4M.fd" help:"The flash image's firmware, with the UEFI Shell (Debian's package ovmf)."`
	OVMFVars    string `name:"ovmf-vars" default:"/usr/share/OVMF/OVMF_VARS_4M.fd" help:"Its variables."`
}

// Run makes the images.
func (c *buildCommand) Run(ctx context.Context, out io.Writer) error {
	b := builder{buildCommand: c, out: out}
	if err := b.build(ctx); err != nil {
		return err
	}
	return ctx.Err()
}

// builder makes images and notes what of.
type builder struct {
	*buildCommand
	out         io.Writer
	components  []bootimage.Component
	systemFiles []bootimage.Part // before they are compressed
}

func (b *builder) build(ctx context.Context) error {
	var key *bootimage.Key
	if b.Key != "" {
		var err error
		if key, err = bootimage.LoadKey(b.Cert, b.Key); err != nil {
			return err
		}
	}
	var pcrKey *rsa.PrivateKey
	if b.PCRKey != "" {
		var err error
		if pcrKey, err = bootimage.LoadMeasurementKey(b.PCRKey); err != nil {
			return err
		}
	}
	switch {
	case b.Encrypt && b.Init != "":
		return errors.New("--encrypt is for Lodge's own state, and --init is another's")
	case b.Encrypt && pcrKey == nil:
		fmt.Fprintln(b.out, "--encrypt without --pcr-key: the passphrase is asked for at each start, as no TPM opens the state")
	}
	// sign returns an EFI program as it is, or signed.
	sign := func(program []byte) ([]byte, error) {
		if key == nil {
			return program, nil
		}
		return key.Sign(ctx, program)
	}
	if err := os.MkdirAll(b.Out, 0o755); err != nil {
		return err
	}
	kernel, version, err := b.readKernel()
	if err != nil {
		return err
	}
	initramfs, files, err := b.initramfs(ctx, version)
	if err != nil {
		return err
	}
	stub, err := b.read(b.Stub, "")
	if err != nil {
		return err
	}
	uki, parts, err := (&bootimage.UKI{Stub: stub, Kernel: kernel, Initramfs: initramfs, Cmdline: b.Cmdline, Release: b.Release, MeasurementKey: pcrKey}).Build()
	if err != nil {
		return err
	}
	if uki, err = sign(uki); err != nil {
		return err
	}
	if b.systemFiles != nil {
		b.sizes("system, before it is compressed", b.systemFiles)
	}
	b.sizes("initramfs, before it is compressed", files)
	b.sizes("UKI", parts)
	if err := b.write(ctx, fileUKI, uki); err != nil {
		return err
	}
	if err := b.guests(ctx); err != nil {
		return err
	}
	if slices.Contains(b.Media, "disk") {
		manager, err := b.read(b.BootManager, "")
		if err != nil {
			return err
		}
		if manager, err = sign(manager); err != nil {
			return err
		}
		if err := errors.Join(b.write(ctx, fileManager, manager), b.disk(ctx, manager)); err != nil {
			return err
		}
	}
	var tooLarge error
	if slices.Contains(b.Media, "flash") {
		vars, err := b.read(b.OVMFVars, "")
		if err != nil {
			return err
		}
		code, err := b.read(b.OVMFCode, "")
		if err != nil {
			return err
		}
		rom, err := bootimage.Flash(vars, code, uki)
		if errors.As(err, new(*bootimage.ErrTooLarge)) {
			tooLarge = fmt.Errorf("%w; what takes it: %s; leave modules or files out, or make --media=uki,disk", err, largest(parts, files))
		} else if err != nil {
			return err
		} else if err := b.write(ctx, fileFlash, rom); err != nil {
			return err
		} else {
			fmt.Fprintf(b.out, "flash: %s are free\n", mib(len(rom)-len(code)-len(vars)-len(uki)))
		}
	}
	sbom, err := bootimage.SBOM(b.Release, b.components)
	if err != nil {
		return err
	}
	return errors.Join(b.write(ctx, fileSBOM, sbom), tooLarge)
}

// readKernel returns the kernel and its version.
func (b *builder) readKernel() (kernel []byte, version string, err error) {
	name := b.Kernel
	if name == "" {
		if name, err = debianKernel(); err != nil {
			return nil, "", err
		}
	}
	if kernel, err = os.ReadFile(name); err != nil {
		return nil, "", err
	}
	if version, err = bootimage.KernelVersion(kernel); err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	b.note(name, version, kernel)
	return kernel, version, nil
}

// debianKernel returns the file of this machine's kernel.
func debianKernel() (string, error) {
	if name, err := filepath.EvalSymlinks("/vmlinuz"); err == nil {
		return name, nil
	}
	names, err := filepath.Glob("/boot/vmlinuz-*")
	if err != nil {
		return "", err
	}
	switch len(names) {
	case 0:
		return "", errors.New("no kernel in /boot: install the package linux-image-amd64, or name one by --kernel")
	case 1:
		return names[0], nil
	}
	return "", fmt.Errorf("several kernels: name one by --kernel: %s", strings.Join(names, ", "))
}

// initramfs builds it for the kernel of a version, and notes its files. If it is to start Lodge, the system is built too, and the
// kernel's command line names it.
func (b *builder) initramfs(ctx context.Context, version string) ([]byte, []bootimage.Part, error) {
	if err := os.Remove(filepath.Join(b.Out, fileSystem)); err != nil && !errors.Is(err, os.ErrNotExist) { // of an earlier build
		return nil, nil, err
	}
	tree := bootimage.Tree{Files: make(map[string]string), Load: b.Module, FirmwareDir: b.FirmwareDir, Firmware: b.Blob}
	var programs string
	var err error
	if b.Init == "" {
		if programs, err = b.lodge(&tree); err != nil {
			return nil, nil, err
		}
	}
	for _, f := range b.File {
		from, to, ok := strings.Cut(f, ":")
		if !ok || tree.Files[to] != "" {
			return nil, nil, fmt.Errorf("--file=%s: want FILE:PATH, and each path once", f)
		}
		tree.Files[to] = from
	}
	if len(tree.Load) > 0 {
		dir := cmp.Or(b.Modules, filepath.Join("/lib/modules", version))
		if filepath.Base(dir) != version {
			return nil, nil, fmt.Errorf("--modules=%s: the kernel is %s, and loads no modules of another", dir, version)
		}
		if tree.Modules, err = bootimage.ReadModules(dir); err != nil {
			return nil, nil, err
		}
	}
	i := bootimage.Initramfs{Init: b.Init, Tree: tree}
	if b.Init == "" {
		image, id, parts, err := tree.BuildSystem(ctx)
		if err == nil {
			err = errors.Join(b.noteParts(parts, version), b.write(ctx, fileSystem, image))
		}
		if err != nil {
			return nil, nil, err
		}
		b.systemFiles = parts
		b.Cmdline = strings.TrimSpace(b.Cmdline + " " + system.Parameter + "=" + id.String())
		if b.Encrypt {
			b.Cmdline += " " + appliance.EncryptParameter + "=yes"
		}
		early := slices.DeleteFunc(appliance.EarlyModules(), func(m string) bool { return slices.Contains(b.Without, m) })
		i = bootimage.Initramfs{Init: filepath.Join(programs, appliance.Init), Tree: bootimage.Tree{Modules: tree.Modules, Load: early}}
	}
	archive, parts, err := i.Build()
	if err != nil {
		return nil, nil, err
	}
	return archive, parts, b.noteParts(parts, version)
}

// noteParts notes files of an image for the kernel of a version.
func (b *builder) noteParts(parts []bootimage.Part, version string) error {
	for _, p := range parts {
		if p.Path == "" {
			continue
		}
		data, err := os.ReadFile(p.Path)
		if err != nil {
			return err
		}
		of := ""
		if strings.HasPrefix(p.Name, "lib/modules/") {
			of = version
		}
		b.note(p.Name, of, data)
	}
	return nil
}

// lodge gives a system Lodge itself, and returns the directory of its programs.
func (b *builder) lodge(tree *bootimage.Tree) (dir string, err error) {
	if dir = b.Programs; dir == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(self)
	}
	if tree.Files, err = appliance.Files(dir); err != nil {
		return "", err
	}
	modules := appliance.Modules()
	for _, name := range b.Without {
		if !slices.Contains(modules, name) {
			return "", fmt.Errorf("--without=%s: it is none of %s", name, strings.Join(modules, ", "))
		}
	}
	own := slices.DeleteFunc(modules, func(m string) bool { return slices.Contains(b.Without, m) })
	tree.Load = append(own, tree.Load...)
	return dir, nil
}

// readRelease returns the UKI in a file, with the system beside it, if there is one.
func readRelease(uki string) (r bootimage.Release, err error) {
	if r.UKI, err = os.ReadFile(uki); err != nil {
		return r, err
	}
	r.System, err = os.ReadFile(filepath.Join(filepath.Dir(uki), fileSystem))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return r, err
}

// guests makes the file system with the guests that come along; without any, that of an earlier build goes.
func (b *builder) guests(ctx context.Context) error {
	name := filepath.Join(b.Out, fileGuests)
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(b.Guest) == 0 {
		return nil
	}
	if err := bundle.Make(ctx, name, b.Guest...); err != nil {
		return err
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	b.note(fileGuests, "", data)
	fmt.Fprintf(b.out, "%s: %s\n", name, mib(len(data)))
	return nil
}

// openGuests returns the file system with the guests in a build's directory, nil if there is none.
func openGuests(dir string) (guests *io.SectionReader, done func(), err error) {
	f, err := os.Open(filepath.Join(dir, fileGuests))
	if errors.Is(err, os.ErrNotExist) {
		return nil, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return io.NewSectionReader(f, 0, st.Size()), func() { f.Close() }, nil
}

// disk writes the disk image.
func (b *builder) disk(ctx context.Context, manager []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := filepath.Join(b.Out, fileDisk)
	f, err := os.Create(name + ".new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	release, err := readRelease(filepath.Join(b.Out, fileUKI))
	if err != nil {
		return err
	}
	c := bootimage.Content{ESP: b.ESP << 20, Manager: manager, Release: release}
	guests, done, err := openGuests(b.Out)
	if err == nil {
		defer done()
		c.Guests = guests
		err = f.Truncate(c.Size())
	}
	if err == nil {
		err = bootimage.WriteDisk(f, c.Size(), c)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%s: %s\n", name, mib(int(c.Size())))
	return os.Rename(f.Name(), name)
}

// read returns a file, and notes it.
func (b *builder) read(name, version string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: see lodge-image build --help for the package that has it", err)
	}
	if err == nil {
		b.note(name, version, data)
	}
	return data, err
}

func (b *builder) note(name, version string, data []byte) {
	b.components = append(b.components, bootimage.FileComponents(name, version, data)...)
}

// write writes a file of the build, whole or not at all.
func (b *builder) write(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name = filepath.Join(b.Out, name)
	if err := os.WriteFile(name+".new", data, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%s: %s\n", name, mib(len(data)))
	return os.Rename(name+".new", name)
}

// shownParts is how many parts are told one by one.
const shownParts = 12

// sizes tells what takes room.
func (b *builder) sizes(what string, parts []bootimage.Part) {
	sorted := bySize(parts)
	fmt.Fprintf(b.out, "%s:\n", what)
	rest := 0
	for i, p := range sorted {
		if i < shownParts {
			fmt.Fprintf(b.out, "  %10s  %s\n", mib(p.Size), p.Name)
		} else {
			rest += p.Size
		}
	}
	if n := len(sorted) - shownParts; n > 0 {
		fmt.Fprintf(b.out, "  %10s  %d others\n", mib(rest), n)
	}
}

func bySize(parts []bootimage.Part) []bootimage.Part {
	return slices.SortedStableFunc(slices.Values(parts), func(a, b bootimage.Part) int { return cmp.Compare(b.Size, a.Size) })
}

// largest names the parts of the UKI, and the largest files in its initramfs.
func largest(parts, files []bootimage.Part) string {
	var list []string
	for _, p := range bySize(parts)[:2] {
		list = append(list, fmt.Sprintf("%s %s", p.Name, mib(p.Size)))
	}
	files = bySize(files)
	for _, p := range files[:min(len(files), 5)] {
		list = append(list, fmt.Sprintf("/%s %s", p.Name, mib(p.Size)))
	}
	return strings.Join(list, ", ")
}

func mib(n int) string { return fmt.Sprintf("%.2f MiB", float64(n)/(1<<20)) }
