// Package broker lets a process that may connect to nothing ask another one for connected sockets: a VMM in its cell has no
// paths, yet its guest may connect to a program of the host, and a network helper may come back after it was gone.
//
// The two share a pair of SOCK_SEQPACKET sockets. A request is one packet of JSON, the answer another one, with the socket if
// there is no error in it. Whoever answers decides what may be asked for: it takes every request for a guest's.
package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Request says what to connect to.
type Request struct {
	ID   uint64 `json:"id"`
	What string `json:"what"` // Vsock, NIC or Disk
	Port uint32 `json:"port,omitempty"`
	Name string `json:"name,omitempty"`
}

// What can be asked for.
const (
	Vsock = "vsock" // the program of the host behind port Port
	NIC   = "nic"   // the network of the guest's card Name
	Disk  = "disk"  // the process that serves the guest's disk Name
)

type answer struct {
	ID    uint64 `json:"id"`
	Error string `json:"error,omitempty"`
}

// maxPacket bounds a packet in bytes.
const maxPacket = 4096

// Pair returns both ends of a broker's socket: the one to serve, and the one to hand to the process that asks.
func Pair() (serve *net.UnixConn, ask *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("broker: %w", err)
	}
	ask = os.NewFile(uintptr(fds[1]), "broker")
	if serve, err = conn(os.NewFile(uintptr(fds[0]), "broker")); err != nil {
		return nil, nil, errors.Join(err, ask.Close())
	}
	return serve, ask, nil
}

// conn takes f over.
func conn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("broker: the socket is of kind %T, not a Unix socket", c), c.Close())
	}
	return u, nil
}

// Serve answers requests, one after the other, until ctx ends or the other side is gone. connect makes a connected socket,
// which Serve takes over; it should give up soon, since later requests wait. Its errors are told the other side. Serve
// closes c.
func Serve(ctx context.Context, c *net.UnixConn, connect func(context.Context, Request) (*os.File, error)) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	b := make([]byte, maxPacket)
	for {
		n, err := c.Read(b)
		if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("broker: %w", err)
		}
		var r Request
		if err := json.Unmarshal(b[:n], &r); err != nil {
			return fmt.Errorf("broker: not a request: %w", err)
		}
		f, err := connect(ctx, r)
		if err := reply(c, r.ID, f, err); err != nil {
			return err
		}
	}
}

func reply(c *net.UnixConn, id uint64, f *os.File, err error) error {
	a, rights := answer{ID: id}, []byte(nil)
	if err != nil {
		a.Error = err.Error()
		a.Error = a.Error[:min(len(a.Error), maxPacket/8)] // as JSON, a byte takes up to six
	} else {
		defer f.Close()
		rights = unix.UnixRights(int(f.Fd()))
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(writeLimit))
	if _, _, err := c.WriteMsgUnix(b, rights, nil); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("broker: %w", err)
	}
	runtime.KeepAlive(f)
	return nil
}

// writeLimit bounds how long an answer waits for a process that asks and does not listen.
const writeLimit = 5 * time.Second

// Client asks. The zero value has nobody to ask: its requests fail.
type Client struct {
	c  atomic.Pointer[net.UnixConn]
	mu sync.Mutex // one request at a time
	id uint64
}

// errNobody is why a request fails.
var errNobody = errors.New("broker: there is nobody to ask")

// Use takes over the end of Pair that asks, in place of the one before, whose request, if there is one, fails.
func (c *Client) Use(f *os.File) error {
	sock, err := conn(f)
	if err != nil {
		return err
	}
	if old := c.c.Swap(sock); old != nil {
		old.Close()
	}
	return nil
}

// Close closes the socket: requests fail from then on.
func (c *Client) Close() error {
	if sock := c.c.Swap(nil); sock != nil {
		return sock.Close()
	}
	return nil
}

// answerLimit bounds how long a request waits for its answer if ctx does not.
const answerLimit = 5 * time.Second

// Dial asks for a connection. It waits for requests of others first.
func (c *Client) Dial(ctx context.Context, r Request) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn := c.c.Load()
	if conn == nil {
		return nil, errNobody
	}
	_ = conn.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	f, err := c.ask(conn, r)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	sock, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return sock, nil
}

// ask sends r and returns the descriptor that comes for it. Answers to requests that were given up before are dropped.
func (c *Client) ask(conn *net.UnixConn, r Request) (*os.File, error) {
	c.id++
	r.ID = c.id
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(b); err != nil {
		return nil, err
	}
	b = make([]byte, maxPacket)
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			return nil, err
		}
		f := received(oob[:oobn])
		var a answer
		err = json.Unmarshal(b[:n], &a)
		if err == nil && a.ID == c.id && a.Error == "" && f != nil {
			return f, nil
		}
		if f != nil {
			f.Close()
		}
		switch {
		case err != nil:
			return nil, err
		case a.ID != c.id:
		case a.Error != "":
			return nil, errors.New(a.Error)
		default:
			return nil, errors.New("an answer without a socket")
		}
	}
}

// received returns the one file in oob, or nil.
func received(oob []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil
	}
	return os.NewFile(uintptr(fds[0]), "socket from the broker")
}
