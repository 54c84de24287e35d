package mem

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pageMap tells which pages of private memory are there: /proc/self/pagemap, opened when it is first needed.
type pageMap struct {
	file    *os.File
	missing bool // no /proc in this jail: everything has to be looked at
}

// open reports whether written can be asked.
func (m *pageMap) open() bool {
	if m.file == nil && !m.missing {
		var err error
		m.file, err = os.Open("/proc/self/pagemap")
		m.missing = err != nil
	}
	return !m.missing
}

func (m *pageMap) close() error {
	if m.file == nil {
		return nil
	}
	return m.file.Close()
}

// Bits of a page's entry in /proc/self/pagemap: Documentation/admin-guide/mm/pagemap.rst.
const (
	pageFileOrShared = 1 << 61
	pageSwapped      = 1 << 62
	pagePresent      = 1 << 63
)

// written returns the first run of pages of p in [off, limit) that are this process's own, or limit twice.
func (m *pageMap) written(p []byte, off, limit int64) (start, end int64, err error) {
	var buf [64 << 10]byte
	start = limit
	for at := off; at < limit; {
		n := min(int64(len(buf)), (limit-at)/PageSize*8)
		if _, err := m.file.ReadAt(buf[:n], int64(address(p[at:])/PageSize*8)); err != nil {
			return 0, 0, fmt.Errorf("find changed guest memory: %w", err)
		}
		for i := int64(0); i < n; i, at = i+8, at+PageSize {
			e := binary.LittleEndian.Uint64(buf[i:])
			own := e&(pagePresent|pageSwapped) != 0 && e&pageFileOrShared == 0
			if own && start == limit {
				start = at
			} else if !own && start < limit {
				return start, at, nil
			}
		}
	}
	return start, limit, nil
}

// discardPrivate drops this process's own copies of p's pages.
func discardPrivate(p []byte) error {
	if err := unix.Madvise(p, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("discard guest memory: %w", err)
	}
	return nil
}
