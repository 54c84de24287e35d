package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// files are those that came over a connection and no method has taken yet, in the order in which they came.
type files struct {
	mu     sync.Mutex
	open   []*os.File
	closed bool
}

// add takes f over. It fails when there are too many.
func (s *files) add(f *os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.open) == maxFiles {
		return errors.Join(fmt.Errorf("more than %d files that no method has taken", maxFiles), f.Close())
	}
	s.open = append(s.open, f)
	return nil
}

// take returns all of them if there are as many as want, else nil. n is how many there are.
func (s *files) take(want int) (f []*os.File, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n = len(s.open); n != want {
		return nil, n
	}
	f, s.open = s.open, nil
	return f, n
}

// close closes those that nobody has taken.
func (s *files) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, f := range s.open {
		f.Close()
	}
	s.open = nil
}

// reader reads a connection and the files that come with its bytes.
type reader struct {
	conn *net.UnixConn
	to   *files
	oob  []byte
}

// newReader returns what to read conn through. Only over a Unix socket can files come.
func newReader(conn net.Conn) (io.Reader, *files) {
	to := new(files)
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return conn, to
	}
	return &reader{c, to, make([]byte, unix.CmsgSpace(4*maxFiles))}, to
}

func (r *reader) Read(p []byte) (int, error) {
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(p, r.oob)
	if oobn > 0 {
		if e := r.receive(r.oob[:oobn]); err == nil {
			err = e
		}
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = fmt.Errorf("more than %d files at once", maxFiles)
	}
	if err == nil && n == 0 && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

func (r *reader) receive(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		fds, e := unix.ParseUnixRights(&messages[i])
		if err = errors.Join(err, e); e != nil {
			continue
		}
		for _, fd := range fds {
			err = errors.Join(err, r.to.add(os.NewFile(uintptr(fd), "file from the control socket")))
		}
	}
	return err
}

// send writes a line to conn, with files.
func send(conn net.Conn, line []byte, with []*os.File) error {
	if len(with) == 0 {
		_, err := conn.Write(line)
		return err
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("files can only be sent over a Unix socket")
	}
	fds := make([]int, len(with))
	for i, f := range with {
		fds[i] = int(f.Fd())
	}
	n, _, err := c.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	runtime.KeepAlive(with)
	if err == nil && n < len(line) { // a stream socket may take a part; the files went with it
		_, err = c.Write(line[n:])
	}
	return err
}
