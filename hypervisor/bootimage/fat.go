package bootimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// FAT32: Microsoft's FAT32 File System Specification 1.03. Files are written by the library; this reads what a power cut may have
// left, as firmware does (by the first table alone), and mends it.
const (
	fatSector = 512

	fatEntryMask = 0x0fffffff
	fatFree      = 0
	fatBad       = 0x0ffffff7
	fatEnd       = 0x0fffffff // and the seven below it
	fatFirst     = 2          // the first cluster

	direntSize      = 32
	direntAttrAt    = 11
	direntHighAt    = 20
	direntLowAt     = 26
	direntSizeAt    = 28
	direntLabel     = 0x08 // attributes; a part of a long name has this set too
	direntDirectory = 0x10
	direntDeleted   = 0xe5

	// maxFATDepth bounds how deep directories are.
	maxFATDepth = 16
)

// Disk is what a file system is on.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns when all that was written is on the disk.
	Sync() error
}

// fat is a FAT32 file system's first table.
type fat struct {
	disk          Disk
	start         int64 // of the file system on the disk, bytes
	table, copies int64 // begin of the tables, bytes from start; distance of each to the next
	data          int64 // begin of the first cluster
	clusterSize   int64
	tables        int
	root          uint32
	entries       []uint32 // of the table, by cluster
	used          []bool   // by cluster
	onEntry       func(at int64, e []byte) error
}

// errNotFAT says that there is no FAT32 file system.
var errNotFAT = errors.New("no FAT32 file system, or it is damaged: run fsck.fat")

func readFAT(d Disk, start, size int64) (*fat, error) {
	var b [fatSector]byte
	if _, err := d.ReadAt(b[:], start); err != nil {
		return nil, fmt.Errorf("file system: %w", err)
	}
	le := binary.LittleEndian
	perCluster, reserved := int64(b[13]), int64(le.Uint16(b[14:]))
	f := &fat{disk: d, start: start, tables: int(b[16]), root: le.Uint32(b[44:])}
	total, perTable := int64(le.Uint32(b[32:])), int64(le.Uint32(b[36:]))
	if b[510] != 0x55 || b[511] != 0xaa || le.Uint16(b[11:]) != fatSector || perCluster == 0 || perCluster&(perCluster-1) != 0 ||
		reserved == 0 || f.tables < 1 || f.tables > 2 || perTable == 0 || total*fatSector > size {
		return nil, errNotFAT
	}
	f.clusterSize = perCluster * fatSector
	f.table, f.copies = reserved*fatSector, perTable*fatSector
	f.data = f.table + int64(f.tables)*f.copies
	clusters := (total*fatSector - f.data) / f.clusterSize
	if clusters <= 0 || (clusters+fatFirst)*4 > f.copies || f.root < fatFirst || int64(f.root) >= clusters+fatFirst {
		return nil, errNotFAT
	}
	raw := make([]byte, (clusters+fatFirst)*4) // at most a 128th of the disk
	if _, err := d.ReadAt(raw, start+f.table); err != nil {
		return nil, fmt.Errorf("file system: %w", err)
	}
	f.entries, f.used = make([]uint32, len(raw)/4), make([]bool, len(raw)/4)
	for i := range f.entries {
		f.entries[i] = le.Uint32(raw[4*i:]) & fatEntryMask
	}
	return f, nil
}

// chain returns the clusters of a file or directory, and marks them used. One that is cut is ended where it is cut.
func (f *fat) chain(first uint32) ([]uint32, error) {
	if first < fatFirst || int(first) >= len(f.entries) {
		return nil, nil
	}
	if f.entries[first] == fatFree { // the directory was written before the table
		f.entries[first] = fatEnd
	}
	var list []uint32
	for c := first; ; {
		if f.used[c] {
			return nil, fmt.Errorf("%w: two files have cluster %d", errNotFAT, c)
		}
		f.used[c] = true
		list = append(list, c)
		next := f.entries[c]
		if next > fatBad {
			return list, nil
		}
		if next < fatFirst || int(next) >= len(f.entries) || f.entries[next] == fatFree {
			f.entries[c] = fatEnd
			return list, nil
		}
		c = next
	}
}

func (f *fat) offset(cluster uint32) int64 {
	return f.start + f.data + int64(cluster-fatFirst)*f.clusterSize
}

// walk calls do for each file with its path and content's clusters, and marks what is used.
func (f *fat) walk(do func(path string, size int64, clusters []uint32) error) error {
	return f.walkDir("", f.root, 0, do)
}

func (f *fat) walkDir(dir string, first uint32, depth int, do func(string, int64, []uint32) error) error {
	if depth > maxFATDepth {
		return fmt.Errorf("%w: directories are more than %d deep", errNotFAT, maxFATDepth)
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

// mend frees clusters that no file has, ends chains that were cut, and makes the second table as the first, as far as needed. To be
// cut itself does no harm.
func mend(d Disk, start, size int64) error {
	f, err := readFAT(d, start, size)
	if err != nil {
		return err
	}
	if err := f.walk(nil); err != nil {
		return err
	}
	for c := fatFirst; c < len(f.entries); c++ {
		if !f.used[c] && f.entries[c] != fatBad {
			f.entries[c] = fatFree
		}
	}
	want := make([]byte, alignUp(len(f.entries)*4, fatSector))
	for c, e := range f.entries {
		binary.LittleEndian.PutUint32(want[4*c:], e)
	}
	for t := range int64(f.tables) {
		at := start + f.table + t*f.copies
		have := make([]byte, len(want))
		if _, err := d.ReadAt(have, at); err != nil {
			return err
		}
		copy(want[len(f.entries)*4:], have[len(f.entries)*4:]) // entries of no cluster
		changed := false
		for i := 0; i < len(want); i += fatSector {
			if s := want[i : i+fatSector]; !bytes.Equal(s, have[i:i+fatSector]) {
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

// finish makes a new file system the same each time: all files and directories get one time, the first that FAT has, 1980-01-01. And
// what lies in the root directory says so by 0 for its cluster, which the library does not know.
func finish(d Disk, start, size int64) error {
	f, err := readFAT(d, start, size)
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
	return f.walk(nil)
}
