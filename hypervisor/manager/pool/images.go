package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Progress is told how many bytes of how many are done; total is 0 if that is not known. It is called often.
type Progress func(done, total int64)

// CopyOptions say how an image is copied.
type CopyOptions struct {
	// Paused says that the guest that uses the source writes nothing until the copy is made. Without it a source that a
	// guest writes to is refused.
	Paused bool
}

func (p *Pool) checkSize(size int64) error {
	if size <= 0 || size%SizeUnit != 0 || size > p.opt.MaxSize {
		return fmt.Errorf("%w: %d bytes: give a multiple of %d up to %d", ErrSize, size, SizeUnit, p.opt.MaxSize)
	}
	return nil
}

// Create makes an image of size bytes of zeros, which take no space.
func (p *Pool) Create(name string, size int64) (Image, error) {
	if isSnapshot(name) {
		return Image{}, fmt.Errorf("%w: %s would be a snapshot: use Snapshot", ErrName, name)
	}
	if err := p.checkSize(size); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	s, err := p.stage(name)
	if err != nil {
		return Image{}, err
	}
	defer s.discard()
	if err := s.f.Truncate(size); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	if err := p.publish(s); err != nil {
		return Image{}, err
	}
	return p.Get(name)
}

// Grow makes an image larger, also while a guest uses it: the guest sees that when its disk is told. It refuses to make it
// smaller, which would cut off data.
func (p *Pool) Grow(name string, size int64) error {
	f, err := p.open(name, false, true)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil {
		err = p.checkSize(size)
	}
	if err == nil && size < st.Size() {
		err = fmt.Errorf("%w: it has %d bytes and can only grow", ErrSize, st.Size())
	}
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	return nil
}

// Delete removes an image. Its snapshots stay: they need nothing of it.
func (p *Pool) Delete(name string) error {
	file, err := p.fileOf(name)
	if err != nil {
		return err
	}
	f, err := p.root.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	defer f.Close()
	if err := lock(f, unix.LOCK_EX); err != nil {
		return fmt.Errorf("image %s: %w: stop the guest that uses it, or wait for the job that does", name, err)
	}
	if err := p.root.Remove(file); err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	if err := p.root.Remove(file + metaSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s: %w", name, err)
	}
	return p.dir.Sync()
}

// Clone makes an image dst with the content of src, which may be a snapshot. On a file system with reflinks (btrfs, XFS) it
// takes no time and no space; elsewhere what src has allocated is copied.
func (p *Pool) Clone(ctx context.Context, src, dst string, opt CopyOptions, progress Progress) (Image, error) {
	if isSnapshot(dst) {
		return Image{}, fmt.Errorf("%w: %s would be a snapshot: use Snapshot", ErrName, dst)
	}
	return p.clone(ctx, src, dst, opt, progress)
}

// Snapshot makes a read-only copy of an image, called NAME@SNAPSHOT, at the same cost as Clone.
func (p *Pool) Snapshot(ctx context.Context, name, snapshot string, opt CopyOptions, progress Progress) (Image, error) {
	if isSnapshot(name) {
		return Image{}, fmt.Errorf("%w: %s is a snapshot: clone it, and take one of the clone", ErrName, name)
	}
	return p.clone(ctx, name, name+"@"+snapshot, opt, progress)
}

func (p *Pool) clone(ctx context.Context, src, dst string, opt CopyOptions, progress Progress) (Image, error) {
	from, err := p.open(src, true, opt.Paused)
	if err != nil {
		return Image{}, err
	}
	defer from.Close()
	s, err := p.stage(dst)
	if err != nil {
		return Image{}, err
	}
	defer s.discard()
	s.meta.Parent = src
	s.iso = strings.HasSuffix(from.Name(), isoSuffix)
	if err := p.copyFile(ctx, s.f, from, progress); err != nil {
		return Image{}, fmt.Errorf("copy image %s to %s: %w", src, dst, err)
	}
	if err := p.publish(s); err != nil {
		return Image{}, err
	}
	return p.Get(dst)
}

// Revert gives an image the content of one of its snapshots, at the cost of a Clone. No guest may use it. What it held is
// lost when Revert returns, and not before.
func (p *Pool) Revert(ctx context.Context, name, snapshot string, progress Progress) error {
	old, err := p.open(name, false, false)
	if err != nil {
		return err
	}
	defer old.Close()
	from, err := p.open(name+"@"+snapshot, true, false)
	if err != nil {
		return err
	}
	defer from.Close()
	f, tmp, err := p.temporary()
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	defer f.Close()
	if err = p.copyFile(ctx, f, from, progress); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = p.root.Rename(tmp, name+rawSuffix)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("image %s: revert to %s: %w", name, snapshot, err), p.root.Remove(tmp))
	}
	return p.dir.Sync()
}

// Disposable opens a copy of an image that has no name: it is gone when it is closed, whatever happens, and all that was
// written to it. Its making costs what a Clone does: without reflinks, time and space for what the image has allocated.
func (p *Pool) Disposable(ctx context.Context, name string, opt CopyOptions, progress Progress) (*os.File, error) {
	from, err := p.open(name, true, opt.Paused)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	f, err := p.unnamed()
	if err == nil {
		if err = lock(f, unix.LOCK_EX); err == nil {
			err = p.copyFile(ctx, f, from, progress)
		}
		if err != nil {
			f.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("disposable copy of image %s: %w", name, err)
	}
	return f, nil
}

// unnamed makes an empty file that is gone when it is closed.
func (p *Pool) unnamed() (*os.File, error) {
	f, tmp, err := p.temporary()
	if err != nil {
		return nil, err
	}
	if err := p.root.Remove(tmp); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
