package manager

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/internal/procstat"
)

// victimProcess is a manager in a process of its own, to be killed.
type victimProcess struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

func startVictim(t testing.TB, dir string) *victimProcess {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "MANAGER_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &victimProcess{cmd, in, bufio.NewScanner(out)}
	if got := v.line(); got != "ready" {
		t.Fatal(got)
	}
	return v
}

func (v *victimProcess) line() string {
	if !v.out.Scan() {
		return "it has ended"
	}
	return v.out.Text()
}

func (v *victimProcess) do(name, what string) string {
	fmt.Fprintln(v.in, name, what)
	return v.line()
}

func (v *victimProcess) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

// A manager that is killed in whatever state of a guest leaves the VMM running, and the next one finds it and carries on.
func TestKilledInEveryState(t *testing.T) {
	for name, tc := range map[string]struct {
		words    string
		lines    []string
		commands string
		when     life.State // the manager is killed
		want     life.State // under the next one
		same     bool       // it is the same VMM; of one that is being started, it is if it had begun to run
	}{
		"running":    {"", nil, "start", life.Running, life.Running, true},
		"paused":     {"", nil, "start pause", life.Paused, life.Paused, true},
		"starting":   {"start=slow", nil, "start", life.Starting, life.Running, true},
		"stopping":   {"power=ignore", []string{`stop_timeout = "2s"`}, "start stop", life.Stopping, life.Defined, false},
		"rebooting":  {"power=ignore", []string{`stop_timeout = "2s"`}, "start reboot", life.Stopping, life.Running, false},
		"saving":     {"save=slow", nil, "start save", life.Saving, life.Running, true},
		"ending":     {"quit=ignore", nil, "start save", life.Saving, life.Saved, false}, // the saved state is on the disk
		"snapshot":   {"save=slow", nil, "start snapshot", life.Saving, life.Running, true},
		"saved":      {"", nil, "start save", life.Saved, life.Saved, false},
		"waiting":    {"", []string{`depends = ["net"]`}, "start", life.Waiting, life.Running, false},
		"restarting": {"crash=soon", []string{`restart = "on-crash"`, `restart_delay = "2s"`}, "start", life.Restarting, life.Restarting, false},
		"crashed":    {"start=die", nil, "start", life.Crashed, life.Crashed, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.define("net", "start=slow")
			r.define("g", tc.words, tc.lines...)
			r.Close()
			v := startVictim(t, r.dir)
			for _, c := range strings.Fields(tc.commands) {
				if c != "start" {
					awaitRecord(t, r.dir, "g", life.Running)
				}
				if got := v.do("g", c); got != "done <nil>" {
					t.Fatalf("%s: %s", c, got)
				}
			}
			if tc.when == life.Saved {
				for deadline := time.Now().Add(patience); r.exists("var/guests/g/" + recordName); time.Sleep(time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("is not saved")
					}
				}
			} else {
				awaitRecord(t, r.dir, "g", tc.when)
			}
			for deadline := time.Now().Add(patience); name == "ending" && !r.exists("var/guests/g/suspended"); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("is not saved")
				}
			}
			v.kill()
			before, _ := readRecord(filepath.Join(r.dir, "var/guests/g"))
			if tc.when.Alive() && tc.when != life.Starting && !before.Ready {
				t.Error("that it was ready is not on record")
			}
			r.open()
			g := r.state("g", tc.want)
			if tc.same && tc.when != life.Starting && (g.PID != before.PID || g.PID == 0) {
				t.Errorf("process %d, was %d", g.PID, before.PID)
			}
			if tc.when == life.Saving && g.Note == "" && name == "saving" {
				t.Error("nobody is told that it was not saved")
			}
			if g.State.Alive() {
				if name == "snapshot" {
					r.state("g", life.Running) // not paused for ever
				}
				r.must(r.Kill("g"))
				r.state("g", life.Defined)
			}
			if left := append(glob(r.dir, "var/guests/*/"+tmpPrefix+"*"), glob(r.dir, "var/guests/*/*.tmp-*")...); left != nil {
				t.Errorf("left over: %v", left)
			}
		})
	}
}

func awaitRecord(t testing.TB, dir, name string, want life.State) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		rec, err := readRecord(filepath.Join(dir, "var/guests", name))
		if err == nil && rec != nil && rec.State == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("is never %s: %+v, %v", want, rec, err)
		}
	}
}

// A VMM that ends while no manager is there is missed, and how it ended is known.
func TestEndedMeanwhile(t *testing.T) {
	for what, want := range map[string]life.State{"poweroff": life.Defined, "crash": life.Crashed, "kill": life.Crashed} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			r.define("g", "")
			r.must(r.Start("g"))
			pid := r.state("g", life.Running).PID
			r.Close()
			if what == "kill" {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			} else {
				r.tell("g", what)
			}
			for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
				if p, err := openProcess(pid, 0); errors.Is(err, procstat.ErrGone) {
					break
				} else if err == nil {
					p.close()
				}
				if time.Now().After(deadline) {
					t.Fatal("the VMM does not end")
				}
			}
			r.open()
			r.state("g", want)
			if r.exists("run/guests/g") {
				t.Error("sockets are left")
			}
		})
	}
}

// After a crash of the host no VMM runs, whatever is on record, and nothing is believed that was true before.
func TestHostCrash(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"running", "saved", "stopping", "crashed", "waiting", "empty", "used"} {
		r.define(name, "", `restart = "always"`)
	}
	r.Close()
	for name, state := range map[string]life.State{
		"running": life.Running, "saved": life.Saving, "stopping": life.Stopping, "crashed": life.Crashed, "waiting": life.Waiting,
	} {
		dir := filepath.Join(r.dir, "var/guests", name)
		rec := record{Boot: "another", State: state, Note: "as it was", PID: os.Getpid(), Start: 1}
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "overlay"), 0o700), rec.write(dir)); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(r.dir, "var/guests/saved/suspended")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "state"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(r.dir, "var/guests/empty")
	if err := errors.Join(os.MkdirAll(empty, 0o700), os.WriteFile(filepath.Join(empty, recordName), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	// A record of this boot whose number is another process's by now.
	self := record{Boot: "", State: life.Running, PID: os.Getpid(), Start: 1, Began: time.Now()}
	self.Boot, _ = bootID()
	used := filepath.Join(r.dir, "var/guests/used")
	if err := errors.Join(os.MkdirAll(used, 0o700), self.write(used)); err != nil {
		t.Fatal(err)
	}
	r.open()
	for name, want := range map[string]life.State{
		"running": life.Crashed, "saved": life.Saved, "stopping": life.Defined, "crashed": life.Crashed, "waiting": life.Defined, "empty": life.Defined,
		"used": life.Restarting,
	} {
		g, err := r.Get(name)
		if err != nil || g.State != want || g.PID != 0 {
			t.Errorf("%s: %s, %v, want %s", name, g.State, err, want)
		}
		if r.exists("var/guests/" + name + "/overlay") {
			t.Errorf("%s: overlay is left", name)
		}
	}
	if g, _ := r.Get("running"); !strings.Contains(g.Note, "the host went down") {
		t.Errorf("note %q", g.Note)
	}
	if g, _ := r.Get("crashed"); g.Note != "as it was" {
		t.Errorf("note %q", g.Note)
	}
}

// In any order of commands, ends of VMMs and changes of the manager, there are never two VMMs of a guest, none is lost, and
// what the manager says of a guest is true. The guests live on from one check to the next: many short ones make a long life.
func TestAnyOrder(t *testing.T) {
	r := newRig(t)
	names := []string{"a", "b"}
	r.define("a", "", `restart = "never"`, r.disk("a", "x"))
	r.define("b", "", `restart = "on-crash"`, `depends = ["a"]`, `stop_timeout = "1s"`)
	rapid.Check(t, func(t *rapid.T) {
		for range rapid.IntRange(1, 3).Draw(t, "steps") {
			name := rapid.SampledFrom(names).Draw(t, "guest")
			what := rapid.SampledFrom([]string{
				"start", "stop", "kill", "reboot", "pause", "resume", "save", "snapshot", "restore", "discard", "crash", "poweroff", "vmm", "manager",
			}).Draw(t, "what")
			wait := rapid.Bool().Draw(t, "wait")
			var id uint64
			var err error
			switch what {
			case "start":
				id, err = r.Start(name)
			case "stop":
				id, err = r.Stop(name)
			case "kill":
				id, err = r.Kill(name)
			case "reboot":
				id, err = r.Reboot(name)
			case "pause":
				err = r.Pause(r.t.Context(), name)
			case "resume":
				err = r.Resume(r.t.Context(), name)
			case "save":
				id, err = r.Save(name)
			case "snapshot":
				_ = r.DeleteSnapshot(name, "s")
				id, err = r.Snapshot(name, "s")
			case "restore":
				id, err = r.Restore(name, "s", true)
			case "discard":
				err = r.Discard(name)
			case "manager":
				r.reopen()
			case "vmm":
				if g, _ := r.Get(name); g.PID != 0 {
					_ = unix.Kill(g.PID, unix.SIGKILL)
				}
			default:
				if g, _ := r.Get(name); g.State == life.Running {
					r.tryTell(name, what)
				}
			}
			if wait && id != 0 && err == nil {
				_ = r.run(id, nil)
			}
			r.check(t, names)
		}
	})
}

// tryTell is tell for a VMM that may be gone.
func (r *rig) tryTell(name, what string) {
	g, err := r.find(name)
	if err == nil {
		_ = g.call(r.ctx, time.Second, what, nil, nil, nil)
	}
}

// check asks each guest's owner, and the world, whether they agree.
func (r *rig) check(t *rapid.T, names []string) {
	for _, name := range names {
		g, err := r.find(name)
		if err != nil {
			t.Fatal(err)
		}
		g.do(func() {
			if g.proc != nil && !g.state.Alive() {
				t.Errorf("%s is %s, with a VMM", name, g.state)
			}
			if g.proc == nil && g.state.Alive() && g.state != life.Starting && g.state != life.Stopping {
				t.Errorf("%s is %s, without a VMM", name, g.state)
			}
			if g.state == life.Saved && g.saved().IsZero() {
				t.Errorf("%s is saved, without a saved state", name)
			}
			rec, err := readRecord(g.dir())
			switch {
			case err != nil:
				t.Error(err)
			case rec == nil && g.state != life.Defined && g.state != life.Saved:
				t.Errorf("%s is %s, and nothing on record", name, g.state)
			case rec != nil && rec.State != g.state:
				t.Errorf("%s is %s, on record %s", name, g.state, rec.State)
			case g.proc != nil && (rec == nil || rec.PID != g.proc.pid):
				t.Errorf("%s: its VMM is not on record", name)
			}
		})
		if r.exists("var/guests/" + name + "/two-at-once") {
			t.Fatalf("%s has had two VMMs", name)
		}
	}
	alive := 0
	for _, pid := range vmmsOf(r.dir) {
		known := false
		for _, name := range names {
			if g, err := r.Get(name); err == nil && g.PID == pid {
				known = true
			}
		}
		if !known {
			alive++
		}
	}
	if alive > 0 { // one may have ended, or begun, since the list was made
		time.Sleep(50 * time.Millisecond)
		for _, pid := range vmmsOf(r.dir) {
			if !known(r, names, pid) {
				t.Errorf("VMM %d is lost", pid)
			}
		}
	}
}

func known(r *rig, names []string, pid int) bool {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, name := range names {
			if g, err := r.Get(name); err == nil && g.PID == pid {
				return true
			}
		}
		if p, err := openProcess(pid, 0); err != nil {
			return true // it has ended
		} else {
			p.close()
		}
	}
	return false
}

// vmmsOf returns the processes of fake VMMs of a rig, as the kernel knows them.
func vmmsOf(dir string) (pids []int) {
	for _, file := range glob("/proc", "[0-9]*/cmdline") {
		b, err := os.ReadFile(file)
		if err == nil && strings.HasPrefix(string(b), "lodge-vmm\x00") && strings.Contains(string(b), dir) {
			var pid int
			if _, err := fmt.Sscanf(file, "/proc/%d/cmdline", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// The deletion of a guest that was interrupted is finished if its definition has gone, and was none if it has not.
func TestDeletionInterrupted(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"gone", "kept", "whole"} {
		r.define(name, "")
		r.must(r.Snapshot(name, "s"))
	}
	r.Close()
	for _, name := range []string{"gone", "kept"} {
		if err := writeFile(filepath.Join(r.dir, "var/guests", name, deletedName), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(r.dir, "etc/guests/gone.toml")); err != nil {
		t.Fatal(err)
	}
	r.open()
	if r.exists("var/guests/gone") {
		t.Error("a guest that was deleted is left")
	}
	for _, name := range []string{"kept", "whole"} {
		if list, err := r.Snapshots(name); err != nil || len(list) != 1 || r.exists("var/guests/"+name+"/"+deletedName) {
			t.Errorf("guest %s, which was not deleted: %v, %v", name, list, err)
		}
		if err := r.Delete(name); err != nil || r.exists("var/guests/"+name) {
			t.Errorf("guest %s: %v", name, err)
		}
	}
	// What cannot be deleted is not taken for it later.
	r.define("net", "")
	r.define("needs", "", `depends = ["net"]`)
	r.must(r.Snapshot("net", "s"))
	if err := r.Delete("net"); !errors.Is(err, store.ErrNeeded) || r.exists("var/guests/net/"+deletedName) {
		t.Errorf("%v", err)
	}
}
