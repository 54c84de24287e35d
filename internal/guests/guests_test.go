package guests

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/internal/seatctl"
)

// TestMain makes this program a machine of the tests when one of them starts it as such.
func TestMain(m *testing.M) {
	if os.Getenv("GUESTS_TEST_MACHINE") != "" {
		if err := fakeMachine(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "fake machine:", err)
			os.Exit(4)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// toldSuffix is what the name of a file has after that of a saved state whose progress was told.
const toldSuffix = ".told"

// fakeMachine is lodge-vmm as seen by who starts and commands it: "run [--restore DIR] FILE".
func fakeMachine(args []string) error {
	fmt.Fprintln(os.Stderr, "started:", strings.Join(args[:len(args)-1], " "))
	def, err := definition.Load(args[len(args)-1])
	if err != nil {
		return err
	}
	switch def.Boot.Cmdline {
	case "crash":
		fmt.Fprintln(os.Stderr, "first this\nguest crashed: triple fault")
		os.Exit(4)
	case "deaf":
		l, err := control.Listen(def.Control)
		if err != nil {
			return err
		}
		for {
			if _, err := l.Accept(); err != nil {
				return err
			}
		}
	}
	if sid, err := getsid(); err != nil || sid != os.Getpid() {
		return fmt.Errorf("session %d, %w: it would end with the console", sid, err)
	}
	l, err := control.Listen(def.Control)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(context.Background())
	time.AfterFunc(2*time.Minute, end) // whatever the test does
	var mu sync.Mutex
	state := "running"
	set := func(s string) control.Handler {
		return func(context.Context, *control.Call) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			state = s
			return nil, nil
		}
	}
	stop := func(_ context.Context, c *control.Call) (any, error) { c.After(end); return nil, nil }
	s := control.Server{Methods: map[string]control.Handler{
		"status": func(context.Context, *control.Call) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			return map[string]any{"name": "x", "state": state, "pid": 1, "cpus": 1, "memory": 1 << 24, "uptime": 61.5, "reboots": 3,
				"balloon": map[string]any{"actual": 4 << 20}}, nil
		},
		"pause": set("paused"), "resume": set("running"), "power-button": stop, "quit": stop,
		"save": func(ctx context.Context, c *control.Call) (any, error) {
			var p struct {
				Dir  string
				Stop bool
			}
			if err := c.Params(&p); err != nil || !p.Stop {
				return nil, fmt.Errorf("%+v, %w", p, err)
			}
			c.Progress(1, 2)
			for _, err := os.Stat(p.Dir + toldSuffix); err != nil && ctx.Err() == nil; _, err = os.Stat(p.Dir + toldSuffix) {
				time.Sleep(time.Millisecond) // an answer overtakes progress that waits
			}
			if err := os.Mkdir(p.Dir, 0o700); err != nil {
				return nil, err
			}
			for _, name := range []string{snap.StateName, snap.RAMName} {
				if err := os.WriteFile(filepath.Join(p.Dir, name), nil, 0o600); err != nil {
					return nil, err
				}
			}
			c.After(end)
			return nil, nil
		},
	}}
	return s.Serve(ctx, l)
}

func getsid() (int, error) {
	sid, _, errno := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sid), nil
}

// define writes a definition and returns its file.
func define(t *testing.T, dir, name, cmdline, more string) string {
	t.Helper()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("name = %q\nmemory = \"16M\"\ncontrol = \"%s.sock\"\n%s\n[boot]\nkernel = \"kernel\"\ncmdline = %q\n", name, name, more, cmdline)
	file := filepath.Join(dir, name+".toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// one returns the guests of a test, which has one, with this program as its machine.
func one(t *testing.T, cmdline string) (g *Guests, dir string) {
	t.Helper()
	t.Setenv("GUESTS_TEST_MACHINE", "1")
	dir = t.TempDir()
	file := define(t, dir, "x", cmdline, "")
	g = New(Config{VMM: os.Args[0], Guests: []Guest{{Name: "x", Color: "red", Slot: 1, Definition: file}}})
	t.Cleanup(func() { _ = g.Do(context.Background(), "x", textui.ForceOff, nil) })
	return g, dir
}

func (g *Guests) first(t *testing.T) textui.Guest {
	t.Helper()
	list, err := g.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

func TestLife(t *testing.T) {
	g, dir := one(t, "")
	want := textui.Guest{Name: "x", Color: "red", Slot: 1, State: textui.Off, CPU: -1, CPUs: 1, Memory: 16 << 20}
	if diff := cmp.Diff(want, g.first(t)); diff != "" {
		t.Error(diff)
	}
	do := func(c textui.Command, after textui.State) {
		t.Helper()
		if err := g.Do(t.Context(), "x", c, func(textui.Progress) {}); err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			got := g.first(t)
			if got.State == after {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after %s: %+v, want %s", c, got, after)
			}
		}
	}
	do(textui.Start, textui.Running)
	got := g.first(t)
	if got.Resident == 0 || got.Uptime != 61500*time.Millisecond || got.Memory != 12<<20 || got.Note != "" {
		t.Errorf("%+v", got)
	}
	if err := g.Do(t.Context(), "x", textui.Start, nil); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("started twice: %v", err)
	}
	time.Sleep(shortest)
	if got := g.first(t); got.CPU < 0 || got.CPU > 1000 {
		t.Errorf("it uses %.1f %% of a processor", got.CPU)
	}
	do(textui.Pause, textui.Paused)
	do(textui.Resume, textui.Running)
	if err := g.Do(t.Context(), "x", textui.Discard, nil); err == nil {
		t.Error("the saved state of a running guest was discarded")
	}
	var told []textui.Progress
	if err := g.Do(t.Context(), "x", textui.Save, func(p textui.Progress) {
		told = append(told, p)
		if err := os.WriteFile(filepath.Join(dir, "x.saved"+toldSuffix), nil, 0o600); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]textui.Progress{{Done: 1, Total: 2}}, told); diff != "" {
		t.Error(diff)
	}
	if got := g.first(t); got.State != textui.Saved {
		t.Errorf("saved: %+v", got)
	}
	do(textui.Start, textui.Running)
	if _, err := os.Stat(filepath.Join(dir, "x.saved")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a saved state is there that was used: %v", err)
	}
	log, err := g.Log(t.Context(), "x", "machine", 1000)
	if want := "started: run\nstarted: run --restore " + filepath.Join(dir, "x.saved") + "\n"; err != nil || string(log) != want {
		t.Errorf("%q, %v, want %q", log, err, want)
	}
	do(textui.PowerButton, textui.Off)
	do(textui.ForceOff, textui.Off) // what is off already
	select {
	case <-g.Changed():
	default:
		t.Error("nothing was told of all that")
	}
	if err := g.Do(t.Context(), "x", textui.Pause, nil); !errors.Is(err, errNotRunning) {
		t.Errorf("paused when off: %v", err)
	}
}

// A machine that ends at once, or later, is told with what its log said last.
func TestCrash(t *testing.T) {
	g, _ := one(t, "crash")
	err := g.Do(t.Context(), "x", textui.Start, nil)
	if err == nil || err.Error() != "its machine ended (exit status 4): guest crashed: triple fault" {
		t.Errorf("%v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(g.first(t).Note, "triple fault"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", g.first(t))
		}
	}
}

// A machine that accepts connections and says nothing is seen as such, holds nobody up for long, and can be killed.
func TestDeaf(t *testing.T) {
	g, _ := one(t, "deaf")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := g.Do(ctx, "x", textui.Start, nil); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("%v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); g.first(t).State != textui.Hung; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", g.first(t))
		}
	}
	if err := g.Do(t.Context(), "x", textui.ForceOff, nil); err != nil {
		t.Fatal(err)
	}
	if got := g.first(t); got.State != textui.Off {
		t.Errorf("%+v", got)
	}
}

// What is wrong with a guest's files is told, and the others go on.
func TestProblems(t *testing.T) {
	dir := t.TempDir()
	good := define(t, dir, "good", "", "")
	mute := filepath.Join(dir, "mute.toml")
	if err := os.WriteFile(mute, []byte("name = \"mute\"\nmemory = \"1G\"\n[boot]\nkernel = \"kernel\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken.toml")
	if err := os.WriteFile(broken, []byte("name = \"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo.toml")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	g := New(Config{Guests: []Guest{
		{Name: "none"}, {Name: "good", Definition: good}, {Name: "mute", Definition: mute}, {Name: "broken", Definition: broken},
		{Name: "fifo", Definition: fifo}, {Name: "absent", Definition: filepath.Join(dir, "absent.toml")},
	}})
	list, err := g.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"set definition =", "", `set control = "mute.sock" in it`, "broken.toml:1: name", "is no file", "no such file"} {
		k := list[i]
		if (want == "") != (k.State == textui.Off) || !strings.Contains(k.Note, want) || want == "" && k.Note != "" {
			t.Errorf("%+v, want a note with %q", k, want)
		}
		for _, err := range []error{
			g.Do(t.Context(), k.Name, textui.Pause, nil),
			func() error { _, err := g.Details(t.Context(), k.Name); return err }(),
			func() error { _, err := g.Log(t.Context(), k.Name, "nothing", 1); return err }(),
		} {
			if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s: %v, want %q", k.Name, err, want)
			}
		}
	}
	// A definition that is corrected is used at once.
	define(t, dir, "broken", "", "")
	if got := g.first(t); got.Name != "none" {
		t.Error(got)
	}
	if list, err = g.Guests(t.Context()); err != nil || list[3].State != textui.Off {
		t.Errorf("%+v, %v", list[3], err)
	}
	if err := g.Switch(t.Context(), "good"); !errors.Is(err, textui.ErrNoSeat) {
		t.Errorf("%v", err)
	}
	if err := os.Remove(filepath.Join(dir, "kernel")); err != nil {
		t.Fatal(err)
	}
	if err := g.Do(t.Context(), "good", textui.Start, nil); err == nil || !strings.Contains(err.Error(), "kernel does not exist: correct the path") {
		t.Errorf("%v", err)
	}
}

// Whatever a machine says, it is a guest in the list, and not for long.
func TestHostileMachine(t *testing.T) {
	for name, tc := range map[string]struct {
		answer string
		state  textui.State
	}{
		"strange state": {`{"id":1,"result":{"state":"flying","uptime":-1}}`, textui.Unknown},
		"strange times": {`{"id":1,"result":{"state":"running","uptime":1e300,"memory":18446744073709551615,"cpus":-5}}`, textui.Running},
		"balloon":       {`{"id":1,"result":{"state":"running","balloon":{"actual":18446744073709551615}}}`, textui.Running},
		"no object":     {`{"id":1,"result":[1,2]}`, textui.Hung},
		"an error":      {`{"id":1,"error":{"code":"failed","message":"\u001b[2Jno"}}`, textui.Hung},
		"no JSON":       {`<xml/>`, textui.Hung},
		"too long":      {strings.Repeat("x", 1<<20), textui.Hung},
		"nothing":       {"", textui.Hung},
		"progress":      {strings.Repeat(`{"id":1,"progress":{"done":1,"total":0}}`+"\n", 1000), textui.Hung},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			g := New(Config{Guests: []Guest{{Name: "x", Definition: define(t, dir, "x", "", "")}}})
			l, err := net.Listen("unix", filepath.Join(dir, "x.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Write([]byte(tc.answer + "\n")) // it may be cut off
					defer conn.Close()
				}
			}()
			began := time.Now()
			got := g.first(t)
			if d := time.Since(began); d > 10*answerLimit {
				t.Errorf("it took %v", d)
			}
			if got.State != tc.state || got.CPUs != 1 || got.Memory != 16<<20 || got.Uptime < 0 || math.IsNaN(got.CPU) {
				t.Errorf("%+v, want it to be %v", got, tc.state)
			}
		})
	}
}

// The seat tells who is on screen, and switches.
func TestSeat(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "seat.sock")
	g := New(Config{Seat: path, Guests: []Guest{{Name: "a", Definition: define(t, dir, "a", "", "")}, {Name: "b", Definition: define(t, dir, "b", "", "")},
		{Name: "other"}}})
	if err := g.Switch(t.Context(), "b"); !errors.Is(err, seatctl.ErrNone) {
		t.Errorf("%v", err)
	}
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := control.Server{Methods: seatctl.Methods(&fakeSeat{focus: "a"})}
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	}()
	defer func() { cancel(); <-done }()
	if list, err := g.Guests(t.Context()); err != nil || !list[0].OnScreen || list[1].OnScreen || list[2].State != textui.Running {
		t.Errorf("%+v, %v", list, err)
	}
	if err := g.Switch(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	if list, err := g.Guests(t.Context()); err != nil || list[0].OnScreen || !list[1].OnScreen {
		t.Errorf("%+v, %v", list, err)
	}
}

type fakeSeat struct {
	mu    sync.Mutex
	focus string
}

func (s *fakeSeat) Focus() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.focus
}

func (s *fakeSeat) SetFocus(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.focus = name
	return nil
}

func (s *fakeSeat) Each(f func(string, int, bool)) { f("a", 1, true); f("other", 0, true) }

func TestLogs(t *testing.T) {
	dir := t.TempDir()
	file := define(t, dir, "x", "", "debug_console = \"debug\"\nserial = { mode = \"file\", path = \"serial\" }\nserial2 = { mode = \"file\", path = \"fifo\" }\n"+
		"disk = [ { name = \"root\", path = \"kernel\", readonly = true } ]")
	g := New(Config{Guests: []Guest{{Name: "x", Definition: file}}})
	d, err := g.Details(t.Context(), "x")
	if diff := cmp.Diff([]string{"machine", "serial port", "second serial port", "debug console"}, d.Logs); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if text := fmt.Sprint(d.Sections); !strings.Contains(text, "{disk root "+dir+"/kernel, 0 MiB, read-only}") || !strings.Contains(text, "{saved state none}") {
		t.Error(text)
	}
	if err := os.WriteFile(filepath.Join(dir, "serial"), []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ log, want, err string }{
		{"machine", "", ""}, {"serial port", "56789", ""}, {"second serial port", "", "fifo is no file"}, {"none", "", "no log"},
	} {
		b, err := g.Log(t.Context(), "x", tc.log, 5)
		if string(b) != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %q, %v", tc.log, b, err)
		}
	}
	// A log that has become large is begun anew, and the one before is kept.
	if err := os.WriteFile(logFile(file), make([]byte, maxLog+1), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openLog(logFile(file))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if st, err := os.Stat(logFile(file)); err != nil || st.Size() != 0 {
		t.Errorf("%v, %v", st.Size(), err)
	}
	if st, err := os.Stat(logFile(file) + ".1"); err != nil || st.Size() != maxLog+1 {
		t.Errorf("%v, %v", st, err)
	}
}

// Only what a save has made is removed.
func TestDiscard(t *testing.T) {
	dir := t.TempDir()
	file := define(t, dir, "x", "", "")
	g := New(Config{Guests: []Guest{{Name: "x", Definition: file}}})
	put := func(names ...string) {
		if err := os.MkdirAll(savedDir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if err := os.WriteFile(filepath.Join(savedDir(file), n), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(snap.StateName, snap.RAMName)
	if got := g.first(t); got.State != textui.Saved {
		t.Errorf("%+v", got)
	}
	if err := g.Do(t.Context(), "x", textui.Discard, nil); err != nil {
		t.Error(err)
	}
	if got := g.first(t); got.State != textui.Off {
		t.Errorf("%+v", got)
	}
	put(snap.StateName, "mine")
	if err := g.Do(t.Context(), "x", textui.Discard, nil); err == nil {
		t.Error("somebody's file is gone")
	}
	if _, err := os.Stat(filepath.Join(savedDir(file), "mine")); err != nil {
		t.Error(err)
	}
}
