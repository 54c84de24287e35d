package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/vmm"
	"github.com/lodgehv/lodge/internal/seccomp"
)

// made is a system call that was made: its number and arguments, as far as lists look at them.
type made struct {
	call uintptr
	args [3]uint32
}

func (m made) String() string {
	return fmt.Sprintf("system call %d(%#x, %#x, %#x)", m.call, m.args[0], m.args[1], m.args[2])
}

// fits reports whether a rule is about m.
func (m made) fits(r seccomp.Rule) bool {
	return m.call == r.Call && !slices.ContainsFunc(r.Only, func(a seccomp.Arg) bool {
		mask := a.Mask
		if mask == 0 {
			mask = 1<<32 - 1
		}
		return !slices.Contains(a.Values, m.args[a.Index]&mask)
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
				all = append(all, seccomp.Rule{Call: r.Call, Only: only})
			}
			return all
		}
	}
	return []seccomp.Rule{r}
}

// trace is what the threads of a process did from the moment on at which it gave up system calls.
type trace struct {
	process, vcpu map[made]bool
}

// follow traces the process pid, which waits for its parent, this thread, to the end. Calls are noted as they are made; those
// whose arguments no rule looks at are one.
func (tr *trace) follow(pid int) error {
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
	sealed, vcpu := false, map[int]bool{}
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
			return fmt.Errorf("lodge-vmm was ended by signal %d", ws.Signal())
		case !ws.Stopped():
			delete(inside, at) // the number may come again
			delete(vcpu, at)
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
			m := made{uintptr(r.Orig_rax), [3]uint32{uint32(r.Rdi), uint32(r.Rsi), uint32(r.Rdx)}}
			if sealed {
				tr.note(m, vcpu[at])
			}
			if m.call == unix.SYS_SECCOMP {
				vcpu[at] = sealed // the first is the whole process's
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

func (tr *trace) note(m made, vcpu bool) {
	if !slices.ContainsFunc([]uintptr{unix.SYS_IOCTL, unix.SYS_FCNTL, unix.SYS_PRCTL, unix.SYS_CLONE, unix.SYS_SECCOMP, unix.SYS_TGKILL, unix.SYS_KILL,
		unix.SYS_MMAP, unix.SYS_MPROTECT}, func(c uintptr) bool { return c == m.call }) {
		m.args = [3]uint32{}
	}
	if m.call == unix.SYS_TGKILL || m.call == unix.SYS_KILL {
		m.args[0], m.args[1] = uint32(os.Getpid()), 0 // as the lists that are compared with it have it
	}
	if m.call == unix.SYS_MMAP || m.call == unix.SYS_MPROTECT || m.call == unix.SYS_PRCTL {
		m.args = [3]uint32{m.args[0], 0, m.args[2]}
		if m.call != unix.SYS_PRCTL {
			m.args[0] = 0
		}
	}
	if m.call == unix.SYS_CLONE || m.call == unix.SYS_SECCOMP {
		m.args[2] = 0
	}
	if m.call == unix.SYS_CLONE {
		m.args[1] = 0
	}
	if m.call == unix.SYS_IOCTL || m.call == unix.SYS_FCNTL {
		m.args[0], m.args[2] = 0, 0
	}
	tr.process[m] = true
	if vcpu {
		tr.vcpu[m] = true
	}
}

// start starts the guest's lodge-vmm, without a cell, and traces it. Its errors come from the channel.
func (tr *trace) start(i *inhabitant, program string) (<-chan error, error) {
	files, err := vmm.Open(&i.guest)
	defer vmm.Close(files)
	if err != nil {
		return nil, err
	}
	args := []string{"run", i.guest.File}
	if i.guest.Restore != "" {
		args = append(args, "--restore", i.guest.Restore)
	}
	cmd := exec.Command("sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$0" "$@"`, program}, append(args, logSyscalls)...)...)
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f.File)
	}
	cmd.Env = append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.Stdout, cmd.Stderr = i.err, i.err
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	begun, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the parent, for ptrace, is the thread
		err := cmd.Start()
		begun <- err
		if err == nil {
			ended <- tr.follow(cmd.Process.Pid)
		}
	}()
	return ended, <-begun
}

// need is a call, or an ioctl, that this test need not see, since it is needed elsewhere.
type need struct {
	call    uintptr
	request uint32
}

// elsewhere has who needs what. What drivers need is what a real guest does in the notebook, where TestCell sees it made.
var elsewhere = map[need]string{
	{unix.SYS_IOCTL, 0x8138ae83}: older, {unix.SYS_IOCTL, 0x4138ae84}: older, // KVM_GET_SREGS, KVM_SET_SREGS
	{unix.SYS_IOCTL, 0x9000aea4}: older,                                                                                    // KVM_GET_XSAVE
	{unix.SYS_IOCTL, 0xaea2}:     "a guest that was saved on a host with another frequency",                                // KVM_SET_TSC_KHZ
	{unix.SYS_IOCTL, 0x4020ae76}: "devices of other processes", {unix.SYS_IOCTL, 0x4008ae6a}: "devices of other processes", // KVM_IRQFD, KVM_SET_GSI_ROUTING
	{unix.SYS_IOCTL, 0x4008ae90}:     "a guest that was saved by another version", // KVM_SET_CPUID2
	{unix.SYS_IOCTL, 0x4020aea5}:     drivers,                                     // KVM_SIGNAL_MSI
	{unix.SYS_IOCTL, unix.BLKSSZGET}: "a block device", {unix.SYS_IOCTL, unix.BLKDISCARD}: "a block device",
	{unix.SYS_IOCTL, unix.TUNGETIFF}: "a tap", {unix.SYS_IOCTL, unix.TUNSETVNETHDRSZ}: "a tap", {unix.SYS_IOCTL, unix.TUNSETOFFLOAD}: "a tap",
	{unix.SYS_SOCKETPAIR, 0}: "devices of other processes",
	{unix.SYS_READV, 0}: "a tap", {unix.SYS_WRITEV, 0}: "a tap",
	{unix.SYS_PREADV, 0}: drivers, {unix.SYS_PWRITEV, 0}: drivers, {unix.SYS_FALLOCATE, 0}: drivers, {unix.SYS_SHUTDOWN, 0}: drivers,
	{unix.SYS_PRCTL, 0}: "a kernel with CONFIG_ANON_VMA_NAME", {unix.SYS_CLOCK_GETTIME, 0}: "a host whose counter is not reliable",
	{unix.SYS_RESTART_SYSCALL, 0}:   "a process that is stopped or frozen meanwhile",
	{unix.SYS_SCHED_GETAFFINITY, 0}: "a start that takes more than a second", {unix.SYS_KILL, 0}: "a crash",
	{unix.SYS_SCHED_YIELD, 0}: "chance", {unix.SYS_NANOSLEEP, 0}: "chance", {unix.SYS_MUNMAP, 0}: "chance",
}

const (
	older   = "an older kernel"
	drivers = "drivers of a guest"
)

// chance is what Go's runtime does on whichever thread it happens to be.
var chance = map[uintptr]string{
	unix.SYS_MUNMAP: "chance", unix.SYS_MADVISE: "chance", unix.SYS_MMAP: "chance", unix.SYS_WRITE: "chance", unix.SYS_EPOLL_PWAIT: "chance",
	unix.SYS_GETPID: "chance", unix.SYS_GETTID: "chance", unix.SYS_TGKILL: "chance", unix.SYS_EXIT_GROUP: "a crash",
	unix.SYS_RT_SIGRETURN: "chance", unix.SYS_FUTEX: "chance", unix.SYS_CLOSE: "a driver that resets its device",
	unix.SYS_EPOLL_CTL: "a driver that resets its device",
}

// TestSyscalls holds that lodge-vmm makes no call that its lists leave out, and that the lists have none that it does not make.
func TestSyscalls(t *testing.T) {
	needRootAndKVM(t)
	i := newInhabitant(t)
	program, err := buildStatic()
	if err != nil {
		t.Fatal(err)
	}
	tr := &trace{map[made]bool{}, map[made]bool{}}
	i.live(t, func() <-chan struct{} {
		ended, err := tr.start(i, program)
		if err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		return gone
	})
	for _, list := range []struct {
		name  string
		rules []seccomp.Rule
		made  map[made]bool

		elsewhere map[uintptr]string
	}{{"the process", processCalls(), tr.process, nil}, {"a vCPU's thread", vcpuCalls(), tr.vcpu, chance}} {
		t.Logf("%s made %d kinds of calls", list.name, len(list.made))
		for m := range list.made {
			if !slices.ContainsFunc(list.rules, m.fits) {
				t.Errorf("%s makes %v, which its list leaves out", list.name, m)
			}
		}
		for _, r := range list.rules {
			for _, one := range each(r) {
				used := slices.ContainsFunc(slices.Collect(maps.Keys(list.made)), func(m made) bool { return m.fits(one) })
				key := need{call: one.Call}
				if one.Call == unix.SYS_IOCTL {
					key.request = one.Only[0].Values[0]
				}
				reason, known := elsewhere[key]
				if at, ok := list.elsewhere[key.call]; ok && !known {
					reason, known = at, true
				}
				if !used && !known {
					t.Errorf("%s never makes system call %d %v: take it off the list", list.name, one.Call, one.Only)
				} else if !used {
					t.Logf("%s: system call %d %v is needed by %s", list.name, one.Call, one.Only, reason)
				}
			}
		}
	}
}
