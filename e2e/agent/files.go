package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

func put(_ context.Context, args []string) error {
	if err := need(args, "PATH", "MODE"); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(args[1], 8, 12)
	if err != nil {
		return err
	}
	return writeWhole(args[0], os.FileMode(mode), os.Stdin)
}

// writeWhole writes a file under a temporary name and then gives it its own.
func writeWhole(path string, mode os.FileMode, r io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".put-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func get(_ context.Context, args []string) error {
	if err := need(args, "PATH"); err != nil {
		return err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(os.Stdout, f)
	return err
}

// unpack extracts a tar archive from a block device whose content may have
// changed while this machine was saved.
func unpack(_ context.Context, args []string) error {
	if err := need(args, "DEVICE", "DIR"); err != nil {
		return err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	if err := flushBuffers(f); err != nil {
		return err
	}
	root, err := os.OpenRoot(args[1])
	if err != nil {
		return err
	}
	defer root.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		if err := extract(root, h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func extract(root *os.Root, h *tar.Header, r io.Reader) error {
	name := filepath.Clean(h.Name)
	if h.Typeflag == tar.TypeDir {
		return root.MkdirAll(name, 0o755)
	}
	if h.Typeflag != tar.TypeReg {
		return fmt.Errorf("type %q is not a file or directory", h.Typeflag)
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, os.FileMode(h.Mode).Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// flushBuffers drops what the kernel has cached of a block device.
func flushBuffers(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	if err := raw.Control(func(fd uintptr) { ierr = unix.IoctlSetInt(int(fd), unix.BLKFLSBUF, 0) }); err != nil {
		return err
	}
	if ierr != nil && !errors.Is(ierr, unix.ENOTTY) {
		return fmt.Errorf("%s: BLKFLSBUF: %w", f.Name(), ierr)
	}
	return nil
}

// pattern is an endless stream of bytes that a seed determines.
func pattern(seed uint64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

func fill(_ context.Context, args []string) error {
	if err := need(args, "PATH", "SIZE", "SEED"); err != nil {
		return err
	}
	size, err1 := strconv.ParseInt(args[1], 10, 64)
	seed, err2 := strconv.ParseUint(args[2], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, sum)}, io.LimitReader(pattern(seed), size), make([]byte, 1<<20))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	fmt.Printf("%x\n", sum.Sum(nil))
	return nil
}

func sum(_ context.Context, args []string) error {
	if err := need(args, "PATH", "SIZE"); err != nil {
		return err
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[0], os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	buf := aligned(1 << 20)
	for done := int64(0); done < size; {
		n, err := f.Read(buf)
		h.Write(buf[:min(int64(n), size-done)])
		done += int64(n)
		if err != nil && done < size {
			return fmt.Errorf("%s: at byte %d: %w", args[0], done, err)
		}
	}
	fmt.Printf("%x\n", h.Sum(nil))
	return nil
}

// aligned returns n bytes at an address that O_DIRECT takes, a multiple of 4096.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	off := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & 4095
	return b[off : off+n : off+n]
}
