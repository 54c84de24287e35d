package appliance

import (
	"errors"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"
)

// reaper waits for all children of this process: its own, and those that lost their parent. Nothing else in the process may wait for
// a child: os/exec's Wait would be told that there is none.
type reaper struct {
	mu   sync.Mutex // held from the start of a child until it is known
	ours map[int]chan<- unix.WaitStatus
}

func newReaper() *reaper { return &reaper{ours: make(map[int]chan<- unix.WaitStatus)} }

// start starts a program, whose end is sent to the channel.
func (r *reaper) start(cmd *exec.Cmd) (pid int, end <-chan unix.WaitStatus, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	pid = cmd.Process.Pid
	c := make(chan unix.WaitStatus, 1)
	r.ours[pid] = c
	return pid, c, cmd.Process.Release()
}

// reap waits for the children that have ended.
func (r *reaper) reap() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		switch pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD) || err == nil && pid == 0:
			return nil
		case err != nil:
			return os.NewSyscallError("wait4", err)
		default:
			if c, ok := r.ours[pid]; ok {
				delete(r.ours, pid)
				c <- status
			}
		}
	}
}

// run reaps at each SIGCHLD, of which signals tells, for good.
func (r *reaper) run(signals <-chan os.Signal) error {
	for range signals {
		if err := r.reap(); err != nil {
			return err
		}
	}
	return nil
}

// signal sends a signal to a child, unless it has ended: then its number may be another's.
func (r *reaper) signal(pid int, s unix.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.ours[pid]; ok {
		_ = unix.Kill(pid, s) // a zombie takes it too
	}
}
