package cell

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// execute executes the program. It returns only if that fails.
func execute(o *order) error {
	argv, err := pointers(o.Args)
	if err != nil {
		return err
	}
	envv, err := pointers(o.environment())
	if err != nil {
		return err
	}
	empty, err := unix.BytePtrFromString("")
	if err != nil {
		return err
	}
	// In the exec the Go runtime's other threads end. It must not start one meanwhile, which it has no reason to.
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(o.program()), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	if errno == unix.ENOENT {
		return fmt.Errorf("%w: it has to be static: an empty root has no libraries", errno)
	}
	return errno
}

// pointers returns texts as execve takes them.
func pointers(texts []string) ([]*byte, error) {
	p := make([]*byte, len(texts)+1)
	for i, t := range texts {
		var err error
		if p[i], err = unix.BytePtrFromString(t); err != nil {
			return nil, fmt.Errorf("%q: %w", t, err)
		}
	}
	return p, nil
}

// landlockRight is something that Landlock can refuse.
type landlockRight struct {
	abi    int
	access uint64
	what   string
}

// What Landlock knows of, by the version of its ABI that introduced it: Documentation/userspace-api/landlock.rst.
var (
	landlockFiles = []landlockRight{
		{1, unix.LANDLOCK_ACCESS_FS_REFER - 1, "files"}, // the thirteen before it
		{2, unix.LANDLOCK_ACCESS_FS_REFER, "moves between directories"},
		{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE, "truncation"},
		{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV, "ioctls of devices"},
	}
	landlockNet   = []landlockRight{{4, unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, "TCP"}}
	landlockBind  = []landlockRight{{4, unix.LANDLOCK_ACCESS_NET_BIND_TCP, "TCP"}} // of who makes connections
	landlockScope = []landlockRight{{6, unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL, "abstract sockets and signals"}}
)

// landlock refuses everything that Landlock can refuse: nothing is reached by a path, not even from a descriptor of a
// directory. The one exception is the program, which has to be executed. What is open already is not touched.
func landlock(o *order) ([]Lack, error) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
	case unix.ENOSYS, unix.EOPNOTSUPP:
		return []Lack{{"Landlock", fmt.Sprintf("the kernel has it not, or not enabled (%v)", errno)}}, nil
	default:
		return nil, errno
	}
	var attr unix.LandlockRulesetAttr
	var missing []string
	tcp := landlockNet
	if o.HostNetwork {
		tcp = landlockBind
	}
	for _, kind := range []struct {
		field *uint64
		all   []landlockRight
	}{{&attr.Handled_access_fs, landlockFiles}, {&attr.Handled_access_net, tcp}, {&attr.Scoped, landlockScope}} {
		for _, a := range kind.all {
			if int(abi) >= a.abi {
				*kind.field |= a.access
			} else {
				missing = append(missing, a.what)
			}
		}
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return nil, fmt.Errorf("create a ruleset of ABI %d: %w", abi, errno)
	}
	program := unix.LandlockPathBeneathAttr{
		Allowed_access: unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE, Parent_fd: int32(o.program()),
	}
	_, _, errno = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&program)), 0, 0, 0)
	if errno == 0 {
		_, _, errno = unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
	}
	var err error
	if errno != 0 {
		err = fmt.Errorf("restrict: %w", errno)
	}
	if err := errors.Join(err, unix.Close(int(fd))); err != nil {
		return nil, err
	}
	if missing != nil {
		return []Lack{{"Landlock", fmt.Sprintf("ABI %d does not know of %s", abi, strings.Join(missing, ", "))}}, nil
	}
	return nil, nil
}
