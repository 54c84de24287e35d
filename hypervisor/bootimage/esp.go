package bootimage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/lodgehv/lodge/hypervisor/bootimage/fat"
)

// OpenESP returns the ESP that target is or has: a directory where one is mounted, a disk image or block device with a GPT, or
// an ESP's partition itself.
func OpenESP(target string) (ESP, error) {
	st, err := os.Stat(target)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		root, err := os.OpenRoot(target)
		if err != nil {
			return nil, err
		}
		return mounted{root}, nil
	}
	return openDisk(target, os.O_EXCL) // a block device that is in use, such as mounted, is busy
}

// OpenOwnESP returns the ESP of a partition that the caller itself uses: no file of a slot that was started may be changed but its name.
func OpenOwnESP(partition string) (ESP, error) { return openDisk(partition, 0) }

func openDisk(target string, flags int) (ESP, error) {
	f, err := os.OpenFile(target, os.O_RDWR|flags, 0)
	if err != nil {
		return nil, err
	}
	esp, err := espOn(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", target, err), f.Close())
	}
	esp.close = f.Close
	return esp, nil
}

// espOn returns the first ESP of a disk's partition table.
func espOn(f *os.File) (*fatESP, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	table, err := gpt.Read(&storage{Disk: f, size: size}, fatSector, fatSector)
	if err != nil {
		if esp, err := openFAT(f, 0, size); err == nil {
			return esp, nil
		}
		return nil, fmt.Errorf("partition table: %w: give a disk that lodge-image has made, or the directory where the ESP is mounted", err)
	}
	for _, p := range table.Partitions {
		start, end := int64(p.Start)*fatSector, int64(p.End+1)*fatSector
		if p.Type != gpt.EFISystemPartition {
			continue
		}
		if start < 0 || end <= start || end > size {
			return nil, errors.New("partition table: the EFI system partition is not within the disk")
		}
		return openFAT(f, start, end-start)
	}
	return nil, errors.New("no EFI system partition")
}

// mounted is an ESP in a directory of this machine.
type mounted struct{ *os.Root }

// ReadDir implements ESP.
func (m mounted) ReadDir(name string) ([]string, error) {
	d, err := m.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// WriteFile implements ESP.
func (m mounted) WriteFile(name string, data []byte) error {
	if err := m.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := m.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return m.sync(name)
}

// Rename implements ESP.
func (m mounted) Rename(from, to string) error {
	if err := m.Root.Rename(from, to); err != nil {
		return err
	}
	return m.sync(to)
}

// Remove implements ESP.
func (m mounted) Remove(name string) error {
	if err := m.Root.Remove(name); err != nil {
		return err
	}
	return m.sync(name)
}

// sync brings a name's directory to the disk.
func (m mounted) sync(name string) error {
	d, err := m.Open(path.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// fatESP is an ESP on a disk that is not mounted. It is not to be mounted meanwhile.
type fatESP struct {
	disk        Disk
	start, size int64
	fs          *fat32.FileSystem
	close       func() error
}

// openFAT mends a file system, and opens it.
func openFAT(d Disk, start, size int64) (*fatESP, error) {
	e := &fatESP{disk: d, start: start, size: size, close: func() error { return nil }}
	return e, e.reload()
}

// reload brings what was written to the disk, mends it, and reads it again.
func (e *fatESP) reload() error {
	if err := e.disk.Sync(); err != nil {
		return err
	}
	if err := fat.Mend(e.disk, e.start, e.size); err != nil {
		return err
	}
	var err error
	e.fs, err = fat32.Read(&storage{Disk: e.disk, size: e.start + e.size}, e.size, e.start, fatSector)
	return err
}

// Close implements ESP.
func (e *fatESP) Close() error { return e.close() }

// ReadDir implements ESP.
func (e *fatESP) ReadDir(name string) ([]string, error) {
	entries := []string{}
	for dir := "."; ; {
		list, err := e.fs.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		entries = entries[:0]
		for _, d := range list {
			entries = append(entries, d.Name())
		}
		if dir == name {
			slices.Sort(entries)
			return entries, nil
		}
		next, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(name, dir), "/"), "/")
		if !slices.Contains(entries, next) {
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		dir = path.Join(dir, next)
	}
}

// exists returns nil, or an error that says that there is no such file.
func (e *fatESP) exists(name string) error {
	list, err := e.ReadDir(path.Dir(name))
	if err == nil && !slices.Contains(list, path.Base(name)) {
		err = fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return err
}

// ReadFile implements ESP. It reads by the first table alone, and from the disk, as firmware does.
func (e *fatESP) ReadFile(name string) ([]byte, error) {
	if err := e.exists(name); err != nil {
		return nil, err
	}
	f, err := fat.Read(e.disk, e.start, e.size)
	if err != nil {
		return nil, err
	}
	return f.ReadFile(name)
}

// WriteFile implements ESP.
func (e *fatESP) WriteFile(name string, data []byte) error {
	if err := e.alone(name); err != nil {
		return err
	}
	if err := e.fs.Mkdir(path.Dir(name)); err != nil {
		return err
	}
	f, err := e.fs.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return e.reload()
}

// Rename implements ESP.
func (e *fatESP) Rename(from, to string) error {
	if err := errors.Join(e.exists(from), e.alone(to)); err != nil {
		return err
	}
	if err := e.fs.Rename(from, to); err != nil {
		return err
	}
	return e.reload()
}

// Remove implements ESP.
func (e *fatESP) Remove(name string) error {
	if err := errors.Join(e.exists(name), e.alone(name)); err != nil {
		return err
	}
	if err := e.fs.Remove(name); err != nil {
		return err
	}
	return e.reload() // frees its clusters: the library does not
}

// alone is an error if a directory that slots are in has files of others. The library writes a directory anew with each change, which
// is at once only as long as it is one sector: with slots alone it is.
func (e *fatESP) alone(name string) error {
	if path.Dir(name) != slotDir {
		return nil
	}
	list, err := e.ReadDir(slotDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, n := range list {
		if _, ok := parseSlot(n); !ok && n != path.Base(unfinished) && n != "." && n != ".." {
			return fmt.Errorf("%s/%s is another system's: mount the ESP, and name its directory", slotDir, n)
		}
	}
	return err
}

// storage is a Disk as the library wants it.
type storage struct {
	Disk
	size, at int64
}

var _ backend.WritableFile = (*storage)(nil)

// Stat, Sys and Path tell nothing: it may be no file.
func (s *storage) Stat() (fs.FileInfo, error)              { return nil, backend.ErrNotSuitable }
func (s *storage) Sys() (*os.File, error)                  { return nil, backend.ErrNotSuitable }
func (s *storage) Path() string                            { return "" }
func (s *storage) Close() error                            { return nil }
func (s *storage) Writable() (backend.WritableFile, error) { return s, nil }

// Read implements fs.File.
func (s *storage) Read(b []byte) (int, error) {
	n, err := s.ReadAt(b, s.at)
	s.at += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (s *storage) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.size
	}
	s.at = offset
	return offset, nil
}
