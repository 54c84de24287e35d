package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/job"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// patience is how long a test waits for what should come at once, on a machine that is busy.
const patience = 30 * time.Second

// rig is a manager of fake VMMs in directories of a test.
type rig struct {
	*Manager
	t   testing.TB
	dir string
	cfg Config
}

func testConfig(dir string) Config {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Config{
		ConfigDir: filepath.Join(dir, "etc"), StateDir: filepath.Join(dir, "var"), RunDir: filepath.Join(dir, "run"), Launcher: &Plain{VMM: exe},
		LodgeNet: os.Getenv("MANAGER_TEST_NET"),
		Screen: func(context.Context, string) (image.Image, error) {
			img := image.NewRGBA(image.Rect(0, 0, 2000, 1000))
			img.Set(0, 0, color.White)
			return img, nil
		},
	}
}

// newRig returns a manager without guests. Its directory is short enough for sockets, and no VMM is left behind.
func newRig(t testing.TB) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "mgr")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, cfg: testConfig(dir)}
	if testing.Verbose() {
		r.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	r.open()
	t.Cleanup(func() {
		r.Close()
		killAll(dir)
		if two, _ := filepath.Glob(filepath.Join(dir, "var/guests/*/two-at-once")); two != nil {
			t.Errorf("two VMMs of one guest: %v", two)
		}
		if t.Failed() {
			for _, log := range glob(dir, "var/guests/*/logs/vmm.log") {
				b, _ := os.ReadFile(log)
				t.Logf("%s:\n%s", log, b)
			}
		}
		os.RemoveAll(dir)
	})
	return r
}

func glob(dir, pattern string) []string {
	files, _ := filepath.Glob(filepath.Join(dir, pattern))
	return files
}

// killAll kills the VMMs that are on record, and nothing else.
func killAll(dir string) {
	for _, file := range glob(dir, "var/guests/*/"+recordName) {
		if rec, err := readRecord(filepath.Dir(file)); err == nil && rec != nil && rec.PID != 0 {
			if p, err := openProcess(rec.PID, rec.Start); err == nil {
				_ = p.kill(unix.SIGKILL)
				p.close()
			}
		}
	}
}

func (r *rig) open() {
	r.t.Helper()
	m, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Manager = m
}

// reopen puts another manager in the place of this one.
func (r *rig) reopen() {
	r.t.Helper()
	r.Close()
	r.open()
}

// define adds a guest. words are for the fake VMM, lines more of the definition.
func (r *rig) define(name, words string, lines ...string) {
	r.t.Helper()
	kernel := filepath.Join(r.dir, "vmlinux")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
	text := fmt.Sprintf("name = %q\nmemory = \"64M\"\n%s\n[boot]\nkernel = %q\ncmdline = %q\n", name, strings.Join(lines, "\n"), kernel, words)
	if _, err := r.Define([]byte(text)); err != nil {
		r.t.Fatalf("%v\n%s", err, text)
	}
}

// disk makes a disk's file and returns lines that give it to a guest.
func (r *rig) disk(name, content string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name+".img")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("disk = [{ name = \"root\", path = %q }]", path)
}

// run waits for a job and returns its error.
func (r *rig) run(id uint64, err error) error {
	r.t.Helper()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := r.Jobs().Wait(ctx, id)
	if err != nil {
		r.t.Fatal(err)
	}
	if s.State == job.Cancelled {
		return context.Canceled
	}
	return s.Err
}

func (r *rig) must(id uint64, err error) {
	r.t.Helper()
	if err := r.run(id, err); err != nil {
		r.t.Fatal(err)
	}
}

// state waits until a guest is in that state.
func (r *rig) state(name string, want life.State) Guest {
	r.t.Helper()
	return r.until(name, string(want), func(g Guest) bool { return g.State == want })
}

func (r *rig) until(name, what string, ok func(Guest) bool) Guest {
	r.t.Helper()
	g, err := r.find(name)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := g.await(ctx, func(p *published) bool { return ok(p.Guest) })
	if err != nil {
		r.t.Fatalf("guest %s is never %s: it is %s: %s (%v)", name, what, p.State, p.Note, err)
	}
	return p.Guest
}

// tell has a fake VMM do what guests do of themselves.
func (r *rig) tell(name, what string) {
	r.t.Helper()
	c, err := control.Dial(context.Background(), r.sockets(name).Run+"/control.sock")
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	_ = c.Call(context.Background(), what, nil, nil, nil) // one that ends does not answer
}

func (r *rig) exists(path string) bool {
	_, err := os.Stat(filepath.Join(r.dir, path))
	return err == nil
}

func TestLife(t *testing.T) {
	r := newRig(t)
	r.define("a", "", `label = "first"`, "slot = 3", "[display]")
	if g, err := r.Get("a"); err != nil || g.State != life.Defined || g.Label != "first" || g.Slot != 3 || g.Memory != 64<<20 {
		t.Fatalf("%+v, %v", g, err)
	}
	r.must(r.Start("a"))
	g := r.state("a", life.Running)
	if g.PID == 0 || !g.Ready || g.Control == "" || g.Display == "" || g.Began.IsZero() {
		t.Errorf("%+v", g)
	}
	if _, err := r.Start("a"); !errors.Is(err, life.ErrNotNow) {
		t.Errorf("started twice: %v", err)
	}
	if err := r.Pause(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if g, _ := r.Get("a"); g.State != life.Paused {
		t.Errorf("%s after Pause", g.State)
	}
	if err := errors.Join(r.Pause(t.Context(), "a"), r.Resume(t.Context(), "a"), r.Resume(t.Context(), "a")); err != nil {
		t.Error(err)
	}
	r.state("a", life.Running)
	r.tell("a", "reboot")
	r.until("a", "rebooted", func(g Guest) bool { return g.Reboots == 1 })
	r.tell("a", "full")
	if g := r.state("a", life.Paused); !strings.Contains(g.Note, "disk is full") {
		t.Errorf("note %q", g.Note)
	}
	if err := r.Resume(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if g := r.state("a", life.Running); g.Note != "" {
		t.Errorf("note %q", g.Note)
	}
	if err := r.Delete("a"); !errors.Is(err, life.ErrNotNow) {
		t.Errorf("deleted while it runs: %v", err)
	}
	r.must(r.Stop("a"))
	g = r.state("a", life.Defined)
	if g.PID != 0 || g.Ready || g.Note != "" || r.exists("run/guests/a") || r.exists("var/guests/a/"+recordName) {
		t.Errorf("left over: %+v", g)
	}
	r.must(r.Start("a"))
	r.tell("a", "poweroff")
	r.state("a", life.Defined)
	r.must(r.Start("a"))
	r.tell("a", "crash")
	if g := r.state("a", life.Crashed); g.Note != "crashed: as was asked for" {
		t.Errorf("note %q", g.Note)
	}
	if err := r.Discard("a"); err != nil {
		t.Error(err)
	}
	if g := r.state("a", life.Defined); g.Note != "" {
		t.Errorf("note %q", g.Note)
	}
	if err := r.Delete("a"); err != nil {
		t.Error(err)
	}
	if _, err := r.Get("a"); !errors.Is(err, store.ErrNotFound) || r.exists("var/guests/a") || r.exists("etc/guests/a.toml") {
		t.Errorf("after Delete: %v", err)
	}
}

// A guest that does not end by itself is made to, step by step.
func TestStopByForce(t *testing.T) {
	r := newRig(t)
	r.define("deaf", "power=ignore", `stop_timeout = "1s"`)
	r.define("hung", "power=ignore quit=ignore", `stop_timeout = "1s"`)
	sub := r.Subscribe()
	defer sub.Close()
	for _, name := range []string{"deaf", "hung"} {
		r.must(r.Start(name))
	}
	if err := r.Pause(t.Context(), "deaf"); err != nil {
		t.Fatal(err)
	}
	deaf, err := r.Stop("deaf")
	if err != nil {
		t.Fatal(err)
	}
	r.must(r.Stop("hung"))
	r.must(deaf, nil)
	for _, name := range []string{"deaf", "hung"} {
		if g := r.state(name, life.Defined); g.Note != "" {
			t.Errorf("%s: %q", name, g.Note)
		}
	}
	steps := make(map[string]string)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		e, err := sub.Next(ctx)
		cancel()
		if err != nil {
			break
		}
		if e.Kind == GuestStep {
			steps[e.Name] += e.Text + "\n"
		}
	}
	for name, want := range map[string][]string{
		"deaf": {"is resumed, to hear", "power button pressed; has until", "is switched off"},
		"hung": {"power button pressed", "is switched off", "is killed"},
	} {
		at := 0
		for _, step := range want {
			i := strings.Index(steps[name][at:], step)
			if i < 0 {
				t.Errorf("%s: no step %q in order:\n%s", name, step, steps[name])
				break
			}
			at += i
		}
	}
}

// A stop that is cancelled lets the guest run on.
func TestCancelStop(t *testing.T) {
	r := newRig(t)
	r.define("a", "power=ignore")
	r.must(r.Start("a"))
	id, err := r.Stop("a")
	if err != nil {
		t.Fatal(err)
	}
	r.state("a", life.Stopping)
	if _, err := r.Stop("a"); err != nil {
		t.Errorf("stopped twice: %v", err)
	}
	if err := r.Jobs().Cancel(id); err != nil {
		t.Fatal(err)
	}
	if err := r.run(id, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	r.state("a", life.Running)
	r.must(r.Kill("a"))
	r.state("a", life.Defined)
}

// What cannot start says why.
func TestStartFails(t *testing.T) {
	r := newRig(t)
	r.define("dies", "start=die")
	r.define("soon", "crash=soon")
	r.define("gone", "", `disk = [{ name = "root", path = "/no/such.img" }]`)
	r.define("needs", "", `depends = ["dies"]`)
	if err := r.run(r.Start("dies")); err == nil || !strings.Contains(err.Error(), "exit status 1: fake: cannot start") {
		t.Errorf("%v", err)
	}
	if g := r.state("dies", life.Crashed); !strings.Contains(g.Note, "cannot start") {
		t.Errorf("%+v", g)
	}
	if err := r.run(r.Start("gone")); err == nil || !strings.Contains(err.Error(), "/no/such.img does not exist") {
		t.Errorf("%v", err)
	}
	r.state("gone", life.Defined)
	if err := r.run(r.Start("needs")); err == nil || !strings.Contains(err.Error(), "it depends on guest dies, which is not ready: its VMM has ended") {
		t.Errorf("%v", err)
	}
	_, _ = r.Start("soon")
	if g := r.state("soon", life.Crashed); g.Note != "crashed: triple trouble" {
		t.Errorf("%+v", g)
	}
	if _, err := r.Start("none"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := r.Start("../a"); !errors.Is(err, store.ErrName) {
		t.Errorf("%v", err)
	}
}

// Guests start after what they need is ready, and stop before it.
func TestDependencies(t *testing.T) {
	r := newRig(t)
	r.define("net", "print=login", `ready = { serial = "login: " }`)
	r.define("store", "", "depends = [\"net\"]")
	r.define("work", "", `depends = ["net", "store"]`)
	sub := r.Subscribe()
	defer sub.Close()
	r.must(r.Start("work"))
	ready := map[string]bool{}
	check := func(e Event) {
		g := e.Guest
		ready[g.Name] = g.Ready
		if g.State == life.Starting && (g.Name != "net" && !ready["net"] || g.Name == "work" && !ready["store"]) {
			t.Errorf("%s starts too early", g.Name)
		}
	}
	for !ready["work"] {
		e, err := sub.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == GuestChanged {
			check(e)
		}
	}
	if err := r.Delete("net"); err == nil {
		t.Error("deleted what others need")
	}
	r.must(r.Stop("net"))
	for _, name := range []string{"net", "store", "work"} {
		r.state(name, life.Defined)
	}
	var since []time.Time
	for _, name := range []string{"work", "store", "net"} {
		g, _ := r.Get(name)
		since = append(since, g.Since)
	}
	if !since[0].Before(since[1]) || !since[1].Before(since[2]) {
		t.Errorf("they stopped at %v", since)
	}
	// All at once.
	r.must(r.Start("work"))
	if err := r.StopAll(t.Context()); err != nil {
		t.Error(err)
	}
	for _, g := range r.List() {
		if g.State != life.Defined {
			t.Errorf("%s is %s", g.Name, g.State)
		}
	}
}

// A start that waits can be taken back.
func TestStopWaiting(t *testing.T) {
	r := newRig(t)
	r.define("net", "", `ready = { tcp = "127.0.0.1:1" }`)
	r.define("a", "", "depends = [\"net\"]")
	id, err := r.Start("a")
	if err != nil {
		t.Fatal(err)
	}
	r.state("net", life.Running)
	r.state("a", life.Waiting)
	r.must(r.Stop("a"))
	r.state("a", life.Defined)
	if err := r.run(id, nil); err == nil || !strings.Contains(err.Error(), errStopped.Error()) {
		t.Errorf("%v", err)
	}
	if id, err = r.Start("a"); err != nil {
		t.Fatal(err)
	}
	if err := r.Jobs().Cancel(id); err != nil {
		t.Fatal(err)
	}
	_ = r.run(id, nil)
	r.state("a", life.Defined)
}

func TestRestart(t *testing.T) {
	r := newRig(t)
	r.define("crash", "", `restart = "on-crash"`)
	r.define("always", "", `restart = "always"`)
	r.must(r.Start("crash"))
	r.must(r.Start("always"))
	first := r.state("crash", life.Running).PID
	r.tell("crash", "crash")
	g := r.state("crash", life.Restarting)
	if g.RestartAt.IsZero() || g.Restarts != 1 || !strings.Contains(g.Note, "crashed") {
		t.Errorf("%+v", g)
	}
	if g := r.state("crash", life.Running); g.PID == first {
		t.Error("the same process")
	}
	r.tell("crash", "crash")
	if g := r.state("crash", life.Restarting); g.Restarts != 2 || time.Until(g.RestartAt) < time.Second {
		t.Errorf("no back-off: %+v", g)
	}
	r.must(r.Stop("crash"))
	r.state("crash", life.Defined)
	r.must(r.Start("crash"))
	r.tell("crash", "poweroff")
	r.state("crash", life.Defined)
	r.tell("always", "poweroff")
	r.state("always", life.Restarting)
	r.state("always", life.Running)
	r.must(r.Stop("always"))
	r.state("always", life.Defined)
}

func TestReboot(t *testing.T) {
	r := newRig(t)
	r.define("a", "", "priority = 1")
	r.must(r.Start("a"))
	before, _ := r.Get("a")
	_, tag, _ := r.Definition("a")
	text, _, _ := r.Definition("a")
	if err := r.Edit("a", []byte(strings.Replace(string(text), "priority = 1", "priority = 2", 1)), tag); err != nil {
		t.Fatal(err)
	}
	if g, _ := r.Get("a"); !g.Stale {
		t.Error("is not stale")
	}
	r.must(r.Reboot("a"))
	if g := r.state("a", life.Running); g.PID == before.PID || g.Stale {
		t.Errorf("%+v", g)
	}
}

func TestSave(t *testing.T) {
	r := newRig(t)
	r.define("a", "", "[display]")
	r.define("disposable", "", "disposable = true")
	r.must(r.Start("a"))
	r.must(r.Save("a"))
	g := r.state("a", life.Saved)
	if g.Saved.IsZero() || g.PID != 0 {
		t.Errorf("%+v", g)
	}
	if b, err := r.Thumbnail(t.Context(), "a", 100); err != nil || len(b) == 0 {
		t.Errorf("picture of a saved guest: %v", err)
	}
	r.must(r.Start("a"))
	if g := r.state("a", life.Running); !g.Saved.IsZero() || r.exists("var/guests/a/suspended") {
		t.Errorf("the state was not used up: %+v", g)
	}
	if b, err := r.Tail("a", "vmm", 1000); err != nil || !strings.Contains(string(b), "restored from") {
		t.Errorf("not restored: %s, %v", b, err)
	}
	r.must(r.Save("a"))
	if err := r.Discard("a"); err != nil || r.exists("var/guests/a/suspended") {
		t.Errorf("%v", err)
	}
	r.state("a", life.Defined)
	r.must(r.Start("disposable"))
	if _, err := r.Save("disposable"); err == nil || !strings.Contains(err.Error(), "disposable") {
		t.Errorf("%v", err)
	}
}

func TestSaveFails(t *testing.T) {
	for words, want := range map[string]life.State{
		"save=fail": life.Running, "save=slow": life.Running, "save=die": life.Crashed, "quit=ignore": life.Saved,
	} {
		t.Run(words, func(t *testing.T) {
			r := newRig(t)
			r.define("a", words)
			r.must(r.Start("a"))
			id, err := r.Save("a")
			if err != nil {
				t.Fatal(err)
			}
			if words == "save=slow" {
				r.state("a", life.Saving)
				if _, err := r.Stop("a"); !errors.Is(err, life.ErrNotNow) {
					t.Errorf("%v", err)
				}
				for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
					if s, err := r.Jobs().Get(id); err != nil || s.Done > 0 || time.Now().After(deadline) {
						break
					}
				}
				if err := r.Jobs().Cancel(id); err != nil {
					t.Fatal(err)
				}
			}
			err = r.run(id, nil)
			if (err == nil) != (want == life.Saved) {
				t.Errorf("%v", err)
			}
			r.state("a", want)
			if want != life.Running {
				r.must(r.Start("a"))
				return
			}
			if err := r.Pause(t.Context(), "a"); err != nil {
				t.Error(err)
			}
			r.must(r.Kill("a"))
			r.state("a", life.Defined)
		})
	}
}

// A saved state that the VMM refuses is not lost.
func TestRestoreRefused(t *testing.T) {
	r := newRig(t)
	r.define("a", "")
	r.must(r.Start("a"))
	r.must(r.Save("a"))
	text, tag, _ := r.Definition("a")
	if err := r.Edit("a", []byte(strings.Replace(string(text), `cmdline = ""`, `cmdline = "restore=refuse"`, 1)), tag); err != nil {
		t.Fatal(err)
	}
	if err := r.run(r.Start("a")); err == nil || !strings.Contains(err.Error(), "was written to after") {
		t.Errorf("%v", err)
	}
	r.state("a", life.Crashed)
	if err := r.Discard("a"); err != nil {
		t.Error(err)
	}
	r.state("a", life.Saved)
}

func TestSnapshots(t *testing.T) {
	r := newRig(t)
	r.define("a", "", r.disk("root", "one"), "[display]")
	disk := filepath.Join(r.dir, "root.img")
	write := func(s string) {
		if err := os.WriteFile(disk, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string {
		b, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	r.must(r.Snapshot("a", "cold"))
	write("two")
	r.must(r.Start("a"))
	r.must(r.Snapshot("a", "hot"))
	r.state("a", life.Running)
	write("three")
	if _, err := r.Restore("a", "hot", true); !errors.Is(err, life.ErrNotNow) {
		t.Errorf("restored while it runs: %v", err)
	}
	if err := r.Pause(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	r.must(r.Snapshot("a", "paused"))
	r.state("a", life.Paused)
	r.must(r.Stop("a"))
	list, err := r.Snapshots("a")
	if err != nil || len(list) != 3 || list[0].Memory || !list[1].Memory || !list[1].Picture || list[1].Name != "hot" || list[0].Size == 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	if _, err := r.Snapshot("a", "hot"); !errors.Is(err, ErrSnapshotExists) {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"..", "", "a/b", ".x", strings.Repeat("x", 100)} {
		_, make := r.Snapshot("a", name)
		_, restore := r.Restore("a", name, false)
		if make == nil || !errors.Is(restore, ErrNoSnapshot) || !errors.Is(r.DeleteSnapshot("a", name), ErrNoSnapshot) {
			t.Errorf("%q: %v, %v", name, make, restore)
		}
	}
	if _, err := r.Restore("a", "cold", true); !errors.Is(err, ErrNoMemory) {
		t.Errorf("%v", err)
	}
	r.must(r.Restore("a", "cold", false))
	if got := read(); got != "one" {
		t.Errorf("the disk has %q", got)
	}
	r.state("a", life.Defined)
	r.must(r.Restore("a", "hot", true))
	if got := read(); got != "two" {
		t.Errorf("the disk has %q", got)
	}
	r.state("a", life.Saved)
	r.must(r.Start("a"))
	if b, _ := r.Tail("a", "vmm", 1000); !strings.Contains(string(b), "restored from") {
		t.Errorf("not restored: %s", b)
	}
	r.must(r.Kill("a"))
	if b, err := r.SnapshotPicture("a", "hot"); err != nil || !bytes.HasPrefix(b, []byte("\x89PNG")) {
		t.Error(err)
	}
	if err := r.DeleteSnapshot("a", "hot"); err != nil {
		t.Error(err)
	}
	if list, _ := r.Snapshots("a"); len(list) != 2 {
		t.Errorf("%+v", list)
	}
	if left := glob(r.dir, "*"+revertSuffix); left != nil {
		t.Errorf("left over: %v", left)
	}
}

// Killed in the middle of putting a snapshot back, the next manager finishes it.
func TestRevertInterrupted(t *testing.T) {
	r := newRig(t)
	r.define("a", "", r.disk("root", "old"))
	r.must(r.Snapshot("a", "s"))
	disk := filepath.Join(r.dir, "root.img")
	if err := os.WriteFile(disk, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := pool.CopyFile(t.Context(), filepath.Join(r.dir, "var/guests/a/snapshots/s/root.raw"), disk+revertSuffix, pool.CopyOptions{}, func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	r.open() // no order was given yet: what was prepared goes
	if b, _ := os.ReadFile(disk); string(b) != "new" || r.exists("root.img"+revertSuffix) {
		t.Errorf("the disk has %q", b)
	}
	r.Close()
	if err := errors.Join(os.WriteFile(disk+revertSuffix, []byte("old"), 0o600),
		writeFile(filepath.Join(r.dir, "var/guests/a/revert.json"), revert{Snapshot: "s", Disks: map[string]string{disk + revertSuffix: disk}})); err != nil {
		t.Fatal(err)
	}
	r.open()
	if b, _ := os.ReadFile(disk); string(b) != "old" || r.exists("var/guests/a/revert.json") {
		t.Errorf("the disk has %q", b)
	}
}

func TestDisposable(t *testing.T) {
	r := newRig(t)
	r.define("a", "", "disposable = true", r.disk("root", "content"))
	r.must(r.Start("a"))
	overlay := filepath.Join(r.dir, "var/guests/a/overlay/root.raw")
	if b, err := os.ReadFile(overlay); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(r.dir, "var/guests/a/vmm.toml")); err != nil || !strings.Contains(string(b), overlay) {
		t.Errorf("%s, %v", b, err)
	}
	r.must(r.Stop("a"))
	if r.exists("var/guests/a/overlay") {
		t.Error("the overlay is left")
	}
}

// VMMs that answer nothing, or nonsense, are told of and can be ended.
func TestBadVMM(t *testing.T) {
	for _, words := range []string{"control=none", "control=garbage", "state=odd", "watch=storm"} {
		t.Run(words, func(t *testing.T) {
			r := newRig(t)
			r.define("a", words, `stop_timeout = "1s"`)
			if _, err := r.Start("a"); err != nil {
				t.Fatal(err)
			}
			switch words {
			case "watch=storm":
				r.state("a", life.Running)
			case "state=odd":
				r.until("a", "odd", func(g Guest) bool { return strings.Contains(g.Note, "does not know") })
			default:
				r.until("a", "there", func(g Guest) bool { return g.PID != 0 })
			}
			r.must(r.Kill("a"))
			r.state("a", life.Defined)
		})
	}
}

func TestThumbnail(t *testing.T) {
	r := newRig(t)
	looks := 0
	r.Close()
	r.cfg.Screen = func(context.Context, string) (image.Image, error) {
		looks++
		return image.NewRGBA(image.Rect(0, 0, 2000, 1000)), nil
	}
	r.open()
	r.define("a", "", "[display]")
	r.define("blind", "")
	if _, err := r.Thumbnail(t.Context(), "a", 100); !errors.Is(err, ErrNoScreen) {
		t.Errorf("%v", err)
	}
	r.must(r.Start("a"))
	r.must(r.Start("blind"))
	for range 10 {
		b, err := r.Thumbnail(t.Context(), "a", 100)
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(bytes.NewReader(b))
		if err != nil || img.Bounds().Dx() != 100 || img.Bounds().Dy() != 50 {
			t.Fatalf("%v, %v", img.Bounds(), err)
		}
	}
	if looks > 2 {
		t.Errorf("the guest was looked at %d times", looks)
	}
	for _, side := range []int{0, -1, maxThumbnail + 1} {
		if _, err := r.Thumbnail(t.Context(), "a", side); err == nil {
			t.Errorf("%d pixels", side)
		}
	}
	if _, err := r.Thumbnail(t.Context(), "blind", 100); !errors.Is(err, ErrNoScreen) {
		t.Errorf("%v", err)
	}
}

func TestStats(t *testing.T) {
	r := newRig(t)
	r.define("a", "")
	if _, err := r.Stats(t.Context(), "a"); err == nil {
		t.Error("measured nothing")
	}
	r.must(r.Start("a"))
	list, err := r.Stats(t.Context(), "a")
	if err != nil || len(list) != 1 || list[0].Memory == 0 || list[0].Exits != 42 || list[0].NetSent != 8 {
		t.Fatalf("%+v, %v", list, err)
	}
	for deadline := time.Now().Add(patience); len(list) < 3; time.Sleep(100 * time.Millisecond) {
		if list, err = r.Stats(t.Context(), "a"); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d samples, %v", len(list), err)
		}
	}
	if !list[0].Time.Before(list[2].Time) {
		t.Error("not in order")
	}
	r.must(r.Kill("a"))
	if _, err := r.Stats(t.Context(), "a"); err == nil {
		t.Error("measured nothing")
	}
}

// A history is a ring.
func TestHistory(t *testing.T) {
	var h history
	for i := range historyLen + 5 {
		h.add(Sample{Exits: uint64(i)})
	}
	list := h.list()
	if len(list) != historyLen || list[0].Exits != 5 || list[historyLen-1].Exits != historyLen+4 {
		t.Errorf("%d samples, %d to %d", len(list), list[0].Exits, list[len(list)-1].Exits)
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	r.define("a", "print=login")
	if b, err := r.Tail("a", "serial", 100); err != nil || b != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := r.Tail("a", "../../etc/passwd", 100); err == nil {
		t.Error("a log that is none")
	}
	r.must(r.Start("a"))
	path := filepath.Join(r.dir, "var/guests/a/logs/serial.log")
	var got strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := Follow(ctx, path, 0, func(b []byte) error {
		got.Write(b)
		switch s := got.String(); {
		case strings.HasSuffix(s, "login: "): // rotated, as the VMM does
			return errors.Join(os.Rename(path, path+".1"), os.WriteFile(path, []byte("anew"), 0o600))
		case strings.HasSuffix(s, "anew"):
			return errFound
		}
		return nil
	})
	if !errors.Is(err, errFound) || got.String() != "booting\nlogin: anew" {
		t.Errorf("%q, %v", got.String(), err)
	}
	if b, err := r.Tail("a", "serial", 3); err != nil || string(b) != "new" {
		t.Errorf("%q, %v", b, err)
	}
}

// Events of one guest overtake each other; a subscriber that does not listen costs little and hears that it has lost some.
func TestEvents(t *testing.T) {
	var b bus
	s := b.subscribe()
	for i := range 5 {
		b.send(Event{Kind: GuestChanged, Name: "a", Guest: &Guest{Slot: i}})
		b.send(Event{Kind: GuestStep, Name: "a", Text: fmt.Sprint(i)})
	}
	var got []string
	for range 6 {
		e, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == GuestChanged {
			got = append(got, fmt.Sprint("slot ", e.Guest.Slot))
		} else {
			got = append(got, e.Text)
		}
	}
	if want := "slot 4 0 1 2 3 4"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
	for i := range 3 * maxPending {
		b.send(Event{Kind: GuestStep, Text: fmt.Sprint(i)})
	}
	if len(s.queue) > maxPending {
		t.Errorf("%d events are kept", len(s.queue))
	}
	if e, err := s.Next(t.Context()); err != nil || e.Kind != Lost {
		t.Errorf("%+v, %v", e, err)
	}
	s.Close()
	if _, err := s.Next(t.Context()); err == nil {
		t.Error("hears after Close")
	}
	b.send(Event{})
}

func TestAutostart(t *testing.T) {
	r := newRig(t)
	r.define("a", "", "autostart = true")
	r.define("b", "")
	if err := r.Autostart(); err != nil {
		t.Fatal(err)
	}
	r.state("a", life.Running)
	r.must(r.Stop("a"))
	if err := r.Autostart(); err != nil { // once in a boot
		t.Fatal(err)
	}
	for _, g := range r.List() {
		if g.State != life.Defined {
			t.Errorf("%s is %s", g.Name, g.State)
		}
	}
}

// There is one manager of a directory.
func TestOneManager(t *testing.T) {
	r := newRig(t)
	if _, err := New(r.cfg); err == nil || !strings.Contains(err.Error(), "another manager") {
		t.Errorf("%v", err)
	}
}

// What a machine says of why it is paused is noted as long as it is; a note of something else outlives a pause.
func TestNotes(t *testing.T) {
	r := newRig(t)
	r.define("g", "")
	r.must(r.Start("g"))
	r.state("g", life.Running)
	g, err := r.find("g")
	if err != nil {
		t.Fatal(err)
	}
	const other, full = "the manager was restarted", "the host's disk is full: make space, then resume it"
	for _, tc := range []struct{ note, state, reason, want string }{
		{"", "paused", "disk-full", full},
		{full, "running", "", ""},
		{"", "paused", "disk-full", full},
		{full, "paused", "", ""},
		{other, "running", "", other},
		{other, "paused", "", other},
		{other, "running", "", other},
		{other, "paused", "disk-full", full},
		{full, "running", "", ""},
	} {
		g.do(func() {
			g.note = tc.note
			g.seen(vmmStatus{State: tc.state, Reason: tc.reason, Change: g.change})
			if g.note != tc.want {
				t.Errorf("%s (%s), note %q: now %q, want %q", tc.state, tc.reason, tc.note, g.note, tc.want)
			}
		})
	}
}
