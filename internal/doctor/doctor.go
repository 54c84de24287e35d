// Package doctor looks at what a machine can do for Lodge, and says what to do about what it lacks. It changes nothing, and needs
// no rights: what it is not allowed to see is unknown.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// State is what was found.
type State string

// The states.
const (
	OK      State = "ok"
	Lack    State = "lack"
	Unknown State = "unknown"
)

// Check is the result of one look.
type Check struct {
	Name   string
	State  State
	Needed bool   // without it no guest runs
	Seen   string // for people
	Do     string // what to do about it; empty if it is there
}

// Host is what is looked at. The zero value is this machine.
type Host struct {
	Root     string // where its file system is; "" is /
	StateDir string // of lodged, within Root; /var/lib/lodge if it is empty

	// KVM returns the version of the API of the device at path (KVM_GET_API_VERSION); nil asks the kernel.
	KVM func(path string) (int, error)
	// Statfs is statfs(2); nil is that.
	Statfs func(path string, st *unix.Statfs_t) error
	// Manager returns the version of lodged; nil leaves that out.
	Manager func(ctx context.Context) (string, error)
}

// Examine looks at everything.
func (h *Host) Examine(ctx context.Context) []Check {
	list := []Check{
		h.processor(), h.kvm(), h.memory(), h.space(), h.firmware(), h.screens(), h.input(), h.iommu(), h.tpm(), h.suspend(), h.battery(),
		h.cgroup(), h.landlock(),
		h.device("tun", "/dev/net/tun", "load it (modprobe tun): nat and bridged networks need it"),
		h.device("udmabuf", "/dev/udmabuf", "load it (modprobe udmabuf): without it guests' pictures are copied"),
		h.device("userfaultfd", "/dev/userfaultfd", "use a kernel of 6.1 or later: without it a saved guest whose memory is shared is read before it runs"),
		h.storageDaemon(),
	}
	if h.Manager != nil {
		list = append(list, h.manager(ctx))
	}
	return list
}

func ok(name, format string, args ...any) Check {
	return Check{Name: name, State: OK, Seen: fmt.Sprintf(format, args...)}
}

func lack(name, seen, do string) Check { return Check{Name: name, State: Lack, Seen: seen, Do: do} }

// unknown is what cannot be seen.
func unknown(name string, err error) Check {
	do := "ask again as root"
	if !errors.Is(err, fs.ErrPermission) {
		do = "report this: lodge report"
	}
	return Check{Name: name, State: Unknown, Seen: err.Error(), Do: do}
}

func (h *Host) path(p string) string { return filepath.Join("/", h.Root, p) }

// maxFile bounds what is read of a file, in bytes.
const maxFile = 1 << 20

// read returns a small file of the kernel's, without white space around it; "" if it is not there.
func (h *Host) read(path string) (string, error) {
	f, err := os.Open(h.path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, maxFile)
	n := 0
	for n < len(b) {
		k, err := f.Read(b[n:])
		if n += k; err != nil || k == 0 {
			break // as far as it goes: files of /sys may end by an error
		}
	}
	return strings.TrimSpace(string(b[:n])), nil
}

func (h *Host) glob(pattern string) []string {
	list, _ := filepath.Glob(h.path(pattern)) // the pattern is good
	return list
}

func (h *Host) exists(path string) bool {
	_, err := os.Stat(h.path(path))
	return err == nil
}

// device looks whether a device is there and may be used.
func (h *Host) device(name, path, do string) Check {
	switch err := unix.Access(h.path(path), unix.R_OK|unix.W_OK); {
	case err == nil:
		return ok(name, "%s", path)
	case errors.Is(err, unix.EACCES):
		return Check{Name: name, State: Unknown, Seen: path + " is there, for others than you", Do: "ask again as root"}
	}
	return lack(name, "no "+path, do)
}

// size is a number of bytes for people.
func size(n uint64) string {
	const gib = 1 << 30
	return fmt.Sprintf("%.1f GiB", float64(n)/gib)
}
