package image

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/lodgehv/lodge/guest/instant"
)

// Instant builds the instant-on guest, its light variant, and returns its directory and a disk that has the same (ext4, no partitions).
func (b *Builder) Instant(ctx context.Context) (files, disk string, err error) {
	dir, err := b.Result(ctx, "instant", Key("2", instant.Light().Key()), func(ctx context.Context, dir string) error {
		if err := instant.Build(ctx, filepath.Join(dir, "files"), instant.Options{Variant: instant.Light()}); err != nil {
			return err
		}
		return asRoot(ctx, dir, `
chown -R 0:0 files
mke2fs -q -t ext4 -L instant -d files disk.img 256M`)
	})
	if err != nil {
		return "", "", fmt.Errorf("instant-on guest: %w", err)
	}
	return filepath.Join(dir, "files"), filepath.Join(dir, "disk.img"), nil
}
