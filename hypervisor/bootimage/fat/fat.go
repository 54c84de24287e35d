// Package fat reads FAT32 file systems as firmware does, and mends what a power cut has left of one: Microsoft's FAT32 File System
// Specification 1.03. Files are written by a library.
package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// Sector is the size of a sector, bytes; others are refused.
const Sector = 512

const (
	entryMask    = 0x0fffffff
	entryFree    = 0
	entryBad     = 0x0ffffff7
	entryEnd     = 0x0fffffff // and the seven below it
	firstCluster = 2          // the first cluster

	direntSize      = 32
	direntAttrAt    = 11
	direntHighAt    = 20
	direntLowAt     = 26
	direntSizeAt    = 28
	direntLabel     = 0x08 // attributes; a part of a long name has this set too
	direntDirectory = 0x10
	direntDeleted   = 0xe5

	// maxDepth bounds how deep directories are.
	maxDepth = 16
)

// Disk is what a file system is on.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns when all that was written is on the disk.
	Sync() error
}

// FS is a FAT32 file system, by its first table. It is good for one call of a method that goes through it.
type FS struct {
	// Table and Data are where the first table and the first cluster begin, bytes from the file system's start.
	Table, Data int64

	disk        io.ReaderAt
	start       int64 // of the file system on the disk, bytes
	copies      int64 // distance of a table to the next
	clusterSize int64
	tables      int
	root        uint32
	entries     []uint32 // of the table, by cluster
	used        []bool   // by cluster
	onEntry     func(at int64, e []byte) error
}

// ErrNotFAT says that there is no FAT32 file system.
var ErrNotFAT = errors.New("no FAT32 file system, or it is damaged: run fsck.fat")

// Read reads the file system that is on a disk at start and has size bytes at most.
func Read(d io.ReaderAt, start, size int64) (*FS, error) {
	var b [Sector]byte
	if _, err := d.ReadAt(b[:], start); err != nil {
		return nil, fmt.Errorf("file system: %w", err)
	}
	le := binary.LittleEndian
	perCluster, reserved := int64(b[13]), int64(le.Uint16(b[14:]))
	f := &FS{disk: d, start: start, tables: int(b[16]), root: le.Uint32(b[44:])}
	total, perTable := int64(le.Uint32(b[32:])), int64(le.Uint32(b[36:]))
	if b[510] != 0x55 || b[511] != 0xaa || le.Uint16(b[11:]) != Sector || perCluster == 0 || perCluster&(perCluster-1) != 0 ||
		reserved == 0 || f.tables < 1 || f.tables > 2 || perTable == 0 || total*Sector > size {
		return nil, ErrNotFAT
	}
	f.clusterSize = perCluster * Sector
	f.Table, f.copies = reserved*Sector, perTable*Sector
	f.Data = f.Table + int64(f.tables)*f.copies
	clusters := (total*Sector - f.Data) / f.clusterSize
	if clusters <= 0 || (clusters+firstCluster)*4 > f.copies || f.root < firstCluster || int64(f.root) >= clusters+firstCluster {
		return nil, ErrNotFAT
	}
	raw := make([]byte, (clusters+firstCluster)*4) // at most a 128th of the disk
	if _, err := d.ReadAt(raw, start+f.Table); err != nil {
		return nil, fmt.Errorf("file system: %w", err)
	}
	f.entries, f.used = make([]uint32, len(raw)/4), make([]bool, len(raw)/4)
	for i := range f.entries {
		f.entries[i] = le.Uint32(raw[4*i:]) & entryMask
	}
	return f, nil
}

// chain returns the clusters of a file or directory, and marks them used. One that is cut is ended where it is cut.
func (f *FS) chain(first uint32) ([]uint32, error) {
	if first < firstCluster || int(first) >= len(f.entries) {
		return nil, nil
	}
	if f.entries[first] == entryFree { // the directory was written before the table
		f.entries[first] = entryEnd
	}
	var list []uint32
	for c := first; ; {
		if f.used[c] {
			return nil, fmt.Errorf("%w: two files have cluster %d", ErrNotFAT, c)
		}
		f.used[c] = true
		list = append(list, c)
		next := f.entries[c]
		if next > entryBad {
			return list, nil
		}
		if next < firstCluster || int(next) >= len(f.entries) || f.entries[next] == entryFree {
			f.entries[c] = entryEnd
			return list, nil
		}
		c = next
	}
}

func (f *FS) offset(cluster uint32) int64 {
	return f.start + f.Data + int64(cluster-firstCluster)*f.clusterSize
}

// Walk calls do for each file with its path and content's clusters, and marks what is used.
func (f *FS) Walk(do func(path string, size int64, clusters []uint32) error) error {
	return f.walkDir("", f.root, 0, do)
}

func (f *FS) walkDir(dir string, first uint32, depth int, do func(string, int64, []uint32) error) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: directories are more than %d deep", ErrNotFAT, maxDepth)
	}
	clusters, err := f.chain(first)
	if err != nil {
		return err
	}
	var long string
	for _, c := range clusters {
		b := make([]byte, f.clusterSize)
		if _, err := f.disk.ReadAt(b, f.offset(c)); err != nil {
			return err
		}
		for i := 0; i < len(b); i += direntSize {
			e := b[i : i+direntSize]
			if e[0] == 0 {
				return nil
			}
			if e[0] == direntDeleted {
				continue
			}
			attr := e[direntAttrAt]
			if attr&0x3f == 0x0f {
				long = longPart(e) + long
				continue
			}
			name := long
			long = ""
			if f.onEntry != nil {
				if err := f.onEntry(f.offset(c)+int64(i), e); err != nil {
					return err
				}
			}
			if attr&direntLabel != 0 || e[0] == '.' {
				continue
			}
			if name == "" {
				name = strings.TrimSuffix(strings.TrimRight(string(e[:8]), " ")+"."+strings.TrimRight(string(e[8:11]), " "), ".")
			}
			le := binary.LittleEndian
			first := uint32(le.Uint16(e[direntHighAt:]))<<16 | uint32(le.Uint16(e[direntLowAt:]))
			if attr&direntDirectory != 0 {
				err = f.walkDir(dir+name+"/", first, depth+1, do)
			} else {
				var content []uint32
				if content, err = f.chain(first); err == nil && do != nil {
					err = do(dir+name, int64(le.Uint32(e[direntSizeAt:])), content)
				}
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// longPart returns the characters of a long name that an entry has.
func longPart(e []byte) string {
	var s strings.Builder
	for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for i := r[0]; i < r[1]; i += 2 {
			u := binary.LittleEndian.Uint16(e[i:])
			if u == 0 || u == 0xffff {
				return s.String()
			}
			s.WriteRune(rune(u))
		}
	}
	return s.String()
}

// Mend frees clusters that no file has, ends chains that were cut, and makes the second table as the first, as far as needed. To be
// cut itself does no harm.
func Mend(d Disk, start, size int64) error {
	f, err := Read(d, start, size)
	if err != nil {
		return err
	}
	if err := f.Walk(nil); err != nil {
		return err
	}
	for c := firstCluster; c < len(f.entries); c++ {
		if !f.used[c] && f.entries[c] != entryBad {
			f.entries[c] = entryFree
		}
	}
	want := make([]byte, (len(f.entries)*4+Sector-1)/Sector*Sector)
	for c, e := range f.entries {
		binary.LittleEndian.PutUint32(want[4*c:], e)
	}
	for t := range int64(f.tables) {
		at := start + f.Table + t*f.copies
		have := make([]byte, len(want))
		if _, err := d.ReadAt(have, at); err != nil {
			return err
		}
		copy(want[len(f.entries)*4:], have[len(f.entries)*4:]) // entries of no cluster
		changed := false
		for i := 0; i < len(want); i += Sector {
			if s := want[i : i+Sector]; !bytes.Equal(s, have[i:i+Sector]) {
				if _, err := d.WriteAt(s, at+int64(i)); err != nil {
					return err
				}
				changed = true
			}
		}
		if changed {
			if err := d.Sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Finish makes a new file system the same each time: all files and directories get one time, the first that FAT has, 1980-01-01. And
// what lies in the root directory says so by 0 for its cluster, which the library does not know.
func Finish(d Disk, start, size int64) error {
	f, err := Read(d, start, size)
	if err != nil {
		return err
	}
	f.onEntry = func(at int64, e []byte) error {
		const firstDate = 1<<5 | 1
		for _, date := range []int{16, 18, 24} { // made, read, written
			binary.LittleEndian.PutUint16(e[date:], firstDate)
		}
		clear(e[13:16])
		clear(e[22:24])
		if le := binary.LittleEndian; string(e[:2]) == ".." && uint32(le.Uint16(e[direntLowAt:])) == f.root {
			clear(e[direntLowAt : direntLowAt+2])
		}
		_, err := d.WriteAt(e, at)
		return err
	}
	return f.Walk(nil)
}

// Extent is a piece of a disk, bytes.
type Extent struct{ Offset, Size int64 }

// Extents returns where the content of the file at a path is, in its order; fs.ErrNotExist if there is none.
func (f *FS) Extents(name string) (list []Extent, err error) {
	found := false
	err = f.Walk(func(path string, size int64, clusters []uint32) error {
		if path != name {
			return nil
		}
		found = true
		if size > int64(len(clusters))*f.clusterSize {
			return fmt.Errorf("%s: %d bytes in %d clusters: its writing was cut", name, size, len(clusters))
		}
		for _, c := range clusters {
			n := min(size, f.clusterSize)
			if n == 0 {
				break
			}
			size -= n
			if k := len(list) - 1; k >= 0 && list[k].Offset+list[k].Size == f.offset(c) {
				list[k].Size += n
			} else {
				list = append(list, Extent{f.offset(c), n})
			}
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return list, err
}

// ReadFile returns the content of the file at a path, such as "EFI/BOOT/BOOTX64.EFI"; fs.ErrNotExist if there is none.
func (f *FS) ReadFile(name string) ([]byte, error) {
	list, err := f.Extents(name)
	if err != nil {
		return nil, err
	}
	var b []byte
	for _, e := range list {
		piece := make([]byte, e.Size)
		if _, err := f.disk.ReadAt(piece, e.Offset); err != nil {
			return nil, err
		}
		b = append(b, piece...)
	}
	return b, nil
}
