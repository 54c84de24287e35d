package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
)

const (
	blockSize = 4096     // what has only zeros of it becomes a hole
	copyStep  = 16 << 20 // bytes between two looks at the context
	guardStep = 32 << 20 // bytes between two looks at the free space
)

// CopyFile makes the file to with the content of the file from, as Clone does of images: for copies that are kept outside of
// pools. It refuses to take the last space of to's file system. If it fails, or ctx ends, it leaves no file. What it has copied
// is not on the disk yet: sync it.
func CopyFile(ctx context.Context, from, to string, opt CopyOptions, progress Progress) (err error) {
	open := OpenLocked
	if opt.Paused {
		open = openFile
	}
	src, err := open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	around := &Pool{path: filepath.Dir(to), dir: dst} // whose free space counts
	err = errors.Join(around.copyFile(ctx, dst, src, progress), dst.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("copy %s: %w", from, err), os.Remove(to))
	}
	return nil
}

// OpenLocked opens a disk outside of pools to be read, with the lock that keeps guests from writing to it.
func OpenLocked(path string) (*os.File, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	if err := lock(f, unix.LOCK_SH); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w: stop the guest that uses it, or wait for the job that does", path, err)
	}
	return f, nil
}

// openFile opens a file to be read, if it is a regular one.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file: only disks that are files can be copied", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyFile makes dst, which is empty, a copy of src: by reflink, or else what is allocated of it.
func (p *Pool) copyFile(ctx context.Context, dst, src *os.File, progress Progress) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	switch err := reflink(dst, src); {
	case err == nil:
		progress(st.Size(), st.Size())
		return nil
	case !errors.Is(err, errors.ErrUnsupported):
		return noSpace(err)
	}
	g := p.guard()
	if err := g.need(allocated(st)); err != nil {
		return err
	}
	return sparseCopy(ctx, dst, src, st.Size(), g.take, progress)
}

// reflink makes dst share all of src's blocks. errors.ErrUnsupported is where the file system cannot.
func reflink(dst, src *os.File) error {
	for {
		switch err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); {
		case err == unix.EINTR:
		case err == unix.EOPNOTSUPP || err == unix.EXDEV || err == unix.EINVAL || err == unix.ENOTTY || err == unix.ENOSYS:
			return errors.ErrUnsupported
		default:
			return err
		}
	}
}

// sparseCopy copies what is allocated of src's first size bytes; take is asked before. The kernel copies where it can.
func sparseCopy(ctx context.Context, dst, src *os.File, size int64, take func(int64) error, progress Progress) error {
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		begin, end, err := dataRegion(src, off)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		end = min(end, size)
		for off = begin; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			progress(off, size)
			n := min(copyStep, end-off)
			if err := take(n); err != nil {
				return err
			}
			if _, err := src.Seek(off, io.SeekStart); err != nil {
				return err
			}
			if _, err := dst.Seek(off, io.SeekStart); err != nil {
				return err
			}
			if _, err := io.CopyN(dst, src, n); err != nil {
				return noSpace(err)
			}
			off += n
		}
	}
	progress(size, size)
	return nil
}

// dataRegion returns the first region of f from off on that is allocated; io.EOF if there is none.
func dataRegion(f *os.File, off int64) (begin, end int64, err error) {
	begin, err = f.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, err
	}
	end, err = f.Seek(begin, unix.SEEK_HOLE)
	return begin, end, err
}

// source is an image as package format reads it. The position of f is used: it must be of this opening of the file only.
type source struct{ f *os.File }

func (s source) ReadAt(b []byte, off int64) (int, error) { return s.f.ReadAt(b, off) }

func (s source) Data(off int64) (begin, end int64, err error) { return dataRegion(s.f, off) }

// target is an image as package format writes it: with holes where there are only zeros.
type target struct {
	f   *os.File
	max int64
	g   *guard
}

var _ format.Target = (*target)(nil)

func (t *target) Resize(size int64) error {
	if size > t.max {
		return fmt.Errorf("%w: the disk has %d bytes: %d are the most", ErrSize, size, t.max)
	}
	return t.f.Truncate(size)
}

func (t *target) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off > t.max-int64(len(b)) {
		return 0, fmt.Errorf("%w: the disk has more than %d bytes", ErrSize, t.max)
	}
	for i := 0; i < len(b); {
		k := zeroPrefix(b[i:], off+int64(i))
		if i += k; i == len(b) {
			break
		}
		n := dataPrefix(b[i:], off+int64(i))
		if err := t.g.take(int64(n)); err != nil {
			return i, err
		}
		if _, err := t.f.WriteAt(b[i:i+n], off+int64(i)); err != nil {
			return i, noSpace(err)
		}
		i += n
	}
	return len(b), nil
}

// zeroPrefix returns how many bytes of b, which begins at off, are in blocks of zeros.
func zeroPrefix(b []byte, off int64) int {
	i := 0
	for i < len(b) {
		n := min(blockSize-int((off+int64(i))%blockSize), len(b)-i)
		if !isZero(b[i : i+n]) {
			break
		}
		i += n
	}
	return i
}

// dataPrefix returns how many are in blocks that have others.
func dataPrefix(b []byte, off int64) int {
	i := 0
	for i < len(b) {
		n := min(blockSize-int((off+int64(i))%blockSize), len(b)-i)
		if isZero(b[i : i+n]) {
			break
		}
		i += n
	}
	return i
}

var zeroBlock [blockSize]byte

func isZero(b []byte) bool { return string(b) == string(zeroBlock[:len(b)]) }

// guard keeps what is made from taking the space that the guests need.
type guard struct {
	p       *Pool
	written atomic.Int64 // since the last look
}

func (p *Pool) guard() *guard {
	g := &guard{p: p}
	g.written.Store(guardStep) // the first time is a look
	return g
}

// need returns an error if there is no space for n bytes.
func (g *guard) need(n int64) error {
	u, err := g.p.space()
	if err != nil {
		return err
	}
	if _, critical := g.p.thresholds(u); u.Free-n < critical {
		return fmt.Errorf("%w in %s: %d MiB are needed and %d MiB are to stay free, of %d MiB: delete images or snapshots",
			ErrNoSpace, g.p.path, n>>20, critical>>20, u.Free>>20)
	}
	return nil
}

// take says that n bytes will be written.
func (g *guard) take(n int64) error {
	if g.written.Add(n) < guardStep {
		return nil
	}
	g.written.Store(0)
	return g.need(n)
}

// noSpace makes ENOSPC an ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
