package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/internal/procstat"
)

// process is a process that this manager, or the one before it, has started. It is known by its number and the time of its
// start, so that another that is given the number later is not mistaken for it; from then on by a descriptor (pidfd_open(2)).
type process struct {
	pid   int
	start uint64 // clock ticks since the host's boot
	fd    *os.File
	child bool // of this process
}

// openProcess returns the process of that number, if it was started at that time; 0 is any.
func openProcess(pid int, start uint64) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, procstat.ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: pidfd_open: %w", pid, err)
	}
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	st, err := procstat.Of(pid)
	if err == nil && (st.State == 'Z' || st.State == 'X' || start != 0 && st.Started != start) {
		err = procstat.ErrGone
	}
	if err != nil {
		return nil, errors.Join(err, p.fd.Close())
	}
	p.start = st.Started
	return p, nil
}

// wait returns when the process has ended: nil, or ctx's error. No thread and no timer waits. how is "" if we are not its
// parent and cannot know; that ends a child's time as a zombie.
func (p *process) wait(ctx context.Context) (how string, err error) {
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return "", err
	}
	err = conn.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		if n == 0 || errors.Is(err, unix.EINTR) {
			return false
		}
		how = p.reap()
		return true
	})
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return how, err
}

// reap returns how our child ended, which is a zombie until then, so that its number is not another's.
func (p *process) reap() string {
	if !p.child {
		return ""
	}
	proc, err := os.FindProcess(p.pid)
	if err != nil {
		return ""
	}
	state, err := proc.Wait()
	if err != nil {
		return ""
	}
	return state.String()
}

// waits reports whether it has not executed its program yet.
func (p *process) waits() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	name, _, _ := strings.Cut(string(b), "\x00")
	return err == nil && (name == gateName || name == cell.InitName)
}

// kill sends a signal. It is no error if the process has ended.
func (p *process) kill(s unix.Signal) error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), s, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

func (p *process) close() { p.fd.Close() }

// bootID returns the identifier of the host's boot, random(4).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
