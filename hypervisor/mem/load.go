package mem

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Load returns the memory that f, a RAM file of snapshot id, holds, in a memfd as from Alloc, all of it read. The file is
// closed then. want and the errors are as with MapPrivate.
func Load(f *os.File, id [16]byte, want []Range) (*Memory, error) {
	h, err := openImage(f, id, want)
	if err != nil {
		return nil, err
	}
	m, err := Alloc(h.ranges, AllocOptions{Huge: true})
	if err != nil {
		return nil, err
	}
	if err := readImage(f, m.backing.(*memfd).image); err != nil {
		return nil, errors.Join(fmt.Errorf("RAM file %s: %w", f.Name(), err), m.Close())
	}
	if err := f.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("RAM file: %w", err), m.Close())
	}
	return m, nil
}

// readImage reads the image of f, less its holes, into image, which is all zeros.
func readImage(f *os.File, image []byte) error {
	size := int64(len(image))
	for off := int64(0); off < size; {
		start, end, err := nextData(f, PageSize+off, PageSize+size)
		if err != nil {
			return err
		}
		start, end = start-PageSize, end-PageSize
		if _, err := f.ReadAt(image[start:end], PageSize+start); err == io.EOF {
			return ErrTruncated
		} else if err != nil {
			return err
		}
		off = end
	}
	return nil
}
