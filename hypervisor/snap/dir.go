package snap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A saved machine is a directory of these two files, whose snapshot ids agree.
const (
	StateName = "state"
	RAMName   = "ram"
)

// PublishDir makes or replaces the directory dir. write fills a new directory beside it, which then takes its place at
// once: whenever the process or the machine stops, dir is as before or complete. Files of a replaced directory stay
// usable for whoever has them open or mapped. What earlier, interrupted calls left is removed. A directory that holds
// anything but a saved machine is not replaced: it may be somebody's home.
func PublishDir(dir string, write func(tmp string) error) error {
	return publish(dir, write, func(string) {})
}

// publish calls at before each step, so that a test can interrupt it there.
func publish(dir string, write func(tmp string) error, at func(step string)) error {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	if err := onlySaved(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("save to %s: %w", dir, err)
	}
	if err := RemoveLeftovers(dir); err != nil {
		return err
	}
	at("mkdir")
	tmp, err := os.MkdirTemp(parent, filepath.Base(dir)+".tmp-")
	if err != nil {
		return fmt.Errorf("save to %s: %w", dir, err)
	}
	defer os.RemoveAll(tmp) // after an exchange, it is the old one
	lock, err := lockDir(tmp)
	if err != nil {
		return fmt.Errorf("save to %s: %w", dir, err)
	}
	defer lock.Close()
	at("write")
	if err := write(tmp); err != nil {
		return err
	}
	at("sync")
	if err := filepath.WalkDir(tmp, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		return syncPath(path)
	}); err != nil {
		return err
	}
	at("rename")
	if err := swap(tmp, dir); err != nil {
		return err
	}
	at("sync parent")
	if err := syncPath(parent); err != nil {
		return err
	}
	at("remove old")
	return nil
}

// swap makes tmp's directory appear as dir, and dir's, if there is one, as tmp.
func swap(tmp, dir string) error {
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		// rename(2) replaces an empty directory at most, so this needs no RENAME_NOREPLACE.
		err = os.Rename(tmp, dir)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("save to %s: its file system cannot replace a directory at once: remove the old one first, or save elsewhere: %w", dir, err)
	}
	if err != nil {
		return fmt.Errorf("save to %s: %w", dir, err)
	}
	return nil
}

// RemoveLeftovers removes what calls of PublishDir for dir have left that were interrupted: temporary directories whose locks
// ended with their processes.
func RemoveLeftovers(dir string) error {
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("save to %s: %w", dir, err)
	}
	prefix := filepath.Base(dir) + ".tmp-"
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		path := filepath.Join(filepath.Dir(dir), e.Name())
		lock, err := lockDir(path)
		if err != nil {
			continue // in use, or just gone
		}
		if onlySaved(path) == nil {
			err = os.RemoveAll(path)
		}
		lock.Close()
		if err != nil {
			return fmt.Errorf("save to %s: remove what an interrupted save left: %w", dir, err)
		}
	}
	return nil
}

// onlySaved reports what a directory holds beside a saved machine, whole or not.
func onlySaved(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), ".tmp-")
		if e.IsDir() || name != StateName && name != RAMName {
			return fmt.Errorf("it holds %q, which is no part of a saved machine: save to another directory", e.Name())
		}
	}
	return nil
}

func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
