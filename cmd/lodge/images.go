package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
)

// defaultPool is the pool of images that are named without one.
const defaultPool = "default"

// splitImage returns the pool and the name in it of an image: NAME, or POOL/NAME.
func splitImage(s string) (pool, name string) {
	if pool, name, ok := strings.Cut(s, "/"); ok {
		return pool, name
	}
	return defaultPool, s
}

type importCommand struct {
	File   string `arg:"" help:"An OVA, or a disk image: raw, also compressed, ISO, qcow2 or VMDK. A file, an http or https address, or - for the standard input."`
	Name   string `placeholder:"NAME" help:"Name of the guest or image; that of the file if it is missing."`
	Pool   string `default:"default" placeholder:"POOL" help:"The pool for the disks."`
	Image  bool   `xor:"what" help:"Import the disks of an OVA as images, and make no guest."`
	Guest  bool   `xor:"what" help:"Make a guest of a disk image, with one processor and 1 GiB: edit it afterwards."`
	Format string `placeholder:"FORMAT" help:"Take the file for that, in place of looking at it: such as raw for an image that looks like another."`
	SHA256 string `name:"sha256" placeholder:"DIGITS" help:"The checksum that the file is to have."`
}

// Run imports a guest or an image.
func (c *importCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	i := client.Import{Pool: c.Pool, Name: c.Name, Format: c.Format, SHA256: c.SHA256}
	guest := c.Guest
	switch {
	case strings.HasPrefix(c.File, "http://") || strings.HasPrefix(c.File, "https://"):
		i.URL = c.File
	case c.File == "-":
		i.File = os.Stdin
		if c.Name == "" {
			return errors.New("give what comes from the standard input a --name")
		}
	default:
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		i.File = f
		head := make([]byte, format.HeadSize)
		n, err := f.ReadAt(head, 0)
		if c.Format == "" && (err == nil || errors.Is(err, io.EOF)) { // a pipe, which cannot be looked at, is what its name says
			kind, err := format.Detect(head[:n])
			if err != nil {
				return fmt.Errorf("%s: %w", c.File, err)
			}
			guest = guest || kind == format.OVA
		}
	}
	guest = guest || format.Format(c.Format) == format.OVA || strings.HasSuffix(c.File, ".ova")
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	what, begin := "image", k.ImportImage
	if guest && !c.Image {
		what, begin = "guest", k.ImportGuest
	}
	j, err := awaitJob(ctx, k, out, func(ctx context.Context) (uint64, error) { return begin(ctx, i) })
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s %s is imported\n", what, printable(j.Object))
	return nil
}

type exportCommand struct {
	Name     string `arg:"" help:"Name of the guest, which is off; with --image of an image: NAME or POOL/NAME."`
	File     string `arg:"" help:"The file to make; - is the standard output, for raw and vmdk-stream."`
	Image    bool   `help:"Export an image, and not a guest."`
	Format   string `placeholder:"FORMAT" help:"raw, qcow2, vmdk-stream or ova; what the file's name says if it is missing. Guests are exported as ova."`
	Compress string `placeholder:"HOW" help:"Compress a qcow2: deflate, or zstd, which QEMU reads since 5.1."`
}

// formatFor returns the format that a file's name says.
func formatFor(file string) string {
	switch strings.ToLower(filepath.Ext(file)) {
	case ".qcow2":
		return string(format.QCOW2)
	case ".vmdk":
		return string(format.VMDKStream)
	case ".ova":
		return string(format.OVA)
	}
	return string(format.Raw)
}

// Run exports a guest or an image. Nothing is left if that fails.
func (c *exportCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) (err error) {
	kind := c.Format
	if kind == "" {
		kind = formatFor(c.File)
	}
	if !c.Image && kind != string(format.OVA) {
		return fmt.Errorf("a guest is exported as an OVA: name the file so, such as %s.ova, or export its disks with --image", c.Name)
	}
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	f := os.Stdout
	if c.File == "-" {
		out = os.Stderr
	} else {
		if f, err = os.OpenFile(c.File, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
		defer func() {
			if err = errors.Join(err, f.Close()); err != nil {
				_ = os.Remove(c.File)
			}
		}()
	}
	_, err = awaitJob(ctx, k, out, func(ctx context.Context) (uint64, error) {
		if c.Image {
			pool, name := splitImage(c.Name)
			return k.ExportImage(ctx, pool, name, f, kind, c.Compress)
		}
		return k.ExportGuest(ctx, c.Name, f)
	})
	if err == nil {
		fmt.Fprintf(out, "%s is exported to %s\n", c.Name, c.File)
	}
	return err
}

type cloneCommand struct {
	Guest    string `arg:"" help:"Name of the guest, which is off."`
	Name     string `arg:"" help:"Name of the new guest."`
	Snapshot string `placeholder:"NAME" help:"Make it like the guest was at that snapshot; it may run then."`
}

// Run clones a guest.
func (c *cloneCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	err = await(ctx, k, out, func(ctx context.Context) (uint64, error) { return k.CloneGuest(ctx, c.Guest, c.Name, c.Snapshot) })
	if err == nil {
		fmt.Fprintf(out, "guest %s is made\n", c.Name)
	}
	return err
}

// poolCommands are the group "pool".
type poolCommands struct {
	List poolListCommand `cmd:"" help:"List the pools of images, and how full they are."`
	Show poolShowCommand `cmd:"" help:"Tell of a pool and its images."`
}

// poolLine is a pool with its usage.
type poolLine struct {
	client.Pool
	client.Usage
}

// describe adds how full a pool is, if it can be used.
func describe(ctx context.Context, k *client.Client, p client.Pool) (poolLine, error) {
	if p.Fault != "" {
		return poolLine{Pool: p}, nil
	}
	u, err := k.Usage(ctx, p.Name)
	return poolLine{p, u}, err
}

type poolListCommand struct {
	JSON bool `name:"json" help:"Print for programs."`
}

// Run lists the pools.
func (c *poolListCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	pools, err := k.Pools(ctx)
	if err != nil {
		return err
	}
	list := make([]poolLine, len(pools))
	for n, p := range pools {
		if list[n], err = describe(ctx, k, p); err != nil {
			return err
		}
	}
	if c.JSON {
		return asJSON(out, list)
	}
	rows := [][]string{{"POOL", "IMAGES", "TAKEN", "FREE", "OF", "SPACE", "PATH", "NOTE"}}
	for _, p := range list {
		note, _, _ := strings.Cut(p.Fault, "\n")
		rows = append(rows, []string{p.Name, fmt.Sprint(p.Images), size(p.Allocated), size(p.Free), size(p.Total), p.Level, printable(p.Path), printable(note)})
	}
	return table(out, rows)
}

type poolShowCommand struct {
	Pool string `arg:"" optional:"" default:"default" help:"Name of the pool."`
	JSON bool   `name:"json" help:"Print for programs."`
}

// Run tells of a pool.
func (c *poolShowCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	p, err := k.Pool(ctx, c.Pool)
	if err != nil {
		return err
	}
	if p.Fault != "" {
		return fmt.Errorf("pool %s cannot be used: %s", p.Name, p.Fault)
	}
	line, err := describe(ctx, k, p)
	if err != nil {
		return err
	}
	images, err := k.Images(ctx, c.Pool)
	if err != nil {
		return err
	}
	if c.JSON {
		return asJSON(out, struct {
			poolLine
			Images []client.Image
		}{line, images})
	}
	fmt.Fprintf(out, "pool %s: %s\n%s free of %s, space is %s; disks of %s take up %s\n\n", p.Name, printable(p.Path), size(line.Free), size(line.Total),
		p.Level, size(line.Virtual), size(line.Allocated))
	return imageTable(out, images)
}

func imageTable(out io.Writer, images []client.Image) error {
	rows := [][]string{{"IMAGE", "SIZE", "TAKEN", "MODIFIED", "FROM"}}
	for _, i := range images {
		from := i.Origin
		if i.Parent != "" {
			from = i.Parent
		}
		if i.Format != "" {
			from += " (" + i.Format + ")"
		}
		rows = append(rows, []string{i.Name, size(i.Size), size(i.Allocated), i.Modified.Format("2006-01-02 15:04"), printable(from)})
	}
	return table(out, rows)
}

// imageCommands are the group "image".
type imageCommands struct {
	List     imageListCommand     `cmd:"" help:"List the images of a pool."`
	Create   imageCreateCommand   `cmd:"" help:"Make an empty image."`
	Clone    imageCloneCommand    `cmd:"" help:"Copy an image: at once where the file system has reflinks."`
	Snapshot imageSnapshotCommand `cmd:"" help:"Make the snapshot IMAGE@SNAPSHOT of an image that no guest writes to."`
	Restore  imageRestoreCommand  `cmd:"" help:"Give an image the content of its snapshot again."`
	Grow     imageGrowCommand     `cmd:"" help:"Make an image larger."`
	Delete   imageDeleteCommand   `cmd:"" help:"Remove images that no guest has. Their snapshots stay."`
}

type imageListCommand struct {
	Pool string `arg:"" optional:"" default:"default" help:"Name of the pool."`
	JSON bool   `name:"json" help:"Print for programs."`
}

// Run lists images.
func (c *imageListCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	images, err := k.Images(ctx, c.Pool)
	if err != nil {
		return err
	}
	if c.JSON {
		return asJSON(out, images)
	}
	return imageTable(out, images)
}

// imageName is the argument of commands for one image.
type imageName struct {
	Image string `arg:"" help:"The image: NAME, or POOL/NAME."`
}

// with does something to the image.
func (n *imageName) with(ctx context.Context, m *manageCommands, f func(k *client.Client, pool, image string) error) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	pool, image := splitImage(n.Image)
	return f(k, pool, image)
}

// job does it with a job.
func (n *imageName) job(
	ctx context.Context, m *manageCommands, out io.Writer, f func(ctx context.Context, k *client.Client, pool, image string) (uint64, error),
) error {
	return n.with(ctx, m, func(k *client.Client, pool, image string) error {
		return await(ctx, k, out, func(ctx context.Context) (uint64, error) { return f(ctx, k, pool, image) })
	})
}

type imageCreateCommand struct {
	imageName
	Size definition.Size `arg:"" help:"Its size, such as 20G."`
}

// Run makes an image.
func (c *imageCreateCommand) Run(ctx context.Context, m *manageCommands) error {
	return c.with(ctx, m, func(k *client.Client, pool, image string) error {
		return k.CreateImage(ctx, pool, image, uint64(c.Size))
	})
}

type imageCloneCommand struct {
	imageName
	Name string `arg:"" help:"Name of the copy, in the same pool."`
}

// Run copies an image.
func (c *imageCloneCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return c.job(ctx, m, out, func(ctx context.Context, k *client.Client, pool, image string) (uint64, error) {
		return k.CloneImage(ctx, pool, image, c.Name)
	})
}

type imageSnapshotCommand struct {
	imageName
	Snapshot string `arg:"" help:"Name of the snapshot."`
}

// Run makes a snapshot.
func (c *imageSnapshotCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return c.job(ctx, m, out, func(ctx context.Context, k *client.Client, pool, image string) (uint64, error) {
		return k.SnapshotImage(ctx, pool, image, c.Snapshot)
	})
}

type imageRestoreCommand struct {
	imageName
	Snapshot string `arg:"" help:"Name of the snapshot."`
}

// Run puts a snapshot back.
func (c *imageRestoreCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return c.job(ctx, m, out, func(ctx context.Context, k *client.Client, pool, image string) (uint64, error) {
		return k.RevertImage(ctx, pool, image, c.Snapshot)
	})
}

type imageGrowCommand struct {
	imageName
	Size definition.Size `arg:"" help:"Its size from now on, such as 40G."`
}

// Run makes an image larger.
func (c *imageGrowCommand) Run(ctx context.Context, m *manageCommands) error {
	return c.with(ctx, m, func(k *client.Client, pool, image string) error { return k.GrowImage(ctx, pool, image, uint64(c.Size)) })
}

type imageDeleteCommand struct {
	Images []string `arg:"" name:"image" help:"The images: NAME, or POOL/NAME."`
}

// Run removes images, the later ones also if one fails.
func (c *imageDeleteCommand) Run(ctx context.Context, m *manageCommands) error {
	var errs []error
	for _, i := range c.Images {
		n := imageName{i}
		errs = append(errs, n.with(ctx, m, func(k *client.Client, pool, image string) error { return k.DeleteImage(ctx, pool, image) }))
	}
	return errors.Join(errs...)
}
