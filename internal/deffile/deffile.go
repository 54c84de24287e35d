// Package deffile reads and writes the files in which definitions are kept, one each in a directory, which people may edit too.
package deffile

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lodgehv/lodge/hypervisor/definition"
)

// Suffix ends the names of definitions.
const Suffix = ".toml"

// MaxText is how many bytes a definition has at most.
const MaxText = 1 << 20

// TmpPrefix begins the names of files that are not whole yet.
const TmpPrefix = ".lodge-new-"

// Tag is a short name for a text, by which an editor knows what it is to replace.
func Tag(text []byte) string {
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:16])
}

// TooLong is the error about more than MaxText bytes in file.
func TooLong(file string) error {
	return &definition.Error{File: file, Msg: fmt.Sprintf("more than %d bytes: a definition is a text of a few lines", MaxText)}
}

// Read reads a definition. A pipe or a device in its place is not waited for.
func Read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &definition.Error{File: path, Msg: "not a regular file: put the definition there"}
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxText+1))
	if err == nil && len(b) > MaxText {
		err = TooLong(path)
	}
	return b, err
}

// Publish makes the file dir/name with that content, by rename or link: at any moment it is as before or whole, and when Publish
// returns it stays so.
func Publish(dir, name string, text []byte, how func(from, to string) error) (err error) {
	f, err := os.CreateTemp(dir, TmpPrefix)
	if err != nil {
		return fmt.Errorf("save %s: %w", name, err)
	}
	defer os.Remove(f.Name()) // gone already after a rename
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = how(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", name, err)
	}
	return SyncDir(dir)
}

// RemoveTemporary removes files that are not whole. Nobody else writes any: there is one manager.
func RemoveTemporary(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), TmpPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return err
}

// SyncDir brings to the disk what was made, renamed and removed in a directory.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
