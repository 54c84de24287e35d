package main

import (
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/internal/seccomp"
)

// logSyscalls is the flag that has what the list leaves out logged by the kernel, not answered with the process's end.
const logSyscalls = "--log-syscalls"

// seal gives up, for good, all system calls that the process does not need from now on. outside is whether it makes
// connections for its guests. No program that takes core dumps is to get what guests have sent.
func seal(outside, logOnly bool) error {
	// Outside a cell Go's runtime reads its control group's limit every second, until somebody has set this.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("not to be dumped: %w", err)
	}
	return (&seccomp.List{Rules: calls(outside), LogOnly: logOnly}).Process()
}

// calls is the list. TestSyscalls holds that it names nothing that is not needed.
func calls(outside bool) []seccomp.Rule {
	rules := slices.Concat(
		seccomp.GoThread(),
		seccomp.GoProcess(),
		seccomp.Allow(
			unix.SYS_ACCEPT4, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
			unix.SYS_RECVMSG, unix.SYS_PPOLL, // changes with the sockets of guests; a guest's next frame
			unix.SYS_GETRANDOM,
		),
		[]seccomp.Rule{
			{Call: unix.SYS_FCNTL, Only: argument(1, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC)},
			{Call: unix.SYS_GETSOCKOPT, Only: option(unix.SOL_SOCKET, unix.SO_TYPE, unix.SO_ACCEPTCONN)},
			{Call: unix.SYS_OPENAT, Fails: unix.ENOENT}, // tried, and done without: the time zone
		},
	)
	if !outside {
		return rules
	}
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	return slices.Concat(rules,
		seccomp.Allow(unix.SYS_CONNECT, unix.SYS_SHUTDOWN, unix.SYS_RECVFROM, unix.SYS_SENDTO),
		[]seccomp.Rule{
			{Call: unix.SYS_SOCKET, Only: append(argument(0, unix.AF_INET), argument(1, unix.SOCK_STREAM|flags, unix.SOCK_DGRAM|flags)...)},
			{Call: unix.SYS_GETSOCKOPT, Only: option(unix.SOL_SOCKET, unix.SO_ERROR)},
			{Call: unix.SYS_SETSOCKOPT, Only: option(unix.SOL_SOCKET, unix.SO_BROADCAST, unix.SO_KEEPALIVE)},
			{Call: unix.SYS_SETSOCKOPT, Only: option(unix.SOL_TCP, unix.TCP_NODELAY, unix.TCP_KEEPIDLE, unix.TCP_KEEPINTVL, unix.TCP_KEEPCNT)},
			// What the host's own addresses are, which guests do not get to.
			{Call: unix.SYS_SOCKET, Only: append(argument(0, unix.AF_NETLINK), argument(2, unix.NETLINK_ROUTE)...)},
			{Call: unix.SYS_BIND},
		},
	)
}

func argument(index int, values ...uint32) []seccomp.Arg {
	return []seccomp.Arg{{Index: index, Values: values}}
}

// option is the condition that a socket's option is one of those of that level.
func option(level uint32, options ...uint32) []seccomp.Arg {
	return append(argument(1, level), argument(2, options...)...)
}
