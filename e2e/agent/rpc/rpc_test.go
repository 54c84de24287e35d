package rpc

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// connect returns a client of a server in this process.
func connect(t *testing.T, before string) *Client {
	t.Helper()
	a, b := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- new(Server).Serve(context.Background(), b) }()
	if before != "" {
		go func() { _, _ = a.Write([]byte(before)) }()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := NewClient(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		b.Close()
		<-ended
	})
	return c
}

func TestRun(t *testing.T) {
	c := connect(t, "")
	if err := c.Poke(); err != nil { // which changes nothing
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		cmd  Cmd
		want Result
		err  string
	}{
		{"output", Cmd{Args: []string{"sh", "-c", "echo out; echo err >&2"}}, Result{Stdout: "out\n", Stderr: "err\n"}, ""},
		{"exit code", Cmd{Args: []string{"sh", "-c", "exit 3"}}, Result{ExitStatus: ExitStatus{Code: 3}}, ""},
		{"signal", Cmd{Args: []string{"sh", "-c", "kill -9 $$"}}, Result{ExitStatus: ExitStatus{Code: 137, Signal: 9}}, ""},
		{"environment", Cmd{Args: []string{"sh", "-c", "echo $X; pwd"}, Env: []string{"X=y"}, Dir: "/"}, Result{Stdout: "y\n/\n"}, ""},
		{"stdin", Cmd{Args: []string{"cat"}, Stdin: strings.NewReader("hello")}, Result{Stdout: "hello"}, ""},
		{"no program", Cmd{Args: []string{"/no/such/program"}}, Result{ExitStatus: ExitStatus{Code: -1, Err: "fork/exec /no/such/program: no such file or directory"}}, "no such file"},
		{"background child", Cmd{Args: []string{"sh", "-c", "sleep 60 & echo started"}}, Result{Stdout: "started\n"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			got, err := c.Do(ctx, tc.cmd)
			if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("error %v, want one with %q", err, tc.err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// Many commands at once, each with more input than the window, one of which
// never reads.
func TestConcurrentStreams(t *testing.T) {
	c := connect(t, "")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	data := make([]byte, 3*window*MaxPayload+17)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	stuck, err := c.Start(Cmd{Args: []string{"sleep", "60"}, Stdin: bytes.NewReader(data)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var out bytes.Buffer
			p, err := c.Start(Cmd{Args: []string{"cat"}, Stdin: bytes.NewReader(data), Stdout: &out})
			if err != nil {
				t.Error(err)
				return
			}
			if st, err := p.Wait(ctx); err != nil || st.Code != 0 {
				t.Errorf("cat: %+v, %v", st, err)
			}
			if !bytes.Equal(out.Bytes(), data) {
				t.Errorf("cat gave back %d bytes that differ from the %d sent", out.Len(), len(data))
			}
		})
	}
	wg.Wait()
	if err := stuck.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if st, err := stuck.Wait(ctx); err != nil || st.Signal != int(syscall.SIGTERM) {
		t.Errorf("after SIGTERM: %+v, %v", st, err)
	}
}

func TestNoiseBeforeHello(t *testing.T) {
	c := connect(t, "login: LA\x01\x00LALA garbage of a serial line before the session\n")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if got, err := c.Run(ctx, "echo", "x"); err != nil || got.Stdout != "x\n" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestLostStream(t *testing.T) {
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- new(Server).Serve(context.Background(), b) }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := NewClient(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Start(Cmd{Args: []string{"sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if _, err := p.Wait(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("Wait: %v, want ErrClosed", err)
	}
	if _, err := c.Start(Cmd{Args: []string{"true"}}); !errors.Is(err, ErrClosed) {
		t.Errorf("Start: %v, want ErrClosed", err)
	}
	select {
	case <-served: // Serve has waited for the sleep, which it killed
	case <-ctx.Done():
		t.Error("the agent did not end the session's commands")
	}
}

func FuzzFrameReader(f *testing.F) {
	var b bytes.Buffer
	w := newFrameWriter(&b)
	for _, p := range []string{"", "x", "LA"} {
		if err := w.write(frameStdout, 7, []byte(p)); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(b.Bytes())
	f.Add([]byte("LALALA\x01"))
	f.Fuzz(func(t *testing.T, in []byte) {
		// Whatever comes first, a frame after it is found, unless the noise
		// holds a valid header whose payload swallows it.
		r := newFrameReader(bytes.NewReader(in))
		total := 0
		for {
			fr, err := r.read()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatal(err)
				}
				break
			}
			total += headerSize + len(fr.payload)
		}
		if total > len(in) {
			t.Fatalf("%d bytes of frames in %d bytes of input", total, len(in))
		}
	})
}
