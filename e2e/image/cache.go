package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Builder makes results and remembers where they are.
type Builder struct {
	// Dir is the cache.
	Dir string
	// Repo is the root of Lodge's source, where the agent is built from.
	Repo string
	// Log receives a line when a step begins and ends; nil is silence.
	Log io.Writer
}

// NewBuilder returns a builder for the repository that holds the working
// directory. The cache is $LODGE_CACHE, or out/cache in the repository.
func NewBuilder(log io.Writer) (*Builder, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil, errors.New("no go.mod above the working directory: run this inside Lodge's repository")
		}
		dir = up
	}
	cache := os.Getenv("LODGE_CACHE")
	if cache == "" {
		cache = filepath.Join(dir, "out", "cache")
	}
	if cache, err = filepath.Abs(cache); err != nil {
		return nil, err
	}
	return &Builder{Dir: cache, Repo: dir, Log: log}, nil
}

func (b *Builder) logf(format string, args ...any) {
	if b.Log != nil {
		fmt.Fprintf(b.Log, "image: "+format+"\n", args...)
	}
}

// Key hashes parts, each delimited by its length, to a short hexadecimal name.
func Key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// keepOld is how long a result that a newer one has replaced stays: a test that
// uses it may still run.
const keepOld = 12 * time.Hour

// Result returns the directory NAME-KEY of the cache. If there is none, build
// fills a temporary directory that then takes its place. Of two processes that
// need the same result, the second waits for the first.
func (b *Builder) Result(ctx context.Context, name, key string, build func(ctx context.Context, dir string) error) (string, error) {
	final := filepath.Join(b.Dir, name+"-"+key)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(b.Dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := Lock(ctx, filepath.Join(b.Dir, "."+name+".lock"), func() { b.logf("%s: another process builds it", name) })
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(final); err == nil {
		return final, nil // made while we waited
	}
	tmp, err := os.MkdirTemp(b.Dir, ".new-"+name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) // gone already after the rename
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	b.logf("%s: building", name)
	start := time.Now()
	if err := build(ctx, tmp); err != nil {
		return "", fmt.Errorf("image %s: %w", name, err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", err
	}
	b.logf("%s: built in %.1f s", name, time.Since(start).Seconds())
	return final, b.prune(name, key)
}

// prune removes results that are replaced and temporary directories whose
// builder died.
func (b *Builder) prune(name, key string) error {
	entries, err := os.ReadDir(b.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		old := strings.HasPrefix(e.Name(), name+"-") && len(e.Name()) == len(name)+1+len(key) && e.Name() != name+"-"+key
		if !old && !strings.HasPrefix(e.Name(), ".new-"+name+"-") {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > keepOld {
			if err := os.RemoveAll(filepath.Join(b.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// lockRetry is how often a lock held by another process is tried.
const lockRetry = 100 * time.Millisecond

// Lock takes an exclusive lock on a file, which it creates, and returns what
// gives it up. The kernel gives it up when the process ends. If another process
// has the lock, wait is called once, when it is not nil.
func Lock(ctx context.Context, path string, wait func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("%s: flock: %w", path, err)
		}
		if wait != nil {
			wait()
			wait = nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%s: waiting for another process: %w", path, context.Cause(ctx))
		case <-time.After(lockRetry):
		}
	}
}

// run executes a host command in dir and returns its output; a failure shows the
// end of what it said.
func run(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%w: run make deps", err)
		}
		return "", fmt.Errorf("%s: %w\n%s", name, err, tail(errOut.String(), 30))
	}
	return out.String(), nil
}

func tail(s string, lines int) string {
	l := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(l[max(0, len(l)-lines):], "\n")
}

// asRoot runs a shell script whose files belong to root, at least as far as the
// script can see.
func asRoot(ctx context.Context, dir, script string, args ...string) error {
	argv := append([]string{"/bin/sh", "-euc", script, "sh"}, args...)
	if os.Geteuid() != 0 {
		argv = append([]string{"fakeroot"}, argv...)
	}
	// mke2fs and depmod live where only root's PATH looks.
	_, err := run(ctx, dir, []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}, argv[0], argv[1:]...)
	return err
}

// hashFS hashes a tree of embedded files.
func hashFS(fsys fs.FS) (string, error) {
	var parts []string
	err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(fsys, path)
		parts = append(parts, path, string(data))
		return err
	})
	return Key(parts...), err
}
