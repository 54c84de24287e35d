package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Listener is where programs of the host ask for a connection to the guest, such as a *net.UnixListener.
type Listener interface {
	net.Listener
	SetDeadline(time.Time) error
}

// Listen returns a Listener on the Unix socket path.
func Listen(path string) (Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	return l, nil
}

// DialPath returns a function for Config.Dial that connects the guest's connections to port P of the host with the Unix
// socket path_P.
func DialPath(path string) func(context.Context, uint32) (net.Conn, error) {
	return func(ctx context.Context, port uint32) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path+"_"+strconv.FormatUint(uint64(port), 10))
	}
}

// dialFor connects c, which the guest asked for. The lock is not held.
func (m *muxer) dialFor(c *conn) {
	m.mu.Lock()
	ctx, cancel := context.WithTimeout(m.ctx, m.timeout)
	m.mu.Unlock()
	sock, err := m.dial(ctx, c.key.host)
	cancel()

	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case c.dead:
		if err == nil {
			_ = sock.Close()
		}
	case err == nil:
		c.sock = sock
		c.owes |= oweResponse
		c.opened()
	case m.running:
		m.abort(c) // else start dials again
	}
}

// accept takes connections from programs of the host. The lock is not held.
func (m *muxer) accept() {
	for {
		sock, err := m.listener.Accept()
		m.mu.Lock()
		running, ctx := m.running, m.ctx
		switch {
		case err != nil:
		case !running || m.full():
			_ = sock.Close()
		default:
			m.greeting[sock] = struct{}{}
			m.spawn(func() { m.greet(sock) })
		}
		m.mu.Unlock()
		if !running || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely: wait until some are free again
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// greet reads which port sock wants and asks the guest for a connection. A pause in the middle of that ends it: the line
// comes at once or never. The lock is not held.
func (m *muxer) greet(sock net.Conn) {
	_ = sock.SetDeadline(time.Now().Add(m.timeout))
	m.mu.Lock()
	if !m.running { // stop came before our deadline
		_ = sock.SetDeadline(time.Unix(1, 0))
	}
	m.mu.Unlock()
	port, rest, err := readConnect(sock)

	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.greeting, sock)
	if err != nil || !m.running {
		_ = sock.Close()
		return
	}
	_ = sock.SetDeadline(time.Time{})
	c := m.add(m.freeKey(port), requested)
	c.sock = sock
	c.hello = fmt.Appendf(nil, "OK %d\n", c.key.host)
	if len(rest) > 0 {
		c.in.buf = make([]byte, ringSize)
		c.in.put = uint32(copy(c.in.buf, rest))
	}
	c.owes |= oweRequest
	c.timer = time.AfterFunc(m.timeout, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.running && !c.dead && c.state == requested {
			m.abort(c)
		}
	})
	m.ready(c)
}

// freeKey returns a key for a connection from the host to the guest's port that is not in use. There are fewer
// connections than ports.
func (m *muxer) freeKey(guest uint32) key {
	for {
		k := key{host: m.port, guest: guest}
		if m.port++; m.port == endPort {
			m.port = firstPort
		}
		if m.conns[k] == nil {
			return k
		}
	}
}

// readConnect reads "CONNECT port\n" and returns the port, and what was read beyond the line.
func readConnect(sock net.Conn) (port uint32, rest []byte, err error) {
	buf := make([]byte, 0, 64)
	for {
		n, err := sock.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if line, rest, ok := strings.Cut(string(buf), "\n"); ok {
			port, err := parseConnect(line)
			return port, []byte(rest), err
		}
		if err != nil {
			return 0, nil, err
		}
		if len(buf) == cap(buf) {
			return 0, nil, errors.New("no line")
		}
	}
}

// parseConnect returns the port of "CONNECT port".
func parseConnect(line string) (uint32, error) {
	s, ok := strings.CutPrefix(line, "CONNECT ")
	if !ok {
		return 0, fmt.Errorf("%q instead of CONNECT and a port", line)
	}
	port, err := strconv.ParseUint(s, 10, 32)
	return uint32(port), err
}
