package vhostuser

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

// errHungUp says that the back end has ended the connection, as it does when its process ends.
var errHungUp = errors.New("the back end has hung up")

// conn is a connection to a back end. One goroutine at a time makes requests.
type conn struct {
	sock *net.UnixConn
	ack  bool // REPLY_ACK was negotiated

	mu      sync.Mutex
	waiting request      // what is to be answered, or 0
	answer  chan message // has room for that one

	once sync.Once
	gone chan struct{} // closed when the connection is over, with err set
	err  error
}

func newConn(sock *net.UnixConn) *conn {
	c := &conn{sock: sock, answer: make(chan message, 1), gone: make(chan struct{})}
	go c.read()
	return c
}

// fail ends the connection. What ended it first is why.
func (c *conn) fail(err error) {
	for _, hungUp := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE} {
		if errors.Is(err, hungUp) {
			err = errHungUp
		}
	}
	c.once.Do(func() {
		c.err = err
		_ = c.sock.Close()
		close(c.gone)
	})
}

// alive reports whether the connection is not over, as far as is known.
func (c *conn) alive() bool {
	if c == nil {
		return false
	}
	select {
	case <-c.gone:
		return false
	default:
		return true
	}
}

// read takes the answers. A back end that hangs up is noticed here, whether it was asked something or not.
func (c *conn) read() {
	for {
		m, err := readMessage(c.sock)
		if err == nil {
			err = c.deliver(m)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *conn) deliver(m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == 0 || m.request != c.waiting || m.flags&flagReply == 0 {
		m.close()
		return fmt.Errorf("the back end sends %v, which it was not asked for", m.request)
	}
	c.waiting = 0
	c.answer <- m
	return nil
}

// send sends a request and does not wait for an answer. If ctx ends first, the connection does too: half a message may be
// on the way. fds stay the caller's.
func (c *conn) send(ctx context.Context, r request, flags uint32, payload []byte, fds ...int) error {
	deadline, _ := ctx.Deadline()
	_ = c.sock.SetWriteDeadline(deadline)
	m := message{request: r, flags: flags, payload: payload, fds: fds}
	if err := m.write(c.sock); err != nil {
		c.fail(err)
		return c.wrap(r, c.err)
	}
	return nil
}

func (c *conn) wrap(r request, err error) error { return fmt.Errorf("vhost-user: %v: %w", r, err) }

// ask sends a request and returns the answer to it. If ctx ends first, so does the connection: a late answer would be taken
// for that of the next request.
func (c *conn) ask(ctx context.Context, r request, flags uint32, payload []byte, fds ...int) (message, error) {
	c.mu.Lock()
	c.waiting = r
	c.mu.Unlock()
	if err := c.send(ctx, r, flags, payload, fds...); err != nil {
		return message{}, err
	}
	select {
	case m := <-c.answer:
		return m, nil
	case <-ctx.Done():
		c.fail(fmt.Errorf("no answer: %w", context.Cause(ctx)))
	case <-c.gone:
	}
	select {
	case m := <-c.answer: // it came with the end
		m.close()
	default:
	}
	return message{}, c.wrap(r, c.err)
}

// get asks for something that has no descriptor, and has parse take it.
func (c *conn) get(ctx context.Context, r request, payload []byte, parse func([]byte) error) error {
	m, err := c.ask(ctx, r, 0, payload)
	if err != nil {
		return err
	}
	m.close()
	return c.checked(r, parse(m.payload))
}

// checked ends the connection if err says that an answer is not what it can be.
func (c *conn) checked(r request, err error) error {
	if err != nil {
		c.fail(err)
		return c.wrap(r, err)
	}
	return nil
}

func (c *conn) getU64(ctx context.Context, r request) (v uint64, err error) {
	err = c.get(ctx, r, nil, func(p []byte) (err error) {
		v, err = parseU64(p)
		return err
	})
	return v, err
}

// set sends a request that has no answer of its own, and waits until it is done if the back end can tell.
func (c *conn) set(ctx context.Context, r request, payload []byte, fds ...int) error {
	if !c.ack {
		return c.send(ctx, r, 0, payload, fds...)
	}
	m, err := c.ask(ctx, r, flagNeedReply, payload, fds...)
	if err != nil {
		return err
	}
	m.close()
	v, err := parseU64(m.payload)
	if err == nil && v != 0 {
		err = errors.New("the back end refuses")
	}
	return c.checked(r, err)
}

// serve answers what the back end asks by itself on sock, until that ends. changed is called when its configuration has
// changed, after the answer: the back end may wait for that before it answers us.
func serve(sock *net.UnixConn, timeout time.Duration, changed func()) {
	defer sock.Close()
	for {
		m, err := readMessage(sock)
		if err != nil {
			return
		}
		m.close()
		known := m.request == backendConfigChange
		if m.flags&flagNeedReply != 0 {
			answer := message{request: m.request, flags: flagReply, payload: u64(1)}
			if known {
				answer.payload = u64(0)
			}
			_ = sock.SetWriteDeadline(time.Now().Add(timeout))
			if answer.write(sock) != nil {
				return
			}
		}
		if known {
			changed()
		}
	}
}
