package appliance

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Directories of the state.
const (
	StateDir  = "/state"     // where the state partition is mounted
	ConfigDir = "/state/etc" // definitions
	LibDir    = "/state/lib" // saved guests, images
	logDir    = "/state/log"
)

// ErrNoState says that there is no state partition.
var ErrNoState = errors.New("no state partition: no disk has a file system labelled " + StateLabel)

// blockDevices returns the paths of disks and partitions in the order of their names, without those that the device mapper makes of them.
func blockDevices() ([]string, error) {
	names, err := os.ReadDir("/sys/class/block")
	if err != nil {
		return nil, err
	}
	var list []string
	for _, n := range names {
		if !strings.HasPrefix(n.Name(), "dm-") {
			list = append(list, filepath.Join("/dev", n.Name()))
		}
	}
	return list, nil
}

// findLabelled returns the device among some whose file system has a label, and what kind that is; "" if none has. Two of them are an
// error: which is the right one?
func findLabelled(wanted string, devices []string) (device, kind string, err error) {
	var found []string
	for _, d := range devices {
		f, err := os.Open(d)
		if err != nil { // a drive without a medium
			continue
		}
		k, label, err := fileSystem(f)
		f.Close()
		if err == nil && k != "" && label == wanted {
			found, kind = append(found, d), k
		}
	}
	switch len(found) {
	case 0:
		return "", "", nil
	case 1:
		return found[0], kind, nil
	}
	return "", "", fmt.Errorf("several disks have a file system labelled %s: %v: unplug those that are not this machine's, or relabel theirs", wanted, found)
}

// awaitState looks for the state until a time: disks take a moment to appear.
func awaitState(until time.Time) (device, kind string, err error) {
	for {
		devices, err := blockDevices()
		if err != nil {
			return "", "", err
		}
		device, kind, err = findLabelled(StateLabel, devices)
		if err != nil || device != "" {
			return device, kind, err
		}
		if time.Now().After(until) {
			return "", "", ErrNoState
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// mountState mounts the state for writing. If it cannot be written to, it is mounted as it is, and what is written is kept in RAM;
// problem says so then.
func mountState(device, kind string) (problem, err error) {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	if err := os.MkdirAll(StateDir, 0o700); err != nil {
		return nil, err
	}
	writable := unix.Mount(device, StateDir, kind, flags, "")
	if writable == nil {
		return nil, nil
	}
	const lower, upper = "/run/state/lower", "/run/state/upper"
	for _, d := range []string{lower, upper, "/run/state/work"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	err = unix.Mount(device, lower, kind, flags|unix.MS_RDONLY, "")
	if err != nil { // after a power cut the journal has to be replayed, which cannot be done either: without it, then
		err = unix.Mount(device, lower, kind, flags|unix.MS_RDONLY, map[string]string{"ext4": "noload", "xfs": "norecovery"}[kind])
	}
	if err != nil {
		return nil, fmt.Errorf("state partition %s: %w", device, errors.Join(writable, err))
	}
	if err := unix.Mount("overlay", StateDir, "overlay", flags&^unix.MS_NOATIME, "lowerdir="+lower+",upperdir="+upper+",workdir=/run/state/work"); err != nil {
		return nil, errors.Join(fmt.Errorf("state partition %s: what is written, in RAM: %w", device, err), unix.Unmount(lower, 0))
	}
	return fmt.Errorf("state partition %s cannot be written to (%w): what changes is kept in RAM, and lost at the end", device, writable), nil
}

// ramState has the state in RAM.
func ramState() error {
	if err := os.MkdirAll(StateDir, 0o700); err != nil {
		return err
	}
	return unix.Mount("tmpfs", StateDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700")
}

// seed makes the directories of the state. Definitions that come along in some directories, which need not be there, become the
// machine's if it has none at all yet.
func seed(log *slog.Logger, from ...string) error {
	fresh := false
	if _, err := os.Stat(ConfigDir); errors.Is(err, fs.ErrNotExist) {
		fresh = true
	}
	for _, d := range []string{LibDir, logDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if !fresh {
		return nil
	}
	const temporary = ConfigDir + ".new" // a power cut leaves all of it or none
	if err := errors.Join(os.RemoveAll(temporary), os.Mkdir(temporary, 0o700)); err != nil {
		return err
	}
	for _, dir := range from {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := os.CopyFS(temporary, os.DirFS(dir)); err != nil {
			return fmt.Errorf("the definitions in %s: %w", dir, err)
		}
		log.Info("state is new: definitions are in it", "from", dir)
	}
	unix.Sync()
	return os.Rename(temporary, ConfigDir)
}

// stateMounts are in the order in which they are unmounted.
var stateMounts = []string{StateDir, "/run/state/lower", GuestsDir}

// unmountState unmounts the state, closes it if it is encrypted, and unmounts the guests that come along; or makes it read-only if a process that does not end still has it.
func unmountState() error {
	var errs []error
	for _, m := range stateMounts {
		err := unix.Unmount(m, 0)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Mount("", m, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // it is not mounted
			errs = append(errs, fmt.Errorf("%s: %w", m, err))
		}
	}
	return errors.Join(append(errs, closeVault())...)
}
