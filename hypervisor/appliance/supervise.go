package appliance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Service is a program that is to run.
type Service struct {
	Name string   // in the log
	Args []string // the program and its arguments
	// Before, if not nil, is called before each start; an error counts as a failed start.
	Before func(ctx context.Context) error
	// Caps are the only capabilities that it has, as the user [Nobody]; nil is all of them, as root.
	Caps []uintptr
	// Nice is how far behind others it stands at the processor, setpriority(2).
	Nice int
	// Once says that it is not started again when it has ended with success.
	Once bool
}

// Nobody is the user and group of services that are not root.
const Nobody = 65534

// How a service is started anew: the wait doubles from one to the other, and one that has run for steady begins from the first.
const (
	backoffMin = 250 * time.Millisecond
	backoffMax = 30 * time.Second
	steady     = 20 * time.Second
	// failures in a row, after which somebody should be told.
	failures = 5
	// stopLimit is how long a service may take to end when it is asked to.
	stopLimit = 5 * time.Second
)

// backoff says how long to wait before the next start.
type backoff struct {
	wait   time.Duration
	inARow int
}

// next returns the wait after a run of some length.
func (b *backoff) next(ran time.Duration) time.Duration {
	if ran >= steady {
		*b = backoff{}
	}
	b.inARow++
	b.wait = min(max(2*b.wait, backoffMin), backoffMax)
	return b.wait
}

// supervisor runs one service.
type supervisor struct {
	reaper *reaper
	out    io.Writer // what it prints
	log    *slog.Logger
	// trouble is called when it has failed several times in a row.
	trouble func(err error)
}

// run has the service run until ctx is done, and returns when it has ended.
func (v *supervisor) run(ctx context.Context, s Service) {
	var b backoff
	for ctx.Err() == nil {
		began := time.Now()
		err := v.once(ctx, s)
		if ctx.Err() != nil || err == nil {
			return
		}
		wait := b.next(time.Since(began))
		v.log.Error("service has ended: is started again", "service", s.Name, "err", err, "in", wait)
		if b.inARow == failures && v.trouble != nil {
			v.trouble(fmt.Errorf("%s has ended %d times in a row: %w", s.Name, failures, err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// once starts the service and waits for its end. When ctx is done it is asked to end, and then killed. Without an error it is not to
// be started again.
func (v *supervisor) once(ctx context.Context, s Service) error {
	if s.Before != nil {
		if err := s.Before(ctx); err != nil {
			return err
		}
	}
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	if s.Caps != nil {
		cmd.SysProcAttr = &unix.SysProcAttr{Credential: &syscall.Credential{Uid: Nobody, Gid: Nobody}, AmbientCaps: s.Caps}
	}
	in, err := pipe(cmd, v.out, s.Name)
	if err != nil {
		return err
	}
	pid, end, err := v.reaper.start(cmd)
	in.Close()
	if err != nil {
		return err
	}
	if s.Nice != 0 {
		_ = unix.Setpriority(unix.PRIO_PROCESS, pid, s.Nice) // it may have ended
	}
	v.log.Info("service started", "service", s.Name, "pid", pid)
	select {
	case status := <-end:
		if s.Once && status.Exited() && status.ExitStatus() == 0 {
			return nil
		}
		return ended(status)
	case <-ctx.Done():
	}
	v.reaper.signal(pid, unix.SIGTERM)
	select {
	case <-end:
	case <-time.After(stopLimit):
		v.log.Warn("service does not end: is killed", "service", s.Name)
		v.reaper.signal(pid, unix.SIGKILL)
		select {
		case <-end:
		case <-time.After(stopLimit): // the kernel waits for a device
		}
	}
	return nil
}

// ended says how a program has ended.
func ended(s unix.WaitStatus) error {
	if s.Signaled() {
		return fmt.Errorf("killed by %s", unix.SignalName(s.Signal()))
	}
	return fmt.Errorf("exit status %d", s.ExitStatus())
}

// converse runs a program to its end with an input, and returns what it says on its output. An error is that it had no success; what it
// says as an error goes to log.
func (r *reaper) converse(log io.Writer, input []byte, args ...string) (said string, err error) {
	cmd := exec.Command(args[0], args[1:]...)
	in, err := pipe(cmd, log, args[0])
	if err != nil {
		return "", err
	}
	cmd.Stdin = bytes.NewReader(input)
	out, w, err := os.Pipe()
	if err != nil {
		in.Close()
		return "", err
	}
	cmd.Stdout = w
	_, end, err := r.start(cmd)
	in.Close()
	w.Close()
	if err != nil {
		out.Close()
		return "", err
	}
	const most = 4 << 10
	b, err := io.ReadAll(io.LimitReader(out, most))
	out.Close() // who says more is not to wait for us
	if s := <-end; !s.Exited() || s.ExitStatus() != 0 {
		err = fmt.Errorf("%s: %w", args[0], ended(s))
	}
	return strings.TrimSpace(string(b)), err
}

// runProgram runs a program to its end, and returns an error unless that was a success. When ctx is done it is asked to end.
func (r *reaper) runProgram(ctx context.Context, out io.Writer, args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	in, err := pipe(cmd, out, args[0])
	if err != nil {
		return err
	}
	pid, end, err := r.start(cmd)
	in.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { r.signal(pid, unix.SIGTERM) })()
	if s := <-end; !s.Exited() || s.ExitStatus() != 0 {
		return fmt.Errorf("%s: %w", args[0], ended(s))
	}
	return nil
}
