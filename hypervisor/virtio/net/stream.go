package virtionet

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/internal/framing"
)

// How long to wait before dialling a peer again that went away: it doubles until the peer sends a frame.
const (
	minDelay = 50 * time.Millisecond
	maxDelay = 5 * time.Second
)

// Stream is a Backend over a stream socket in QEMU's framing (-netdev stream). It has no offloads: the peer sees whole
// Ethernet frames with their checksums. The link is up while there is a peer; when it goes away Receive dials again.
type Stream struct {
	dial func(context.Context) (net.Conn, error)
	log  *slog.Logger
	up   atomic.Bool // conn != nil

	mu      sync.Mutex
	conn    net.Conn // nil while there is no peer
	stopped bool
	ctx     context.Context // ends at Stop
	cancel  context.CancelFunc
	changed func()

	// Receive's.
	in    framing.Deframer
	delay time.Duration // before the next attempt to dial

	// Send's.
	out     []byte   // frames that outConn has still to get; the first may be cut, since its head is on the way
	outConn net.Conn // never dereferenced unless it is conn
}

// NewStream returns a backend over conn, or over what dial returns if conn is nil or its peer goes away. dial may be nil:
// then the link stays down. It should give up when its context ends. log may be nil. Close closes the connection.
func NewStream(conn net.Conn, dial func(context.Context) (net.Conn, error), log *slog.Logger) *Stream {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Stream{dial: dial, log: log, conn: conn, stopped: true}
	s.up.Store(conn != nil)
	return s
}

// DialUnix returns a function for NewStream that connects to a Unix socket.
func DialUnix(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}

// Features implements Backend.
func (s *Stream) Features() uint64 { return 0 }

// Link implements Backend.
func (s *Stream) Link() bool { return s.up.Load() }

// Close closes the connection. The device must be stopped.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up.Store(false)
	if s.conn == nil {
		return nil
	}
	c := s.conn
	s.conn = nil
	return c.Close()
}

// Start implements Backend.
func (s *Stream) Start(_ uint64, linkChanged func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in.Buf == nil {
		s.in.Buf, s.out = make([]byte, framing.BufferSize), make([]byte, 0, framing.BufferSize)
	}
	s.stopped, s.changed = false, linkChanged
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if s.conn != nil {
		_ = s.conn.SetDeadline(time.Time{})
	}
	return nil
}

// Stop implements Backend.
func (s *Stream) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.cancel()
	if s.conn != nil {
		_ = s.conn.SetDeadline(time.Unix(1, 0)) // in the past: whoever waits returns
	}
}

// current returns the connection, or nil if there is none, and whether the backend is to stop.
func (s *Stream) current() (net.Conn, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn, s.stopped
}

// fail handles err from c: it reports ErrStopped if Stop caused it; otherwise c is given up and the link is down.
func (s *Stream) fail(c net.Conn, err error) error {
	s.mu.Lock()
	if s.stopped && errors.Is(err, os.ErrDeadlineExceeded) {
		s.mu.Unlock()
		return ErrStopped
	}
	mine, changed := s.conn == c, s.changed
	if mine {
		s.conn = nil
		s.up.Store(false)
	}
	s.mu.Unlock()
	if mine { // else the other direction was first
		_ = c.Close()
		s.log.Warn("network peer is gone", "reason", err)
		changed()
	}
	return nil
}

// connect dials until there is a connection. Its error is ErrStopped.
func (s *Stream) connect() error {
	s.mu.Lock()
	ctx := s.ctx
	s.mu.Unlock()
	s.in.Reset()
	for {
		if s.dial == nil {
			<-ctx.Done()
		}
		select {
		case <-ctx.Done():
			return ErrStopped
		case <-time.After(s.delay): // at first none
		}
		s.delay = min(max(2*s.delay, minDelay), maxDelay)
		c, err := s.dial(ctx)
		if err != nil {
			s.log.Debug("network peer does not answer", "reason", err)
			continue
		}
		s.mu.Lock()
		s.conn = c
		s.up.Store(true)
		if s.stopped {
			_ = c.SetDeadline(time.Unix(1, 0))
		}
		changed := s.changed
		s.mu.Unlock()
		s.log.Info("network peer is back")
		changed()
		return nil
	}
}

// Receive implements Backend.
func (s *Stream) Receive(packet []unix.Iovec, idle func()) (int, error) {
	for {
		frame, err := s.in.Next()
		if frame != nil {
			s.delay = 0
			return fill(packet, frame), nil
		}
		c, stopped := s.current()
		if stopped {
			return 0, ErrStopped
		}
		idle()
		if c == nil {
			if err := s.connect(); err != nil {
				return 0, err
			}
			continue
		}
		if err == nil {
			var n int
			n, err = c.Read(s.in.Free())
			s.in.Filled(n)
			if n == 0 && err == nil {
				err = io.ErrNoProgress
			}
			if n > 0 {
				continue // the error, if any, comes again
			}
		}
		if err := s.fail(c, err); err != nil {
			return 0, err
		}
	}
}

// fill puts a header without any offload and frame into packet, and returns their length.
func fill(packet []unix.Iovec, frame []byte) int {
	clear(bytesOf(packet[0]))
	n := HeaderSize
	for _, v := range packet[1:] {
		k := copy(bytesOf(v), frame)
		frame, n = frame[k:], n+k
		if len(frame) == 0 {
			break
		}
	}
	return n
}

// Send implements Backend. It gathers frames until the buffer is full: one write for many small frames is worth more than
// the copy that it costs.
func (s *Stream) Send(packet []unix.Iovec) error {
	frame := packet[1:]
	n := length(frame)
	if len(s.out)+framing.PrefixSize+n > cap(s.out) {
		if err := s.Flush(); err != nil {
			return err
		}
	}
	c, _ := s.current()
	if c == nil {
		return nil // nobody is there
	}
	s.target(c)
	s.out = framing.AppendPrefix(s.out, n)
	for _, v := range frame {
		s.out = append(s.out, bytesOf(v)...)
	}
	return nil
}

// target makes c the connection that out is for; what was for another is dropped.
func (s *Stream) target(c net.Conn) {
	if s.outConn != c {
		s.outConn, s.out = c, s.out[:0]
	}
}

// Flush implements Backend. It waits for as long as the peer does not read.
func (s *Stream) Flush() error {
	if len(s.out) == 0 {
		return nil
	}
	c, stopped := s.current()
	if stopped {
		return ErrStopped
	}
	if c == nil {
		s.out = s.out[:0]
		return nil
	}
	s.target(c)
	n, err := c.Write(s.out)
	s.out = s.out[:copy(s.out, s.out[n:])]
	if err == nil {
		return nil
	}
	if err := s.fail(c, err); err != nil {
		return err
	}
	s.out = s.out[:0]
	return nil
}
