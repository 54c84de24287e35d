package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/internal/logfile"
)

// handed are the descriptors that the process was started with, by the names that docs/cell.md lists (sd_listen_fds(3)). If
// there are any, they are all that the guest has of the host: nothing is opened by its name. The zero value is that of a
// process that was started with none.
type handed struct {
	files map[string]*os.File // not taken yet
	given bool
	err   error // two have one name
	calls *syscalls
}

// takeHanded is to be called once, before the process opens anything.
func takeHanded() *handed {
	h := &handed{files: make(map[string]*os.File)}
	for _, f := range activation.Files(true) {
		if !h.given {
			rename()
		}
		h.given = true
		if h.files[f.Name()] != nil {
			h.err = fmt.Errorf("two descriptors are called %q", f.Name())
		}
		h.files[f.Name()] = f
	}
	return h
}

// sealed reports whether nothing is opened by its name.
func (h *handed) sealed() bool { return h != nil && h.given }

// seal gives up, for good, all system calls that a guest in a cell does not need. logOnly has the kernel log the others.
// path is what errors call the definition or saved state.
func (h *handed) seal(logOnly bool, path string) error {
	switch {
	case !h.sealed() && logOnly:
		return usagef("%s belongs to a guest that was handed its descriptors", logSyscalls)
	case !h.sealed():
		return nil
	case h.err != nil:
		return h.err
	case !filepath.IsAbs(path):
		return usagef("%s: give an absolute path: in a cell there is no working directory", path)
	}
	h.calls = newSyscalls(logOnly)
	return h.calls.seal()
}

// narrow gives up what a vCPU's thread does not need beside that.
func (h *handed) narrow() error {
	if h == nil || h.calls == nil {
		return nil
	}
	return h.calls.narrow()
}

// socket reports whether a socket was handed over as name and not taken yet.
func (h *handed) socket(name string) bool {
	if !h.has(name) {
		return false
	}
	st, err := h.files[name].Stat()
	return err == nil && st.Mode().Type() == os.ModeSocket
}

// has reports whether name was handed over and not taken yet.
func (h *handed) has(name string) bool { return h != nil && h.files[name] != nil }

// take returns the descriptor that was handed over as name, once.
func (h *handed) take(name string) (*os.File, bool) {
	if !h.has(name) {
		return nil, false
	}
	f := h.files[name]
	delete(h.files, name)
	return f, true
}

// open returns the descriptor that was handed over as name. If none was, byName opens it.
func (h *handed) open(name string, byName func() (*os.File, error)) (*os.File, error) {
	if f, ok := h.take(name); ok {
		return f, nil
	}
	if h.sealed() {
		return nil, fmt.Errorf("no descriptor %q was handed over, and in a cell nothing is opened by its name", name)
	}
	return byName()
}

// leftOver reports what was handed over and nobody has asked for.
func (h *handed) leftOver() error {
	if h == nil || len(h.files) == 0 {
		return nil
	}
	var names []string
	for name := range h.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return fmt.Errorf("handed over, and no part of this guest: %s", strings.Join(names, ", "))
}

// logFile returns what a guest's output goes to: what was handed over as name, or the file at path.
func (h *handed) logFile(name, path string) (*logfile.File, error) {
	if !h.sealed() {
		return logfile.Open(path)
	}
	f, err := h.open(name, nil)
	if err != nil {
		return nil, err
	}
	return logfile.Handed(f)
}

// stderr returns where the log goes to: standard error, which is kept short if it is a file that a manager has opened.
func (h *handed) stderr() io.Writer {
	if h.sealed() {
		if f, err := logfile.Handed(os.Stderr); err == nil {
			return f
		}
	}
	return os.Stderr
}

// listen returns a listener on the socket that was handed over as name, which listens already, or makes one at path.
func (h *handed) listen(name, path string) (*net.UnixListener, error) {
	if !h.sealed() {
		return control.Listen(path)
	}
	f, err := h.open(name, nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// It listens already. Once more, and who connects is told that the peer is this process (SO_PEERCRED, unix(7)).
	if err := unix.Listen(int(f.Fd()), unix.SOMAXCONN); err != nil {
		return nil, fmt.Errorf("descriptor %q: listen: %w", name, err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %q: not a listening socket: %w", name, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("descriptor %q: not a Unix socket", name), l.Close())
	}
	return u, nil
}
