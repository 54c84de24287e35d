package image

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/lodgehv/lodge/guest/instant"
)

// Instant builds the instant-on guest, its light variant, and returns its directory.
func (b *Builder) Instant(ctx context.Context) (string, error) {
	dir, err := b.Result(ctx, "instant", Key("3", instant.Light().Key()), func(ctx context.Context, dir string) error {
		return instant.Build(ctx, filepath.Join(dir, "files"), instant.Options{Variant: instant.Light()})
	})
	if err != nil {
		return "", fmt.Errorf("instant-on guest: %w", err)
	}
	return filepath.Join(dir, "files"), nil
}
