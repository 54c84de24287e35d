package main

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/internal/seccomp"
)

// logSyscalls is the flag that has what the lists leave out logged by the kernel, not answered with the process's end.
const logSyscalls = "--log-syscalls"

// syscalls are the lists of what a guest's process in a cell may do: one for the process, and a shorter one for the threads
// on which its vCPUs run. TestSyscalls holds that they name nothing that is not needed.
type syscalls struct {
	process, vcpu seccomp.List
}

func newSyscalls(logOnly bool) *syscalls {
	return &syscalls{
		process: seccomp.List{Rules: processCalls(), LogOnly: logOnly},
		vcpu:    seccomp.List{Rules: vcpuCalls(), LogOnly: logOnly},
	}
}

// seal holds the process to its list. No program that takes core dumps is to get what the guest has in its memory.
func (s *syscalls) seal() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("not to be dumped: %w", err)
	}
	return s.process.Process()
}

func (s *syscalls) narrow() error { return s.vcpu.Thread() }

// vcpuCalls is what a vCPU's thread does: it runs the guest, and what devices do while the guest waits for them.
func vcpuCalls() []seccomp.Rule {
	_, run := kvm.Requests()
	return slices.Concat(
		[]seccomp.Rule{ioctl(run)},
		seccomp.GoThread(),
		// A driver that begins has a tap told what it can do; one that resets its device has connections and screens closed.
		[]seccomp.Rule{ioctl([]uint32{unix.TUNSETOFFLOAD})},
		seccomp.Allow(unix.SYS_CLOSE, unix.SYS_EPOLL_CTL),
	)
}

// processCalls is what all threads do together, before and after.
func processCalls() []seccomp.Rule {
	setup, run := kvm.Requests()
	return slices.Concat(
		[]seccomp.Rule{ioctl(run), ioctl(setup)}, // KVM_RUN is the most frequent of all
		seccomp.GoThread(),
		seccomp.GoProcess(),
		seccomp.Allow(
			unix.SYS_FSTAT, unix.SYS_FSTATFS, unix.SYS_STATX, unix.SYS_LSEEK, // what kind of file a disk, a kernel, a state is, and its holes
			unix.SYS_PREAD64, unix.SYS_PREADV, unix.SYS_PREADV2, unix.SYS_PWRITE64, unix.SYS_PWRITEV,
			unix.SYS_FLOCK, unix.SYS_FDATASYNC, unix.SYS_FSYNC, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE,
			unix.SYS_MEMFD_CREATE,                           // screens, and memory that is shared
			unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PPOLL, // packets of a tap; a queue's next kick
			unix.SYS_LISTEN, // on sockets that listen already: for their peer to be this process
			unix.SYS_ACCEPT4, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SHUTDOWN,
			unix.SYS_RECVMSG, unix.SYS_SENDMSG, // with the files of a save, of a screen
			unix.SYS_GETRANDOM,
		),
		[]seccomp.Rule{
			{Call: unix.SYS_FCNTL, Only: []seccomp.Arg{{Index: 1, Values: []uint32{
				unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC, unix.F_ADD_SEALS,
			}}}},
			ioctl(deviceRequests),
			// A list for the thread of a vCPU, of no other kind: what is given up stays so.
			{Call: unix.SYS_SECCOMP, Only: []seccomp.Arg{
				{Index: 0, Values: []uint32{unix.SECCOMP_SET_MODE_FILTER}}, {Index: 1, Values: []uint32{0}},
			}},
			// What a disk's other process says of itself comes over a connection of its own.
			{Call: unix.SYS_SOCKETPAIR, Only: []seccomp.Arg{{Index: 0, Values: []uint32{unix.AF_UNIX}}}},
			// Tried, and done without: what /proc tells of memory, and the time zone.
			{Call: unix.SYS_OPENAT, Fails: unix.ENOENT},
		},
	)
}

// deviceRequests are the ioctls on what a guest is handed: disks that are block devices, and taps.
var deviceRequests = []uint32{
	unix.BLKSSZGET, unix.BLKDISCARD,
	unix.TUNGETIFF, unix.TUNSETVNETHDRSZ, unix.TUNSETOFFLOAD,
}

func ioctl(requests []uint32) seccomp.Rule {
	return seccomp.Rule{Call: unix.SYS_IOCTL, Only: []seccomp.Arg{{Index: 1, Values: requests}}}
}
