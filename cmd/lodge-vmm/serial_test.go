package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/virtio/console"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// testConsole is a socketConsole that is served while the test runs. What clients send goes to receive.
func testConsole(t *testing.T, receive func(context.Context, []byte) error) (s *socketConsole, path string) {
	path = filepath.Join(t.TempDir(), "console.sock")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s = &socketConsole{l: l}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.serve(ctx, receive); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s, path
}

// connect returns a client that has the console.
func (s *socketConsole) connect(t *testing.T, path string) net.Conn {
	t.Helper()
	s.mu.Lock()
	before := s.c
	s.mu.Unlock()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		now := s.c
		s.mu.Unlock()
		if now != before {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatal("the console does not take its client")
		}
	}
}

// A pause holds for whoever connects meanwhile.
func TestConsoleDeadline(t *testing.T) {
	s, path := testConsole(t, nil)
	s.connect(t, path)
	if err := s.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	s.connect(t, path)
	if _, err := s.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v, want %v", err, os.ErrDeadlineExceeded)
	}
	if err := s.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("x")); err != nil {
		t.Errorf("write: %v", err)
	}
}

// The virtio console on its socket: both directions, a client that does not read and is replaced, and a pause meanwhile.
func TestVirtioConsoleSocket(t *testing.T) {
	var d *console.Device
	s, path := testConsole(t, func(ctx context.Context, p []byte) error {
		_, err := d.Receive(ctx, p)
		return err
	})
	d = console.New(s)
	r := virtiotest.New(t, d, 0)
	input, output := r.Queues[0], r.Queues[1]

	a := s.connect(t, path)
	if _, err := io.WriteString(a, "in"); err != nil {
		t.Fatal(err)
	}
	in := r.In(2)
	if n := input.Do(in); n != 2 || string(r.Bytes(in.Addr, 2)) != "in" {
		t.Errorf("received %d bytes, %q", n, r.Bytes(in.Addr, 2))
	}
	output.Do(r.Out([]byte("out")))
	b := make([]byte, 3)
	if _, err := io.ReadFull(a, b); err != nil || string(b) != "out" {
		t.Errorf("sent %q, %v", b, err)
	}

	much := make([]byte, 1<<20) // more than a socket holds
	output.Send(r.Out(much), r.Out(much), r.Out([]byte("end")))
	s.connect(t, path) // the first is lost with a; nobody reads the second either
	r.Stop()
	r.Start()
	last := s.connect(t, path)
	if err := last.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for b := make([]byte, 4096); !bytes.HasSuffix(got, []byte("end")); {
		n, err := last.Read(b)
		if err != nil {
			t.Fatalf("%v after %d bytes", err, len(got))
		}
		got = append(got, b[:n]...)
	}
	output.Wait()
}

// A blocking pipe gets deadlines, and stays blocking for others who have it.
func TestWithDeadlines(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	defer w.Close()
	out, closeOut := withDeadlines(w)
	d, ok := out.(interface{ SetWriteDeadline(time.Time) error })
	if !ok {
		t.Fatalf("%T has no deadlines", out)
	}
	done := make(chan error, 1)
	go func() {
		_, err := out.Write(make([]byte, 1<<20)) // more than a pipe holds
		done <- err
	}()
	if err := d.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the write goes on")
	}
	flags, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	if err := closeOut(); err != nil {
		t.Error(err)
	}
	// What does not block needs none.
	if f, _ := withDeadlines(io.Discard); f != io.Discard {
		t.Errorf("a writer became %T", f)
	}
}

const pipeSize = 4096 // the least

// awaitFull waits until a pipe of pipeSize has been filled.
func awaitFull(t *testing.T, r *os.File) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		if n > pipeSize-200 { // but for what was read from its page
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pipe holds %d bytes", n)
		}
	}
}

// A guest outlives the reader of its console, and one that does not read holds nothing up but the guest.
func TestStandardOutput(t *testing.T) {
	if !haveKVM() {
		t.Skip("needs /dev/kvm")
	}
	for name, gone := range map[string]bool{"goes": true, "does not read": false} {
		t.Run("reader "+name, func(t *testing.T) {
			var fds [2]int
			if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
			defer r.Close()
			defer w.Close()
			if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeSize); err != nil {
				t.Fatal(err)
			}
			def := writeDefinition(t, "count")
			cmd := lodgeVMM(t, "run", def)
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if _, err := io.ReadFull(r, make([]byte, 100)); err != nil { // it runs
				t.Fatal(err)
			}
			if gone {
				r.Close()
			} else {
				awaitFull(t, r)
			}
			for _, args := range [][]string{{"pause", def}, {"resume", def}, {"save", def, filepath.Join(t.TempDir(), "saved")},
				{"status", def}} {
				if out, err := lodgeVMM(t, args...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", args[0], err, out)
				}
			}
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}
