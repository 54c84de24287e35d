package seccomp

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// GoThread is what a thread needs for Go's runtime, if its goroutine is locked to it: waiting and waking, signals, memory
// for the heap, and its own end.
func GoThread() []Rule {
	self := uint32(syscall.Getpid())
	return append(Allow(
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD,
		unix.SYS_RESTART_SYSCALL, // the kernel goes on with one of these, after a stop
		unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		unix.SYS_MUNMAP, unix.SYS_MADVISE,
		unix.SYS_GETPID, unix.SYS_GETTID, // before tgkill
		unix.SYS_EPOLL_PWAIT, unix.SYS_WRITE, // to look for what is ready, and to wake who waits for that
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	),
		NotExecutable(unix.SYS_MMAP), // the heap grows on whatever thread allocates
		Rule{Call: unix.SYS_PRCTL, Only: []Arg{{Index: 0, Values: []uint32{unix.PR_SET_VMA}}}}, // and its parts are given names
		Rule{Call: unix.SYS_TGKILL, Only: []Arg{{Index: 0, Values: []uint32{self}}}},           // preemption
		Rule{Call: unix.SYS_KILL, Only: []Arg{{Index: 0, Values: []uint32{self}}}},             // the end of a crash
		// Where the kernel keeps time without the processor's counter, asking for it is a system call.
		Rule{Call: unix.SYS_CLOCK_GETTIME},
	)
}

// GoProcess is what the other threads need beside that: the poller, new threads, and what a crash does.
func GoProcess() []Rule {
	return append(Allow(
		unix.SYS_SCHED_GETAFFINITY, // every second, until somebody sets GOMAXPROCS
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EVENTFD2, unix.SYS_READ, unix.SYS_CLOSE, unix.SYS_RT_SIGACTION,
	),
		Rule{Call: unix.SYS_CLONE, Only: []Arg{{Index: 0, Values: []uint32{goThreadFlags}}}},
	)
}

// goThreadFlags are the flags with which Go's runtime makes threads (runtime/os_linux.go): none of a new process.
const goThreadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD |
	unix.CLONE_SETTLS

// NotExecutable allows a call of mmap's kind that makes no memory executable: all code that is ever to run is there already.
func NotExecutable(call uintptr) Rule {
	return Rule{Call: call, Only: []Arg{{Index: 2, Mask: unix.PROT_EXEC, Values: []uint32{0}}}}
}
