package cell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Parent is the control group (version 2, Documentation/admin-guide/cgroup-v2.rst) that cells' groups are made in.
type Parent struct {
	dir   string
	lacks []Lack
}

// managerName is the group of the process that makes cells, within the one that was delegated to it.
const managerName = "manager"

// The controllers that cells use.
var controllers = []string{"memory", "pids", "cpu"}

// OpenParent finds or makes the group for the cells of this process, and has the controllers work in it. Of a process that
// systemd has delegated its group to (Delegate=yes) it is that group: since none with controllers may have processes of its
// own, the process moves to a group "manager" in it. At the root of the hierarchy it is a group of its own, called name.
//
// It fails where there is no version 2 that this process may write to; what works only in part is a Lack of each Cgroup.
func OpenParent(name string) (*Parent, error) {
	mount, err := cgroupMount("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	own, err := ownCgroup("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return openParent(mount, own, name)
}

func openParent(mount, own, name string) (*Parent, error) {
	p := &Parent{dir: filepath.Join(mount, own)}
	if own == "/" { // the root may have processes
		if _, err := enable(p.dir); err != nil {
			return nil, cgroupError(err)
		}
		p.dir = filepath.Join(mount, name)
		if err := mkdir(p.dir); err != nil {
			return nil, cgroupError(err)
		}
	} else {
		if filepath.Base(own) == managerName { // where the service manager has put us: DelegateSubgroup=
			p.dir = filepath.Dir(p.dir)
		}
		if err := p.vacate(strconv.Itoa(os.Getpid())); err != nil {
			return nil, err
		}
	}
	return p, p.enable()
}

// OpenDelegated finds the group at path in the hierarchy, such as /system.slice/lodge-cells.service, and has the controllers work in
// it for cells. It is another service's, which systemd has delegated (Delegate=yes) and which does nothing but keep the group: its
// processes are moved to a group "manager" in it. The group of the process that makes the cells stays as it is, so that systemd can
// start the next one in it while cells run.
func OpenDelegated(path string) (*Parent, error) {
	mount, err := cgroupMount("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	p := &Parent{dir: filepath.Join(mount, path)}
	b, err := os.ReadFile(filepath.Join(p.dir, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("control group %s: %w: start the service that has it", path, err)
	}
	if err := p.vacate(strings.Fields(string(b))...); err != nil {
		return nil, err
	}
	return p, p.enable()
}

// vacate moves processes out of p, to its group "manager".
func (p *Parent) vacate(pids ...string) error {
	manager := filepath.Join(p.dir, managerName)
	if err := mkdir(manager); err != nil {
		return cgroupError(err)
	}
	for _, pid := range pids {
		if err := write(filepath.Join(manager, "cgroup.procs"), pid); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
			return cgroupError(err)
		}
	}
	return nil
}

// enable has the controllers work in p.
func (p *Parent) enable() error {
	missing, err := enable(p.dir)
	if err != nil {
		return cgroupError(err)
	}
	if missing != nil {
		p.lacks = []Lack{{"control group", "no controllers " + strings.Join(missing, ", ") + ": their limits do not hold"}}
	}
	return nil
}

func cgroupError(err error) error {
	return fmt.Errorf("control group: %w (as root it works; as a service, with Delegate=yes)", err)
}

func mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// enable has the controllers work in the groups within dir, and returns those that do not.
func enable(dir string) (missing []string, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	able := strings.Fields(string(b))
	for _, c := range controllers {
		// Those of version 1 are not among the able ones; and one may be refused for itself, as cpu beside real-time processes.
		if !slices.Contains(able, c) || write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c) != nil {
			missing = append(missing, c)
		}
	}
	return missing, nil
}

// cgroupMount returns where the file system of version 2 is mounted, from a process's mountinfo (proc_pid_mountinfo(5)).
func cgroupMount(mountinfo string) (string, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		before, after, _ := strings.Cut(in.Text(), " - ")
		fields := strings.Fields(before)
		if kind, _, _ := strings.Cut(after, " "); kind == "cgroup2" && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", errors.New("control group: no file system of type cgroup2 is mounted: mount one on /sys/fs/cgroup")
}

// ownCgroup returns the path of a process's group within the file system of version 2, from its cgroup file (cgroups(7)).
func ownCgroup(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return p, nil
		}
	}
	return "", errors.New("control group: the kernel has no version 2")
}

// Remove removes a parent without cells that OpenParent has made at the root of the hierarchy.
func (p *Parent) Remove() error {
	if err := os.Remove(p.dir); err != nil {
		return cgroupError(err)
	}
	return nil
}

// GroupLimits are what the processes of a group may use together. 0 leaves a limit out.
type GroupLimits struct {
	Memory    uint64 // bytes, with the page cache of what they read and write: of that the kernel frees some, before it kills
	Processes uint64 // processes and threads
	CPUWeight uint64 // share of the processors beside others, 1 to 10000; the others' is 100 unless they say more
}

// Cgroup is the control group of one cell.
type Cgroup struct {
	dir   *os.File
	Lacks []Lack // what it cannot do here
}

// NewCgroup makes a group in p, whose name is a file's. A group of that name in which nothing runs any more is replaced.
func (p *Parent) NewCgroup(name string, l GroupLimits) (*Cgroup, error) {
	if name == managerName || name != filepath.Base(name) || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "cgroup.") {
		return nil, fmt.Errorf("control group %q: no name for one", name)
	}
	path := filepath.Join(p.dir, name)
	if err := p.RemoveCgroup(name); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, cgroupError(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(cgroupError(err), os.Remove(path))
	}
	g := &Cgroup{dir: dir, Lacks: slices.Clone(p.lacks)}
	for _, v := range []struct {
		file  string
		value uint64
	}{
		{"memory.max", l.Memory}, {"pids.max", l.Processes}, {"cpu.weight", l.CPUWeight},
	} {
		if v.value == 0 {
			continue
		}
		err := write(g.path(v.file), strconv.FormatUint(v.value, 10))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a controller that p lacks
			return nil, errors.Join(fmt.Errorf("control group: set %s to %d: %w", v.file, v.value, err), g.Remove(context.Background()))
		}
	}
	if l.Memory != 0 { // a guest in the swap is no guest; the file is not there without swap
		if err := write(g.path("memory.swap.max"), "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(fmt.Errorf("control group: %w", err), g.Remove(context.Background()))
		}
	}
	return g, nil
}

func (g *Cgroup) path(file string) string { return filepath.Join(g.dir.Name(), file) }

func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Freeze stops all that runs in the group, where it is, and returns when it has stopped.
func (g *Cgroup) Freeze(ctx context.Context) error { return g.freeze(ctx, "1") }

// Thaw lets it run on.
func (g *Cgroup) Thaw(ctx context.Context) error { return g.freeze(ctx, "0") }

func (g *Cgroup) freeze(ctx context.Context, frozen string) error {
	if err := write(g.path("cgroup.freeze"), frozen); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	return g.await(ctx, "frozen", frozen)
}

// Kill ends all that runs in the group. It returns when nothing does.
func (g *Cgroup) Kill(ctx context.Context) error {
	if err := write(g.path("cgroup.kill"), "1"); err != nil {
		return fmt.Errorf("control group: %w (needs Linux 5.14)", err)
	}
	return g.await(ctx, "populated", "0")
}

// await waits until key is value in cgroup.events, at whose changes the kernel signals POLLPRI.
func (g *Cgroup) await(ctx context.Context, key, value string) error {
	f, err := os.Open(g.path("cgroup.events"))
	if err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	defer f.Close()
	for {
		b, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
		if err != nil {
			return fmt.Errorf("control group: %w", err)
		}
		if strings.Contains("\n"+string(b), "\n"+key+" "+value+"\n") {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("control group %s: waiting for %s %s: %w", g.dir.Name(), key, value, err)
		}
		p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(p, int(pollTime/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("control group: %w", err)
		}
	}
}

// pollTime is how often a wait looks whether its context has ended.
const pollTime = 100 * time.Millisecond

// Usage is what the processes of a group use.
type Usage struct {
	CPU    time.Duration // of all processors, since the group was made
	Memory uint64        // bytes; 0 if the memory controller is lacking
}

// RemoveCgroup removes the group of that name, if there is one. What ran in it has ended; that it is gone for good may take
// the kernel a moment.
func (p *Parent) RemoveCgroup(name string) error {
	for deadline := time.Now().Add(goneLimit); ; time.Sleep(goneRetry) {
		err := os.Remove(filepath.Join(p.dir, name))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("control group: %w: something runs in it", err)
		}
	}
}

// How long the end of what runs in a group is waited for, and how often it is looked at.
const (
	goneLimit = 200 * time.Millisecond
	goneRetry = 5 * time.Millisecond
)

// Usage returns what the group of that name uses.
func (p *Parent) Usage(name string) (Usage, error) { return usage(filepath.Join(p.dir, name)) }

// Usage returns what the group uses.
func (g *Cgroup) Usage() (Usage, error) { return usage(g.dir.Name()) }

func usage(dir string) (u Usage, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return u, fmt.Errorf("control group: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			if err != nil {
				return u, fmt.Errorf("control group: cpu.stat: %w", err)
			}
			u.CPU = time.Duration(us) * time.Microsecond
		}
	}
	b, err = os.ReadFile(filepath.Join(dir, "memory.current"))
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err == nil {
		u.Memory, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	}
	if err != nil {
		return u, fmt.Errorf("control group: %w", err)
	}
	return u, nil
}

// Close lets go of the group, which stays. It may be nil.
func (g *Cgroup) Close() {
	if g != nil {
		g.dir.Close()
	}
}

// Remove removes the group. It waits until what ran in it is gone for good, which may be a moment after its Wait.
func (g *Cgroup) Remove(ctx context.Context) error {
	defer g.dir.Close()
	for {
		err := os.Remove(g.dir.Name())
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("control group: %w", err)
		}
		if err := g.await(ctx, "populated", "0"); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("control group: %w (%w)", err, ctx.Err())
		case <-time.After(10 * time.Millisecond): // somebody has made a group in it, or it is being looked at
		}
	}
}
