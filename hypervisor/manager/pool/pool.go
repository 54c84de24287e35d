// Package pool keeps the disks of guests: a pool is a directory of raw images. It makes, copies, imports and exports them.
//
// An image NAME is the file NAME.raw, or NAME.iso if it is a CD; a snapshot of it is NAME@SNAPSHOT.raw. What is known of an
// image beside its content is in NAME.raw.json, and can be missing: an image that somebody put into the directory by hand is
// an image like others. All that is written gets a temporary name first, and its own when it is whole and on the disk, so
// that after a crash there is all of an image or nothing: what is left of others the next Open removes.
//
// A guest that uses an image holds a lock on its file (flock), shared if it only reads. So do the methods here, and refuse
// with ErrInUse what would change an image under a guest.
package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that a caller may want to tell apart. What is returned says which image it is about.
var (
	ErrName     = errors.New("not a name for an image")
	ErrExists   = errors.New("there is an image of that name")
	ErrNotFound = errors.New("no such image")
	ErrInUse    = errors.New("in use")
	ErrReadOnly = errors.New("read-only")
	ErrSize     = errors.New("size is not possible")
	ErrNoSpace  = errors.New("not enough space")
)

// SizeUnit is what the size of a disk is a multiple of, in bytes: a sector.
const SizeUnit = 512

// DefaultMaxSize is the largest disk unless Options say otherwise: 16 TiB, as much as a file of ext4 holds.
const DefaultMaxSize = 16 << 40

// Options are what a pool is opened with. Zero values are replaced.
type Options struct {
	// MaxSize is the largest disk in bytes; DefaultMaxSize.
	MaxSize int64
	// Below Low and Critical bytes of free space Watch gives alarm, and nothing that is made here takes the last Critical
	// bytes: they are for the guests that run. By default they are 10 GiB and 1 GiB, but no more than a tenth and a
	// fiftieth of the file system.
	Low, Critical int64
	Log           *slog.Logger // of what Open removes; slog.Default
}

// Pool is an open pool. Its methods may be called from any goroutine, until Close.
type Pool struct {
	path string
	opt  Options
	root *os.Root
	dir  *os.File // the directory, with the lock that makes us its only user

	mu     sync.Mutex
	making map[string]bool // images that are being made
}

const (
	tmpPrefix     = ".lodge-new-"     // of files that have no name yet
	publishPrefix = ".lodge-publish-" // of lists of files that are given theirs together
	rawSuffix     = ".raw"
	isoSuffix     = ".iso"
	metaSuffix    = ".json"
	maxName       = 64
)

// Open opens the pool in the directory path, which it makes if need be, and removes what was left unfinished. A pool is open
// once at a time.
func Open(path string, opt Options) (_ *Pool, err error) {
	if opt.MaxSize == 0 {
		opt.MaxSize = DefaultMaxSize
	}
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("pool %s: %w", path, err)
	}
	p := &Pool{path: path, opt: opt, making: map[string]bool{}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("pool %s: %w", path, errors.Join(err, p.Close()))
		}
	}()
	if p.root, err = os.OpenRoot(path); err != nil {
		return nil, err
	}
	if p.dir, err = p.root.Open("."); err != nil {
		return nil, err
	}
	if err := lock(p.dir, unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("%w by another process: does the manager run already?", err)
	}
	if err := p.clean(); err != nil {
		return nil, err
	}
	return p, nil
}

// Close ends the use of the pool. What was opened in it stays open.
func (p *Pool) Close() error {
	var errs []error
	if p.root != nil {
		errs = append(errs, p.root.Close())
	}
	if p.dir != nil {
		errs = append(errs, p.dir.Close())
	}
	return errors.Join(errs...)
}

// Path returns the pool's directory.
func (p *Pool) Path() string { return p.path }

// Image is an image of a pool.
type Image struct {
	Name string
	// Size is that of the disk, Allocated what its file takes up, in bytes. What two files share, as after a clone by
	// reflink, counts in both.
	Size, Allocated int64
	ReadOnly        bool // a CD or a snapshot
	Modified        time.Time
	Meta
}

// file returns the path of a file in the directory.
func (p *Pool) file(name string) string { return filepath.Join(p.path, name) }

// isName reports whether s can name an image or a snapshot: up to 64 letters, digits, '-', '_' and '.', the first of them a
// letter or digit.
func isName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && strings.IndexByte("-_.", c) >= 0:
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// checkName returns an error unless name is NAME or NAME@SNAPSHOT.
func checkName(name string) error {
	image, snapshot, is := strings.Cut(name, "@")
	if !isName(image) || is && !isName(snapshot) {
		return fmt.Errorf("%w: %.200q: use up to %d letters, digits, '-', '_' and '.'", ErrName, name, maxName)
	}
	return nil
}

func isSnapshot(name string) bool { return strings.Contains(name, "@") }

// fileOf returns the name of an image's file in the directory.
func (p *Pool) fileOf(name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	for _, suffix := range []string{rawSuffix, isoSuffix} {
		st, err := p.root.Lstat(name + suffix)
		if err == nil && st.Mode().IsRegular() {
			return name + suffix, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("image %s: %w", name, err)
		}
	}
	return "", fmt.Errorf("image %s: %w in %s", name, ErrNotFound, p.path)
}

// PathOf returns the path of an image's file.
func (p *Pool) PathOf(name string) (string, error) {
	file, err := p.fileOf(name)
	if err != nil {
		return "", err
	}
	return p.file(file), nil
}

// Get returns an image.
func (p *Pool) Get(name string) (Image, error) {
	file, err := p.fileOf(name)
	if err != nil {
		return Image{}, err
	}
	return p.image(file)
}

// List returns all images, sorted by name: snapshots behind their images.
func (p *Pool) List() ([]Image, error) {
	entries, err := fs.ReadDir(p.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", p.path, err)
	}
	var list []Image
	for _, e := range entries {
		name, _, ok := splitFile(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		i, err := p.image(e.Name())
		if errors.Is(err, ErrNotFound) { // deleted meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		i.Name = name
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// splitFile returns the name of the image that a file of the directory is, and its suffix.
func splitFile(file string) (name, suffix string, ok bool) {
	for _, suffix := range []string{rawSuffix, isoSuffix} {
		if name, ok := strings.CutSuffix(file, suffix); ok && checkName(name) == nil {
			return name, suffix, true
		}
	}
	return "", "", false
}

func (p *Pool) image(file string) (Image, error) {
	name, suffix, _ := splitFile(file)
	st, err := p.root.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, fmt.Errorf("image %s: %w in %s", name, ErrNotFound, p.path)
	}
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	i := Image{Name: name, Size: st.Size(), Modified: st.ModTime(), ReadOnly: suffix == isoSuffix || isSnapshot(name)}
	i.Allocated = allocated(st)
	i.Meta = p.readMeta(file)
	return i, nil
}

// lock locks a file, without waiting.
func lock(f *os.File, how int) error {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// OpenDisk opens an image for a guest, with the lock on it: the guest keeps it as long as somebody has the file open.
func (p *Pool) OpenDisk(name string, readOnly bool) (*os.File, error) {
	return p.open(name, readOnly, false)
}

// open opens an image's file and locks it. With paused no lock is needed, since the guest that has it does not write.
func (p *Pool) open(name string, readOnly, paused bool) (*os.File, error) {
	file, err := p.fileOf(name)
	if err != nil {
		return nil, err
	}
	flags, how := os.O_RDWR, unix.LOCK_EX
	switch {
	case readOnly:
		flags, how = os.O_RDONLY, unix.LOCK_SH
	case isSnapshot(name):
		return nil, fmt.Errorf("image %s: %w, as all snapshots: clone it, and write to the clone", name, ErrReadOnly)
	case strings.HasSuffix(file, isoSuffix):
		return nil, fmt.Errorf("image %s: %w, as all CDs", name, ErrReadOnly)
	}
	f, err := p.root.OpenFile(file, flags|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	if !paused {
		if err := lock(f, how); err != nil {
			f.Close()
			return nil, fmt.Errorf("image %s: %w: stop the guest that uses it, or wait for the job that does", name, err)
		}
	}
	// Another file may have taken its name before the lock was ours.
	now, err := p.root.Lstat(file)
	mine, err2 := f.Stat()
	if err != nil || err2 != nil || !os.SameFile(now, mine) {
		f.Close()
		return nil, fmt.Errorf("image %s: %w: it is being deleted or replaced", name, ErrInUse)
	}
	return f, nil
}
