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

// Tree is the files of an image.
type Tree struct {
	// Files are by their path in the image, without a leading slash: "bin/lodge-vmm".
	Files map[string]string
	// Modules are put into lib/modules/VERSION, with depmod's indices for them; nil is none.
	Modules *Modules
	// Load names the kernel modules; those that they depend on come along.
	Load []string
	// FirmwareDir holds the Firmware files, which drivers ask for by these relative paths.
	FirmwareDir string
	Firmware    []string
}

// Initramfs describes the system that the kernel starts with.
type Initramfs struct {
	// Init is the file of the first program, a static binary. It becomes /init.
	Init string
	Tree
}

// Part is something that takes room in an image.
type Part struct {
	Name string
	Size int // bytes
	// Path is the file that it was made from; "" if it was made here.
	Path string
}

// entry is a file of an image.
type entry struct {
	path    string
	content []byte
	program bool   // to be executed
	from    string // "" if it was made here
}

// gather reads the files, in the order of their paths. More are such that have to be there beside those of t.
func (t *Tree) gather(more map[string]string) ([]entry, error) {
	sources := maps.Clone(more) // path in the image → file
	if sources == nil {
		sources = make(map[string]string)
	}
	add := func(to, from string) error {
		if !fs.ValidPath(to) || to == "." {
			return fmt.Errorf("%q is not a path in the image: write it as bin/program", to)
		}
		if other, twice := sources[to]; twice && other != from {
			return fmt.Errorf("/%s is both %s and %s", to, other, from)
		}
		sources[to] = from
		return nil
	}
	for _, to := range slices.Sorted(maps.Keys(t.Files)) {
		if err := add(to, t.Files[to]); err != nil {
			return nil, err
		}
	}
	made := make(map[string][]byte)
	if t.Modules != nil {
		files, err := t.Modules.Resolve(t.Load...)
		if err != nil {
			return nil, err
		}
		to := path.Join("lib/modules", filepath.Base(t.Modules.Dir))
		for _, f := range files {
			if err := add(path.Join(to, f), filepath.Join(t.Modules.Dir, f)); err != nil {
				return nil, err
			}
		}
		indices, err := t.Modules.indices(files)
		if err != nil {
			return nil, err
		}
		for name, b := range indices {
			made[path.Join(to, name)] = b
		}
	} else if len(t.Load) > 0 {
		return nil, errors.New("kernel modules are named, but no directory that has them")
	}
	for _, f := range t.Firmware {
		if err := add(path.Join("lib/firmware", f), filepath.Join(t.FirmwareDir, f)); err != nil {
			return nil, err
		}
	}
	var list []entry
	for to, from := range sources {
		st, err := os.Stat(from)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(to, "lib/") {
			return nil, fmt.Errorf("%w: install the package that has it", err)
		} else if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		list = append(list, entry{to, b, st.Mode()&0o111 != 0, from})
	}
	for to, b := range made {
		if _, twice := sources[to]; twice {
			return nil, fmt.Errorf("/%s is made here: it cannot be given", to)
		}
		list = append(list, entry{to, b, false, ""})
	}
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	files := make(map[string]bool)
	for _, e := range list {
		files[e.path] = true
	}
	for _, e := range list {
		for d := path.Dir(e.path); d != "."; d = path.Dir(d) {
			if files[d] {
				return nil, fmt.Errorf("/%s is both a file and the directory of /%s", d, e.path)
			}
		}
	}
	return list, nil
}

// directories returns those that files are in, each after the one that it is in.
func directories(list []entry) []string {
	dirs := make(map[string]bool)
	for _, e := range list {
		for d := path.Dir(e.path); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	return slices.Sorted(maps.Keys(dirs))
}

// partsOf says what takes room in an image.
func partsOf(list []entry) (parts []Part) {
	for _, e := range list {
		parts = append(parts, Part{e.path, len(e.content), e.from})
	}
	return parts
}

// Build returns the initramfs, a cpio archive compressed by zstd, and the files in it, not compressed, in the archive's order.
func (i *Initramfs) Build() ([]byte, []Part, error) {
	if i.Init == "" {
		return nil, nil, errors.New("initramfs: no init program: name one")
	}
	list, err := i.gather(map[string]string{"init": i.Init})
	if err != nil {
		return nil, nil, fmt.Errorf("initramfs: %w", err)
	}
	records := map[string]cpio.Record{"dev/console": cpio.CharDev("dev/console", 0o600, 5, 1)} // what the kernel opens for /init
	for _, d := range append(directories(list), "dev", "proc", "sys", "run", "tmp") {
		records[d] = cpio.Directory(d, 0o755)
	}
	for _, e := range list {
		mode := uint64(0o644)
		if e.program || e.path == "init" {
			mode = 0o755
		}
		records[e.path] = cpio.StaticFile(e.path, string(e.content), mode)
	}
	archive, err := pack(records)
	return archive, partsOf(list), err
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
