package cell

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// RunInit does the work of a cell's init if this process is one, and never returns then. A program that uses Start calls it
// first of all, with os.Args.
func RunInit(args []string) {
	if len(args) != 2 || args[0] != InitName || os.Getpid() != 1 {
		return
	}
	runtime.LockOSThread() // what it gives up is the thread's that executes the program
	os.Exit(runInit(args[1]))
}

// runInit returns only if it fails. files is how many descriptors the program is to have; behind them are the program's own
// and the socket to the caller.
func runInit(files string) int {
	n, err := strconv.Atoi(files)
	if err != nil {
		return 1
	}
	f := os.NewFile(uintptr(firstFile+n+1), "socket to the caller")
	var o order
	in := json.NewDecoder(f)
	if err := in.Decode(&o); err != nil || len(o.Names) != n {
		return 1
	}
	out := json.NewEncoder(f)
	lacks, err := enter(&o)
	if err != nil {
		_ = out.Encode(report{Error: err.Error()}) // nobody else would hear of it
		return 1
	}
	if out.Encode(report{Lacks: lacks}) != nil {
		return 1
	}
	var proceed bool // when the caller wants so; if it is killed before, that is our end
	if in.Decode(&proceed) != nil || !proceed {
		return 1
	}
	err = execute(&o)
	_ = out.Encode(report{Error: fmt.Sprintf("execute it: %v", err)})
	return 1
}

// enter builds the cell around this thread, from the outside to the inside: a step must not take away what a later one needs.
func enter(o *order) (lacks []Lack, err error) {
	for _, step := range []struct {
		what string
		do   func(o *order) ([]Lack, error)
	}{
		{"descriptors", closeOthers},
		{"mounts", emptyRoot},
		{"names", hideNames},
		{"keys", dropKeys},
		{"limits", limit},
		{"user", becomeUser},
		{"capabilities", dropCapabilities},
		{"Landlock", landlock},
	} {
		l, err := step.do(o)
		lacks = append(lacks, l...)
		if err != nil {
			return lacks, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return lacks, nil
}

// closeOthers has all descriptors closed when the program is executed, but for those that it is to have.
func closeOthers(o *order) ([]Lack, error) {
	return nil, unix.CloseRange(uint(o.program()), ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC)
}

// emptyRoot makes an empty directory that cannot be written to the root, and all other files unreachable: the mounts of before
// are gone from this namespace. Its file system is mounted on /proc, a directory that is there wherever this program was
// started.
//
// The directory is not the root of its file system, since the kernel lets no process that has changed its root make a user
// namespace, in which it would have all capabilities again, if only over what is in there.
func emptyRoot(*order) ([]Lack, error) {
	const place, empty = "/proc", "empty"
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("none", place, "tmpfs", flags, "size=4k,nr_inodes=2,mode=555"); err != nil {
		return nil, fmt.Errorf("mount an empty root: %w", err)
	}
	if err := unix.Chdir(place); err != nil {
		return nil, err
	}
	// pivot_root(2): with both directories the same, the old root is mounted over the new one, and goes from there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return nil, fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("unmount the old root: %w", err)
	}
	if err := unix.Mkdir(empty, 0o555); err != nil {
		return nil, err
	}
	if err := unix.Mount("", ".", "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, ""); err != nil {
		return nil, fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Chroot(empty); err != nil {
		return nil, err
	}
	return nil, unix.Chdir("/")
}

// hideNames replaces the names of the host.
func hideNames(*order) ([]Lack, error) {
	name := []byte("cell")
	return nil, errors.Join(unix.Sethostname(name), unix.Setdomainname(name))
}

// dropKeys begins a session keyring: the caller's may hold keys of disks.
func dropKeys(*order) ([]Lack, error) {
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) // without a name: a new one
	if errors.Is(err, unix.ENOSYS) {                                       // a kernel without keys
		return nil, nil
	}
	return nil, err
}

// Limits that nobody has given.
const (
	defaultFiles     = 1024
	defaultProcesses = 512
)

func limit(o *order) ([]Lack, error) {
	l := o.Limits
	for _, r := range []struct {
		what  int
		value uint64
	}{
		{unix.RLIMIT_NOFILE, or(l.Files, defaultFiles)},
		{unix.RLIMIT_NPROC, or(l.Processes, defaultProcesses)},
		{unix.RLIMIT_DATA, or(l.Data, unix.RLIM_INFINITY)},
		{unix.RLIMIT_FSIZE, or(l.FileSize, unix.RLIM_INFINITY)},
		{unix.RLIMIT_CORE, 0}, // what a guest has in its memory is nobody's business
		{unix.RLIMIT_MEMLOCK, 0},
		{unix.RLIMIT_MSGQUEUE, 0},
		{unix.RLIMIT_RTPRIO, 0},
		{unix.RLIMIT_NICE, 0},
	} {
		var now unix.Rlimit
		if err := unix.Getrlimit(r.what, &now); err != nil {
			return nil, err
		}
		n := min(r.value, now.Max) // what the caller may not have, the program may not either
		if err := unix.Prlimit(0, r.what, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil {
			return nil, fmt.Errorf("resource %d to %d: %w", r.what, r.value, err)
		}
	}
	return nil, nil
}

func or(n, other uint64) uint64 {
	if n != 0 {
		return n
	}
	return other
}

// becomeUser changes to the cell's user. In a user namespace there is but one, who is the caller outside and nobody to speak
// of inside; capabilities are dropped by the next step all the same.
func becomeUser(o *order) ([]Lack, error) {
	if err := dropBounding(); err != nil { // while we may
		return nil, err
	}
	if o.User {
		return nil, nil
	}
	id := int(o.UID)
	if err := syscall.Setgroups(nil); err != nil {
		return nil, fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(id, id, id); err != nil {
		return nil, fmt.Errorf("setresgid: %w", err)
	}
	if err := syscall.Setresuid(id, id, id); err != nil {
		return nil, fmt.Errorf("setresuid: %w", err)
	}
	return nil, nil
}

// dropBounding has no program ever gain a capability, whatever its file says.
func dropBounding() error {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_CHOWN { // the kernel has no more
			return nil
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
}

// dropCapabilities gives up what this thread has, and what set-user-ID programs could give it.
func dropCapabilities(*order) ([]Lack, error) {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("ambient: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return nil, fmt.Errorf("capset: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("no_new_privs: %w", err)
	}
	return nil, nil
}

// program is the descriptor of the program, behind those that the program is to have.
func (o *order) program() int { return firstFile + len(o.Names) }

// environment is the program's.
func (o *order) environment() []string {
	return append(o.Env, "LISTEN_PID="+strconv.Itoa(os.Getpid()), "LISTEN_FDS="+strconv.Itoa(len(o.Names)),
		"LISTEN_FDNAMES="+strings.Join(o.Names, ":"))
}
