package manager

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
)

// span is a part of a file, in bytes.
type span struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// spanGap is the largest hole that is read along with what is on both sides of it, in bytes: to skip it would cost more.
const spanGap = 64 << 10

// pagePresent and pageSwapped are the bits of an entry of /proc/PID/pagemap which say that the process has the page
// (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
)

// residentSpans returns the parts of the file at path that process pid has mapped and used.
func residentSpans(pid int, path string) (spans []span, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer pages.Close()
	found := false
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		m, ok := parseMapping(lines.Text())
		if !ok || m.inode != st.Ino || filepath.Base(m.path) != filepath.Base(path) {
			continue
		}
		found = true
		if spans, err = m.used(pages, spans); err != nil {
			return nil, err
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("process %d has not mapped %s", pid, path)
	}
	return spans, nil
}

// mapping is a line of /proc/PID/maps (proc_pid_maps(5)): addresses, and where in a file they are.
type mapping struct {
	start, end uint64
	off        int64
	inode      uint64
	path       string
}

func parseMapping(line string) (m mapping, ok bool) {
	f := strings.Fields(line)
	if len(f) < 6 {
		return m, false
	}
	from, to, _ := strings.Cut(f[0], "-")
	var errs [4]error
	m.start, errs[0] = strconv.ParseUint(from, 16, 64)
	m.end, errs[1] = strconv.ParseUint(to, 16, 64)
	m.off, errs[2] = strconv.ParseInt(f[2], 16, 64)
	m.inode, errs[3] = strconv.ParseUint(f[4], 10, 64)
	m.path = f[5]
	return m, errors.Join(errs[:]...) == nil && m.start < m.end
}

// used adds to spans, which it returns, what of m the process has used, as pagemap says.
func (m *mapping) used(pagemap io.ReaderAt, spans []span) ([]span, error) {
	page := uint64(os.Getpagesize())
	b := make([]byte, 64<<10)
	for at := m.start; at < m.end; {
		n := min(uint64(len(b)), (m.end-at)/page*8)
		if _, err := pagemap.ReadAt(b[:n], int64(at/page*8)); err != nil {
			return nil, fmt.Errorf("pagemap: %w", err)
		}
		for i := uint64(0); i < n; i += 8 {
			if binary.LittleEndian.Uint64(b[i:])&(pagePresent|pageSwapped) == 0 {
				continue
			}
			off := m.off + int64(at-m.start+i/8*page)
			if k := len(spans) - 1; k >= 0 && off >= spans[k].Off && off <= spans[k].Off+spans[k].Len+spanGap {
				spans[k].Len = off + int64(page) - spans[k].Off
			} else {
				spans = append(spans, span{off, int64(page)})
			}
		}
		at += n / 8 * page
	}
	return spans, nil
}

// readAhead has the kernel read what a guest that came from the template in dir used first, beside what is done meanwhile.
func readAhead(ctx context.Context, dir string) error {
	spans, err := readJSON[[]span](filepath.Join(dir, workingSetName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, memoryName, snap.RAMName))
	if err != nil {
		return err
	}
	defer f.Close()
	for _, s := range spans {
		if ctx.Err() != nil {
			return nil
		}
		if err := unix.Fadvise(int(f.Fd()), s.Off, s.Len, unix.FADV_WILLNEED); err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}
