package appliance

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mount is one file system of the kernel's.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
	optional             bool // not every machine or kernel has it
}

const noProgram = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mounts are in an order in which each target is there.
var mounts = []mount{
	{"proc", "/proc", "proc", noProgram, "", false},
	{"sysfs", "/sys", "sysfs", noProgram, "", false},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755", false},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666", true},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", false},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", noProgram, "nsdelegate", false},
}

// lateMounts are of kinds that the kernel has modules for.
var lateMounts = []mount{{"efivarfs", FirmwareVariables, "efivarfs", noProgram, "", true}}

// FirmwareVariables is the directory with the variables of UEFI firmware; other firmware has none.
const FirmwareVariables = "/sys/firmware/efi/efivars"

// mountAll mounts a table by a mount(2), and goes on after an error: what is missing is said by what needs it, too.
func mountAll(table []mount, mountFS func(source, target, kind string, flags uintptr, data string) error) error {
	var errs []error
	for _, m := range table {
		err := os.MkdirAll(m.target, 0o755)
		if err == nil {
			err = mountFS(m.source, m.target, m.kind, m.flags, m.data)
		}
		if err != nil && !errors.Is(err, unix.EBUSY) && !m.optional { // EBUSY: it is mounted, as /dev by some kernels
			errs = append(errs, fmt.Errorf("%s on %s: %w", m.kind, m.target, err))
		}
	}
	return errors.Join(errs...)
}

// leaveRootfs mounts the root directory over itself. The cells of VMMs call pivot_root(2), which is refused while the root is the
// kernel's own rootfs, as that of an initramfs is.
func leaveRootfs() error {
	const root = "/.root"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("root directory: bind: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("root directory: move: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("root directory: chroot: %w", err)
	}
	return unix.Chdir("/")
}
