package evdev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// monitor receives uevents: a netlink socket in the kernel's multicast group, netlink(7).
type monitor struct{ f *os.File }

// kernelGroup is the multicast group into which the kernel sends; udev sends into group 2, for which there needs to be a
// udev.
const kernelGroup = 1

// queueSize is how many bytes of uevents may wait: a hub with its devices makes hundreds at once.
const queueSize = 1 << 20

// errOverrun says that uevents were lost: what is there has to be looked at.
var errOverrun = errors.New("uevents were lost")

func newMonitor() (*monitor, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevents: socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueSize) // the default does, mostly
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("uevents: bind: %w", err)
	}
	return &monitor{os.NewFile(uintptr(fd), "uevents")}, nil
}

// next waits for the next uevent. What does not come from the kernel, or cannot be read, is passed over. It fails with
// errOverrun if some were lost, after which it may be called again.
func (m *monitor) next() (uevent, error) {
	conn, err := m.f.SyscallConn()
	if err != nil {
		return uevent{}, fmt.Errorf("uevents: %w", err)
	}
	buf := make([]byte, 16<<10) // the kernel's own buffer has 2 KiB
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := conn.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), buf, 0)
			return failed != unix.EAGAIN && failed != unix.EINTR
		})
		switch {
		case err != nil:
			return uevent{}, fmt.Errorf("uevents: %w", err)
		case failed == unix.ENOBUFS:
			return uevent{}, errOverrun
		case failed != nil:
			return uevent{}, fmt.Errorf("uevents: %w", failed)
		}
		// Any process of root's can send into the group; only the kernel's port is 0.
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue
		}
		if u, err := parseUevent(buf[:n]); err == nil {
			return u, nil
		}
	}
}

func (m *monitor) close() error { return m.f.Close() }
