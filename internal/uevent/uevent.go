// Package uevent tells what devices come, go and change, as the kernel broadcasts it over netlink (lib/kobject_uevent.c).
// It is what udev listens to as well, but asks nothing of udev, which need not run.
package uevent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	kernelGroup = 1        // of NETLINK_KOBJECT_UEVENT; udev sends to group 2
	maxMessage  = 16 << 10 // bytes; the kernel's have 2 KiB and a path at most
)

// Event is one change of a device.
type Event struct {
	Action    string // "add", "remove", "change", …
	DevPath   string // in sysfs, without the /sys in front
	Subsystem string // "drm", "input", …
	vars      []string
}

// Get returns a variable such as "DEVNAME" or "HOTPLUG", "" if the event has none of that name.
func (e *Event) Get(name string) string {
	for _, v := range e.vars {
		if k, value, _ := strings.Cut(v, "="); k == name {
			return value
		}
	}
	return ""
}

// Parse reads a message of the kernel: "action@devpath" and then variables "NAME=value", each ended by a zero byte.
func Parse(msg []byte) (*Event, error) {
	msg, ok := bytes.CutSuffix(msg, []byte{0})
	if !ok {
		return nil, errors.New("uevent does not end with a zero byte")
	}
	parts := strings.Split(string(msg), "\x00")
	action, path, ok := strings.Cut(parts[0], "@")
	if !ok || action == "" || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("uevent begins with %.64q, not with an action and a path", parts[0])
	}
	e := &Event{Action: action, DevPath: path, vars: parts[1:]}
	for _, v := range e.vars {
		if i := strings.IndexByte(v, '='); i < 1 {
			return nil, fmt.Errorf("uevent has %.64q where a variable should be", v)
		}
	}
	// They are there twice, and the kernel says the same both times.
	if a := e.Get("ACTION"); a != action {
		return nil, fmt.Errorf("uevent of action %.64q has the variable ACTION=%.64q", action, a)
	}
	e.Subsystem = e.Get("SUBSYSTEM")
	return e, nil
}

// ErrLost is returned by Read when there were more events than could be kept: look at all devices anew.
var ErrLost = errors.New("events of devices were lost")

// Conn receives events.
type Conn struct {
	f      *os.File
	closed atomic.Bool
	buf    [maxMessage]byte
}

// Listen begins to listen. Everything that happens from now on can be read.
func Listen() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("events of devices: socket: %w", err)
	}
	// Plugging a dock in makes hundreds at once. What cannot be had is done without.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("events of devices: bind: %w", err)
	}
	return &Conn{f: os.NewFile(uintptr(fd), "uevent")}, nil
}

// Read waits for the next event. It fails with ErrLost, after which it can be called again, or with os.ErrClosed.
func (c *Conn) Read() (*Event, error) {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("events of devices: %w", err)
	}
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		if err := raw.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), c.buf[:], 0)
			return failed != unix.EAGAIN
		}); err != nil {
			if c.closed.Load() { // which the error itself does not tell
				err = os.ErrClosed
			}
			return nil, fmt.Errorf("events of devices: %w", err)
		}
		switch {
		case failed == unix.EINTR:
			continue
		case failed == unix.ENOBUFS:
			return nil, ErrLost
		case failed != nil:
			return nil, fmt.Errorf("events of devices: %w", failed)
		}
		// Anybody may send to our socket, but only the kernel has the port 0.
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
			continue
		}
		if e, err := Parse(c.buf[:n]); err == nil {
			return e, nil
		}
	}
}

// Follow calls f for each event of a subsystem, and with nil when some were lost, until ctx is done; then it closes c.
func (c *Conn) Follow(ctx context.Context, subsystem string, f func(*Event)) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	for {
		switch e, err := c.Read(); {
		case errors.Is(err, ErrLost):
			f(nil)
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case e.Subsystem == subsystem:
			f(e)
		}
	}
}

// Close ends a Read that waits.
func (c *Conn) Close() error {
	c.closed.Store(true)
	return c.f.Close()
}
