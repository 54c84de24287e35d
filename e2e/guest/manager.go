package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// Manager is lodged in a notebook, on the notebook's own system bus, with polkit; and lodge, to command it as a user does.
type Manager struct {
	*rpc.Process // of lodged
	host         *Host
	log          record
}

// programs are what a notebook needs for a Manager.
var programs = [...]string{"lodged", "lodge", "lodge-vmm", "lodge-net", "lodge-seat"}

// shared are the files of the repository's directory data that a package of Lodge installs below /usr/share.
var shared = map[string]string{
	"dbus-1/org.lodgehv.Lodge1.conf":       "dbus-1/system.d",
	"polkit-1/org.lodgehv.Lodge1.policy":   "polkit-1/actions",
	"polkit-1/50-org.lodgehv.Lodge1.rules": "polkit-1/rules.d",
}

// ManagerTools returns what a notebook needs for a Manager, for notebook.Config.Tools. The programs are those in the directory
// bin; if that is "", they are built.
func ManagerTools(ctx context.Context, b *image.Builder, bin string) (map[string]string, error) {
	tools := make(map[string]string)
	for _, p := range programs {
		file := filepath.Join(bin, p)
		if bin == "" {
			var err error
			if file, _, err = b.GoProgram(ctx, "./cmd/"+p, "amd64"); err != nil {
				return nil, err
			}
		}
		tools["bin/"+p] = file
	}
	for file := range shared {
		tools["data/"+file] = filepath.Join(b.Repo, "data", file)
	}
	return tools, nil
}

// StartBus starts the notebook's system bus and polkit, and installs what belongs to Lodge there. They outlive connections to the
// notebook.
func (h *Host) StartBus(ctx context.Context) error {
	script := "set -e; mkdir -p /run/dbus /etc/polkit-1/rules.d /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup\n"
	for file, dir := range shared {
		script += fmt.Sprintf("mkdir -p /usr/share/%s; cp /tools/data/%s /usr/share/%[1]s\n", dir, file)
	}
	script += "dbus-daemon --system --fork --nopidfile\n" // which returns when it listens
	if _, err := h.Shell(ctx, script); err != nil {
		return err
	}
	const log = "/run/polkitd.log"
	if _, err := h.Do(ctx, rpc.Cmd{Args: []string{"/usr/lib/polkit-1/polkitd"}, Log: log}); err != nil {
		return err
	}
	_, err := h.Shell(ctx, "until grep -q 'Acquired the name' "+log+"; do usleep 50000; done")
	return err
}

// The control groups of systemd's units lodged.service and lodge-cells.service, in the hierarchy.
const (
	managerGroup = "/system.slice/lodged.service"
	CellsGroup   = "/system.slice/lodge-cells.service"
)

// asService makes the units' groups unless they are there, with something in that of cells, and runs lodged in its own, as systemd
// does: which fails if it has controllers.
const asService = `set -e
cd /sys/fs/cgroup
if [ ! -e .` + managerGroup + ` ]; then
	echo +memory +pids +cpu >cgroup.subtree_control
	mkdir system.slice
	echo +memory +pids +cpu >system.slice/cgroup.subtree_control
	mkdir .` + managerGroup + ` .` + CellsGroup + `
	sleep 1000000 </dev/null >/dev/null 2>&1 &
	echo $! >.` + CellsGroup + `/cgroup.procs
fi
echo $$ >.` + managerGroup + `/cgroup.procs
cd /
exec lodged --cgroup ` + CellsGroup + ` "$@"`

// StartManager starts lodged, of which there is none, and returns when it answers. Log, which may be nil, gets what it says.
func (h *Host) StartManager(ctx context.Context, log io.Writer, args ...string) (*Manager, error) {
	m := &Manager{host: h, log: newRecord(log)}
	var err error
	m.Process, err = h.Client.Start(rpc.Cmd{Args: append([]string{"sh", "-c", asService, "sh"}, args...), Stdout: &m.log, Stderr: &m.log})
	if err != nil {
		return nil, fmt.Errorf("lodged: %w", err)
	}
	for {
		if _, err := m.List(ctx); err == nil {
			return m, nil
		}
		select {
		case <-m.Done():
			return nil, fmt.Errorf("lodged has ended:\n%s", m.Log())
		case <-ctx.Done():
			return nil, fmt.Errorf("lodged does not answer: %w:\n%s", context.Cause(ctx), m.Log())
		case <-time.After(50 * time.Millisecond): // it tells a service manager only
		}
	}
}

// Log returns what lodged has said.
func (m *Manager) Log() string { return m.log.String() }

// Lodge runs the program lodge, which is to succeed, and returns what it prints.
func (m *Manager) Lodge(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"lodge"}, args...)
	r, err := m.host.Client.Run(ctx, args...)
	if err == nil {
		err = r.Check(args...)
	}
	return r.Stdout, err
}

// List returns all guests.
func (m *Manager) List(ctx context.Context) (list []client.Guest, err error) {
	out, err := m.Lodge(ctx, "list", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	return list, err
}

// Get returns a guest.
func (m *Manager) Get(ctx context.Context, name string) (client.Guest, error) {
	list, err := m.List(ctx)
	if err != nil {
		return client.Guest{}, err
	}
	i := slices.IndexFunc(list, func(g client.Guest) bool { return g.Name == name })
	if i < 0 {
		return client.Guest{}, fmt.Errorf("no guest %s among %v", name, list)
	}
	return list[i], nil
}

// Await waits until a guest is as ok wants it, which what describes for errors.
func (m *Manager) Await(ctx context.Context, name, what string, ok func(g client.Guest) bool) (client.Guest, error) {
	for {
		g, err := m.Get(ctx, name)
		if err != nil || ok(g) {
			return g, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-m.Done():
			return g, fmt.Errorf("lodged has ended:\n%s", m.Log())
		case <-ctx.Done():
			return g, fmt.Errorf("guest %s is not %s: %w: it is %s, ready %v, note %q\nlodged says:\n%s", name, what, context.Cause(ctx), g.State, g.Ready, g.Note, tail(m.Log()))
		}
	}
}

// RunDir is where the sockets of a guest are.
func (m *Manager) RunDir(name string) string { return "/run/lodge/guests/" + name }

// Attach connects to the console of a guest that the manager has started. Of Config, the name and the console count.
func (m *Manager) Attach(ctx context.Context, c Config) (*Guest, error) {
	dir := m.RunDir(c.Name)
	conn, err := m.host.Dial(ctx, "unix", dir+"/serial.sock")
	if err != nil {
		return nil, fmt.Errorf("guest %s: its console: %w", c.Name, err)
	}
	done := make(chan struct{})
	g := &Guest{cfg: c, host: m.host, record: newRecord(c.Console), in: conn, done: done, control: dir + "/control.sock", vsock: dir + "/vsock.sock"}
	go func() {
		defer close(done)
		_, _ = io.Copy(&g.record, conn) // its end is the guest's
	}()
	g.wait = func(ctx context.Context) (int, error) {
		is, err := m.Await(ctx, c.Name, "off", func(g client.Guest) bool { return g.PID == 0 })
		if err == nil && is.State == "crashed" {
			err = fmt.Errorf("crashed: %s", is.Note)
		}
		return 0, err
	}
	g.off = func(ctx context.Context) error {
		_, err := m.Lodge(ctx, "stop", c.Name)
		return err
	}
	g.kill = func(ctx context.Context) error {
		is, err := m.Get(ctx, c.Name)
		if err == nil {
			_, err = m.host.Shell(ctx, fmt.Sprintf("kill -9 %d", is.PID))
		}
		if err == nil {
			_, err = m.Await(ctx, c.Name, "ended", func(g client.Guest) bool { return g.PID != is.PID })
		}
		return err
	}
	return g, nil
}

// Define defines a guest. The manager chooses its sockets; c.Flags may have further keys of a manager's.
func (m *Manager) Define(ctx context.Context, c Config) error {
	file := "/tmp/" + c.Name + ".toml"
	if err := m.host.Put(ctx, strings.NewReader(m.Definition(c)), file, 0o644); err != nil {
		return err
	}
	_, err := m.Lodge(ctx, "define", file)
	return err
}

// Definition returns the definition of a guest for Define.
func (m *Manager) Definition(c Config) string {
	var lines []string
	for line := range strings.Lines(m.host.Definition(c)) {
		if !strings.HasPrefix(line, "control = ") && line != fmt.Sprintf("path = %q\n", m.host.Path(c.Name, ".vsock")) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
