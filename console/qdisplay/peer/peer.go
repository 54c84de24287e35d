// Package peer is D-Bus between two processes with a Unix stream socket and nobody in between: the handshake, messages with
// their file descriptors, calls and replies. The specification is https://dbus.freedesktop.org/doc/dbus-specification.html.
//
// It is no client of a message bus: for that there is github.com/godbus/dbus, whose connection trusts the daemon behind it.
// Here the other side is hostile, and what it can cause is bounded: a message has a largest size, memory grows with what has
// come and not with what was announced, descriptors that nobody takes are closed, and who does not read is dropped after a
// time. Calls are handled one after the other, in the order in which they came: the keys that are pressed and the frames
// that are shown by them have one.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on what the other side can make a connection hold.
const (
	maxPending   = 256      // calls that wait for their replies
	maxInterned  = 128      // names that are remembered
	maxErrorText = 512      // bytes of the text of an error
	firstBuffer  = 16 << 10 // bytes of the receive buffer; it grows with longer messages
	copyBody     = 32 << 10 // bytes of a body that is copied to its header, to be sent by one call
)

// DefaultTimeout is how long a handshake, and the sending of a message, may take.
const DefaultTimeout = 10 * time.Second

// Config is what a connection is made with.
type Config struct {
	// Handler is called for each call and signal, in their order, by the goroutine that runs Serve. It must not wait for a
	// reply of the same connection. Nil refuses all calls.
	Handler func(*Message)
	// MaxBody is how many bytes the body of a message may have that comes; 0 is 64 KiB.
	MaxBody int
	// Timeout is that of the handshake and of sending a message to one who does not read; 0 is DefaultTimeout.
	Timeout time.Duration
}

// Reply is the answer to a call. Err is the error of the connection, or a *CallError.
type Reply struct {
	Message Message // a copy
	Err     error
}

// CallError is an error that the other side returned.
type CallError struct{ Name, Text string }

// Error returns the text and the name.
func (e *CallError) Error() string { return fmt.Sprintf("%s (%s)", e.Text, e.Name) }

// ErrClosed is the error of what is done with a connection that has ended.
var ErrClosed = errors.New("the connection is closed")

// Conn is a connection. Serve must run for replies to come.
type Conn struct {
	sock *net.UnixConn
	cfg  Config
	fds  bool // both sides pass descriptors

	// Of the goroutine that reads.
	buf        []byte
	begin, end int // of what was received and is not yet used, in buf
	oob        []byte
	queue      []int // descriptors that have come and belong to no message yet
	names      map[string]string
	msg        Message

	mu      sync.Mutex // of what follows, and of writing
	head    Encoder
	serial  uint32
	pending map[uint32]chan<- Reply
	closed  bool
}

func newConn(sock *net.UnixConn, cfg Config) *Conn {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 64 << 10
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	return &Conn{
		sock:    sock,
		cfg:     cfg,
		buf:     make([]byte, firstBuffer),
		oob:     make([]byte, unix.CmsgSpace(4*maxFDs)),
		names:   make(map[string]string),
		pending: make(map[uint32]chan<- Reply),
	}
}

// SupportsFDs says whether the other side takes file descriptors.
func (c *Conn) SupportsFDs() bool { return c.fds }

// Close ends the connection, and Serve.
func (c *Conn) Close() error { return c.sock.Close() }

// Serve handles what comes until the connection ends. It returns nil if one of the sides has closed it between two
// messages, and closes it in any case.
func (c *Conn) Serve() error {
	defer c.finish()
	for {
		err := c.receive()
		switch {
		case err == nil:
			c.dispatch()
			c.closeFDs(c.msg.fds)
		case err == io.EOF || errors.Is(err, net.ErrClosed):
			return nil
		default:
			return err
		}
	}
}

// finish closes the connection and fails the calls that wait.
func (c *Conn) finish() {
	c.sock.Close()
	c.closeFDs(c.queue)
	c.closeFDs(c.msg.fds) // of a message that was not dispatched
	c.queue = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, done := range c.pending {
		answer(done, Reply{Err: ErrClosed})
	}
	clear(c.pending)
}

// receive reads a message into c.msg, which aliases the buffer.
func (c *Conn) receive() error {
	if err := c.fill(fixedHeader); err != nil {
		return err
	}
	order, fields, body, err := sizes(c.buf[c.begin:], c.cfg.MaxBody)
	if err != nil {
		return err
	}
	size := (fixedHeader+fields+7)&^7 + body
	if err := c.fill(size); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	n, err := c.msg.decode(c.buf[c.begin:c.begin+size], order, body, c.intern)
	if err != nil {
		return err
	}
	if n > 0 && !c.fds {
		return errors.New("message with file descriptors, which were not agreed upon")
	}
	if uint64(n) > uint64(len(c.queue)) {
		return fmt.Errorf("message with %d file descriptors, of which %d have come", n, len(c.queue))
	}
	c.msg.fds = c.queue[:n:n]
	c.queue = c.queue[n:]
	c.begin += size
	if c.begin == c.end && len(c.queue) > 0 {
		return errors.New("file descriptors that belong to no message")
	}
	return nil
}

// fill receives until there are n bytes. It returns io.EOF if the connection ends before the first of them. The buffer grows
// when it is full of what has come, to twice its size at most: what was announced costs nothing.
func (c *Conn) fill(n int) error {
	for c.end-c.begin < n {
		switch {
		case c.begin > 0 && (c.begin == c.end || c.begin+n > len(c.buf)):
			c.end = copy(c.buf, c.buf[c.begin:c.end])
			c.begin = 0
		case c.end == len(c.buf):
			room := make([]byte, min(n, 2*len(c.buf)))
			copy(room, c.buf)
			c.buf = room
		}
		k, oobn, flags, _, err := c.sock.ReadMsgUnix(c.buf[c.end:], c.oob)
		if err == nil {
			err = c.takeFDs(c.oob[:oobn], flags)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) { // one who goes without reading all resets
			if err = io.EOF; c.begin != c.end {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			return err
		}
		c.end += k
	}
	return nil
}

// takeFDs queues the descriptors that came with some bytes.
func (c *Conn) takeFDs(oob []byte, flags int) error {
	if len(oob) > 0 {
		msgs, err := unix.ParseSocketControlMessage(oob)
		if err != nil {
			return err
		}
		for i := range msgs {
			if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
				continue
			}
			fds, err := unix.ParseUnixRights(&msgs[i])
			if err != nil {
				return err
			}
			c.queue = append(c.queue, fds...)
		}
	}
	if flags&unix.MSG_CTRUNC != 0 || len(c.queue) > maxFDs {
		return fmt.Errorf("more than %d file descriptors at once", maxFDs)
	}
	return nil
}

// closeFDs closes those that were not taken.
func (c *Conn) closeFDs(fds []int) {
	for i, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
		fds[i] = -1
	}
}

// intern returns b as a string: without allocating, if it has come before.
func (c *Conn) intern(b []byte) string {
	if s, ok := c.names[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(c.names) < maxInterned {
		c.names[s] = s
	}
	return s
}

// dispatch handles c.msg.
func (c *Conn) dispatch() {
	switch m := &c.msg; m.Type {
	case MethodReturn, Error:
		c.resolve(m)
	case MethodCall:
		switch {
		case m.Interface == "org.freedesktop.DBus.Peer" && m.Member == "Ping":
			c.Reply(m, "", nil)
		case m.Interface == "org.freedesktop.DBus.Peer":
			c.Fail(m, ErrUnknownMethod, "no such method")
		case c.cfg.Handler == nil:
			c.Fail(m, ErrUnknownObject, "there are no objects here")
		default:
			c.cfg.Handler(m)
		}
	case Signal:
		if c.cfg.Handler != nil {
			c.cfg.Handler(m)
		}
	}
}

// resolve gives a reply to who waits for it, if somebody does.
func (c *Conn) resolve(m *Message) {
	c.mu.Lock()
	done, ok := c.pending[m.ReplySerial]
	delete(c.pending, m.ReplySerial)
	c.mu.Unlock()
	if !ok {
		return
	}
	r := Reply{Message: *m}
	r.Message.fds = nil
	r.Message.body = nil
	if len(m.body) > 0 {
		r.Message.body = append([]byte(nil), m.body...)
	}
	if m.Type == Error {
		e := &CallError{Name: m.ErrorName, Text: "the call failed"}
		if m.Signature == "s" {
			d := Decoder{buf: m.body, order: m.order}
			text := d.str()
			e.Text = string(text[:min(len(text), maxErrorText)])
		}
		r.Err = e
	}
	answer(done, r)
}

// answer does not wait for one who has made no room.
func answer(done chan<- Reply, r Reply) {
	select {
	case done <- r:
	default:
	}
}

// Send sends a message. The body is encoded with an Encoder of its own, and its signature is in the header. Descriptors
// are duplicated by the kernel and stay the caller's. An error has ended the connection.
func (c *Conn) Send(h *Header, body []byte, fds ...int) error { return c.send(h, body, nil, fds) }

// TrySend sends a message without a reply, as Send does, unless that would have to wait: then it returns false, and nothing was
// sent. Messages of up to half of the socket's buffer, which has 200 KiB, do not wait in between either: the kernel takes
// such a one whole or not at all.
func (c *Conn) TrySend(h *Header, body []byte) (sent bool, err error) {
	if !c.mu.TryLock() { // somebody else sends, and may wait
		return false, nil
	}
	defer c.mu.Unlock()
	if c.closed {
		return false, ErrClosed
	}
	c.encode(h, len(body), 0)
	c.head.buf = append(c.head.buf, body...)
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return false, c.broken(err)
	}
	n := 0
	ended := raw.Control(func(fd uintptr) { // not Write, which knows of the deadline of the message before
		n, err = unix.SendmsgN(int(fd), c.head.buf, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	switch {
	case ended != nil:
		return false, c.broken(ended)
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return false, c.broken(err)
	}
	c.head.buf = append(c.head.buf[:0], c.head.buf[n:]...)
	if err := c.write(nil, nil); err != nil {
		return false, c.broken(err)
	}
	return true, nil
}

// Go sends a call, whose reply goes to done, which must have room for it.
func (c *Conn) Go(h *Header, body []byte, done chan<- Reply, fds ...int) error {
	return c.send(h, body, done, fds)
}

// Call sends a call and waits for the reply.
func (c *Conn) Call(ctx context.Context, h *Header, body []byte, fds ...int) Reply {
	done := make(chan Reply, 1)
	if err := c.send(h, body, done, fds); err != nil {
		return Reply{Err: err}
	}
	select {
	case r := <-done:
		return r
	case <-ctx.Done():
		c.forget(done)
		return Reply{Err: ctx.Err()}
	}
}

// forget removes a call whose reply is not awaited any more.
func (c *Conn) forget(done chan<- Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for serial, have := range c.pending {
		if have == done {
			delete(c.pending, serial)
		}
	}
}

// Reply answers a call, if it wants that. An error of the connection shows in Serve.
func (c *Conn) Reply(m *Message, signature string, body []byte) {
	if m.Flags&NoReplyExpected == 0 {
		_ = c.Send(&Header{Type: MethodReturn, Flags: NoReplyExpected, ReplySerial: m.Serial, Signature: signature}, body)
	}
}

// Fail answers a call with an error, if it wants an answer.
func (c *Conn) Fail(m *Message, name, text string) {
	if m.Flags&NoReplyExpected == 0 {
		var e Encoder
		e.Str(text)
		_ = c.Send(&Header{Type: Error, Flags: NoReplyExpected, ReplySerial: m.Serial, ErrorName: name, Signature: "s"}, e.buf)
	}
}

func (c *Conn) send(h *Header, body []byte, done chan<- Reply, fds []int) error {
	if len(fds) > 0 && !c.fds {
		return errors.New("the other side takes no file descriptors")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	if done != nil {
		if len(c.pending) >= maxPending {
			return fmt.Errorf("%d calls wait for their replies", maxPending)
		}
	}
	c.encode(h, len(body), len(fds))
	if done != nil {
		c.pending[c.serial] = done
	}
	if err := c.write(body, fds); err != nil {
		delete(c.pending, c.serial)
		return c.broken(err)
	}
	return nil
}

// encode makes c.head the header of the next message.
func (c *Conn) encode(h *Header, body, fds int) {
	if c.serial++; c.serial == 0 {
		c.serial = 1
	}
	h.encode(&c.head, c.serial, body, fds)
}

// broken ends the connection, by which a part of a message may have gone.
func (c *Conn) broken(err error) error {
	c.closed = true
	c.sock.Close()
	return fmt.Errorf("sending a message: %w", err)
}

// write writes c.head, the body, and the descriptors with the first byte.
func (c *Conn) write(body []byte, fds []int) error {
	if len(body) <= copyBody {
		c.head.buf, body = append(c.head.buf, body...), nil
	}
	first := c.head.buf
	if len(first) == 0 {
		return nil
	}
	c.sock.SetWriteDeadline(time.Now().Add(c.cfg.Timeout))
	if len(fds) > 0 {
		n, _, err := c.sock.WriteMsgUnix(first, unix.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		first = first[n:]
	}
	if len(first) > 0 {
		if _, err := c.sock.Write(first); err != nil {
			return err
		}
	}
	if len(body) > 0 {
		if _, err := c.sock.Write(body); err != nil {
			return err
		}
	}
	return nil
}
