package qdisplay

import (
	"errors"
	"image"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// maxConns is how many connections a server has at most: clients and listeners.
const maxConns = 16

// acceptPause is how long a server waits when it cannot accept.
const acceptPause = 100 * time.Millisecond

// Config is the guest that a Server shows.
type Config struct {
	Name          string // of the guest
	UUID          string
	DeviceAddress string            // of the graphics device, like "pci/0000/02.0"
	Screens       []*display.Screen // its heads; console N is that of screen N
	// Input takes what clients do. One call is one batch, and no two are sent at once. It may also be a Lights and a
	// Pointer.
	Input hid.Sink
	// Timeout is how long a listener may take for an answer; 0 is 10 seconds.
	Timeout time.Duration
	Log     *slog.Logger // nil logs nothing
}

// Lights is an Input whose keyboard has lights.
type Lights interface {
	LEDs() hid.LEDs
	// OnLEDs calls f when the lights change, until stop has returned. f does not block.
	OnLEDs(f func(hid.LEDs)) (stop func())
}

// Pointer is an Input that takes either absolute positions or relative movements at a time. One that is none takes both.
type Pointer interface {
	WantsAbsolute() bool
	// OnWantsAbsolute calls f when that changes, until stop has returned. f does not block.
	OnWantsAbsolute(f func(bool)) (stop func())
}

// Server shows one guest to clients. It lives as long as its VMM, through the guest's reboots. Whoever can connect may see and
// type: the file system's permissions of the socket decide on that.
//
// A listener that takes shared memory is given the file of the surface as it is. A device that does not want it written to
// seals it (F_SEAL_FUTURE_WRITE).
type Server struct {
	cfg      Config
	log      *slog.Logger
	consoles []*console
	pointer  Pointer // nil takes absolute and relative
	lights   Lights  // nil has none

	inputMu sync.Mutex // of calls of cfg.Input

	mu       sync.Mutex
	closed   bool
	detach   []func()
	conns    map[io.Closer]struct{}
	sessions map[*session]struct{}
	wg       sync.WaitGroup
}

// console is a screen as clients see it: a sink that keeps the size of what is shown.
type console struct {
	id     uint32
	screen *display.Screen
	size   atomic.Uint64 // width in the upper half, height in the lower one
	notify func()
}

// NewServer returns a server for a guest. Close ends it.
func NewServer(cfg Config) *Server {
	s := &Server{
		cfg:      cfg,
		log:      cfg.Log,
		conns:    make(map[io.Closer]struct{}),
		sessions: make(map[*session]struct{}),
	}
	if s.cfg.Timeout == 0 {
		s.cfg.Timeout = peer.DefaultTimeout
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if p, ok := cfg.Input.(Pointer); ok {
		s.pointer = p
		s.detach = append(s.detach, p.OnWantsAbsolute(func(bool) { s.notify() }))
	}
	if l, ok := cfg.Input.(Lights); ok {
		s.lights = l
		s.detach = append(s.detach, l.OnLEDs(func(hid.LEDs) { s.notify() }))
	}
	for i, screen := range cfg.Screens {
		c := &console{id: uint32(i), screen: screen, notify: s.notify}
		s.consoles = append(s.consoles, c)
		s.detach = append(s.detach, screen.Follow(c))
	}
	return s
}

// absolute says which of absolute and relative the input takes. One that takes both is called absolute.
func (s *Server) absolute() bool { return s.pointer == nil || s.pointer.WantsAbsolute() }

// leds returns the lights of the guest's keyboard.
func (s *Server) leds() hid.LEDs {
	if s.lights == nil {
		return 0
	}
	return s.lights.LEDs()
}

// Serve accepts clients until the server or l is closed. It closes l.
func (s *Server) Serve(l *net.UnixListener) error {
	if err := s.enter(l); err != nil {
		l.Close()
		return err
	}
	defer s.leave(l)
	for {
		sock, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // there are no descriptors left, most likely
			s.log.Warn("display socket", "err", err)
			time.Sleep(acceptPause)
			continue
		}
		s.wg.Go(func() { s.ServeConn(sock) })
	}
}

// ServeConn serves one client until it goes or the server is closed. It takes the socket over. Listeners of the client stay
// until their own sockets are closed.
func (s *Server) ServeConn(sock *net.UnixConn) {
	if err := s.enter(sock); err != nil {
		s.log.Warn("display client refused", "err", err)
		sock.Close()
		return
	}
	defer s.leave(sock)
	c := newSession(s)
	defer c.input.releaseAll()
	conn, err := peer.Accept(sock, peer.Config{Handler: c.objects.handle})
	if err == nil {
		err = c.serve(conn)
	}
	if err != nil {
		s.log.Warn("display client dropped", "err", err)
	}
}

// enter counts c, which Close closes, until leave.
func (s *Server) enter(c io.Closer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return failf(errFailed, "the guest is going")
	}
	if len(s.conns) >= maxConns {
		return failf(peer.ErrLimitsExceeded, "the guest's display has %d connections: close one", maxConns)
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return nil
}

func (s *Server) leave(c io.Closer) {
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wg.Done()
}

// Close drops all clients and listeners, and returns when nothing of the server runs any more.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	detach := s.detach
	s.detach = nil
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	for _, f := range detach { // they may be calling notify
		f()
	}
	s.wg.Wait()
	return nil
}

// notify tells the sessions to look what has changed. It does not block.
func (s *Server) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.sessions {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// listen serves a listener's socket in the background.
func (s *Server) listen(screen *display.Screen, sock *net.UnixConn) error {
	if err := s.enter(sock); err != nil {
		sock.Close()
		return err
	}
	go func() {
		defer s.leave(sock)
		if err := serveListener(screen, sock, s.cfg.Timeout); err != nil {
			s.log.Warn("display listener dropped", "err", err)
		}
	}()
	return nil
}

// Scanout keeps the size of what is shown.
func (c *console) Scanout(f *display.Surface) {
	var size uint64
	if f != nil {
		size = uint64(f.Width)<<32 | uint64(f.Height)
	}
	if c.size.Swap(size) != size {
		c.notify()
	}
}

// dimensions returns the size of what is shown, 0×0 if the screen is off.
func (c *console) dimensions() (width, height uint32) {
	size := c.size.Load()
	return uint32(size >> 32), uint32(size)
}

// Update, Cursor and MoveCursor do nothing: listeners are told by sinks of their own.
func (*console) Update(image.Rectangle) {}
func (*console) Cursor(*display.Cursor) {}
func (*console) MoveCursor(image.Point) {}
