package vt

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// guardianName is what the guardian is called in a list of processes.
const guardianName = "lodge-vt-guardian"

// The guardian's descriptors, after standard input, output and error.
const (
	guardianTTY    = 3
	guardianParent = 4 // a pidfd
)

// guardian is the process that puts the terminal back if this one cannot.
type guardian struct{ cmd *exec.Cmd }

// startGuardian starts it.
func startGuardian(f *os.File, r restore) (*guardian, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("guardian of the terminal: pidfd_open: %w", err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{guardianName, strconv.Itoa(r.n), strconv.Itoa(r.before), strconv.Itoa(r.kbMode)},
		ExtraFiles:  []*os.File{f, pidfd},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("guardian of the terminal: %w", err)
	}
	return &guardian{cmd}, nil
}

// dismiss ends it: the terminal is as it was.
func (g *guardian) dismiss() error {
	if err := g.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("guardian of the terminal: %w", err)
	}
	_ = g.cmd.Wait() // killed, which is no news
	return nil
}

// RunGuardian reports whether this process is the guardian of another's terminal. Then it has done its work when it
// returns, and the program is to end. A program that uses Open calls it first of all, with os.Args.
func RunGuardian(args []string) (guardian bool, err error) {
	if len(args) != 4 || args[0] != guardianName {
		return false, nil
	}
	var r restore
	for i, p := range []*int{&r.n, &r.before, &r.kbMode} {
		if *p, err = strconv.Atoi(args[1+i]); err != nil {
			return true, fmt.Errorf("guardian of the terminal: %w", err)
		}
	}
	// What ends the seat by its name or its terminal's hanging up is not to end what has to clean up after it.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, relSignal, acqSignal)
	if err := awaitEnd(guardianParent); err != nil {
		return true, err
	}
	return true, r.do(&tty{os.NewFile(guardianTTY, fmt.Sprintf("/dev/tty%d", r.n))})
}

// awaitEnd waits until the process that a pidfd is of has ended, and closed all that it had open.
func awaitEnd(pidfd int) error {
	for {
		p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		switch _, err := unix.Poll(p, -1); {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("guardian of the terminal: poll: %w", err)
		default:
			return nil
		}
	}
}
