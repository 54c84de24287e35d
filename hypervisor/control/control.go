// Package control is the socket by which a running VMM is commanded: JSON lines over a Unix stream socket.
//
// A request is one line, {"id": 1, "method": "save", "params": {…}}. While it is worked on there may be lines {"id": 1,
// "progress": {"done": 10, "total": 100}}; at the end comes {"id": 1, "result": {…}} or {"id": 1, "error": {"code": "…",
// "message": "…"}}. Requests of one connection are answered in their order. A client may shut down its sending side and read
// on; when it closes the connection, the request that is under way ends early, unless another one waits behind it.
// docs/control.md lists the methods.
package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on what a client can make a server hold.
const (
	maxLine    = 64 << 10 // bytes of one request, and of one answer
	maxConns   = 16
	replyLimit = 10 * time.Second // that a client takes to read an answer
)

// acceptPause is how long Accept waits after an error.
const acceptPause = 100 * time.Millisecond

// Codes of errors.
const (
	CodeBadRequest = "bad-request" // the line is not a request, or its parameters do not fit
	CodeNotFound   = "not-found"   // no such method
	CodeFailed     = "failed"      // the method failed
)

// Error is an error that a method returns to its caller. Other errors have code CodeFailed.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Progress is how far a method has come.
type Progress struct {
	Done  uint64 `json:"done"`
	Total uint64 `json:"total"`
}

// Call is one request as a Handler sees it.
type Call struct {
	Method string
	params json.RawMessage
	notify func(Progress)
	after  []func()
}

// Params decodes the parameters into v, strictly.
func (c *Call) Params(v any) error {
	if len(c.params) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(c.params))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &Error{CodeBadRequest, fmt.Sprintf("parameters of %s: %v", c.Method, err)}
	}
	return nil
}

// Progress tells the caller how far the method has come. It does not wait: a caller that reads slowly is told less.
func (c *Call) Progress(done, total uint64) { c.notify(Progress{done, total}) }

// After has f called when the answer was written, or could not be: a method that ends the process does so there.
func (c *Call) After(f func()) { c.after = append(c.after, f) }

// Handler carries out a method. Its result is encoded as JSON; nil becomes an empty object.
type Handler func(ctx context.Context, c *Call) (any, error)

// Server answers the requests that come over a listener.
type Server struct {
	Methods map[string]Handler
}

// request and reply are the lines.
type request struct {
	ID     uint64          `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params,omitempty"`
}

type reply struct {
	ID       uint64          `json:"id"`
	Progress *Progress       `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Serve answers until ctx ends. It closes l, and returns when all connections are closed and their methods have returned.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := Accept(ctx, l)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("control socket: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.SetWriteDeadline(time.Now().Add(replyLimit))
			_ = json.NewEncoder(conn).Encode(reply{Error: &Error{CodeFailed, "too many connections: close one"}})
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.converse(ctx, conn)
		})
	}
}

// Listen makes a Unix socket at path that only the owner reaches. A socket that nobody serves any more is replaced.
func Listen(path string) (*net.UnixListener, error) {
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		if conn, e := net.Dial("unix", path); e == nil {
			conn.Close()
			return nil, fmt.Errorf("socket %s: another process serves it: is it running already?", path)
		}
		if st, e := os.Lstat(path); e != nil || st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("socket %s: %w", path, err)
		}
		if e := os.Remove(path); e != nil {
			return nil, fmt.Errorf("socket %s: %w", path, e)
		}
		if l, err = net.ListenUnix("unix", addr); err != nil {
			return nil, fmt.Errorf("socket %s: %w", path, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), l.Close())
	}
	return l, nil
}

// Accept accepts a connection. It gives up when ctx ends or l is closed; other errors, such as that there are no file
// descriptors left, it waits out.
func Accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for {
		conn, err := l.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(acceptPause):
		}
	}
}

// converse reads lines on a goroutine of its own, so that a connection that is closed ends the method under way.
func (s *Server) converse(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	lines := make(chan []byte)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		defer awaitHangup(conn)
		defer close(lines)
		in := bufio.NewScanner(conn)
		in.Buffer(nil, maxLine)
		for in.Scan() {
			select {
			case lines <- append([]byte(nil), in.Bytes()...):
			case <-ctx.Done():
				return
			}
		}
		if errors.Is(in.Err(), bufio.ErrTooLong) {
			_ = json.NewEncoder(conn).Encode(reply{Error: &Error{CodeBadRequest, fmt.Sprintf("a line of more than %d bytes", maxLine)}})
		}
	}()
	for line := range lines {
		if s.answer(ctx, line, conn) != nil {
			break
		}
	}
	conn.Close()
	cancel()
	<-done
}

// awaitHangup returns when the other side of a connection that has sent its last byte is closed, or this side. A client
// that has only shut down its sending side, as socat does at the end of its input, still waits for answers.
func awaitHangup(conn net.Conn) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool { // called again whenever the kernel has news of the socket; fails once it is closed
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		return err != unix.EINTR && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
}

// answer carries out the request in line and writes the answer. An error means that the client did not take it.
func (s *Server) answer(ctx context.Context, line []byte, conn net.Conn) error {
	out := json.NewEncoder(conn) // refuses all after a line that was cut off
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return encode(conn, out, reply{Error: &Error{CodeBadRequest, fmt.Sprintf("not a request: %v", err)}})
	}
	t := teller{newest: make(chan Progress, 1), over: make(chan struct{}), done: make(chan struct{})}
	go t.run(r.ID, out)
	c := &Call{Method: r.Method, params: r.Params, notify: t.put}
	a := s.call(ctx, r.ID, c)
	_ = conn.SetWriteDeadline(time.Now().Add(replyLimit)) // also for progress that is on its way
	close(t.over)
	<-t.done
	err := encode(conn, out, a)
	for _, f := range c.after {
		f()
	}
	return err
}

// encode writes a to a client that reads it within replyLimit.
func encode(conn net.Conn, out *json.Encoder, a reply) error {
	_ = conn.SetWriteDeadline(time.Now().Add(replyLimit))
	defer conn.SetWriteDeadline(time.Time{})
	return out.Encode(a)
}

// call calls c's method and makes an answer of what it returns.
func (s *Server) call(ctx context.Context, id uint64, c *Call) reply {
	h, ok := s.Methods[c.Method]
	if !ok {
		return reply{ID: id, Error: &Error{CodeNotFound, fmt.Sprintf("no method %q", c.Method)}}
	}
	result, err := h(ctx, c)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{CodeFailed, err.Error()}
		}
		return reply{ID: id, Error: e}
	}
	if result == nil {
		result = struct{}{}
	}
	b, err := json.Marshal(result)
	if err != nil {
		return reply{ID: id, Error: &Error{CodeFailed, fmt.Sprintf("result of %s: %v", c.Method, err)}}
	}
	return reply{ID: id, Result: b}
}

// teller tells a client how far a method has come, while the method does not wait for the client.
type teller struct {
	newest     chan Progress // capacity 1
	over, done chan struct{} // the method has returned; run has
}

// put replaces the progress that was not told yet.
func (t *teller) put(p Progress) {
	for {
		select {
		case t.newest <- p:
			return
		default:
		}
		select {
		case <-t.newest:
		default:
		}
	}
}

// run returns when the method has and all is told. An error is for the answer to find: out keeps it.
func (t *teller) run(id uint64, out *json.Encoder) {
	defer close(t.done)
	for {
		select {
		case p := <-t.newest:
			_ = out.Encode(reply{ID: id, Progress: &p})
		case <-t.over:
			select {
			case p := <-t.newest:
				_ = out.Encode(reply{ID: id, Progress: &p})
			default:
			}
			return
		}
	}
}

// Client is a connection to a Server, for one call at a time. The server is not trusted: what it says is bounded.
type Client struct {
	conn *net.UnixConn
	in   *bufio.Reader
	next uint64
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w: is the guest running?", path, err)
	}
	return &Client{conn: conn.(*net.UnixConn), in: bufio.NewReaderSize(conn, maxLine)}, nil
}

// Peer returns the process that serves the socket, as the kernel knows it (SO_PEERCRED, unix(7)).
func (c *Client) Peer() (pid int, err error) {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) { cred, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if asked != nil {
		return 0, fmt.Errorf("control socket: who serves it: %w", asked)
	}
	return int(cred.Pid), nil
}

// Close closes the connection. A method that is under way is told to end.
func (c *Client) Close() error { return c.conn.Close() }

// Call calls a method and decodes its result into result, unless that is nil. progress may be nil. An error of the method
// is an *Error. When ctx ends, the connection is closed.
func (c *Client) Call(ctx context.Context, method string, params, result any, progress func(Progress)) error {
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	err := c.call(method, params, result, progress)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (c *Client) call(method string, params, result any, progress func(Progress)) error {
	c.next++
	r := request{ID: c.next, Method: method}
	if params != nil {
		b, err := json.Marshal(params)
		if err != nil {
			return err
		}
		r.Params = b
	}
	if err := json.NewEncoder(c.conn).Encode(r); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	for {
		line, err := c.in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: the guest's process ended", method)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("%s: an answer of more than %d bytes", method, maxLine)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		var a reply
		if err := json.Unmarshal(line, &a); err != nil {
			return fmt.Errorf("%s: answer %q: %w", method, line, err)
		}
		switch {
		case a.Error != nil:
			return a.Error
		case a.Progress != nil:
			if progress != nil {
				progress(*a.Progress)
			}
		case result != nil:
			return json.Unmarshal(a.Result, result)
		default:
			return nil
		}
	}
}
