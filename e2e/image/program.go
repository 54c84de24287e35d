package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// GoProgram builds a main package of the repository as a static program and
// returns its path and a hash of its content. Go's own cache makes it quick.
func (b *Builder) GoProgram(ctx context.Context, pkg, goarch string) (path, key string, err error) {
	return b.goBuild(ctx, filepath.Base(pkg), pkg, goarch, "build", "-buildvcs=false")
}

// GoTest builds the tests of a package of the repository as a static program, called after the package with ".test".
func (b *Builder) GoTest(ctx context.Context, pkg, goarch string) (path string, err error) {
	path, _, err = b.goBuild(ctx, filepath.Base(pkg)+".test", pkg, goarch, "test", "-c")
	return path, err
}

func (b *Builder) goBuild(ctx context.Context, name, pkg, goarch string, command ...string) (path, key string, err error) {
	dir := filepath.Join(b.Dir, "go-"+goarch)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	unlock, err := Lock(ctx, filepath.Join(dir, ".lock"), nil)
	if err != nil {
		return "", "", err
	}
	defer unlock()
	path = filepath.Join(dir, name)
	env := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + goarch}
	args := append(command, "-trimpath", "-ldflags=-s -w", "-o", path+".new", pkg)
	if _, err := run(ctx, b.Repo, env, "go", args...); err != nil {
		return "", "", err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", "", err
	}
	key, err = hashFile(path)
	return path, key, err
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}
