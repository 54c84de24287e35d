package headless

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/hid"
)

// Limits of what a client may cost.
const (
	maxClients = 8
	maxCutText = 1 << 20          // bytes of a clipboard, which are thrown away
	maxBand    = 512 << 10        // bytes of pixels that are taken from the screen at once
	handshake  = 10 * time.Second // for a client to say who it is
	slowest    = 30 * time.Second // for a client to take what it has asked for
)

// Messages of clients (RFC 6143 §7.5).
const (
	msgSetPixelFormat = 0
	msgSetEncodings   = 2
	msgUpdateRequest  = 3
	msgKeyEvent       = 4
	msgPointerEvent   = 5
	msgClientCutText  = 6
)

// Encodings (§7.7, §7.8).
const (
	encodingRaw         = 0
	encodingDesktopSize = -223
)

// securityNone is the security type None (§7.2.1).
const securityNone = 1

// Server shows a screen to clients. Every client has its own pixel format, and gets what has changed when it asks for it.
type Server struct {
	Screen *Screen
	Name   string       // in the clients' titles
	Input  hid.Sink     // what clients do; absolute positions are the screen's. nil: they can only look
	Log    *slog.Logger // nil is slog.Default
}

// Serve serves clients that connect to l until ctx is done; then it closes l and all clients. l must be a Unix socket or
// listen on a loopback address: clients need no password.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		_ = l.Close()
		return fmt.Errorf("RFB on %v: without a password only a loopback address is possible, such as 127.0.0.1:5900", a)
	}
	log := s.Log
	if log == nil {
		log = slog.Default()
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	room := make(chan struct{}, maxClients)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("RFB: %w", err)
		}
		select {
		case room <- struct{}{}:
		default:
			log.Warn("too many RFB clients", "client", conn.RemoteAddr())
			_ = conn.Close()
			continue
		}
		clients.Go(func() {
			defer func() { <-room }()
			if err := s.client(ctx, conn); err != nil {
				log.Warn("RFB client left", "client", conn.RemoteAddr(), "err", err)
			}
		})
	}
}

// client is a connected client.
type client struct {
	conn   net.Conn
	in     *bufio.Reader
	screen *Screen
	person person

	mu      sync.Mutex
	format  *pixelFormat
	resize  bool            // it knows DesktopSize
	asked   image.Rectangle // what it wants to have when it has changed; empty: nothing
	dirty   output.Region   // what has changed since it was told
	size    image.Point     // that it knows
	changed chan struct{}   // of one: there may be something to send
}

// client serves one client until it leaves or ctx is done.
func (s *Server) client(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c := &client{
		conn: conn, in: bufio.NewReader(conn), screen: s.Screen, person: person{sink: s.Input},
		format: ours(), changed: make(chan struct{}, 1),
	}
	_ = conn.SetDeadline(time.Now().Add(handshake))
	if err := c.greet(s.Name); err != nil {
		return hangUp(err)
	}
	_ = conn.SetDeadline(time.Time{})
	unwatch := s.Screen.watch(&watcher{c.note})
	defer unwatch()
	defer c.person.leave()
	// Two goroutines: what a client sends is not to wait for what it takes. Who fails closes the connection for both.
	ended, left := make(chan struct{}), make(chan error, 1)
	go func() {
		err := c.send(ended)
		_ = conn.Close()
		left <- err
	}()
	err := c.receive()
	close(ended)
	_ = conn.Close()
	if sent := <-left; errors.Is(err, net.ErrClosed) && sent != nil {
		err = sent
	}
	return hangUp(err)
}

// hangUp removes the errors that are no fault of a client's.
func hangUp(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// greet does the handshake (§7.1 to §7.3) of the versions 3.3, 3.7 and 3.8.
func (c *client) greet(name string) error {
	if _, err := io.WriteString(c.conn, "RFB 003.008\n"); err != nil {
		return err
	}
	var version [12]byte
	if _, err := io.ReadFull(c.in, version[:]); err != nil {
		return err
	}
	var minor int
	switch v := string(version[:]); {
	case v == "RFB 003.007\n":
		minor = 7
	case v == "RFB 003.008\n":
		minor = 8
	case strings.HasPrefix(v, "RFB 003.") && v[len(v)-1] == '\n': // §7.1.1: all others are taken as 3.3
		minor = 3
	default:
		return fmt.Errorf("client has version %q", version)
	}
	if minor == 3 {
		if _, err := c.conn.Write([]byte{0, 0, 0, securityNone}); err != nil {
			return err
		}
	} else {
		if _, err := c.conn.Write([]byte{1, securityNone}); err != nil {
			return err
		}
		if t, err := c.in.ReadByte(); err != nil {
			return err
		} else if t != securityNone {
			return fmt.Errorf("client wants security type %d", t)
		}
		if minor == 8 {
			if _, err := c.conn.Write(make([]byte, 4)); err != nil { // SecurityResult: OK
				return err
			}
		}
	}
	if _, err := c.in.ReadByte(); err != nil { // ClientInit: all clients share
		return err
	}
	c.size = c.screen.Mode().Size().Max
	b := binary.BigEndian.AppendUint16(nil, uint16(c.size.X))
	b = binary.BigEndian.AppendUint16(b, uint16(c.size.Y))
	b = c.format.put(b)
	name = name[:min(len(name), 256)]
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	_, err := c.conn.Write(append(b, name...))
	return err
}

// note is the watcher.
func (c *client) note(damage []image.Rectangle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if damage == nil {
		c.dirty.Clear()
		c.dirty.Add(image.Rect(0, 0, 1<<16-1, 1<<16-1))
	}
	for _, r := range damage {
		c.dirty.Add(r)
	}
	c.wake()
}

func (c *client) wake() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// receive takes the client's messages until it leaves.
func (c *client) receive() error {
	var b [20]byte
	read := func(n int) error {
		_, err := io.ReadFull(c.in, b[:n])
		return err
	}
	for {
		kind, err := c.in.ReadByte()
		if err != nil {
			return err
		}
		switch kind {
		case msgSetPixelFormat:
			if err := read(19); err != nil {
				return err
			}
			f, err := parseFormat((*[16]byte)(b[3:19]))
			if err != nil {
				return err
			}
			c.mu.Lock()
			c.format = f
			c.mu.Unlock()
		case msgSetEncodings:
			if err := read(3); err != nil {
				return err
			}
			if err := c.encodings(int(binary.BigEndian.Uint16(b[1:]))); err != nil {
				return err
			}
		case msgUpdateRequest:
			if err := read(9); err != nil {
				return err
			}
			at := image.Pt(int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:])))
			r := image.Rectangle{at, at.Add(image.Pt(int(binary.BigEndian.Uint16(b[5:])), int(binary.BigEndian.Uint16(b[7:]))))}
			c.mu.Lock()
			c.asked = c.asked.Union(r)
			if b[0] == 0 { // not incremental: what it had, it has no more
				c.dirty.Add(r)
			}
			c.wake()
			c.mu.Unlock()
		case msgKeyEvent:
			if err := read(7); err != nil {
				return err
			}
			c.person.key(binary.BigEndian.Uint32(b[3:]), b[0] != 0)
		case msgPointerEvent:
			if err := read(5); err != nil {
				return err
			}
			at := image.Pt(int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:])))
			c.person.pointer(at, c.screen.Mode().Size().Max, b[0])
		case msgClientCutText:
			if err := read(7); err != nil {
				return err
			}
			n := binary.BigEndian.Uint32(b[3:])
			if n > maxCutText {
				return fmt.Errorf("client has a clipboard of %d bytes", n)
			}
			if _, err := c.in.Discard(int(n)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("client sends a message of type %d", kind)
		}
	}
}

// encodings takes n encodings (§7.5.2). Raw needs no asking for.
func (c *client) encodings(n int) error {
	resize := false
	for range n {
		var b [4]byte
		if _, err := io.ReadFull(c.in, b[:]); err != nil {
			return err
		}
		resize = resize || int32(binary.BigEndian.Uint32(b[:])) == encodingDesktopSize
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resize = resize
	return nil
}

// send sends what has changed and was asked for, until ended is closed.
func (c *client) send(ended <-chan struct{}) error {
	var buf []byte
	for {
		select {
		case <-ended:
			return nil
		case <-c.changed:
		}
		var err error
		if buf, err = c.update(buf[:0]); err != nil {
			return err
		}
	}
}

// update sends one FramebufferUpdate (§7.6.1), if there is anything to say, and returns its buffer for the next.
func (c *client) update(b []byte) ([]byte, error) {
	size := c.screen.Mode().Size().Max
	c.mu.Lock()
	if c.asked.Empty() {
		c.mu.Unlock()
		return b, nil
	}
	if size != c.size {
		known := c.resize
		c.size = size
		c.asked = image.Rectangle{}
		c.mu.Unlock()
		if !known {
			return b, fmt.Errorf("screen is of %d×%d now, and the client does not know how to change", size.X, size.Y)
		}
		b = append(b, 0, 0, 0, 1)
		desktopSize := int32(encodingDesktopSize)
		return c.write(header(b, image.Rectangle{Max: size}, uint32(desktopSize)))
	}
	asked, format := c.asked.Intersect(image.Rectangle{Max: size}), c.format
	var todo, rest output.Region
	for _, r := range c.dirty.Rects() {
		r = r.Intersect(image.Rectangle{Max: size})
		todo.Add(r.Intersect(asked))
		if !r.In(asked) {
			rest.Add(r)
		}
	}
	if todo.Empty() {
		c.mu.Unlock()
		return b, nil
	}
	c.dirty = rest
	c.asked = image.Rectangle{}
	c.mu.Unlock()

	// A large rectangle goes in bands, so that the screen is not kept from changing for long. What changes meanwhile is
	// noted down and goes with the next update.
	bands := 0
	each := func(f func(image.Rectangle) error) error {
		for _, r := range todo.Rects() {
			rows := max(maxBand/(format.bytes()*r.Dx()), 1)
			for y := r.Min.Y; y < r.Max.Y; y += rows {
				if err := f(image.Rect(r.Min.X, y, r.Max.X, min(y+rows, r.Max.Y))); err != nil {
					return err
				}
			}
		}
		return nil
	}
	_ = each(func(image.Rectangle) error { bands++; return nil })
	b = append(b, 0, 0, byte(bands>>8), byte(bands))
	err := each(func(r image.Rectangle) error {
		b = header(b, r, encodingRaw)
		b = c.screen.pixels(b, r, format)
		var err error
		b, err = c.write(b)
		return err
	})
	return b, err
}

// header appends the header of a rectangle.
func header(b []byte, r image.Rectangle, encoding uint32) []byte {
	for _, v := range [4]int{r.Min.X, r.Min.Y, r.Dx(), r.Dy()} {
		b = binary.BigEndian.AppendUint16(b, uint16(v))
	}
	return binary.BigEndian.AppendUint32(b, encoding)
}

// write sends b and returns it empty.
func (c *client) write(b []byte) ([]byte, error) {
	_ = c.conn.SetWriteDeadline(time.Now().Add(slowest))
	_, err := c.conn.Write(b)
	return b[:0], err
}
