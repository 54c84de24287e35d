package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
)

// escape is the key that leaves a guest's console: Ctrl-].
const escape = 0x1d

// serialPort is the host's end of a serial port.
type serialPort struct {
	out   io.Writer // nil: the guest has no port
	serve func(ctx context.Context, g *guest) error
	close func() error
}

// openSerial opens what serial port i is connected to.
func openSerial(i int, s definition.Serial, e *environment) (*serialPort, error) {
	nothing := func(context.Context, *guest) error { return nil }
	switch s.Mode {
	case "none":
		return &serialPort{serve: nothing, close: func() error { return nil }}, nil
	case "file":
		f, err := os.OpenFile(s.Path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("serial: %w", err)
		}
		return &serialPort{out: f, serve: nothing, close: f.Close}, nil
	case "socket":
		l, err := listen(s.Path)
		if err != nil {
			return nil, fmt.Errorf("serial: %w", err)
		}
		c := &socketConsole{l: l}
		serve := func(ctx context.Context, g *guest) error {
			return c.serve(ctx, func(ctx context.Context, p []byte) error { return g.receive(ctx, i, p) })
		}
		return &serialPort{out: c, serve: serve, close: func() error { return closeOnce(l) }}, nil
	}
	t := &terminal{in: e.stdin}
	if err := t.raw(); err != nil {
		return nil, err
	}
	serve := func(ctx context.Context, g *guest) error {
		return t.serve(ctx, g.quit, func(ctx context.Context, p []byte) error { return g.receive(ctx, i, p) })
	}
	return &serialPort{out: e.stdout, serve: serve, close: t.restore}, nil
}

// terminal is the terminal that lodge-vmm was started from, in raw mode if it is one.
type terminal struct {
	in    *os.File
	saved *unix.Termios
}

// raw makes the terminal hand on every key. It is undone by restore.
func (t *terminal) raw() error {
	tio, err := unix.IoctlGetTermios(int(t.in.Fd()), unix.TCGETS)
	if err != nil {
		return nil // a pipe or a file
	}
	saved := *tio
	tio.Iflag &^= unix.BRKINT | unix.ICRNL | unix.INPCK | unix.ISTRIP | unix.IXON
	tio.Lflag &^= unix.ECHO | unix.ICANON | unix.IEXTEN | unix.ISIG
	tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, tio); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	t.saved = &saved
	return nil
}

func (t *terminal) restore() error {
	if t.saved == nil {
		return nil
	}
	return unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, t.saved)
}

// serve gives what the terminal sends to receive, until the escape key, for which it calls quit. At the end of a file or
// pipe the guest runs on. The read that is under way when ctx ends is left behind: the process is about to end.
func (t *terminal) serve(ctx context.Context, quit func(), receive func(context.Context, []byte) error) error {
	chunks := make(chan []byte)
	go func() {
		defer close(chunks)
		for {
			b := make([]byte, 256)
			n, err := t.in.Read(b)
			if n > 0 {
				select {
				case chunks <- b[:n]:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case b, ok := <-chunks:
			if !ok {
				return nil
			}
			if t.saved != nil {
				for i, key := range b {
					if key == escape {
						err := receive(ctx, b[:i])
						quit()
						return err
					}
				}
			}
			if err := receive(ctx, b); err != nil {
				return nil // ctx has ended
			}
		}
	}
}

// socketConsole is a console on a Unix socket: the serial port or the virtio console. One client at a time is connected; the next one takes its place. What
// the guest writes while nobody is connected is lost, as on a cable.
type socketConsole struct {
	l  net.Listener
	mu sync.Mutex
	c  net.Conn
}

// Write implements io.Writer. A client that does not read holds the guest up, until it goes.
func (s *socketConsole) Write(p []byte) (int, error) {
	s.mu.Lock()
	c := s.c
	s.mu.Unlock()
	if c != nil {
		if n, err := c.Write(p); errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
	return len(p), nil
}

// SetWriteDeadline lets the serial port interrupt a Write.
func (s *socketConsole) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return nil
	}
	return s.c.SetWriteDeadline(t)
}

// serve gives what clients send to receive, which returns an error when ctx has ended.
func (s *socketConsole) serve(ctx context.Context, receive func(context.Context, []byte) error) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { s.l.Close(); s.swap(nil) })
	defer stop()
	for {
		c, err := s.l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("console: %w", err)
		}
		s.swap(c)
		wg.Go(func() {
			b := make([]byte, 1024)
			for {
				n, err := c.Read(b)
				if n > 0 && receive(ctx, b[:n]) != nil || err != nil {
					return
				}
			}
		})
	}
}

// closeOnce closes what serve may have closed already.
func closeOnce(c io.Closer) error {
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// swap makes c the client and closes the one before it.
func (s *socketConsole) swap(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		s.c.Close()
	}
	s.c = c
}
