package snap

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A state file is, all integers little-endian:
//
//	0    8   magic
//	8    4   format version
//	12   4   number of sections
//	16   8   size of the file in bytes
//	24   8   when it was saved, in nanoseconds since 1970
//	32   16  snapshot id, the same as in the RAM file beside it
//	48   16  machine id
//	64   60  version of the program that wrote it, padded with zeros
//	124  4   CRC-32C of all before
//
// then for each section
//
//	0    1   length of its id, at least 1
//	1    n   id
//	     2   version of its content
//	     4   length of its content
//	     m   content
//	     4   CRC-32C of the section so far
//
// and at the end
//
//	0    1   zero, where a section has the length of its id
//	1    4   number of sections
//	5    4   CRC-32C of the whole file so far
const (
	magic         = "LODGESTA"
	formatVersion = 1
	headerSize    = 128
	headerSum     = headerSize - 4
	writerOff     = 64
	endSize       = 9
	sectionExtra  = 1 + 2 + 4 + 4 // a section's bytes apart from id and content
	maxFile       = 64 << 20      // bytes: a machine's state is some 60 KB
)

var (
	// ErrForeign reports a file that is not a state file.
	ErrForeign = errors.New("not a saved state: name the directory of a saved machine")
	// ErrNewer reports a state that this version of the program cannot know.
	ErrNewer = errors.New("written by a newer version of lodge: update lodge to use it")
	// ErrTruncated reports a state file that is shorter than it says.
	ErrTruncated = errors.New("cut short: restore another snapshot or start the guest afresh")
	// ErrDamaged reports a state file whose content is not what was written.
	ErrDamaged = errors.New("damaged: restore another snapshot or start the guest afresh")
)

// ID identifies a snapshot or a machine.
type ID [16]byte

// NewID returns a random ID.
func NewID() (id ID) {
	rand.Read(id[:])
	return id
}

// String returns the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Section is the state of one component.
type Section struct {
	ID      string // 1 to 255 bytes, unique in its file
	Version uint16 // of Data's form
	Data    []byte
}

// File is a state file's content.
type File struct {
	Snapshot ID        // what the RAM file beside it must also carry
	Machine  ID        // whose state it is
	Created  time.Time // to the nanosecond; the location is not kept
	Writer   string    // version of the program that saved it, at most 60 bytes, for people to read
	Sections []Section
}

// Section returns the section of the given id.
func (f *File) Section(id string) (Section, bool) {
	for _, s := range f.Sections {
		if s.ID == id {
			return s, true
		}
	}
	return Section{}, false
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Encode returns f in the form of a state file.
func (f *File) Encode() ([]byte, error) {
	if len(f.Writer) > headerSum-writerOff || bytes.IndexByte([]byte(f.Writer), 0) >= 0 {
		return nil, fmt.Errorf("saved state: writer %q: longer than %d bytes, or with a zero in it", f.Writer, headerSum-writerOff)
	}
	size := headerSize + endSize
	seen := make(map[string]bool, len(f.Sections))
	for _, s := range f.Sections {
		if len(s.ID) == 0 || len(s.ID) > 255 || seen[s.ID] {
			return nil, fmt.Errorf("saved state: section %q: id is empty, too long or not unique", s.ID)
		}
		seen[s.ID] = true
		if size += sectionExtra + len(s.ID) + len(s.Data); size > maxFile || len(s.Data) > maxFile {
			return nil, fmt.Errorf("saved state: section %q: the file would exceed %d MiB", s.ID, maxFile>>20)
		}
	}
	le := binary.LittleEndian
	b := make([]byte, 0, size)
	b = append(b, magic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, uint32(len(f.Sections)))
	b = le.AppendUint64(b, uint64(size))
	b = le.AppendUint64(b, uint64(f.Created.UnixNano()))
	b = append(b, f.Snapshot[:]...)
	b = append(b, f.Machine[:]...)
	b = append(b, f.Writer...)
	b = b[:headerSum]
	b = le.AppendUint32(b, checksum(b))
	for _, s := range f.Sections {
		from := len(b)
		b = append(b, byte(len(s.ID)))
		b = append(b, s.ID...)
		b = le.AppendUint16(b, s.Version)
		b = le.AppendUint32(b, uint32(len(s.Data)))
		b = append(b, s.Data...)
		b = le.AppendUint32(b, checksum(b[from:]))
	}
	b = append(b, 0)
	b = le.AppendUint32(b, uint32(len(f.Sections)))
	return le.AppendUint32(b, checksum(b)), nil
}

// Decode reads a whole state file. It returns nothing unless everything is right; the sections alias b. The errors are
// ErrForeign, ErrNewer, ErrTruncated and ErrDamaged.
func Decode(b []byte) (*File, error) {
	le := binary.LittleEndian
	if n := min(len(b), len(magic)); string(b[:n]) != magic[:n] {
		return nil, ErrForeign
	}
	if len(b) < headerSize {
		return nil, ErrTruncated
	}
	if v := le.Uint32(b[8:]); v > formatVersion {
		return nil, fmt.Errorf("format %d: %w", v, ErrNewer)
	}
	writer := bytes.TrimRight(b[writerOff:headerSum], "\x00")
	if checksum(b[:headerSum]) != le.Uint32(b[headerSum:]) || le.Uint32(b[8:]) == 0 || bytes.IndexByte(writer, 0) >= 0 {
		return nil, fmt.Errorf("header: %w", ErrDamaged)
	}
	switch size := le.Uint64(b[16:]); {
	case uint64(len(b)) < size:
		return nil, fmt.Errorf("%d bytes of %d: %w", len(b), size, ErrTruncated)
	case uint64(len(b)) > size || size < headerSize+endSize:
		return nil, fmt.Errorf("%d bytes instead of %d: %w", len(b), size, ErrDamaged)
	}
	count := le.Uint32(b[12:])
	body, end := b[headerSize:len(b)-endSize], b[len(b)-endSize:]
	if uint64(count)*(sectionExtra+1) > uint64(len(body)) {
		return nil, fmt.Errorf("header: %w", ErrDamaged)
	}
	f := &File{
		Snapshot: ID(b[32:]),
		Machine:  ID(b[48:]),
		Created:  time.Unix(0, int64(le.Uint64(b[24:]))),
		Writer:   string(writer),
		Sections: make([]Section, 0, count),
	}
	seen := make(map[string]bool, count)
	for range count {
		s, rest, ok := cutSection(body)
		if !ok || seen[s.ID] {
			if s.ID == "" {
				s.ID = fmt.Sprint("number ", len(f.Sections)+1)
			}
			return nil, fmt.Errorf("section %s: %w", s.ID, ErrDamaged)
		}
		seen[s.ID] = true
		f.Sections = append(f.Sections, s)
		body = rest
	}
	if len(body) != 0 || end[0] != 0 || le.Uint32(end[1:]) != count || le.Uint32(end[5:]) != checksum(b[:len(b)-4]) {
		return nil, fmt.Errorf("end mark: %w", ErrDamaged)
	}
	return f, nil
}

// cutSection splits the first section off b. When it is damaged, ok is false and s.ID what the id seems to be.
func cutSection(b []byte) (s Section, rest []byte, ok bool) {
	le := binary.LittleEndian
	if len(b) < sectionExtra || b[0] == 0 || len(b) < sectionExtra+int(b[0]) {
		return s, nil, false
	}
	n := 1 + int(b[0])
	s = Section{ID: string(b[1:n]), Version: le.Uint16(b[n:])}
	size := uint64(le.Uint32(b[n+2:]))
	n += 6
	if size > uint64(len(b)-n-4) {
		return Section{ID: fmt.Sprintf("%q", s.ID)}, nil, false
	}
	m := n + int(size)
	s.Data = b[n:m:m]
	if checksum(b[:m]) != le.Uint32(b[m:]) {
		return Section{ID: fmt.Sprintf("%q", s.ID)}, nil, false
	}
	return s, b[m+4:], true
}

// Read reads the state file at path. Its errors are Decode's, with the file's name.
func Read(path string) (*File, error) {
	// Not to hang on a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("saved state: %w", err)
	}
	defer f.Close()
	return ReadFrom(f)
}

// ReadFrom is Read for a file that is open already. It stays the caller's.
func ReadFrom(f *os.File) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("saved state: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, fmt.Errorf("saved state %s: not a regular file of at most %d MiB: %w", f.Name(), maxFile>>20, ErrForeign)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("saved state %s: %w", f.Name(), err)
	}
	s, err := Decode(b)
	if err != nil {
		return nil, fmt.Errorf("saved state %s: %w", f.Name(), err)
	}
	return s, nil
}

// WriteFile writes the state to an open file, which must be empty, and syncs it. It stays the caller's.
func (f *File) WriteFile(w *os.File) error {
	b, err := f.Encode()
	if err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("saved state: %w", err)
	}
	if err := w.Sync(); err != nil {
		return fmt.Errorf("saved state: %w", err)
	}
	return nil
}

// Write writes the state file at path, replacing what is there only once the new file is whole and on disk.
func (f *File) Write(path string) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("saved state: %w", err)
	}
	err = f.WriteFile(tmp)
	if e := tmp.Close(); err == nil && e != nil {
		err = fmt.Errorf("saved state: %w", e)
	}
	if err == nil {
		if e := os.Rename(tmp.Name(), path); e != nil {
			err = fmt.Errorf("saved state: %w", e)
		}
	}
	if err != nil {
		os.Remove(tmp.Name())
		return err
	}
	return syncPath(dir)
}

// syncPath syncs a file or a directory to disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("saved state: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("saved state: %w", err)
	}
	return nil
}
