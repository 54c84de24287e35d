// Package logfile bounds what is written to a log.
package logfile

import (
	"errors"
	"fmt"
	"os"
)

// Size bounds a file, in bytes. One older file of that size is kept.
const Size = 16 << 20

// File is a file that takes what a guest prints, or a program says. When it is full it is renamed to PATH.1, in place of the one before,
// and begun anew. What is no regular file, such as /dev/null, is written to as it is.
type File struct {
	path    string
	limit   int64
	f       *os.File
	size    int64
	regular bool
	handed  bool // there is no path to another one
}

// Open opens the file at path, or makes it.
func Open(path string) (*File, error) {
	l := &File{path: path, limit: Size}
	return l, l.open()
}

func (l *File) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size, l.regular = f, st.Size(), st.Mode().IsRegular()
	return nil
}

// Handed returns a File over f, which was opened to append. When it is full it is emptied: to keep more is the business
// of whoever opened it.
func Handed(f *os.File) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &File{path: f.Name(), limit: Size, f: f, size: st.Size(), regular: st.Mode().IsRegular(), handed: true}, nil
}

// Write implements io.Writer. One call at a time. If the full file cannot be renamed, what is written is lost.
func (l *File) Write(p []byte) (int, error) {
	if l.regular && l.size > 0 && l.size+int64(len(p)) > l.limit {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *File) rotate() error {
	if l.handed {
		l.size = 0
		return l.f.Truncate(0)
	}
	if err := os.Rename(l.path, l.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) { // somebody else's doing
		return fmt.Errorf("%s is full: %w", l.path, err)
	}
	old := l.f
	if err := l.open(); err != nil {
		return err
	}
	return old.Close()
}

// Close closes the file.
func (l *File) Close() error { return l.f.Close() }
