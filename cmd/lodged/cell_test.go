package main

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/storaged"
)

// victim is a manager in a process of its own, to be killed: it does what its standard input says, one command for a guest a
// line.
func victim(dir string) {
	h := &home{dir: dir}
	m, err := manager.New(h.config())
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		what, name, _ := strings.Cut(in.Text(), " ")
		switch what {
		case "start":
			_, err = m.Start(name)
		case "save":
			_, err = m.Save(name)
		case "snapshot":
			_, err = m.Snapshot(name, "s"+strconv.Itoa(os.Getpid()))
		case "stop":
			_, err = m.Stop(name)
		}
		fmt.Println("done", err)
	}
	select {} // until it is killed
}

func (h *home) victim() (do func(what string), kill func()) {
	h.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LODGED_TEST_DIR="+h.dir, "LODGED_TEST_PROGRAMS="+programs)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	out := bufio.NewScanner(pipe)
	expect := func(want string) {
		if !out.Scan() || out.Text() != want {
			h.t.Fatalf("%q, want %q", out.Text(), want)
		}
	}
	expect("ready")
	return func(what string) { fmt.Fprintln(in, what); expect("done <nil>") }, func() { cmd.Process.Kill(); cmd.Wait() }
}

// orphans returns the processes that have lost their parents and are ours now, and forgets those that have ended.
func orphans(t *testing.T) (pids []int) {
	t.Helper()
	for {
		var ws unix.WaitStatus
		if pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil); pid <= 0 || err != nil {
			break
		}
	}
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		for _, field := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// Whenever a manager is killed, the next one finds the VMM in its cell, and there is no process that it does not know.
func TestKilled(t *testing.T) {
	needKVM(t)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	h := newHome(t)
	h.bios("g", "")
	for _, what := range []string{"start", "save", "snapshot", "stop"} {
		t.Run(what, func(t *testing.T) {
			for range 4 {
				if what != "start" {
					m := h.manager()
					id, err := m.Start("g")
					done(t, m, id, err)
					m.Close()
				}
				do, kill := h.victim()
				do(what + " g")
				after := time.Duration(rand.IntN(60)) * time.Millisecond
				time.Sleep(after)
				kill()
				h.settled(t, fmt.Sprintf("killed %v after %s", after, what), what)
			}
		})
	}
}

// settled looks whether all is well after a manager was killed, and switches the guest off.
func (h *home) settled(t *testing.T, when, what string) {
	t.Helper()
	m := h.manager()
	defer m.Close()
	g := until(t, m, "g", "settled", func(g manager.Guest) bool {
		return g.State == life.Running && g.PID != 0 || g.State == life.Saved || g.State == life.Defined || g.State == life.Crashed || g.State == life.Stopping
	})
	if ok := map[string][]life.State{"start": {life.Running}, "save": {life.Running, life.Saved}, "snapshot": {life.Running},
		"stop": {life.Running, life.Stopping, life.Defined}}[what]; !slices.Contains(ok, g.State) {
		t.Errorf("%s: it is %s: %s", when, g.State, g.Note)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		g, err := m.Get("g")
		if err != nil {
			t.Fatal(err)
		}
		left := slices.DeleteFunc(orphans(t), func(pid int) bool { return pid == g.PID })
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: processes %v are nobody's", when, left)
		}
	}
	if g.State == life.Running && what != "stop" { // not paused for a save that is nobody's any more
		var st struct{ State string }
		for deadline := time.Now().Add(patience); st.State != "running"; time.Sleep(10 * time.Millisecond) {
			c, err := control.Dial(t.Context(), g.Control)
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			err = c.Call(t.Context(), "status", nil, &st, nil)
			c.Close()
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("%s: its machine is %s, %v", when, st.State, err)
			}
		}
	}
	if g.State == life.Saved {
		id, err := m.Start("g")
		done(t, m, id, err)
	}
	if g, _ := m.Get("g"); g.State.Alive() {
		id, err := m.Kill("g")
		done(t, m, id, err)
	}
	if left := slices.Concat(glob(h.dir, "var/guests/g/.lodge-new-*"), glob(h.dir, "var/guests/g/*.tmp-*"), glob(h.dir, "run/guests/*")); left != nil {
		t.Errorf("%s: left: %v", when, left)
	}
	for _, s := range glob(h.dir, "var/guests/g/snapshots/*") {
		if _, err := os.Stat(filepath.Join(s, "snapshot.json")); err != nil {
			t.Errorf("%s: half a snapshot: %v", when, err)
		}
		os.RemoveAll(s)
	}
}

func glob(dir, pattern string) []string {
	files, _ := filepath.Glob(filepath.Join(dir, pattern))
	return files
}

// A guest that has one of each lives in its cell, as a user of its own, and in a control group.
func TestAllDevices(t *testing.T) {
	needKVM(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h := newHome(t)
	image := filepath.Join(h.dir, "image.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *storaged.Daemon {
		d, err := storaged.Start(t.Context(), storaged.Config{Name: "far", Socket: filepath.Join(h.dir, "far.sock"),
			Image: storaged.Image{Path: image, Format: storaged.Raw}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	end := func(d *storaged.Daemon) {
		if err := d.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}
	daemon := start()
	lan, err := net.Listen("unix", filepath.Join(h.dir, "lan.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lan.Close()
	h.write("g", fmt.Sprintf(`name = "g"
memory = "64M"
cpus = 2
balloon = true
debug_console = "%[1]s/debug.log"
disk = [{ name = "near", path = "%[1]s/near.raw" }, { name = "far", socket = "%[1]s/far.sock", reconnect = true }]
nic = [{ name = "lan", socket = "%[1]s/lan.sock" }]
[boot]
firmware = %[2]q
[serial2]
mode = "file"
path = "%[1]s/serial2.log"
[console]
[vsock]
cid = %[3]d
[display]
card = "vga"
[ready]
serial = "Booting from"
[shares]
cpu = 50
memory = "256M"
`, h.dir, seabios, 3+os.Getpid()))
	if err := os.WriteFile(filepath.Join(h.dir, "near.raw"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	parent, err := cell.OpenParent("lodged-test-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Logf("no control group: %v", err)
	}
	cfg := h.config()
	cfg.Cgroups = parent
	m, err := manager.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // the group is empty when the guest has gone
		m.Close()
		if parent != nil {
			if err := parent.Remove(); err != nil {
				t.Error(err)
			}
		}
	}()
	id, err := m.Start("g")
	done(t, m, id, err)
	g := until(t, m, "g", "ready", func(g manager.Guest) bool { return g.Ready })
	if uid := owner(t, g.PID); uid != cell.FirstUID {
		t.Errorf("it runs as user %d", uid)
	}
	for name, socket := range map[string]string{"control": g.Control, "display": g.Display, "serial": g.Serial, "console": g.Console, "vsock": g.Vsock} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer c.Close()
		if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	c, err := control.Dial(t.Context(), g.Control)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if pid, err := c.Peer(); err != nil || pid != g.PID {
		t.Errorf("its socket is of process %d, %v; it is %d", pid, err, g.PID)
	}
	if _, err := m.Thumbnail(t.Context(), "g", 100); err != nil {
		t.Error(err)
	}
	s, err := m.Stats(t.Context(), "g")
	if err != nil || s[0].CPU == 0 || s[0].Memory < 1<<20 {
		t.Errorf("%+v, %v", s, err)
	}
	if parent != nil {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", g.PID))
		if err != nil || !strings.Contains(string(b), "/guest-g\n") {
			t.Errorf("its control groups are %s, %v", b, err)
		}
	}

	// Another daemon takes the place of the one before, by way of the broker; of this manager's and of the next one's.
	for range 2 {
		end(daemon)
		daemon = start()
		m.Close()
		if m, err = manager.New(cfg); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { end(daemon) }()
	id, err = m.Save("g")
	done(t, m, id, err)
	id, err = m.Start("g")
	done(t, m, id, err)
	id, err = m.Kill("g")
	done(t, m, id, err)
	for _, l := range []string{"var/guests/g/logs/serial.log", "serial2.log", "debug.log"} {
		if _, err := os.Stat(filepath.Join(h.dir, l)); err != nil {
			t.Error(err)
		}
	}
}

// owner returns the user that a process runs as.
func owner(t *testing.T, pid int) uint32 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var uid uint32
		if _, err := fmt.Sscanf(line, "Uid:\t%d", &uid); err == nil {
			return uid
		}
	}
	t.Fatalf("process %d: no user", pid)
	return 0
}
