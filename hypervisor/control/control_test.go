package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve runs a server for the test and returns its socket.
func serve(t *testing.T, methods map[string]Handler) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, methods)
}

func serveOn(t *testing.T, l net.Listener, methods map[string]Handler) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&Server{Methods: methods}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server did not end")
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCall(t *testing.T) {
	type sum struct{ A, B int }
	path := serve(t, map[string]Handler{
		"add": func(_ context.Context, c *Call) (any, error) {
			var p sum
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			c.Progress(1, 2)
			c.Progress(2, 2)
			return p.A + p.B, nil
		},
		"fail": func(context.Context, *Call) (any, error) { return nil, errors.New("the disk is full") },
	})
	c := dial(t, path)
	var got int
	var progress []Progress
	if err := c.Call(t.Context(), "add", sum{2, 3}, &got, func(p Progress) { progress = append(progress, p) }); err != nil || got != 5 {
		t.Errorf("add = %d, %v", got, err)
	}
	if n := len(progress); n == 0 || progress[n-1] != (Progress{2, 2}) { // the first may have been overtaken
		t.Errorf("progress = %v", progress)
	}
	for _, tc := range []struct {
		method string
		params any
		code   string
		say    string
	}{
		{"fail", nil, CodeFailed, "the disk is full"},
		{"none", nil, CodeNotFound, `"none"`},
		{"add", map[string]int{"C": 1}, CodeBadRequest, `"C"`},
		{"add", "x", CodeBadRequest, "parameters of add"},
	} {
		err := c.Call(t.Context(), tc.method, tc.params, nil, nil)
		var e *Error
		if !errors.As(err, &e) || e.Code != tc.code || !strings.Contains(e.Message, tc.say) {
			t.Errorf("%s(%v): %v, want code %s and %q", tc.method, tc.params, err, tc.code, tc.say)
		}
	}
}

// A method learns that its caller has gone.
func TestCallerGoes(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	path := serve(t, map[string]Handler{"wait": func(ctx context.Context, _ *Call) (any, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if err := dial(t, path).Call(ctx, "wait", nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("call: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the method goes on")
	}
}

// A client that has nothing more to send still gets its answers: echo '{…}' | socat - UNIX-CONNECT:….
func TestHalfClosed(t *testing.T) {
	release := make(chan struct{})
	path := serve(t, map[string]Handler{"wait": func(ctx context.Context, _ *Call) (any, error) {
		select {
		case <-release:
			return "done", nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"id":1,"method":"wait"}`+"\n"+`{"id":2,"method":"wait"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	release <- struct{}{}
	close(release)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(conn)
	if want := `{"id":1,"result":"done"}` + "\n" + `{"id":2,"result":"done"}` + "\n"; err != nil || string(got) != want {
		t.Errorf("answers %q, %v, want %q", got, err, want)
	}
}

// A method of a client that first shut down its sending side and then went is told to end.
func TestHalfClosedGoes(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	path := serve(t, map[string]Handler{"wait": func(ctx context.Context, _ *Call) (any, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"id":1,"method":"wait"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	<-started
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
		t.Error("the method ended before its client went")
	case <-time.After(10 * time.Millisecond):
	}
	conn.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the method goes on")
	}
}

// A method does not wait for a client that does not read its progress, nor for longer than the limit for one that does
// not read the answer; a client that reads late gets whole lines.
func TestProgressUnread(t *testing.T) {
	returned, after := make(chan struct{}), make(chan struct{})
	path := serve(t, map[string]Handler{"long": func(_ context.Context, c *Call) (any, error) {
		c.After(func() { close(after) })
		for i := range uint64(100_000) {
			c.Progress(i+1, 100_000)
		}
		close(returned)
		return "done", nil
	}})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.UnixConn).SetReadBuffer(1); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, `{"id":1,"method":"long"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-returned:
	case <-time.After(10 * time.Second):
		t.Fatal("the method waits for its client")
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var last Progress
	for d := json.NewDecoder(conn); ; {
		var r reply
		if err := d.Decode(&r); err != nil {
			t.Fatalf("after %+v: %v", last, err)
		}
		if r.Progress == nil {
			if string(r.Result) != `"done"` || last != (Progress{100_000, 100_000}) {
				t.Errorf("result %s after %+v", r.Result, last)
			}
			break
		}
		if r.Progress.Done <= last.Done {
			t.Fatalf("progress %+v after %+v", *r.Progress, last)
		}
		last = *r.Progress
	}
	<-after
}

// A method that ends the process is answered first.
func TestAfter(t *testing.T) {
	release, after := make(chan struct{}), make(chan struct{})
	path := serve(t, map[string]Handler{"quit": func(_ context.Context, c *Call) (any, error) {
		c.After(func() { <-release; close(after) })
		return nil, nil
	}})
	if err := dial(t, path).Call(t.Context(), "quit", nil, nil, nil); err != nil {
		t.Error(err)
	}
	select {
	case <-after:
		t.Error("ended before the answer")
	default:
	}
	close(release)
	<-after
}

// failing is a listener that fails a few times before it accepts.
type failing struct {
	net.Listener
	left atomic.Int32
}

func (f *failing) Accept() (net.Conn, error) {
	if f.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: unix.EMFILE}
	}
	return f.Listener.Accept()
}

// Running out of descriptors for a while does not end the service.
func TestAcceptFails(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	f := &failing{Listener: l}
	f.left.Store(2)
	path := serveOn(t, f, map[string]Handler{"ok": func(context.Context, *Call) (any, error) { return nil, nil }})
	if err := dial(t, path).Call(t.Context(), "ok", nil, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestUnusableResult(t *testing.T) {
	path := serve(t, map[string]Handler{"odd": func(context.Context, *Call) (any, error) { return math.NaN(), nil }})
	err := dial(t, path).Call(t.Context(), "odd", nil, nil, nil)
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeFailed || !strings.HasPrefix(e.Message, "result of odd: ") {
		t.Errorf("%v", err)
	}
}

func TestBadLines(t *testing.T) {
	path := serve(t, map[string]Handler{"ok": func(context.Context, *Call) (any, error) { return nil, nil }})
	for name, line := range map[string]string{
		"not JSON":   "hello\n",
		"wrong type": `{"id":"x","method":3}` + "\n",
		"too long":   strings.Repeat("x", maxLine+10) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, _ = conn.Write([]byte(line)) // the server may close before it has read all
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			var r reply
			if err := json.NewDecoder(conn).Decode(&r); err != nil || r.Error == nil || r.Error.Code != CodeBadRequest {
				t.Errorf("answer %+v, %v", r, err)
			}
		})
	}
	// Others are still served.
	if err := dial(t, path).Call(t.Context(), "ok", nil, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestManyConnections(t *testing.T) {
	path := serve(t, map[string]Handler{"ok": func(context.Context, *Call) (any, error) { return nil, nil }})
	var clients []*Client
	for range maxConns {
		c := dial(t, path)
		if err := c.Call(t.Context(), "ok", nil, nil, nil); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	if err := dial(t, path).Call(t.Context(), "ok", nil, nil, nil); err == nil {
		t.Error("one connection too many was served")
	}
	if err := clients[0].Call(t.Context(), "ok", nil, nil, nil); err != nil {
		t.Errorf("an old connection: %v", err)
	}
}

// A server that never ends its line, or is not one of ours, is given up; who it is, the kernel says.
func TestHostileServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("a second server: %v", err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			for err == nil {
				_, err = conn.Write(bytes.Repeat([]byte{'x'}, 4096))
			}
			conn.Close()
		}
	}()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if pid, err := c.Peer(); err != nil || pid != os.Getpid() {
		t.Errorf("process %d, %v", pid, err)
	}
	if err := c.Call(t.Context(), "status", nil, nil, nil); err == nil || !strings.Contains(err.Error(), "more than 65536 bytes") {
		t.Errorf("%v", err)
	}
}
