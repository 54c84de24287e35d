package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

const (
	fleetGuests  = 16  // running
	listedGuests = 100 // defined, none of them running
)

// fleet are the figures of a manager with many guests: what it costs when nothing happens, and how long a list of them takes.
// Beside lodged is libvirtd, as a user's.
func fleet(vmm, dir string) []figure {
	running := func(measure func(pid int) measurement) func(context.Context) (measurement, measurement, func() error, error) {
		return func(ctx context.Context) (_, _ measurement, _ func() error, err error) {
			m, v, done, err := startManagers(ctx, vmm, dir, fleetGuests)
			if err != nil {
				return nil, nil, nil, err
			}
			if err := errors.Join(m.command(ctx, append([]string{"start"}, fleetNames(fleetGuests)...)...), v.startAll()); err != nil {
				return nil, nil, done, err
			}
			return measure(m.pid), measure(v.pid), done, nil
		}
	}
	guests := fmt.Sprintf("manager of %d guests at rest, ", fleetGuests)
	return []figure{
		{name: guests + "resident memory", unit: "MiB", goal: goal{value: 30}, runs: 1, peerName: "libvirtd", prepare: running(managerMemory)},
		{name: guests + "wake-ups", unit: "1/s", goal: goal{value: 0}, runs: 1, peerName: "libvirtd", prepare: running(wakeups)},
		{
			name: fmt.Sprintf("list of %d guests", listedGuests), unit: "ms", goal: goal{value: 10}, runs: 21, peerName: "virsh, libvirtd",
			prepare: func(ctx context.Context) (_, _ measurement, _ func() error, err error) {
				m, v, done, err := startManagers(ctx, vmm, dir, listedGuests)
				if err != nil {
					return nil, nil, nil, err
				}
				c, err := client.Dial(ctx, m.bus)
				if err != nil {
					return nil, nil, done, err
				}
				return listGuests(c), v.list, func() error { return errors.Join(c.Close(), done()) }, nil
			},
		},
	}
}

func fleetNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("guest%d", i)
	}
	return names
}

// startManagers starts a lodged and a libvirtd with n guests each.
func startManagers(ctx context.Context, vmm, parent string, n int) (_ *lodged, _ *libvirt, done func() error, err error) {
	dir, err := os.MkdirTemp(parent, "fleet")
	if err != nil {
		return nil, nil, nil, err
	}
	if err := guestFiles(dir); err != nil {
		return nil, nil, nil, err
	}
	guests := make(map[string]string)
	for _, name := range fleetNames(n) {
		guests[name] = fmt.Sprintf("name = %q\nmemory = \"16M\"\nboot = { firmware = %q }\n", name, filepath.Join(dir, "rom.bin"))
	}
	m, err := startManager(ctx, vmm, dir, guests)
	if err != nil {
		return nil, nil, nil, err
	}
	v, err := startLibvirt(ctx, n)
	if err != nil {
		return nil, nil, nil, errors.Join(err, m.close())
	}
	return m, v, func() error { return errors.Join(m.close(), v.close()) }, nil
}

// managerMemory measures the resident memory of a process when it has come to rest, in MiB.
func managerMemory(pid int) measurement {
	return func(ctx context.Context) (float64, error) {
		if err := sleep(ctx, settleFor); err != nil {
			return 0, err
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(b)) {
			var kib float64
			if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
				return kib / 1024, nil
			}
		}
		return 0, fmt.Errorf("process %d has no resident memory", pid)
	}
}

// listGuests measures how long the manager takes to tell all there is to know of its guests, in milliseconds.
func listGuests(c *client.Client) measurement {
	return func(ctx context.Context) (float64, error) {
		begin := time.Now()
		guests, err := c.Guests(ctx)
		if err == nil && len(guests) != listedGuests {
			err = fmt.Errorf("lodged lists %d guests", len(guests))
		}
		return float64(time.Since(begin)) / float64(time.Millisecond), err
	}
}

// libvirt is a libvirtd of the user nobody, which so keeps its files in a directory of its own, and a virsh that is connected to
// it. Its guests are QEMU's without acceleration, and never run.
type libvirt struct {
	dir     string
	pid     int
	daemon  *exec.Cmd
	virsh   *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	guests  int
	started bool
}

const nobody = 65534

func startLibvirt(ctx context.Context, n int) (_ *libvirt, err error) {
	v := &libvirt{guests: n}
	// Not in the others' directory, which nobody else may enter.
	if v.dir, err = os.MkdirTemp("", "lodge-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	if err := os.Chown(v.dir, nobody, nobody); err != nil {
		return nil, fmt.Errorf("libvirtd's user: %w: run as root", err)
	}
	v.daemon = v.command(ctx, "libvirtd")
	var said bytes.Buffer
	v.daemon.Stderr = &said
	if err := v.daemon.Start(); err != nil {
		return nil, fmt.Errorf("libvirtd: %w: install libvirt-daemon, as make deps does", err)
	}
	v.pid = v.daemon.Process.Pid
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err = os.Stat(filepath.Join(v.dir, "libvirt", "libvirt-sock")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("libvirtd: %w: %s", err, &said)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
	v.virsh = v.command(ctx, "virsh", "--quiet", "--connect", "qemu:///session")
	faults, err := os.Create(filepath.Join(v.dir, "faults"))
	if err != nil {
		return nil, err
	}
	defer faults.Close()
	v.virsh.Stderr = faults
	if v.in, err = v.virsh.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := v.virsh.StdoutPipe()
	if err != nil {
		return nil, err
	}
	v.out = bufio.NewReader(out)
	if err := v.virsh.Start(); err != nil {
		return nil, fmt.Errorf("virsh: %w: install libvirt-clients, as make deps does", err)
	}
	for _, name := range fleetNames(n) {
		xml := filepath.Join(v.dir, name+".xml")
		if err := os.WriteFile(xml, fmt.Appendf(nil, "<domain type='qemu'><name>%s</name><memory unit='MiB'>16</memory>"+
			"<os><type machine='q35'>hvm</type></os></domain>", name), 0o644); err != nil {
			return nil, err
		}
		if _, err := v.ask("define " + xml); err != nil {
			return nil, err
		}
	}
	return v, v.has("shut off")
}

// command is a command of libvirtd's user.
func (v *libvirt) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = v.dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + v.dir, "XDG_RUNTIME_DIR=" + v.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// ask has virsh run a command, and returns what it says of it.
func (v *libvirt) ask(command string) (string, error) {
	const end = "the end of it"
	if _, err := fmt.Fprintf(v.in, "%s; echo %s\n", command, end); err != nil {
		return "", err
	}
	if _, err := v.out.ReadString('\n'); err != nil { // the prompt and the command
		return "", err
	}
	var said []byte
	for {
		b, err := v.out.ReadByte()
		if err != nil {
			return string(said), err
		}
		said = append(said, b)
		if text, found := bytes.CutSuffix(said, []byte(end)); found { // no line end comes after it
			return string(text), nil
		}
	}
}

// has reports whether all guests have a state.
func (v *libvirt) has(state string) error {
	out, err := v.ask("list --all")
	if err == nil && strings.Count(out, state) != v.guests {
		faults, _ := os.ReadFile(filepath.Join(v.dir, "faults"))
		err = fmt.Errorf("virsh: not all of %d guests are %s: %s", v.guests, state, faults)
	}
	return err
}

func (v *libvirt) startAll() error {
	v.started = true
	for _, name := range fleetNames(v.guests) {
		if _, err := v.ask("start --paused " + name); err != nil {
			return err
		}
	}
	return v.has("paused")
}

// list measures how long virsh takes to list all guests, in milliseconds.
func (v *libvirt) list(context.Context) (float64, error) {
	begin := time.Now()
	err := v.has("shut off")
	return float64(time.Since(begin)) / float64(time.Millisecond), err
}

func (v *libvirt) close() error {
	if v.virsh != nil && v.virsh.Process != nil {
		if v.started {
			for _, name := range fleetNames(v.guests) {
				_, _ = v.ask("destroy " + name) // if it was
			}
		}
		_ = v.virsh.Process.Kill()
		_ = v.virsh.Wait() // by the signal
	}
	if v.daemon != nil && v.daemon.Process != nil {
		_ = v.daemon.Process.Kill()
		_ = v.daemon.Wait() // by the signal
	}
	return os.RemoveAll(v.dir)
}
