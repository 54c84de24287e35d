package bootimage

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// Initramfs describes the system that the kernel starts with.
type Initramfs struct {
	// Init is the file of the first program, a static binary. It becomes /init.
	Init string
	// Files are others, by their path in the image, without a leading slash: "bin/lodge-vmm".
	Files map[string]string
	// Modules are put into lib/modules/VERSION, with depmod's indices for them; nil is none.
	Modules *Modules
	// Load names the kernel modules; those that they depend on come along.
	Load []string
	// FirmwareDir holds the Firmware files, which drivers ask for by these relative paths.
	FirmwareDir string
	Firmware    []string
}

// Part is something that takes room in an image.
type Part struct {
	Name string
	Size int // bytes
	// Path is the file that it was made from; "" if it was made here.
	Path string
}

// Build returns the initramfs, a cpio archive compressed by zstd, and the files in it, not compressed, in the archive's order.
func (i *Initramfs) Build() ([]byte, []Part, error) {
	if i.Init == "" {
		return nil, nil, errors.New("initramfs: no init program: name one")
	}
	sources := map[string]string{"init": i.Init} // path in the image → file
	add := func(to, from string) error {
		if !fs.ValidPath(to) || to == "." {
			return fmt.Errorf("initramfs: %q is not a path in the image: write it as bin/program", to)
		}
		if other, twice := sources[to]; twice && other != from {
			return fmt.Errorf("initramfs: /%s is both %s and %s", to, other, from)
		}
		sources[to] = from
		return nil
	}
	for _, to := range slices.Sorted(maps.Keys(i.Files)) {
		if err := add(to, i.Files[to]); err != nil {
			return nil, nil, err
		}
	}
	made := make(map[string][]byte)
	if i.Modules != nil {
		files, err := i.Modules.Resolve(i.Load...)
		if err != nil {
			return nil, nil, err
		}
		to := path.Join("lib/modules", filepath.Base(i.Modules.Dir))
		for _, f := range files {
			if err := add(path.Join(to, f), filepath.Join(i.Modules.Dir, f)); err != nil {
				return nil, nil, err
			}
		}
		indices, err := i.Modules.indices(files)
		if err != nil {
			return nil, nil, err
		}
		for name, b := range indices {
			made[path.Join(to, name)] = b
		}
	} else if len(i.Load) > 0 {
		return nil, nil, errors.New("initramfs: kernel modules are named, but no directory that has them")
	}
	for _, f := range i.Firmware {
		if err := add(path.Join("lib/firmware", f), filepath.Join(i.FirmwareDir, f)); err != nil {
			return nil, nil, err
		}
	}

	records := map[string]cpio.Record{"dev/console": cpio.CharDev("dev/console", 0o600, 5, 1)} // what the kernel opens for /init
	var parts []Part
	for to, from := range sources {
		st, err := os.Stat(from)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(to, "lib/") {
			return nil, nil, fmt.Errorf("initramfs: %w: install the package that has it", err)
		} else if err != nil {
			return nil, nil, fmt.Errorf("initramfs: %w", err)
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return nil, nil, fmt.Errorf("initramfs: %w", err)
		}
		mode := uint64(0o644)
		if st.Mode()&0o111 != 0 || to == "init" {
			mode = 0o755
		}
		records[to] = cpio.StaticFile(to, string(b), mode)
		parts = append(parts, Part{to, len(b), from})
	}
	for to, b := range made {
		if _, twice := records[to]; twice {
			return nil, nil, fmt.Errorf("initramfs: /%s is made here: it cannot be given", to)
		}
		records[to] = cpio.StaticFile(to, string(b), 0o644)
		parts = append(parts, Part{to, len(b), ""})
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp"} {
		records[d] = cpio.Directory(d, 0o755)
	}
	for _, to := range slices.Collect(maps.Keys(records)) {
		for d := path.Dir(to); d != "."; d = path.Dir(d) {
			if r, there := records[d]; there && r.Mode&cpio.S_IFMT != cpio.S_IFDIR {
				return nil, nil, fmt.Errorf("initramfs: /%s is both a file and the directory of /%s", d, to)
			}
			records[d] = cpio.Directory(d, 0o755)
		}
	}
	slices.SortFunc(parts, func(a, b Part) int { return strings.Compare(a.Name, b.Name) })
	archive, err := pack(records)
	return archive, parts, err
}

// pack writes records in the order of their names, in which a directory is before what it holds, and compresses them.
func pack(records map[string]cpio.Record) ([]byte, error) {
	var raw bytes.Buffer
	w := cpio.Newc.Writer(&raw)
	for _, name := range slices.Sorted(maps.Keys(records)) {
		if err := w.WriteRecord(cpio.MakeReproducible(records[name])); err != nil {
			return nil, fmt.Errorf("initramfs: /%s: %w", name, err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	// Several encoders would cut the data where they happen to be.
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return z.EncodeAll(raw.Bytes(), nil), nil
}
