package cell

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/cell/probe/target"
)

func TestMain(m *testing.M) {
	RunInit(os.Args)
	code := m.Run()
	if probeDir != "" {
		os.RemoveAll(probeDir)
	}
	os.Exit(code)
}

// buildProbe builds the probe once for all tests. LODGE_PROBE names one that was built before, for machines without a compiler.
var buildProbe = sync.OnceValues(func() (path string, err error) {
	if path := os.Getenv("LODGE_PROBE"); path != "" {
		return path, nil
	}
	if probeDir, err = os.MkdirTemp("", "lodge-probe-"); err != nil {
		return "", err
	}
	path = filepath.Join(probeDir, "probe")
	cmd := exec.Command("go", "build", "-o", path, "./probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

var probeDir string

const testUID = FirstUID + 0x1234

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// openProbe returns the probe, and its path.
func openProbe(t testing.TB) (*os.File, string) {
	t.Helper()
	path, err := buildProbe()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, path
}

// tempFile returns a file of root's with that content, open to read and write.
func tempFile(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

// run runs s, with its output in a pipe, to the end, and returns what it printed.
func run(t *testing.T, s Spec) (out []byte, lacks []Lack, state *os.ProcessState) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s.Stdout, s.Stderr = w, w
	p, err := Start(t.Context(), s)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if out, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	if state, err = p.Wait(); err != nil {
		t.Fatal(err)
	}
	return out, p.Lacks, state
}

// results runs the probe in a cell and returns what it tells.
func results(t *testing.T, s Spec, mode string, what target.Target) map[string]string {
	t.Helper()
	s.Args = []string{"probe", mode, encode(t, what)}
	if s.Program == nil {
		s.Program, _ = openProbe(t)
	}
	if s.UID == 0 {
		s.UID = testUID
	}
	out, lacks, state := run(t, s)
	t.Logf("lacks: %v", lacks)
	return decode(t, out, state)
}

func encode(t *testing.T, what target.Target) string {
	t.Helper()
	b, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func decode(t *testing.T, out []byte, state *os.ProcessState) map[string]string {
	t.Helper()
	var r map[string]string
	if err := json.Unmarshal(out, &r); err != nil || !state.Success() {
		t.Fatalf("%v, %v: %s", state, err, out)
	}
	return r
}

// outside runs the probe where it may do everything.
func outside(t *testing.T, mode string, what target.Target, files []File) map[string]string {
	t.Helper()
	_, path := openProbe(t)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`, path, mode, encode(t, what))
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f.File)
	}
	cmd.Env = append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return decode(t, out, cmd.ProcessState)
}

// newTarget makes what there is to be reached.
func newTarget(t *testing.T) target.Target {
	t.Helper()
	dir := t.TempDir()
	what := target.Target{File: filepath.Join(dir, "secret"), Dir: filepath.Join(dir, "dir"), Unix: filepath.Join(dir, "sock"),
		Abstract: "lodge-cell-test-" + strconv.Itoa(os.Getpid()), Key: "lodge-cell-test"}
	// Readable for everybody: what keeps the probe from it is to be the cell.
	if err := errors.Join(os.WriteFile(what.File, []byte("secret"), 0o644), os.Mkdir(what.Dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	for _, at := range []struct{ network, address string }{{"tcp", "127.0.0.1:0"}, {"unix", what.Unix}, {"unix", "@" + what.Abstract}} {
		l, err := net.Listen(at.network, at.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if at.network == "tcp" {
			what.TCP = l.Addr().String()
		}
	}
	_, path := openProbe(t)
	sleeper := exec.CommandContext(t.Context(), path, "sleep", "{}")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sleeper.Process.Kill(); sleeper.Wait() })
	what.PID = sleeper.Process.Pid
	shm, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.SysvShmCtl(shm, unix.IPC_RMID, nil) })
	what.SHM = shm
	// The keyring is the thread's, and the process's that is started from it.
	runtime.LockOSThread() // for good: no other test is to have it
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.AddKey("user", what.Key, []byte("x"), unix.KEY_SPEC_SESSION_KEYRING); err != nil {
		t.Fatal(err)
	}
	return what
}

// Whatever a program in a cell tries, it reaches its descriptors and nothing else. Outside of the cell it reaches it all.
func TestReach(t *testing.T) {
	needRoot(t)
	what := newTarget(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "inside"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	files := []File{{"given", tempFile(t, "for the guest")}, {"directory", d}}
	in := results(t, Spec{Files: files}, "reach", what)
	out := outside(t, "reach", what, files)
	if want := fmt.Sprintf("process 1 user %d group %d", testUID, testUID); in["who"] != want {
		t.Errorf("it is %s, want %s", in["who"], want)
	}
	if in["given"] != "for the guest" {
		t.Errorf("from its file it reads %q", in["given"])
	}
	delete(in, "who")
	delete(in, "given")
	if len(in) < 35 {
		t.Errorf("only %d attempts", len(in))
	}
	for attempt, came := range in {
		t.Logf("%-40s %-45s outside: %s", attempt, came, out[attempt])
		if came == "reached" {
			t.Errorf("%s: reached from the cell", attempt)
		}
		if out[attempt] != "reached" && out[attempt] != "function not implemented" { // by this kernel
			t.Errorf("%s: outside of the cell: %s: the attempt proves nothing", attempt, out[attempt])
		}
	}
}

// It has no more than its limits of anything.
func TestExceed(t *testing.T) {
	needRoot(t)
	l := Limits{Files: 32, Processes: 40, Data: 512 << 20, FileSize: 1 << 20}
	r := results(t, Spec{Limits: l, Files: []File{{"disk", tempFile(t, "")}}}, "exceed", target.Target{})
	for _, c := range []struct {
		what  string
		limit uint64
		err   string
	}{
		{"bytes of memory", l.Data, "cannot allocate memory"},
		{"bytes of a file", l.FileSize + 1<<16, "file too large"},
		{"descriptors", l.Files, "too many open files"},
		{"processes", l.Processes, "resource temporarily unavailable"},
	} {
		n, err, _ := strings.Cut(r[c.what], " ")
		if n, e := strconv.ParseUint(n, 10, 64); e != nil || n == 0 || n > c.limit || !strings.HasSuffix(err, c.err) {
			t.Errorf("%s: %q, want at most %d and then %q", c.what, r[c.what], c.limit, c.err)
		}
	}
}

// sleeper starts a probe in a cell that stays, and returns when it is there.
func sleeper(t *testing.T, s Spec) *Process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s.Program, _ = openProbe(t)
	s.Args, s.UID, s.Stdout = []string{"probe", "sleep", "{}"}, testUID, w
	p, err := Start(t.Context(), s)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill() })
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "here\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return p
}

// awaitState waits until a process's state is one of those, letters of /proc/PID/stat.
func awaitState(t *testing.T, pid int, states string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if strings.Contains(states, rest[:1]) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is in state %s, want one of %s", pid, rest[:1], states)
		}
	}
}

// The kernel's own word on a program in a cell.
func TestStatus(t *testing.T) {
	needRoot(t)
	p := sleeper(t, Spec{Limits: Limits{Files: 100}})
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", testUID), fmt.Sprintf("Gid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", testUID),
		"\nGroups:\t \n", "\nNoNewPrivs:\t1\n", "\nCapInh:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n",
		"\nCapEff:\t0000000000000000\n", "\nCapBnd:\t0000000000000000\n", "\nCapAmb:\t0000000000000000\n",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		in, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.Pid, ns))
		out, err2 := os.Readlink("/proc/self/ns/" + ns)
		if err := errors.Join(err1, err2); err != nil || in == out {
			t.Errorf("namespace %s: %s is the host's (%v)", ns, in, err)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", p.Pid, fd.Name()))
		if err != nil {
			t.Fatal(err)
		}
		mine := strings.HasPrefix(to, "anon_inode:[event") // the poller of Go's runtime
		if n, err := strconv.Atoi(fd.Name()); err != nil || n > 2 && !mine {
			t.Errorf("descriptor %s is %s, which it was not given", fd.Name(), to)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.TrimSpace(string(mounts)); s != "" { // its own root lies outside of what it sees
		t.Errorf("it has the mounts\n%s", s)
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if state, err := p.Wait(); err != nil || state.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("%v, %v", state, err)
	}
}

// openTestParent returns a parent for groups, if there is one.
func openTestParent(t *testing.T) *Parent {
	t.Helper()
	needRoot(t)
	p, err := OpenParent("lodge-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Remove(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestCgroup(t *testing.T) {
	parent := openTestParent(t)
	g, err := parent.NewCgroup("sleeper", GroupLimits{Memory: 256 << 20, Processes: 100, CPUWeight: 50})
	if err != nil {
		t.Fatal(err)
	}
	p := sleeper(t, Spec{Cgroup: g})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if b, err := os.ReadFile(g.path("cgroup.procs")); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(p.Pid) {
		t.Errorf("in the group is %q, %v; want %d", b, err, p.Pid)
	}
	if _, err := parent.NewCgroup("sleeper", GroupLimits{}); err == nil {
		t.Error("a group in which something runs is replaced")
	}
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	before, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if before.CPU == 0 {
		t.Error("it has used no processor")
	}
	if err := g.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	awaitState(t, p.Pid, "RS")
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if state, err := p.Wait(); err != nil || state.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("%v, %v", state, err)
	}
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	again, err := parent.NewCgroup("sleeper", GroupLimits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Remove(ctx); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "manager", "cgroup.procs"} {
		if _, err := parent.NewCgroup(name, GroupLimits{}); err == nil {
			t.Errorf("a group can be called %q", name)
		}
	}
}

// Of a group that was delegated to us, or to which a subgroup of that leads, the cells' groups are made in the first.
func TestDelegated(t *testing.T) {
	for _, own := range []string{"/system.slice/lodged.service", "/system.slice/lodged.service/manager"} {
		mount := t.TempDir()
		group := filepath.Join(mount, "system.slice/lodged.service")
		if err := os.MkdirAll(filepath.Join(group, "manager"), 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"cgroup.controllers": "memory pids cpu", "cgroup.subtree_control": "", "manager/cgroup.procs": ""} {
			if err := os.WriteFile(filepath.Join(group, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p, err := openParent(mount, own, "lodge")
		if err != nil || p.dir != group || len(p.lacks) > 0 {
			t.Errorf("%s: %+v, %v", own, p, err)
		}
		if b, err := os.ReadFile(filepath.Join(group, "manager/cgroup.procs")); err != nil || string(b) != strconv.Itoa(os.Getpid()) {
			t.Errorf("%s: in its subgroup is %q, %v", own, b, err)
		}
	}
}

// A group's limits hold, where its controllers are there; else it says which are not.
func TestCgroupLimits(t *testing.T) {
	parent := openTestParent(t)
	for _, c := range []struct {
		controller, mode string
		limits           GroupLimits
		others           Limits
	}{
		{"memory", "hog", GroupLimits{Memory: 64 << 20}, Limits{}},
		{"pids", "exceed", GroupLimits{Processes: 30}, Limits{Processes: 1000, Data: 512 << 20, FileSize: 1 << 20}},
	} {
		t.Run(c.controller, func(t *testing.T) {
			g, err := parent.NewCgroup("limited", c.limits)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Remove(context.Background())
			if !enabled(t, parent, c.controller) {
				if len(g.Lacks) != 1 || !strings.Contains(g.Lacks[0].Reason, c.controller) {
					t.Errorf("it lacks %v, and does not say so: %v", c.controller, g.Lacks)
				}
				return
			}
			program, _ := openProbe(t)
			out, _, state := run(t, Spec{Program: program, Args: []string{"probe", c.mode, "{}"}, UID: testUID, Cgroup: g,
				Limits: c.others, Files: []File{{"disk", tempFile(t, "")}}})
			if c.controller == "memory" {
				if state.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
					t.Errorf("%v: %s", state, out)
				}
				return
			}
			n, _, _ := strings.Cut(decode(t, out, state)["processes"], " ")
			if count, err := strconv.Atoi(n); err != nil || count < 1 || count > 30 {
				t.Errorf("it has %q processes", n)
			}
		})
	}
}

func enabled(t *testing.T, p *Parent, controller string) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, "cgroup.subtree_control"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), controller)
}

// Who is not root has a cell too, but for the user of its own.
func TestUser(t *testing.T) {
	needRoot(t) // to become somebody else
	const somebody = 12345
	program, _ := openProbe(t)
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join("/tmp", fmt.Sprintf("lodge-cell-%d.test", os.Getpid())) // which somebody can execute
	if err := os.WriteFile(copied, b, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(copied)
	cmd := exec.CommandContext(t.Context(), copied, "-test.run=^TestAsUser$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), "LODGE_TEST_USER=1", "TMPDIR=/tmp")
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{program}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: somebody, Gid: somebody}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: TestAsUser") {
		t.Error(err)
	}
}

// TestAsUser is what TestUser runs as another user.
func TestAsUser(t *testing.T) {
	if os.Getenv("LODGE_TEST_USER") == "" {
		return
	}
	what := target.Target{File: "/etc/passwd", Dir: "/tmp", Unix: "/none", Abstract: "none", TCP: "127.0.0.1:1", PID: os.Getppid(), Key: "none"}
	s := Spec{Program: os.NewFile(3, "probe"), Files: []File{{"given", tempFile(t, "for the guest")}}}
	r := results(t, s, "reach", what)
	if r["given"] != "for the guest" {
		t.Errorf("from its file it reads %q", r["given"])
	}
	if r["who"] != "process 1 user 0 group 0" { // in its user namespace, without capabilities
		t.Errorf("it is %s", r["who"])
	}
	delete(r, "who")
	delete(r, "given")
	for attempt, came := range r {
		if came == "reached" && attempt != "become root" { // which it is, as above
			t.Errorf("%s: reached from the cell", attempt)
		}
	}
	s.Strict, s.Args = true, []string{"probe", "sleep", "{}"}
	if _, err := Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), "not root") {
		t.Errorf("strictly: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	needRoot(t)
	program, _ := openProbe(t)
	dynamic, err := os.Open("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer dynamic.Close()
	empty := tempFile(t, "")
	args := []string{"x"}
	for name, c := range map[string]struct {
		spec Spec
		want string
	}{
		"no name":       {Spec{Program: program, UID: testUID}, "no arguments"},
		"no program":    {Spec{Args: args, UID: testUID}, "no program"},
		"root":          {Spec{Program: program, Args: args}, "user 0"},
		"a person":      {Spec{Program: program, Args: args, UID: 1000}, "user 1000"},
		"a colon":       {Spec{Program: program, Args: args, UID: testUID, Files: []File{{"a:b", empty}}}, "without ':'"},
		"no file":       {Spec{Program: program, Args: args, UID: testUID, Files: []File{{"a", nil}}}, "is nil"},
		"not a program": {Spec{Program: empty, Args: args, UID: testUID}, "execute it"},
		"a null byte":   {Spec{Program: program, Args: []string{"a\x00b"}, UID: testUID}, "execute it"},
		"strict":        {Spec{Program: program, Args: args, UID: testUID, Strict: true}, "control group: none"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Start(t.Context(), c.spec)
			if err == nil {
				p.Kill()
				p.Wait()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if st, err := dynamic.Stat(); err == nil && st.Mode().IsRegular() && os.Getenv("LODGE_PROBE") == "" { // elsewhere it is static
		if _, err := Start(t.Context(), Spec{Program: dynamic, Args: args, UID: testUID}); err == nil || !strings.Contains(err.Error(), "static") {
			t.Errorf("a program with libraries: %v", err)
		}
	}
}

// A program whose number cannot be recorded never runs.
func TestNotRecorded(t *testing.T) {
	needRoot(t)
	program, _ := openProbe(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	failed := errors.New("the disk is full")
	number := 0
	_, err = Start(t.Context(), Spec{Program: program, Args: []string{"probe", "sleep", "{}"}, UID: testUID, Stdout: w,
		Record: func(pid int, lacks []Lack) error {
			if number = pid; len(lacks) == 0 { // there is no control group
				t.Error("nothing is lacking")
			}
			return failed
		}})
	w.Close()
	if !errors.Is(err, failed) {
		t.Error(err)
	}
	if out, err := io.ReadAll(r); err != nil || len(out) > 0 {
		t.Errorf("it has run: %q, %v", out, err)
	}
	if err := unix.Kill(number, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d: %v", number, err)
	}
}

// Whoever is killed before he has recorded the number leaves no process behind.
func TestCallerKilled(t *testing.T) {
	needRoot(t)
	program, _ := openProbe(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestAsVictim$")
	cmd.Env = append(os.Environ(), "LODGE_TEST_VICTIM=1")
	cmd.ExtraFiles = []*os.File{program}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	_, err = fmt.Fscan(out, &pid)
	fd, err2 := unix.PidfdOpen(pid, 0)
	cmd.Process.Kill()
	cmd.Wait()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20000); n != 1 {
		unix.Kill(pid, unix.SIGKILL)
		t.Errorf("process %d does not end: %v", pid, err)
	}
}

// TestAsVictim is what TestCallerKilled kills.
func TestAsVictim(t *testing.T) {
	if os.Getenv("LODGE_TEST_VICTIM") == "" {
		return
	}
	_, err := Start(t.Context(), Spec{Program: os.NewFile(3, "probe"), Args: []string{"probe", "sleep", "{}"}, UID: testUID,
		Record: func(pid int, _ []Lack) error { fmt.Println(pid); select {} }})
	t.Fatal(err)
}

// BenchmarkStart is the time from Start until the program says that it is there, and the same without a cell.
func BenchmarkStart(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	program, path := openProbe(b)
	args := []string{"probe", "sleep", "{}"}
	for name, start := range map[string]func(out *os.File) (*os.Process, error){
		"cell": func(out *os.File) (*os.Process, error) {
			p, err := Start(b.Context(), Spec{Program: program, Args: args, UID: testUID, Stdout: out})
			if err != nil {
				return nil, err
			}
			return p.Process, nil
		},
		"bare": func(out *os.File) (*os.Process, error) {
			return os.StartProcess(path, args, &os.ProcAttr{Files: []*os.File{nil, out, nil}})
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				r, w, err := os.Pipe()
				if err != nil {
					b.Fatal(err)
				}
				p, err := start(w)
				if err != nil {
					b.Fatal(err)
				}
				w.Close()
				if _, err := r.Read(make([]byte, 5)); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				p.Kill()
				p.Wait()
				r.Close()
				b.StartTimer()
			}
		})
	}
}
