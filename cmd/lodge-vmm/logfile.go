package main

import (
	"errors"
	"fmt"
	"os"
)

// logFileSize bounds a file that a guest writes to, in bytes. One older file of that size is kept.
const logFileSize = 16 << 20

// logFile is a file that takes what a guest prints. When it is full it is renamed to PATH.1, in place of the one before,
// and begun anew. What is no regular file, such as /dev/null, is written to as it is.
type logFile struct {
	path    string
	limit   int64
	f       *os.File
	size    int64
	regular bool
	handed  bool // there is no path to another one
}

func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path, limit: logFileSize}
	return l, l.open()
}

func (l *logFile) open() error {
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

// handedLogFile is a logFile over f, which was opened to append. When it is full it is emptied: to keep more is the business
// of whoever opened it.
func handedLogFile(f *os.File) (*logFile, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &logFile{path: f.Name(), limit: logFileSize, f: f, size: st.Size(), regular: st.Mode().IsRegular(), handed: true}, nil
}

// Write implements io.Writer. One call at a time. If the full file cannot be renamed, what the guest prints is lost.
func (l *logFile) Write(p []byte) (int, error) {
	if l.regular && l.size > 0 && l.size+int64(len(p)) > l.limit {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *logFile) rotate() error {
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
func (l *logFile) Close() error { return l.f.Close() }
