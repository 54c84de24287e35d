package api

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// file returns an argument that is a descriptor, to be read from or written to. It is open on its own from then on, and whoever
// gets it closes it. What the caller could not do with it, we do not do either: we have more rights.
func (r *request) file(n int, write bool) (*os.File, error) {
	index, ok := r.args[n].(dbus.UnixFDIndex)
	if !ok || int(index) >= len(r.files) || r.files[index] == nil {
		return nil, standard(invalidArgsError, fmt.Sprintf("no descriptor came along, or more than %d", maxFiles))
	}
	given := r.files[index]
	r.files[index] = nil
	defer given.Close()
	return openGiven(int(given.Fd()), write)
}

func openGiven(fd int, write bool) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("descriptor: %w", err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor: %w", err)
	}
	kind, access := st.Mode&unix.S_IFMT, flags&unix.O_ACCMODE
	wrong := ""
	switch {
	case flags&unix.O_PATH != 0, write && access == unix.O_RDONLY, !write && access == unix.O_WRONLY:
		wrong = "it is not open for that"
	case write && flags&unix.O_APPEND != 0:
		wrong = "it is open to append: open it to write"
	case kind == unix.S_IFBLK && !write, kind == unix.S_IFREG, kind == unix.S_IFIFO:
	default:
		wrong = "give a file or a pipe"
	}
	if wrong != "" {
		return nil, standard(invalidArgsError, "descriptor: "+wrong)
	}
	link := fmt.Sprintf("/proc/self/fd/%d", fd)
	path, err := os.Readlink(link)
	if err != nil {
		return nil, fmt.Errorf("descriptor: %w", err)
	}
	var own int
	if kind == unix.S_IFIFO { // one that we do not wait for, without a change to the caller's
		own, err = unix.Open(link, access|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	} else {
		own, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("descriptor: %w", err)
	}
	return os.NewFile(uintptr(own), filepath.Base(path)), nil
}

// What a key that a caller sends may take.
const (
	maxKey   = 4096            // bytes
	keyLimit = 5 * time.Second // until a pipe has given it
)

func listKeys(_ context.Context, r *request) ([]any, error) {
	disks, err := r.Manager.Keys(r.object.Guest)
	return []any{append([]string{}, disks...)}, err
}

func giveKey(_ context.Context, r *request) ([]any, error) {
	f, err := r.file(1, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(keyLimit)) // a file needs none
	key, err := io.ReadAll(io.LimitReader(f, maxKey+1))
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return nil, r.Manager.GiveKey(r.object.Guest, r.str(0), key)
}
