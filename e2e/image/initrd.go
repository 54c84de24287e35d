package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// writeInitrd makes an initial RAM file system: busybox, kernel modules with
// /modules listing them in the order of insertion, and /init. It is not
// compressed, for an emulated CPU copies faster than it unpacks.
func writeInitrd(out string, k *Kernel, busybox, init []byte, modules ...string) error {
	files, err := k.modules(modules...)
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

// fromTar returns one file of a tar archive.
func fromTar(archive, name string) ([]byte, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: no %s in it", archive, name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", archive, err)
		}
		if path.Clean(h.Name) == name && h.Typeflag == tar.TypeReg {
			return io.ReadAll(r)
		}
	}
}
