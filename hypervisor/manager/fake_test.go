package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/internal/broker"
)

// The test binary is also the gate, a VMM that only pretends, and a manager that is killed.
func TestMain(m *testing.M) {
	cell.RunInit(os.Args)
	RunGate()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // of those that we start
	switch {
	case os.Args[0] == "lodge-vmm":
		fake(os.Args[1:])
	case os.Getenv("MANAGER_TEST_DIR") != "":
		victim(os.Getenv("MANAGER_TEST_DIR"))
	}
	status := m.Run()
	if file := os.Getenv("MANAGER_TEST_NET"); file != "" && os.Getenv("MANAGER_TEST_NAT") == "" {
		os.RemoveAll(filepath.Dir(file))
	}
	os.Exit(status)
}

// fakeVMM pretends to be lodge-vmm. How it misbehaves stands in its definition's command line, in words such as "power=ignore".
type fakeVMM struct {
	def     *definition.Definition
	outcome string
	words   []string

	broker broker.Client

	command sync.Mutex // held while it is paused, resumed or saved

	mu      sync.Mutex
	state   string
	reason  string
	change  uint64
	told    chan struct{}
	reboots int
}

func (f *fakeVMM) has(word string) bool { return slices.Contains(f.words, word) }

func (f *fakeVMM) set(state, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.reason = state, reason
	f.change++
	close(f.told)
	f.told = make(chan struct{})
}

func (f *fakeVMM) end(reason, detail string) {
	b, err := json.Marshal(map[string]string{"reason": reason, "detail": detail})
	if f.has("outcome=none") {
		err = unix.ENOSPC
	}
	if err == nil {
		err = os.WriteFile(f.outcome, b, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if reason == "crashed" {
		os.Exit(4)
	}
	os.Exit(0)
}

// fake is the main function of the fake VMM.
func fake(args []string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "fake:", err)
		os.Exit(1)
	}
	f := &fakeVMM{state: "starting", told: make(chan struct{})}
	restore := ""
	for i := 1; i < len(args); i++ {
		switch args[i] {
		case "--outcome":
			i++
			f.outcome = args[i]
		case "--restore":
			i++
			restore = args[i]
		}
	}
	def, err := definition.Load(args[len(args)-1])
	if err != nil {
		fail(err)
	}
	f.def, f.words = def, strings.Fields(def.Boot.Cmdline)
	// There is never another one of the same guest.
	dir := filepath.Dir(args[len(args)-1])
	lock, err := os.OpenFile(filepath.Join(dir, "alive"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		fail(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = os.WriteFile(filepath.Join(dir, "two-at-once"), nil, 0o600)
		fail(errors.New("there is another one"))
	}
	if f.has("start=die") {
		fail(errors.New("cannot start"))
	}
	if restore != "" {
		if _, err := os.ReadFile(filepath.Join(restore, snap.StateName)); err != nil {
			fail(err)
		}
		if f.has("restore=refuse") {
			fail(errors.New("disk root was written to after the guest was saved"))
		}
		fmt.Fprintln(os.Stderr, "fake: restored from", restore)
	}
	if f.has("control=none") {
		select {}
	}
	_ = os.Remove(def.Control)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: def.Control, Net: "unix"})
	if err != nil {
		fail(err)
	}
	if f.has("control=garbage") {
		for {
			if c, err := l.Accept(); err == nil {
				_, _ = c.Write([]byte("{\"id\": \"no\"}\n[]\n"))
				c.Close()
			}
		}
	}
	if f.has("print=login") {
		go func() {
			time.Sleep(100 * time.Millisecond)
			log, err := os.OpenFile(def.Serial.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err == nil {
				_, _ = log.WriteString("booting\nlog")
				time.Sleep(20 * time.Millisecond)
				_, _ = log.WriteString("in: ")
			}
		}()
	}
	go func() {
		if f.has("start=slow") {
			time.Sleep(300 * time.Millisecond)
		}
		f.set("running", "")
		if f.has("crash=soon") {
			time.Sleep(20 * time.Millisecond)
			f.end("crashed", "triple trouble")
		}
	}()
	fail((&control.Server{Methods: f.methods()}).Serve(context.Background(), l))
}

func (f *fakeVMM) methods() map[string]control.Handler {
	status := func() any {
		f.mu.Lock()
		defer f.mu.Unlock()
		state := f.state
		if f.has("state=odd") {
			state = "dancing"
		}
		return map[string]any{"state": state, "reason": f.reason, "change": f.change, "reboots": f.reboots, "name": f.def.Name}
	}
	simple := func(do func()) control.Handler {
		return func(context.Context, *control.Call) (any, error) { do(); return nil, nil }
	}
	return map[string]control.Handler{
		"status": func(context.Context, *control.Call) (any, error) { return status(), nil },
		"watch": func(ctx context.Context, c *control.Call) (any, error) {
			var p struct {
				After uint64 `json:"after"`
			}
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			for {
				f.mu.Lock()
				change, told := f.change, f.told
				f.mu.Unlock()
				if change != p.After || f.has("watch=storm") {
					return status(), nil
				}
				select {
				case <-told:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		},
		"pause": func(context.Context, *control.Call) (any, error) {
			if f.has("pause=fail") {
				return nil, errors.New("cannot pause")
			}
			f.command.Lock()
			defer f.command.Unlock()
			f.set("paused", "")
			return nil, nil
		},
		"resume": simple(func() {
			f.command.Lock()
			defer f.command.Unlock()
			f.set("running", "")
		}),
		"power-button": simple(func() {
			f.mu.Lock()
			running := f.state == "running"
			f.mu.Unlock()
			if running && !f.has("power=ignore") {
				go func() { time.Sleep(10 * time.Millisecond); f.end("powered off", "ACPI state S5") }()
			}
		}),
		"quit": simple(func() {
			if !f.has("quit=ignore") {
				go func() { time.Sleep(5 * time.Millisecond); f.end("closed", "") }()
			}
		}),
		"save": f.save,
		"broker": func(_ context.Context, c *control.Call) (any, error) {
			files, err := c.Files(1)
			if err != nil {
				return nil, err
			}
			return nil, f.broker.Use(files[0])
		},
		"connect": func(ctx context.Context, _ *control.Call) (any, error) {
			c, err := f.broker.Dial(ctx, broker.Request{What: broker.Vsock, Port: 7})
			if err != nil {
				return nil, err
			}
			return nil, c.Close()
		},
		"stats": func(context.Context, *control.Call) (any, error) {
			return vmmStats{Exits: 42, NetReceived: 7, NetSent: 8}, nil
		},
		// What guests do of themselves.
		"crash":    simple(func() { f.end("crashed", "as was asked for") }),
		"poweroff": simple(func() { f.end("powered off", "") }),
		"full":     simple(func() { f.set("paused", "disk-full") }),
		"reboot": simple(func() {
			f.mu.Lock()
			f.reboots++
			f.mu.Unlock()
			f.set("running", "")
		}),
	}
}

func (f *fakeVMM) save(ctx context.Context, c *control.Call) (any, error) {
	if err := c.Params(&struct{}{}); err != nil {
		return nil, err
	}
	files, err := c.Files(2)
	if err != nil {
		return nil, err
	}
	f.command.Lock()
	defer f.command.Unlock()
	f.mu.Lock()
	before := f.state
	f.mu.Unlock()
	f.set("saving", "")
	defer func() { f.set(before, "") }()
	if f.has("save=fail") {
		return nil, errors.New("cannot save")
	}
	for i := 0; f.has("save=slow"); i++ {
		c.Progress(uint64(i), 1000)
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if f.has("save=die") {
		os.Exit(3)
	}
	for i, content := range []string{"ram", "state"} {
		if _, err := files[i].WriteString(content); err != nil {
			return nil, err
		}
		files[i].Close()
	}
	return nil, nil
}

// victim is a manager that is killed: it does what the words on its standard input ask for, one guest and one command a line.
func victim(dir string) {
	m, err := New(testConfig(dir))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for {
		var name, what string
		if _, err := fmt.Scan(&name, &what); err != nil {
			select {} // until it is killed
		}
		switch what {
		case "start":
			_, err = m.Start(name)
		case "stop":
			_, err = m.Stop(name)
		case "reboot":
			_, err = m.Reboot(name)
		case "save":
			_, err = m.Save(name)
		case "snapshot":
			_, err = m.Snapshot(name, "s")
		case "import":
			var f *os.File
			if f, err = os.Open(filepath.Join(dir, "source.raw")); err == nil {
				_, err = m.ImportGuest("default", name, Source{File: f}, pool.ImportOptions{})
			}
		case "pause":
			err = m.Pause(context.Background(), name)
		}
		fmt.Println("done", err)
	}
}
