// Package seccomptest compares the system calls that a program makes with the lists that it is held to.
package seccomptest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/internal/seccomp"
)

// Call is a system call that was made: its number and arguments, as far as lists look at them.
type Call struct {
	Number uintptr
	Args   [3]uint32
}

// String returns c for people.
func (c Call) String() string {
	return fmt.Sprintf("system call %d(%#x, %#x, %#x)", c.Number, c.Args[0], c.Args[1], c.Args[2])
}

// fits reports whether a rule is about c.
func (c Call) fits(r seccomp.Rule) bool {
	return c.Number == r.Call && !slices.ContainsFunc(r.Only, func(a seccomp.Arg) bool {
		mask := a.Mask
		if mask == 0 {
			mask = 1<<32 - 1
		}
		return !slices.Contains(a.Values, c.Args[a.Index]&mask)
	})
}

// each returns a rule for each of the values that r allows of an argument.
func each(r seccomp.Rule) []seccomp.Rule {
	for i, a := range r.Only {
		if len(a.Values) > 1 {
			var all []seccomp.Rule
			for _, v := range a.Values {
				only := slices.Clone(r.Only)
				only[i].Values = []uint32{v}
				all = append(all, each(seccomp.Rule{Call: r.Call, Only: only})...)
			}
			return all
		}
	}
	return []seccomp.Rule{r}
}

// Trace is what the threads of processes did from the moment on at which they gave up system calls. The zero value is ready.
type Trace struct {
	mu      sync.Mutex
	Process map[Call]bool
	Narrow  map[Call]bool // of threads that have given up more
}

// Start starts a program, and traces it until it has ended. Its errors come from the channel. The program is to be told that
// its lists are for the log only: one that is ended by a signal is an error.
func (tr *Trace) Start(cmd *exec.Cmd) (ended <-chan error, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Ptrace = true
	begun, end := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the parent, for ptrace, is the thread
		err := cmd.Start()
		begun <- err
		if err == nil {
			end <- tr.follow(cmd.Process.Pid)
		}
	}()
	return end, <-begun
}

// follow traces the process pid, which waits for its parent, this thread, to the end. Calls are noted as they are made; those
// whose arguments no rule looks at are one.
func (tr *Trace) follow(pid int) error {
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(pid, options); err != nil {
		return err
	}
	if err := unix.PtraceSyscall(pid, 0); err != nil {
		return err
	}
	inside := map[int]bool{} // threads between a call's begin and its end
	sealed, narrow := false, map[int]bool{}
	for {
		at, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			return nil
		case err != nil:
			return err
		case ws.Signaled() && at == pid:
			return fmt.Errorf("the program was ended by signal %d", ws.Signal())
		case ws.Exited() && at == pid && ws.ExitStatus() != 0:
			return fmt.Errorf("the program has ended with status %d", ws.ExitStatus())
		case !ws.Stopped():
			delete(inside, at) // the number may come again
			delete(narrow, at)
			continue
		}
		signal := 0
		switch ws.StopSignal() {
		case unix.SIGTRAP | 0x80:
			var r unix.PtraceRegs
			inside[at] = !inside[at]
			if !inside[at] || unix.PtraceGetRegs(at, &r) != nil {
				break
			}
			c := Call{uintptr(r.Orig_rax), [3]uint32{uint32(r.Rdi), uint32(r.Rsi), uint32(r.Rdx)}}
			if sealed {
				tr.note(c, narrow[at])
			}
			if c.Number == unix.SYS_SECCOMP {
				narrow[at] = sealed // the first is the whole process's
				sealed = true
			}
		case unix.SIGTRAP, unix.SIGSTOP: // a new thread; its begin; exec
		default:
			signal = int(ws.StopSignal())
		}
		if err := unix.PtraceSyscall(at, signal); err != nil && err != unix.ESRCH { // it was killed meanwhile
			return err
		}
	}
}

// looked has the calls whose arguments lists look at, and at which.
var looked = map[uintptr][3]bool{
	unix.SYS_IOCTL: {1: true}, unix.SYS_FCNTL: {1: true}, unix.SYS_PRCTL: {0: true}, unix.SYS_CLONE: {0: true},
	unix.SYS_SECCOMP: {0: true, 1: true}, unix.SYS_TGKILL: {0: true}, unix.SYS_KILL: {0: true},
	unix.SYS_MMAP: {2: true}, unix.SYS_MPROTECT: {2: true},
	unix.SYS_SOCKETPAIR: {0: true}, unix.SYS_SOCKET: {0: true, 1: true, 2: true}, unix.SYS_SETSOCKOPT: {1: true, 2: true}, unix.SYS_GETSOCKOPT: {1: true, 2: true},
}

func (tr *Trace) note(c Call, narrow bool) {
	for i, look := range looked[c.Number] {
		if !look {
			c.Args[i] = 0
		}
	}
	if c.Number == unix.SYS_TGKILL || c.Number == unix.SYS_KILL {
		c.Args[0] = uint32(os.Getpid()) // as the lists that are compared with it have it
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.Process == nil {
		tr.Process, tr.Narrow = make(map[Call]bool), make(map[Call]bool)
	}
	tr.Process[c] = true
	if narrow {
		tr.Narrow[c] = true
	}
}

// Need is a call that a test need not see, or an ioctl, since it is needed elsewhere.
type Need struct {
	Call    uintptr
	Request uint32 // of an ioctl
}

// Runtime is what Go's runtime needs once in a while, and by whom.
var Runtime = map[Need]string{
	{Call: unix.SYS_PRCTL}: "a kernel with CONFIG_ANON_VMA_NAME", {Call: unix.SYS_CLOCK_GETTIME}: "a host whose counter is not reliable",
	{Call: unix.SYS_RESTART_SYSCALL}: "a process that is stopped or frozen meanwhile", {Call: unix.SYS_KILL}: "a crash",
	{Call: unix.SYS_SCHED_YIELD}: "chance", {Call: unix.SYS_NANOSLEEP}: "chance", {Call: unix.SYS_MUNMAP}: "chance",
}

// Compare has the test fail for a call of made that rules leave out, and for one that they name and that was not made, unless
// elsewhere says who needs it. name is what made it.
func Compare(t *testing.T, name string, made map[Call]bool, rules []seccomp.Rule, elsewhere ...map[Need]string) {
	t.Helper()
	t.Logf("%s made %d kinds of calls", name, len(made))
	for c := range made {
		if !slices.ContainsFunc(rules, c.fits) {
			t.Errorf("%s makes %v, which its list leaves out", name, c)
		}
	}
	for _, r := range rules {
		for _, one := range each(r) {
			if slices.ContainsFunc(slices.Collect(maps.Keys(made)), func(c Call) bool { return c.fits(one) }) {
				continue
			}
			need := Need{Call: one.Call}
			if one.Call == unix.SYS_IOCTL {
				need.Request = one.Only[0].Values[0]
			}
			reason := ""
			for _, e := range elsewhere {
				if reason == "" {
					reason = e[need]
				}
			}
			if reason == "" {
				t.Errorf("%s never makes system call %d %v: take it off the list", name, one.Call, one.Only)
			} else {
				t.Logf("%s: system call %d %v is needed by %s", name, one.Call, one.Only, reason)
			}
		}
	}
}
