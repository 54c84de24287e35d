package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
)

const (
	seabios  = "/usr/share/seabios/bios-256k.bin"
	patience = 3 * time.Minute // on a machine that is busy
)

// programs is where the programs are that the tests run.
var programs string

func TestMain(m *testing.M) {
	cell.RunInit(os.Args)
	programs = os.Getenv("LODGED_TEST_PROGRAMS")
	if dir := os.Getenv("LODGED_TEST_DIR"); dir != "" {
		victim(dir)
	}
	os.Exit(test(m))
}

func test(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lodged")
	if err == nil {
		defer os.RemoveAll(dir)
		programs = dir
		build := exec.Command("go", "build", "-o", dir, "github.com/lodgehv/lodge/cmd/lodged", "github.com/lodgehv/lodge/cmd/lodge-vmm",
			"github.com/lodgehv/lodge/cmd/lodge-net")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		err = build.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func needKVM(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/kvm")
	}
	f.Close()
}

// home is the directories of a manager.
type home struct {
	t   *testing.T
	dir string
}

func newHome(t *testing.T) *home {
	t.Helper()
	dir, err := os.MkdirTemp("", "lodged") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	h := &home{t, dir}
	if err := os.MkdirAll(filepath.Join(dir, "etc/guests"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m := h.manager()
		for _, g := range m.List() {
			if id, err := m.Kill(g.Name); err == nil {
				_, _ = m.Jobs().Wait(context.Background(), id)
			}
		}
		m.Close()
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "var/guests/*/logs/*"))
			for _, log := range logs {
				b, _ := os.ReadFile(log)
				t.Logf("%s:\n%q", log, b)
			}
		}
		os.RemoveAll(dir)
		if p, err := cell.OpenParent(groupName(filepath.Join(dir, "var"))); err == nil {
			_ = p.Remove() // a lodged that was killed has left it
		}
	})
	return h
}

func (h *home) config() manager.Config {
	return manager.Config{
		ConfigDir: filepath.Join(h.dir, "etc"), StateDir: filepath.Join(h.dir, "var"), RunDir: filepath.Join(h.dir, "run"),
		LodgeNet: filepath.Join(programs, "lodge-net"),
		Launcher: &manager.Cells{VMM: filepath.Join(programs, "lodge-vmm")}, Screen: screenshot,
	}
}

// manager returns a manager in this process.
func (h *home) manager() *manager.Manager {
	h.t.Helper()
	m, err := manager.New(h.config())
	if err != nil {
		h.t.Fatal(err)
	}
	return m
}

func (h *home) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, "etc/guests", name+".toml"), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// bios is a guest that runs SeaBIOS, which finds nothing to boot.
func (h *home) bios(name, more string) {
	h.write(name, fmt.Sprintf(`name = %q
memory = "32M"
%s
[boot]
firmware = %q
[ready]
serial = "No bootable device"
[display]
card = "vga"
`, name, more, seabios))
}

// lodged starts the program and returns when it says that it is ready.
func (h *home) lodged() *exec.Cmd {
	h.t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(h.dir, "notify"), Net: "unixgram"}
	os.Remove(addr.Name)
	l, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		h.t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(filepath.Join(programs, "lodged"),
		"--config-dir", filepath.Join(h.dir, "etc"), "--state-dir", filepath.Join(h.dir, "var"), "--run-dir", filepath.Join(h.dir, "run"), "--bus", "none")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+addr.Name)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	_ = l.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 64)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		h.t.Fatalf("%q, %v", b[:n], err)
	}
	return cmd
}

func until(t *testing.T, m *manager.Manager, name, what string, ok func(manager.Guest) bool) manager.Guest {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		g, err := m.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if ok(g) {
			return g
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is never %s: %+v", name, what, g)
		}
	}
}

func done(t *testing.T, m *manager.Manager, id uint64, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if s, err := m.Jobs().Wait(ctx, id); err != nil || s.Err != nil {
		t.Fatalf("%s: %v", s.Kind, errors.Join(err, s.Err))
	}
}

// Lodged starts what is to be started, and is missed by no guest when it is killed or ends.
func TestLodged(t *testing.T) {
	needKVM(t)
	h := newHome(t)
	h.bios("auto", "autostart = true")
	h.write("wrong", "name = 1\n")
	first := h.lodged()
	pid := func() int {
		m := h.manager()
		defer m.Close()
		g := until(t, m, "auto", "ready", func(g manager.Guest) bool { return g.State == life.Running && g.Ready })
		if w, err := m.Get("wrong"); err != nil || !strings.Contains(w.Fault, "wrong.toml:1:") {
			t.Errorf("%+v, %v", w, err)
		}
		return g.PID
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	was := pid()
	second := h.lodged()
	if err := second.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := second.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("lodged: %v", err)
	}
	if now := pid(); now != was {
		t.Errorf("process %d, was %d", now, was)
	}
}

// A real machine is paused, saved, restored, snapshotted and looked at.
func TestMachine(t *testing.T) {
	needKVM(t)
	h := newHome(t)
	disk := filepath.Join(h.dir, "disk.img")
	if err := os.WriteFile(disk, bytes.Repeat([]byte{'.'}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	h.bios("g", fmt.Sprintf("disk = [{ name = \"root\", path = %q }]", disk))
	m := h.manager()
	defer m.Close()
	start := func() {
		t.Helper()
		id, err := m.Start("g")
		done(t, m, id, err)
	}
	start()
	g := until(t, m, "g", "ready", func(g manager.Guest) bool { return g.Ready })
	b, err := m.Thumbnail(t.Context(), "g", 320)
	if err != nil {
		t.Fatal(err)
	}
	if img, err := png.Decode(bytes.NewReader(b)); err != nil || img.Bounds().Dx() != 320 {
		t.Errorf("thumbnail %v: %v", img.Bounds(), err)
	}
	if s, err := m.Stats(t.Context(), "g"); err != nil || s[0].Memory < 1<<20 || s[0].CPU == 0 || s[0].Exits < 1000 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := m.Pause(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	until(t, m, "g", "paused", func(g manager.Guest) bool { return g.State == life.Paused })
	if err := m.Resume(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	id, err := m.Snapshot("g", "s")
	done(t, m, id, err)
	id, err = m.Save("g")
	done(t, m, id, err)
	if g, _ := m.Get("g"); g.State != life.Saved || g.PID != 0 {
		t.Fatalf("%+v", g)
	}
	start()
	if again, _ := m.Get("g"); again.PID == g.PID || again.State != life.Running || !again.Saved.IsZero() {
		t.Errorf("%+v", again)
	}
	id, err = m.Kill("g")
	done(t, m, id, err)
	if err := os.WriteFile(disk, bytes.Repeat([]byte{'x'}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err = m.Restore("g", "s", true)
	done(t, m, id, err)
	if b, err := os.ReadFile(disk); err != nil || b[0] != '.' {
		t.Errorf("the disk has %q, %v", b[:1], err)
	}
	start()
	until(t, m, "g", "running", func(g manager.Guest) bool { return g.State == life.Running })
	if err := unix.Kill(until(t, m, "g", "there", func(g manager.Guest) bool { return g.PID != 0 }).PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if g := until(t, m, "g", "crashed", func(g manager.Guest) bool { return g.State == life.Crashed }); !strings.Contains(g.Note, "killed") {
		t.Errorf("%+v", g)
	}
}

// A real machine is on a network, which survives lodged.
func TestNetwork(t *testing.T) {
	needKVM(t)
	h := newHome(t)
	h.bios("g", "nic = [{ name = \"lan\", network = \"default\" }, { name = \"lab\", network = \"lab\" }]")
	parent, err := cell.OpenParent("lodged-net-test-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Logf("no control group: %v", err)
	}
	cfg := h.config()
	cfg.Cgroups = parent
	m, err := manager.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		m.Close()
		if parent != nil { // nothing is left in it
			if err := parent.Remove(); err != nil {
				t.Error(err)
			}
		}
	}()
	if _, err := m.DefineNetwork([]byte("name = \"lab\"\nkind = \"isolated\"\nsubnet = \"10.93.0.0/24\"\n")); err != nil {
		t.Fatal(err)
	}
	if err := m.Reload(); err != nil {
		t.Fatal(err)
	}
	connected := func() (pids [2]int) {
		t.Helper()
		for i, name := range []string{"default", "lab"} {
			for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
				traffic, err := m.NetworkTraffic(t.Context(), name)
				if err == nil && len(traffic) == 1 && traffic[0].Connected {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: %+v, %v", name, traffic, err)
				}
			}
			n, err := m.GetNetwork(name)
			if err != nil || n.Note != "" {
				t.Errorf("%+v, %v", n, err)
			}
			pids[i] = n.PID
		}
		return pids
	}
	id, err := m.Start("g")
	done(t, m, id, err)
	before := connected()
	for _, pid := range before {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(b), "NoNewPrivs:\t1") || !strings.Contains(string(b), "CapBnd:\t0000000000000000") {
			t.Errorf("lodge-net is in no cell: %v\n%s", err, b)
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); parent != nil && (err != nil || !strings.Contains(string(b), "/network-")) {
			t.Errorf("lodge-net is in no group of its own: %v\n%s", err, b)
		}
	}
	m.Close()
	lodged := h.lodged() // which is killed
	if err := lodged.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = lodged.Wait()
	if m, err = manager.New(cfg); err != nil {
		t.Fatal(err)
	}
	if after := connected(); after != before {
		t.Errorf("processes %v, were %v", after, before)
	}
	id, err = m.Save("g")
	done(t, m, id, err)
	for _, n := range m.ListNetworks() {
		if n.Up || n.PID != 0 {
			t.Errorf("without guests: %+v", n)
		}
	}
	id, err = m.Start("g")
	done(t, m, id, err)
	connected()
	id, err = m.Kill("g")
	done(t, m, id, err)
}

// lodged answers Prometheus where it is told to.
func TestMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "lodged"), "--config-dir", t.TempDir(), "--state-dir", t.TempDir(),
		"--run-dir", t.TempDir(), "--bus", "none", "--metrics", address)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { end(); _ = cmd.Wait() }()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		r, err := http.Get("http://" + address + "/metrics")
		if err == nil {
			b, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err != nil || !strings.Contains(string(b), `lodge_pool_free_bytes{pool="default"} `) {
				t.Errorf("%v: %s", err, b)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{[]string{"--help"}, 0, "usage: lodged", ""},
		{[]string{"--unknown"}, 2, "", "usage: lodged"},
		{[]string{"guest"}, 2, "", `"guest" is too much`},
		{[]string{"--state-dir", "/dev/null/x"}, 1, "", "/dev/null"},
		{[]string{"--config-dir", t.TempDir(), "--state-dir", t.TempDir(), "--run-dir", t.TempDir(), "--bus", "none", "--metrics", "nowhere"}, 1, "", "--metrics nowhere: "},
	} {
		cmd := exec.Command(filepath.Join(programs, "lodged"), tc.args...)
		var out, errOut strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errOut
		_ = cmd.Run()
		if cmd.ProcessState.ExitCode() != tc.code || !strings.Contains(out.String(), tc.out) || !strings.Contains(errOut.String(), tc.err) {
			t.Errorf("%v: %v\n%s%s", tc.args, cmd.ProcessState, out.String(), errOut.String())
		}
	}
}
