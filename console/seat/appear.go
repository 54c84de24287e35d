package seat

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// appearance tells when something comes to be at a path, so that nobody has to look there again and again (inotify(7)).
type appearance struct {
	name string
	file *os.File
	came chan struct{} // holds one if something came; closed when the directory cannot be watched any more
}

// watchFor watches for what is created at path, moved there, or made accessible. The directory must exist.
func watchFor(path string) (*appearance, error) {
	dir, name := filepath.Split(path)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	a := &appearance{name: name, file: os.NewFile(uintptr(fd), "inotify"), came: make(chan struct{}, 1)}
	const events = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, events); err != nil {
		a.file.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	go a.read()
	return a, nil
}

// close ends the watch, if there is one.
func (a *appearance) close() {
	if a != nil {
		a.file.Close()
	}
}

// read passes events on until the watch ends. A moved directory is another one's matter: its watch ends too.
func (a *appearance) read() {
	defer close(a.came)
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := a.file.Read(buf)
		if err != nil {
			return
		}
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			mask, size := binary.NativeEndian.Uint32(p[4:]), int(binary.NativeEndian.Uint32(p[12:]))
			name := strings.TrimRight(string(p[unix.SizeofInotifyEvent:][:size]), "\x00")
			p = p[unix.SizeofInotifyEvent+size:]
			if mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED) != 0 {
				return
			}
			if name == a.name || mask&unix.IN_Q_OVERFLOW != 0 {
				select {
				case a.came <- struct{}{}:
				default:
				}
			}
		}
	}
}
