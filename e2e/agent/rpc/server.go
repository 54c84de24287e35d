package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Self as a command's first argument stands for the agent's own executable.
const Self = "@agent"

// Server is the agent's side.
type Server struct {
	// SetClock, when not nil, is told the client's time at each hello. A
	// machine brought back from a saved state sets its clock by it.
	SetClock func(time.Time) error
}

// pipeGrace is how long a command's output is still read after its exit, for
// children that hold its standard output open.
const pipeGrace = 500 * time.Millisecond

type session struct {
	w     *frameWriter
	mu    sync.Mutex
	procs map[uint32]*serverProc
	wg    sync.WaitGroup
}

type serverProc struct {
	cmd   *exec.Cmd
	stdin chan []byte // nil element: end of file
}

// Serve answers one stream until it ends, then kills the commands that were
// started over it, detached ones excepted, and returns nil at end of file.
func (s *Server) Serve(ctx context.Context, conn io.ReadWriter) error {
	r := newFrameReader(conn)
	ss := &session{w: newFrameWriter(conn), procs: map[uint32]*serverProc{}}
	defer func() { ss.close() }()
	for ctx.Err() == nil {
		f, err := r.read()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if f.typ == frameHello {
			ss.close()
			ss = &session{w: ss.w, procs: map[uint32]*serverProc{}}
			var h hello
			if err := json.Unmarshal(f.payload, &h); err != nil {
				continue // noise; the client asks again
			}
			if s.SetClock != nil && h.Time != 0 {
				if err := s.SetClock(time.Unix(0, h.Time)); err != nil {
					fmt.Fprintln(os.Stderr, "agent: set the clock:", err)
				}
			}
			if err := ss.w.write(frameHello, 0, f.payload); err != nil {
				return err
			}
			continue
		}
		ss.handle(f)
	}
	return ctx.Err()
}

func (ss *session) handle(f frame) {
	if f.typ == frameExec {
		if err := ss.exec(f); err != nil {
			ss.exit(f.stream, ExitStatus{Code: -1, Err: err.Error()})
		}
		return
	}
	ss.mu.Lock()
	p := ss.procs[f.stream]
	ss.mu.Unlock()
	if p == nil {
		return // the command has ended; what was under way to it is void
	}
	switch {
	case f.typ == frameStdin && p.stdin != nil:
		select {
		case p.stdin <- f.payload:
		default: // more than the window: the client is broken, its command ends
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		}
	case f.typ == frameSignal && len(f.payload) == 1:
		// The group may be gone already, which is what a signal is for.
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.Signal(f.payload[0]))
	}
}

func (ss *session) exec(f frame) error {
	var c command
	if err := json.Unmarshal(f.payload, &c); err != nil {
		return fmt.Errorf("command: %w", err)
	}
	if len(c.Args) == 0 {
		return errors.New("command: no arguments")
	}
	if c.Args[0] == Self {
		c.Args[0] = "/proc/self/exe"
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Dir = c.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = pipeGrace
	if c.Log != "" {
		return ss.detach(f.stream, cmd, c.Log)
	}
	cmd.Stdout = streamWriter{ss.w, frameStdout, f.stream}
	cmd.Stderr = streamWriter{ss.w, frameStderr, f.stream}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	// One slot more than the window, for the end of file.
	p := &serverProc{cmd: cmd, stdin: make(chan []byte, window+1)}
	ss.mu.Lock()
	ss.procs[f.stream] = p
	ss.mu.Unlock()
	done := make(chan struct{})
	ss.wg.Go(func() { ss.feed(f.stream, p.stdin, stdin, done) })
	ss.wg.Go(func() {
		err := cmd.Wait()
		close(done)
		ss.mu.Lock()
		delete(ss.procs, f.stream)
		ss.mu.Unlock()
		ss.exit(f.stream, exitStatus(cmd, err))
	})
	return nil
}

// detach starts a command that outlives the session, with its output in a file.
func (ss *session) detach(stream uint32, cmd *exec.Cmd, log string) error {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	go func() { _ = cmd.Wait() }() // reaps it; nobody is told
	_, _ = streamWriter{ss.w, frameStdout, stream}.Write(fmt.Appendln(nil, pid))
	ss.exit(stream, ExitStatus{})
	return nil
}

// feed writes what the client sends to the command's standard input.
func (ss *session) feed(stream uint32, in <-chan []byte, w io.WriteCloser, done <-chan struct{}) {
	defer w.Close()
	for {
		select {
		case <-done:
			return
		case p := <-in:
			if len(p) == 0 {
				return
			}
			// A command that has closed its input swallows the rest, as in a
			// pipeline whose reader ignores SIGPIPE.
			_, _ = w.Write(p)
			_ = ss.w.write(frameAck, stream, nil)
		}
	}
}

func (ss *session) exit(stream uint32, st ExitStatus) {
	b, err := json.Marshal(st)
	if err == nil {
		// A write fails when the stream is gone, which read reports.
		_ = ss.w.write(frameExit, stream, b)
	}
}

func (ss *session) close() {
	ss.mu.Lock()
	for _, p := range ss.procs {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	ss.mu.Unlock()
	ss.wg.Wait()
}

func exitStatus(cmd *exec.Cmd, err error) ExitStatus {
	var ee *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return ExitStatus{}
	case errors.As(err, &ee):
		if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return ExitStatus{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
		}
		return ExitStatus{Code: ee.ExitCode()}
	default:
		return ExitStatus{Code: -1, Err: fmt.Sprintf("%s: %v", cmd.Path, err)}
	}
}

// streamWriter is a command's standard output or error.
type streamWriter struct {
	w      *frameWriter
	typ    frameType
	stream uint32
}

func (sw streamWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, MaxPayload)
		if err := sw.w.write(sw.typ, sw.stream, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}
