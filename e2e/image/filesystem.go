package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// FileSystem builds a raw, sparse disk of size bytes with an empty file system of a kind: "ext4", or "xfs", which shares blocks.
func (b *Builder) FileSystem(ctx context.Context, kind string, size int64) (string, error) {
	mkfs := map[string][]string{
		"ext4": {"mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"},
		"xfs":  {"mkfs.xfs", "-q", "-m", "reflink=1"},
	}[kind]
	if mkfs == nil {
		return "", fmt.Errorf("file system %q: one of ext4, xfs", kind)
	}
	dir, err := b.Result(ctx, kind, Key(append(mkfs, fmt.Sprint(size))...), func(ctx context.Context, dir string) error {
		disk := filepath.Join(dir, "disk.img")
		if err := os.WriteFile(disk, nil, 0o644); err != nil {
			return err
		}
		if err := os.Truncate(disk, size); err != nil {
			return err
		}
		_, err := run(ctx, dir, nil, mkfs[0], append(mkfs[1:], disk)...)
		return err
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "disk.img"), nil
}
