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

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/internal/logfile"
)

// serialPort is the host's end of a serial port.
type serialPort struct {
	out   io.Writer // nil: the guest has no port
	serve func(ctx context.Context, g *guest) error
	close func() error
}

// openSerial opens what serial port i is connected to.
func openSerial(i int, s definition.Serial, e *environment) (*serialPort, error) {
	nothing := func(context.Context, *guest) error { return nil }
	name := [...]string{"serial", "serial2"}[i]
	if e.handed.sealed() && s.Mode != "none" { // what is there now says what it is
		s.Mode = "file"
		if e.handed.socket(name) {
			s.Mode = "socket"
		}
	}
	switch s.Mode {
	case "none":
		return &serialPort{serve: nothing, close: func() error { return nil }}, nil
	case "file":
		f, err := e.handed.logFile(name, s.Path)
		if err != nil {
			return nil, fmt.Errorf("serial: %w", err)
		}
		return &serialPort{out: f, serve: nothing, close: f.Close}, nil
	case "socket":
		l, err := e.handed.listen(name, s.Path)
		if err != nil {
			return nil, fmt.Errorf("serial: %w", err)
		}
		c := &socketConsole{l: l}
		port := &serialPort{out: c, close: func() error { return closeOnce(l) }}
		port.serve = func(ctx context.Context, g *guest) error { return c.serve(ctx, g.typeOn(i)) }
		if s.Log != "" {
			f, err := e.handed.logFile(name+".log", s.Log)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("serial: %w", err), port.close())
			}
			port.out = &loggedConsole{c, f}
			port.close = func() error { return errors.Join(closeOnce(l), f.Close()) }
		}
		return port, nil
	}
	out, closeOut := withDeadlines(e.stdout)
	say, closeSay := withDeadlines(e.stderr)
	t := &terminal{in: e.stdin, err: say}
	if err := t.raw(); err != nil {
		return nil, errors.Join(err, closeOut(), closeSay())
	}
	serve := func(ctx context.Context, g *guest) error { return t.serve(ctx, g.powerButton, g.quit, g.typeOn(i)) }
	return &serialPort{out: out, serve: serve, close: func() error { return errors.Join(t.restore(), closeOut(), closeSay()) }}, nil
}

// typeOn returns a function that types on serial port i, across reboots.
func (g *guest) typeOn(i int) func(context.Context, []byte) error {
	return func(ctx context.Context, p []byte) error {
		return g.receive(ctx, p, func(life context.Context, m *machine.Machine, p []byte) (int, error) {
			if port := m.Serial(i); port != nil {
				return port.Receive(life, p)
			}
			return len(p), nil
		})
	}
}

// withDeadlines returns w opened anew if it is a pipe or a terminal, so that Go's poller has it and a Write that waits for
// the reader can be interrupted. To make w itself non-blocking would do so for all that have it, such as the shell.
func withDeadlines(w io.Writer) (io.Writer, func() error) {
	asItIs := func() error { return nil }
	f, ok := w.(*os.File)
	if !ok {
		return w, asItIs
	}
	st, err := f.Stat()
	if err != nil || st.Mode()&(os.ModeNamedPipe|os.ModeCharDevice) == 0 {
		return w, asItIs
	}
	anew, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil { // a terminal of another user's: pausing the guest then takes longer while it blocks
		return w, asItIs
	}
	return anew, anew.Close
}

// socketConsole is a console on a Unix socket: the serial port or the virtio console. One client at a time is connected;
// the next one takes its place. What the guest writes while nobody is connected is lost, as on a cable.
type socketConsole struct {
	l net.Listener

	mu       sync.Mutex
	c        net.Conn
	deadline time.Time // of writing, whoever is connected
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

// loggedConsole is a console whose output goes to a file as well.
type loggedConsole struct {
	*socketConsole
	log *logfile.File
}

// Write implements io.Writer. What a client interrupts by not reading is in the log once, and what the log does not take, such
// as on a full disk, does not hold the guest up.
func (l *loggedConsole) Write(p []byte) (int, error) {
	n, err := l.socketConsole.Write(p)
	_, _ = l.log.Write(p[:n])
	return n, err
}

// SetWriteDeadline lets the device interrupt a Write.
func (s *socketConsole) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
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
		c, err := control.Accept(ctx, s.l)
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
	if c != nil {
		_ = c.SetWriteDeadline(s.deadline)
	}
}
