package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/fsnotify/fsnotify"
)

// vmmLog is the log of a guest's VMM, in its directory of logs.
const vmmLog = "vmm.log"

// maxLog is how large that gets before it is begun anew when the guest is started, in bytes. One older file is kept.
const maxLog = 4 << 20

// openLog opens a log to append to.
func openLog(path string) (*os.File, error) {
	if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// Logs returns the files of a guest's logs by name: "vmm", what its VMM reports, and what it prints: "serial", "serial2" and
// "debug", as far as its definition keeps them. A file may not be there yet.
func (m *Manager) Logs(name string) (map[string]string, error) {
	if _, err := m.find(name); err != nil {
		return nil, err
	}
	logs := map[string]string{"vmm": filepath.Join(m.logDir(name), vmmLog)}
	def, err := m.store.Get(name)
	if err != nil {
		return logs, nil // that of the VMM is there all the same
	}
	if f := def.SerialLog(); f != "" {
		logs["serial"] = f
	}
	switch s := def.Serial2; {
	case s.Mode == "file":
		logs["serial2"] = s.Path
	case s.Log != "":
		logs["serial2"] = s.Log
	}
	if def.Debug != "" {
		logs["debug"] = def.Debug
	}
	return logs, nil
}

// MaxTail bounds what Tail returns, in bytes.
const MaxTail = 1 << 20

// Tail returns the last bytes of a guest's log, at most limit and MaxTail.
func (m *Manager) Tail(name, log string, limit int) ([]byte, error) {
	path, err := m.logFile(name, log)
	if err != nil {
		return nil, err
	}
	b, err := tail(path, min(limit, MaxTail))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func (m *Manager) logFile(name, log string) (string, error) {
	logs, err := m.Logs(name)
	if err != nil {
		return "", err
	}
	path, ok := logs[log]
	if !ok {
		return "", fmt.Errorf("guest %s: no log %.40q", name, log)
	}
	return path, nil
}

// FollowLog gives f what is written to a guest's log from now on, until ctx ends or f returns an error.
func (m *Manager) FollowLog(ctx context.Context, name, log string, f func(b []byte) error) error {
	path, err := m.logFile(name, log)
	if err != nil {
		return err
	}
	return Follow(ctx, path, fileSize(path), f)
}

// openToRead opens a log, and does not wait if somebody has put a pipe in its place.
func openToRead(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// tail returns the last bytes of a file.
func tail(path string, limit int) ([]byte, error) {
	f, err := openToRead(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, err
	}
	b := make([]byte, min(int64(max(limit, 0)), st.Size()))
	n, err := f.ReadAt(b, st.Size()-int64(len(b)))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}

// Follow gives f what is in a log file after its first bytes, and then what is written to it, until ctx ends or f returns an
// error. The file may not be there yet, and may be renamed and begun anew. Nothing is done while nobody writes.
func Follow(ctx context.Context, path string, from int64, f func(b []byte) error) error {
	path = filepath.Clean(path)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(path)); err != nil {
		return err
	}
	var file *os.File
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	b := make([]byte, 32<<10)
	for {
		if file == nil {
			switch file, err = openToRead(path); {
			case errors.Is(err, fs.ErrNotExist):
				file = nil
			case err != nil:
				return err
			}
		}
		for file != nil {
			n, err := file.ReadAt(b, from)
			from += int64(n)
			if n > 0 {
				if err := f(b[:n]); err != nil {
					return err
				}
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if n > 0 {
				continue
			}
			if replaced(path, file, from) {
				file.Close()
				file, from = nil, 0
			}
			break
		}
		if file == nil {
			if _, err := os.Stat(path); err == nil {
				continue
			}
		}
		for changed := false; !changed; {
			select {
			case e, ok := <-w.Events:
				if !ok {
					return fs.ErrClosed
				}
				changed = e.Name == path
			case err := <-w.Errors:
				if changed = errors.Is(err, fsnotify.ErrEventOverflow); !changed {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// replaced reports whether path is another file now, or was begun anew.
func replaced(path string, file *os.File, from int64) bool {
	now, err := os.Stat(path)
	if err != nil {
		return true
	}
	was, err := file.Stat()
	return err != nil || !os.SameFile(now, was) || now.Size() < from
}
