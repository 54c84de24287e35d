package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// Image is a file that goes into guest memory. No more of it than headers is held in memory beside the guest's.
type Image struct {
	Name string      // what errors call it: a path
	R    io.ReaderAt // not closed by this package
	Size int64       // in bytes
}

// FileImage returns f as an Image. f must stay open until Load has returned.
func FileImage(f *os.File) (Image, error) {
	st, err := f.Stat()
	if err != nil {
		return Image{}, err
	}
	if !st.Mode().IsRegular() {
		return Image{}, fmt.Errorf("%s: not a regular file", f.Name())
	}
	return Image{Name: f.Name(), R: f, Size: st.Size()}, nil
}

// BytesImage returns b as an Image. b must not change until Load has returned.
func BytesImage(name string, b []byte) Image {
	return Image{Name: name, R: bytes.NewReader(b), Size: int64(len(b))}
}

// size returns Size as the unsigned number that offsets are compared with.
func (img Image) size() uint64 { return uint64(max(img.Size, 0)) }

// contains reports whether the n bytes at off lie in the file.
func (img Image) contains(off, n uint64) bool {
	return off <= img.size() && n <= img.size()-off
}

// read fills p from off.
func (img Image) read(p []byte, off uint64) error {
	if !img.contains(off, uint64(len(p))) || off > math.MaxInt64 {
		return img.errorf("%d bytes at offset %#x end after the file's %d bytes: the file is cut short or damaged", len(p), off, img.size())
	}
	n, err := img.R.ReadAt(p, int64(off))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return img.errorf("read %d bytes at offset %#x: %w", len(p), off, err)
}

// head returns the first n bytes, or the whole file where it is shorter.
func (img Image) head(n int) ([]byte, error) {
	b := make([]byte, min(uint64(n), img.size()))
	return b, img.read(b, 0)
}

func (img Image) errorf(format string, a ...any) error {
	return fmt.Errorf("%s: "+format, append([]any{img.Name}, a...)...)
}
