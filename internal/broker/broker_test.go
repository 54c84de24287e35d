package broker

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// start serves connect, and returns a client.
func start(t *testing.T, connect func(context.Context, Request) (*os.File, error)) *Client {
	t.Helper()
	serve, ask, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- Serve(ctx, serve, connect) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c := new(Client)
	if err := c.Use(ask); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echo returns a socket whose other end sends text.
func echo(t *testing.T, text string) *os.File {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return nil
	}
	other := os.NewFile(uintptr(fds[1]), "other")
	defer other.Close()
	if _, err := io.WriteString(other, text); err != nil {
		t.Error(err)
	}
	return os.NewFile(uintptr(fds[0]), "one")
}

func TestDial(t *testing.T) {
	c := start(t, func(_ context.Context, r Request) (*os.File, error) {
		if r.What == Vsock && r.Port == 7 || r.What == NIC && r.Name == "lan" {
			return echo(t, r.What), nil
		}
		return nil, errors.New("nobody is there " + strings.Repeat("\x00", 2*maxPacket))
	})
	for _, r := range []Request{{What: Vsock, Port: 7}, {What: NIC, Name: "lan"}, {What: Vsock, Port: 8}, {What: Vsock, Port: 7}} {
		conn, err := c.Dial(t.Context(), r)
		if r.Port == 8 {
			if err == nil || !strings.Contains(err.Error(), "nobody is there") {
				t.Errorf("%+v: %v", r, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(conn); err != nil || string(b) != r.What {
			t.Errorf("%+v: %q, %v", r, b, err)
		}
		conn.Close()
	}
}

// A request that is given up does not confuse the next one, and its socket is closed.
func TestGivenUp(t *testing.T) {
	slow := make(chan struct{})
	var lost net.Conn
	c := start(t, func(_ context.Context, r Request) (*os.File, error) {
		if r.Port != 1 {
			return echo(t, "fast"), nil
		}
		<-slow
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		other := os.NewFile(uintptr(fds[1]), "lost")
		defer other.Close()
		if lost, err = net.FileConn(other); err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fds[0]), "slow"), nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Dial(ctx, Request{What: Vsock, Port: 1}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	close(slow)
	conn, err := c.Dial(t.Context(), Request{What: Vsock, Port: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "fast" {
		t.Errorf("%q, %v", b, err)
	}
	defer lost.Close()
	if err := lost.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := lost.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v: the socket that came too late is open still", err)
	}
}

// Garbage ends the service, and a peer that is gone a request.
func TestGarbage(t *testing.T) {
	serve, ask, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(t.Context(), serve, nil) }()
	if _, err := ask.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("garbage is no error")
	}
	c := new(Client)
	if err := c.Use(ask); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Dial(t.Context(), Request{What: Vsock}); err == nil {
		t.Error("somebody answers")
	}
}

// FuzzServe sends whatever packet: it is answered, or ends the service.
func FuzzServe(f *testing.F) {
	f.Add([]byte(`{"id":1,"what":"vsock","port":7}`))
	f.Add([]byte(`{"id":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 || len(data) > 2*maxPacket {
			return
		}
		serve, ask, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			done <- Serve(t.Context(), serve, func(context.Context, Request) (*os.File, error) { return nil, errors.New("no") })
		}()
		c, err := conn(ask)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, readErr := c.Read(make([]byte, maxPacket))
		if err := <-done; (err == nil) != (n > 0) {
			t.Errorf("answer of %d bytes (%v), and the service ends with %v", n, readErr, err)
		}
	})
}
