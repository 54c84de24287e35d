package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// The test binary is also the manager's gate, a VMM that only pretends, and other users.
func TestMain(m *testing.M) {
	manager.RunGate()
	if os.Args[0] == "lodge-vmm" {
		fmt.Fprintln(os.Stderr, "fake:", fakeVMM(os.Args[1:]))
		os.Exit(1)
	}
	if os.Getenv(callerVariable) != "" {
		if err := caller(); err != nil {
			fmt.Fprintln(os.Stderr, "caller:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeVMM pretends to be lodge-vmm: it runs, pauses, and ends at its power button.
func fakeVMM(args []string) error {
	outcome := ""
	for n, a := range args {
		if a == "--outcome" {
			outcome = args[n+1]
		}
	}
	def, err := definition.Load(args[len(args)-1])
	if err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: def.Control, Net: "unix"})
	if err != nil {
		return err
	}
	end := func(reason string) {
		b, err := json.Marshal(map[string]string{"reason": reason})
		if err == nil {
			err = os.WriteFile(outcome, b, 0o600)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(0)
	}
	var mu sync.Mutex
	state, change, told := "running", 1, make(chan struct{})
	set := func(s string) control.Handler {
		return func(context.Context, *control.Call) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			state = s
			change++
			close(told)
			told = make(chan struct{})
			return nil, nil
		}
	}
	status := func() (any, int, chan struct{}) {
		mu.Lock()
		defer mu.Unlock()
		return map[string]any{"state": state, "change": change}, change, told
	}
	return (&control.Server{Methods: map[string]control.Handler{
		"status": func(context.Context, *control.Call) (any, error) { st, _, _ := status(); return st, nil },
		"watch": func(ctx context.Context, c *control.Call) (any, error) {
			var p struct{ After int }
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			for {
				st, now, told := status()
				if now != p.After {
					return st, nil
				}
				select {
				case <-told:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		},
		"pause":  set("paused"),
		"resume": set("running"),
		"power-button": func(context.Context, *control.Call) (any, error) {
			if def.Boot.Cmdline != "deaf" {
				time.AfterFunc(10*time.Millisecond, func() { end("powered off") })
			}
			return nil, nil
		},
		"quit": func(context.Context, *control.Call) (any, error) {
			time.AfterFunc(10*time.Millisecond, func() { end("closed") })
			return nil, nil
		},
	}}).Serve(context.Background(), l)
}

// startBus starts a bus of our own and returns its address, and what ends it. policy is what its configuration says beside where
// it is.
func startBus(t testing.TB, dir, kind, policy string) (address string, stop func()) {
	t.Helper()
	address = "unix:path=" + filepath.Join(dir, "bus")
	conf := filepath.Join(dir, "bus.conf")
	text := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>` + kind + `</type><listen>` + address + `</listen><auth>EXTERNAL</auth>` + policy + `</busconfig>`
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+conf, "--nofork", "--nopidfile", "--print-address")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal("dbus-daemon does not start:", err)
	}
	return address, stop
}

// openPolicy lets everybody do everything, as session buses do, with the limits of the system bus.
const openPolicy = `<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>` +
	`<allow user="*"/></policy><limit name="max_message_size">33554432</limit><limit name="max_connections_per_user">1000</limit>` +
	`<limit name="max_replies_per_connection">10000</limit>`

// rig is a manager with its API on a bus.
type rig struct {
	t       testing.TB
	dir     string
	address string
	m       *manager.Manager
	c       *client.Client
	log     *buffer
	stopBus func()
}

// buffer is a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newRig returns one without guests. change, which may be nil, is given the configuration of the API.
func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, log: &buffer{}}
	r.address, r.stopBus = startBus(t, dir, "session", openPolicy)
	r.serve(change)
	if r.c, err = client.Dial(context.Background(), r.address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.c.Close() })
	return r
}

// serve makes the manager and its API.
func (r *rig) serve(change func(*Config)) {
	t := r.t
	t.Helper()
	r.m = newManager(t, r.dir)
	cfg := Config{Bus: r.address, Manager: r.m, Auth: Owner{}, Version: "test", Log: slog.New(slog.NewTextHandler(io.MultiWriter(r.log, testWriter{t}), nil))}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}, 16), make(chan error, 1)
	go func() { done <- Serve(ctx, cfg, func() { ready <- struct{}{} }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// testWriter is the test's log.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// newManager returns one whose VMMs pretend. None is left behind.
func newManager(t testing.TB, dir string) *manager.Manager {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m, err := manager.New(manager.Config{
		ConfigDir: filepath.Join(dir, "etc"), StateDir: filepath.Join(dir, "var"), RunDir: filepath.Join(dir, "run"),
		Launcher: &manager.Plain{VMM: exe},
		Screen: func(context.Context, string) (image.Image, error) {
			return image.NewRGBA(image.Rect(0, 0, 64, 32)), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, g := range m.List() {
			if id, err := m.Kill(g.Name); err == nil {
				_, _ = m.Jobs().Wait(context.Background(), id)
			}
		}
		m.Close()
	})
	return m
}

// define adds guests.
func (r *rig) define(names ...string) {
	r.t.Helper()
	for _, name := range names {
		if _, err := r.m.Define([]byte(definitionOf(name))); err != nil {
			r.t.Fatal(err)
		}
	}
}

func definitionOf(name string) string {
	return fmt.Sprintf("name = %q\nmemory = \"64M\"\nlabel = \"a guest\"\n[boot]\nkernel = \"/dev/null\"\n[display]\n", name)
}

// within waits for something.
func within(t testing.TB, d time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
	}
}

var errStop = errors.New("stop")
