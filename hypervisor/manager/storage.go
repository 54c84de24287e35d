package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Storage copies disks: for disposable guests, which write to a copy, and for snapshots.
type Storage interface {
	// Copy makes the file to with the content of the disk from, which no guest writes to meanwhile; holes stay holes. It is on
	// the disk when Copy returns. If Copy fails, or ctx ends, it leaves no file. progress gets bytes.
	Copy(ctx context.Context, from, to string, progress func(done, total int64)) error
}

// Files is the Storage of disks that are plain files: a clone where the file system can share blocks (btrfs, XFS), else a copy.
type Files struct{}

// copyChunk is how much is copied between two looks at the context, in bytes.
const copyChunk = 8 << 20

// Copy implements Storage.
func (Files) Copy(ctx context.Context, from, to string, progress func(done, total int64)) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no file: only disks that are files can be copied", from)
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(to))
		}
	}()
	defer dst.Close()
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		if err := copySparse(ctx, dst, src, st.Size(), progress); err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
	}
	progress(st.Size(), st.Size())
	return dst.Sync()
}

// copySparse copies what is allocated of src.
func copySparse(ctx context.Context, dst, src *os.File, size int64, progress func(done, total int64)) error {
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(src.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // none is left
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for off = data; off < end; {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n := min(copyChunk, end-off)
			if _, err := src.Seek(off, io.SeekStart); err != nil {
				return err
			}
			if _, err := dst.Seek(off, io.SeekStart); err != nil {
				return err
			}
			if _, err := io.CopyN(dst, src, n); err != nil { // copy_file_range(2)
				return err
			}
			off += n
			progress(off, size)
		}
	}
	return nil
}
