package bootimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/lodgehv/lodge/hypervisor/bootimage/system"
)

// BuildSystem makes the image of a system, which mksquashfs (squashfs-tools) compresses, with its hash tree behind it. The files in it are
// returned as they are before that. The same files give the same image.
func (t *Tree) BuildSystem(ctx context.Context) (image []byte, id system.ID, parts []Part, err error) {
	list, err := t.gather(nil)
	if err != nil {
		return nil, id, nil, fmt.Errorf("system: %w", err)
	}
	var archive bytes.Buffer
	if err := writeTar(&archive, list); err != nil {
		return nil, id, nil, fmt.Errorf("system: %w", err)
	}
	dir, err := os.MkdirTemp("", "lodge-system-")
	if err != nil {
		return nil, id, nil, err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "image")
	cmd := exec.CommandContext(ctx, "mksquashfs", "-", name, "-tar", "-comp", "zstd", "-Xcompression-level", "19", "-b", "128K",
		"-mkfs-time", "0", "-all-time", "0", "-no-progress", "-quiet", "-noappend", "-no-exports", "-no-xattrs")
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
		return nil, id, nil, fmt.Errorf("system: %w: install the package squashfs-tools", err)
	} else if err != nil {
		return nil, id, nil, fmt.Errorf("system: mksquashfs: %w\n%s", err, out)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, id, nil, fmt.Errorf("system: %w", err)
	}
	image, id = system.Seal(b)
	return image, id, partsOf(list), nil
}

// writeTar writes an archive in which everything is root's and from the begin of time.
func writeTar(w io.Writer, list []entry) error {
	t := tar.NewWriter(w)
	for _, d := range directories(list) {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, e := range list {
		mode := int64(0o644)
		if e.program {
			mode = 0o755
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.path, Mode: mode, Size: int64(len(e.content))}); err != nil {
			return err
		}
		if _, err := t.Write(e.content); err != nil {
			return err
		}
	}
	return t.Close()
}
