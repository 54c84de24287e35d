package main

import (
	"bufio"
	"context"
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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/storaged"
	"github.com/lodgehv/lodge/hypervisor/manager/vmm"
	"github.com/lodgehv/lodge/internal/broker"
	"github.com/lodgehv/lodge/vgpu/display"
)

// buildStatic builds lodge-vmm once for all tests, as it is shipped: what the race detector needs is not for a cell.
// LODGE_VMM names one that was built before, for machines without a compiler.
var buildStatic = sync.OnceValues(func() (path string, err error) {
	if path := os.Getenv("LODGE_VMM"); path != "" {
		return path, nil
	}
	if staticDir, err = os.MkdirTemp("", "lodge-vmm-"); err != nil {
		return "", err
	}
	path = filepath.Join(staticDir, "lodge-vmm")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

var staticDir string

func openStatic(t testing.TB) *os.File {
	t.Helper()
	path, err := buildStatic()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func needRootAndKVM(t testing.TB) {
	t.Helper()
	if !haveKVM() {
		t.Skip("needs /dev/kvm")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// patience is more than anything takes, firmware under a tracer on a busy machine too.
const patience = 3 * time.Minute

// inhabitant is a guest of SeaBIOS with a device of each kind.
type inhabitant struct {
	dir   string
	guest vmm.Guest
	nic   net.Listener // where its network card is connected
	err   *os.File     // lodge-vmm's log
	pid   int          // lodge-vmm

	daemon func() (end func()) // starts what serves the disk of a guest that another process serves it for
}

func newInhabitant(t *testing.T) *inhabitant {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf(`name = "inhabitant"
memory = "64M"
cpus = 2
control = "control.sock"
balloon = true
debug_console = "debug.log"
[boot]
firmware = %q
[[disk]]
name = "root"
path = "disk.img"
[[disk]]
name = "direct"
path = "direct.img"
direct = true
readonly = true
[[nic]]
name = "lan"
socket = "nic.sock"
[serial]
mode = "socket"
path = "serial.sock"
log = "serial.log"
[serial2]
mode = "file"
path = "serial2.log"
[console]
path = "console.sock"
[vsock]
cid = 7
path = "vsock.sock"
[display]
path = "display.sock"
card = "vga"
`, seabios)
	path := filepath.Join(dir, "inhabitant.toml")
	def, err := definition.Parse(path, dir, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disk.img", "direct.img"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	i := &inhabitant{dir: dir, guest: vmm.Guest{Definition: def, File: path, Outcome: filepath.Join(dir, "outcome")}}
	if i.nic, err = net.Listen("unix", filepath.Join(dir, "nic.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.nic.Close() })
	if i.err, err = os.Create(filepath.Join(dir, "stderr")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		i.err.Close()
		if b, err := os.ReadFile(i.err.Name()); t.Failed() && err == nil {
			t.Logf("lodge-vmm said:\n%s", b)
		}
	})
	return i
}

func (i *inhabitant) path(name string) string { return filepath.Join(i.dir, name) }

// call calls a method of the guest.
func (i *inhabitant) call(t *testing.T, method string, params any) {
	t.Helper()
	c, err := control.Dial(t.Context(), i.path("control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Call(t.Context(), method, params, nil, nil); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
}

// await waits until a file holds text, or the process is gone.
func (i *inhabitant) await(t *testing.T, name, text string, gone <-chan struct{}) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(i.path(name))
		if err == nil && strings.Contains(string(b), text) {
			return
		}
		select {
		case <-gone:
			t.Fatal("lodge-vmm has ended")
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %s: %q, %v", text, name, b, err)
		}
	}
}

// painted is a sink that tells when it is shown something.
type painted chan struct{}

func (p painted) once() {
	select {
	case p <- struct{}{}:
	default:
	}
}

func (p painted) Scanout(s *display.Surface) {
	if s != nil {
		p.once()
	}
}
func (p painted) Update(image.Rectangle) {}
func (p painted) Cursor(*display.Cursor) {}
func (p painted) MoveCursor(image.Point) {}

// live has the guest do what guests do, and be done to what is done to them: it boots, is watched, paused, saved and restored.
// start starts a process of it, and wait waits for its end.
// ended waits for lodge-vmm's end. One that does not end says in its log where it is.
func (i *inhabitant) ended(t *testing.T, gone <-chan struct{}) {
	t.Helper()
	select {
	case <-gone:
	case <-time.After(patience):
		if err := unix.Kill(i.pid, unix.SIGQUIT); err == nil {
			select {
			case <-gone:
			case <-time.After(10 * time.Second):
			}
		}
		t.Fatal("lodge-vmm does not end")
	}
}

func (i *inhabitant) live(t *testing.T, start func() (gone <-chan struct{})) {
	gone := start()
	i.await(t, "debug.log", "Booting from Hard Disk", gone) // it has read from the disk
	i.watch(t)
	serial := i.connect(t, "serial.sock")
	if _, err := io.WriteString(serial, "x"); err != nil {
		t.Fatal(err)
	}
	i.connect(t, "serial.sock") // takes its place
	i.connect(t, "console.sock")
	vsock := i.connect(t, "vsock.sock")
	if _, err := io.WriteString(vsock, "CONNECT 1024\n"); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"status", "pause", "resume", "power-button", "nmi"} {
		i.call(t, method, nil)
	}
	i.call(t, "balloon", map[string]uint64{"target": 48 << 20})
	saved := i.path("saved")
	i.save(t, saved)
	c, err := control.Dial(t.Context(), i.path("control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), "save", map[string]string{"dir": i.path("other")}, nil, nil); err == nil || !strings.Contains(err.Error(), "no paths") {
		t.Errorf("save to a path: %v", err)
	}
	c.Close()
	i.call(t, "pause", nil)
	i.save(t, saved)
	i.call(t, "quit", nil)
	i.ended(t, gone)
	i.guest.Restore = saved
	gone = start()
	i.awaitSocket(t, gone)
	for _, method := range []string{"pause", "resume"} {
		i.call(t, method, nil)
	}
	i.watch(t)
	i.broker(t)
	i.call(t, "pause", nil)
	i.save(t, saved)
	i.call(t, "quit", nil)
	i.ended(t, gone)
	if b, err := os.ReadFile(i.path("outcome")); err != nil || !strings.Contains(string(b), `"reason":"closed"`) {
		t.Errorf("outcome %q, %v", b, err)
	}
}

// farDisk gives the guest a disk more, which a storage daemon serves.
func (i *inhabitant) farDisk(t *testing.T) {
	t.Helper()
	cfg := storaged.Config{Name: "far", Socket: i.path("far.sock"), Image: storaged.Image{Path: i.path("disk.img"), Format: storaged.Raw},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	i.guest.Definition.Disks = []definition.Disk{{Name: "far", Socket: cfg.Socket, Reconnect: true}}
	i.daemon = func() (end func()) {
		d, err := storaged.Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return sync.OnceFunc(func() {
			if err := d.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

// liveFar has a guest whose disk another process serves do what that takes. start is as for live.
func (i *inhabitant) liveFar(t *testing.T, start func() (gone <-chan struct{})) {
	end := i.daemon()
	defer func() { end() }()
	serve, ask, err := broker.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ask.Close()
	asked := make(chan broker.Request, 100)
	go broker.Serve(t.Context(), serve, func(_ context.Context, r broker.Request) (*os.File, error) {
		asked <- r
		return vmm.Connect(i.path("far.sock"))
	})
	i.guest.Broker = ask
	gone := start()
	i.await(t, "debug.log", "Booting from Hard Disk", gone)
	end()
	end = i.daemon()
	for _, method := range []string{"pause", "resume", "pause"} { // by then it has another connection
		i.call(t, method, nil)
	}
	select {
	case r := <-asked:
		if r.What != broker.Disk || r.Name != "far" {
			t.Errorf("it asks for %+v", r)
		}
	case <-time.After(patience):
		t.Fatal("it does not ask for its disk")
	}
	i.save(t, i.path("saved"))
	i.call(t, "quit", nil)
	i.ended(t, gone)
	i.guest.Restore = i.path("saved")
	gone = start()
	i.awaitSocket(t, gone)
	i.call(t, "quit", nil)
	i.ended(t, gone)
}

func (i *inhabitant) save(t *testing.T, dir string) {
	t.Helper()
	if err := vmm.Save(t.Context(), i.path("control.sock"), dir, nil); err != nil {
		t.Fatal(err)
	}
}

// broker gives the guest somebody to ask, twice: it lets go of the first.
func (i *inhabitant) broker(t *testing.T) {
	t.Helper()
	c, err := control.Dial(t.Context(), i.path("control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first := make(chan error, 1)
	for k := range 2 {
		serve, ask, err := broker.Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer ask.Close()
		if err := c.Call(t.Context(), "broker", nil, nil, nil, ask); err != nil {
			t.Fatal(err)
		}
		ask.Close()
		if k > 0 {
			defer serve.Close()
			break
		}
		go func() { first <- broker.Serve(t.Context(), serve, nil) }()
	}
	select {
	case err := <-first:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the first broker is in use still")
	}
}

// awaitSocket waits until the guest answers. Its socket listened before it did.
func (i *inhabitant) awaitSocket(t *testing.T, gone <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		select {
		case <-gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	c, err := control.Dial(ctx, i.path("control.sock"))
	if err == nil {
		err = errors.Join(c.Call(ctx, "status", nil, nil, nil), c.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (i *inhabitant) connect(t *testing.T, name string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", i.path(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// watch looks at the guest's screen once.
func (i *inhabitant) watch(t *testing.T) {
	t.Helper()
	c, err := qdisplay.Dial(i.path("display.sock"), qdisplay.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	shown := make(painted, 1)
	r, err := c.Listen(t.Context(), 0, shown, qdisplay.ReceiverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	select {
	case <-shown:
	case <-time.After(patience):
		t.Fatal("the guest shows nothing")
	}
}

// A guest lives its whole life in a cell, and lodge-vmm is never caught at a system call that it may not make.
func TestCell(t *testing.T) {
	needRootAndKVM(t)
	t.Run("all devices", func(t *testing.T) {
		i := newInhabitant(t)
		i.live(t, i.inCell(t))
		for _, name := range []string{"other", "saved.tmp"} {
			if left, _ := filepath.Glob(i.path(name + "*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		}
	})
	t.Run("disk of another process", func(t *testing.T) {
		i := newInhabitant(t)
		i.farDisk(t)
		i.liveFar(t, i.inCell(t))
	})
}

// inCell returns what starts the guest in a cell.
func (i *inhabitant) inCell(t *testing.T) func() (gone <-chan struct{}) {
	program := openStatic(t)
	return func() <-chan struct{} {
		p, err := vmm.Start(t.Context(), &i.guest, program, cell.Spec{UID: cell.FirstUID + 77, Stdout: i.err, Stderr: i.err})
		if err != nil {
			t.Fatal(err)
		}
		i.pid = p.Pid
		for _, l := range p.Lacks {
			t.Logf("the cell lacks %v", l)
		}
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			state, err := p.Wait()
			if err != nil || !state.Success() {
				t.Errorf("lodge-vmm: %v, %v", state, err)
			}
		}()
		t.Cleanup(func() { p.Kill(); <-gone })
		return gone
	}
}

// What is handed over has to be all that the guest needs, and no more.
func TestHandedOver(t *testing.T) {
	needRootAndKVM(t)
	i := newInhabitant(t)
	all, err := vmm.Open(&i.guest)
	if err != nil {
		t.Fatal(err)
	}
	defer vmm.Close(all)
	program := openStatic(t)
	start := func(files []cell.File, args ...string) string {
		out, err := os.Create(i.path("out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		p, err := cell.Start(t.Context(), cell.Spec{Program: program, UID: cell.FirstUID + 78, Stderr: out, Files: files,
			Args: append([]string{"lodge-vmm", "run"}, args...)})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Kill()
		kill := time.AfterFunc(time.Minute, func() { p.Kill() })
		defer kill.Stop()
		if state, err := p.Wait(); err != nil || state.Success() || !state.Exited() {
			t.Errorf("%v, %v", state, err)
		}
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for k, f := range all {
		if f.Name == "outcome" { // nobody need know
			continue
		}
		rest := append(append([]cell.File(nil), all[:k]...), all[k+1:]...)
		if said := start(rest, i.guest.File); !strings.Contains(said, fmt.Sprintf("no descriptor %q", f.Name)) {
			t.Errorf("without %s: %s", f.Name, said)
		}
	}
	for name, c := range map[string]struct {
		files []cell.File
		path  string
		want  string
	}{
		"one too many":    {append(all[:len(all):len(all)], cell.File{Name: "disk.more", File: all[0].File}), i.guest.File, "no part of this guest: disk.more"},
		"one twice":       {append(all[:len(all):len(all)], all[0]), i.guest.File, "two descriptors are called \"kvm\""},
		"a relative path": {all, "inhabitant.toml", "absolute path"},
	} {
		if said := start(c.files, c.path); !strings.Contains(said, c.want) {
			t.Errorf("%s: %s", name, said)
		}
	}
}

// A guest in a cell reaches ports of the host through the broker alone, and the network again when its helper comes back.
func TestBroker(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	serve, ask, err := broker.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ask.Close()
	go broker.Serve(t.Context(), serve, func(_ context.Context, r broker.Request) (*os.File, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		other := os.NewFile(uintptr(fds[1]), "other")
		defer other.Close()
		fmt.Fprintf(other, "%s %d%s\n", r.What, r.Port, r.Name)
		return os.NewFile(uintptr(fds[0]), "one"), nil
	})
	client := new(broker.Client)
	if err := client.Use(ask); err != nil {
		t.Fatal(err)
	}
	r := &resources{handed: &handed{given: true}, broker: client}
	conn, err := r.vsockDial("/none")(t.Context(), 1234)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "vsock 1234\n" {
		t.Errorf("%q, %v", line, err)
	}
	client.Close()
	if _, err := r.vsockDial("/none")(t.Context(), 1234); err == nil {
		t.Error("without a broker the guest can still connect")
	}
}

// forbidden are system calls that lodge-vmm has no use for, and what whoever has taken it over would do with them.
var forbidden = map[string]func(){
	"execute":          func() { _ = unix.Exec("/bin/true", []string{"true"}, nil) },
	"fork":             func() { unix.RawSyscall(unix.SYS_FORK, 0, 0, 0) },
	"clone":            func() { unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0) },
	"clone3":           func() { unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0) },
	"new namespace":    func() { _ = unix.Unshare(unix.CLONE_NEWUSER) },
	"socket":           func() { _, _ = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0) },
	"vsock":            func() { _, _ = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) },
	"connect":          func() { _ = unix.Connect(0, &unix.SockaddrUnix{Name: "/x"}) },
	"ptrace":           func() { unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0) },
	"other memory":     func() { _, _ = unix.ProcessVMReadv(os.Getpid(), nil, nil, 0) },
	"signal others":    func() { _ = unix.Kill(os.Getppid(), 0) },
	"thread of others": func() { _ = unix.Tgkill(1<<20, 1, 0) },
	"keyctl":           func() { _, _ = unix.KeyctlInt(0, 0, 0, 0, 0) },
	"add_key":          func() { _, _ = unix.AddKey("user", "x", []byte("x"), 0) },
	"io_uring":         func() { unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, 0, 0) },
	"userfaultfd":      func() { unix.RawSyscall(unix.SYS_USERFAULTFD, 1, 0, 0) },
	"bpf":              func() { unix.RawSyscall(unix.SYS_BPF, 0, 0, 0) },
	"perf":             func() { _, _ = unix.PerfEventOpen(new(unix.PerfEventAttr), 0, -1, -1, 0) },
	"kexec":            func() { unix.RawSyscall(unix.SYS_KEXEC_LOAD, 0, 0, 0) },
	"mount":            func() { _ = unix.Mount("x", "/", "tmpfs", 0, "") },
	"chroot":           func() { _ = unix.Chroot("/") },
	"set user":         func() { unix.RawSyscall(unix.SYS_SETUID, 0, 0, 0) },
	"unlink":           func() { _ = unix.Unlink("/x") },
	"open by handle":   func() { _, _ = unix.OpenByHandleAt(0, unix.NewFileHandle(0, nil), 0) },
	"shared memory":    func() { _, _ = unix.SysvShmGet(unix.IPC_PRIVATE, 4096, 0) },
	"new code":         func() { _, _ = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON) },
	"changed code":     func() { unix.RawSyscall(unix.SYS_MPROTECT, 0, 4096, unix.PROT_READ|unix.PROT_EXEC) },
	"terminal input":   func() { _ = unix.IoctlSetPointerInt(0, unix.TIOCSTI, 'x') },
	"other ioctl":      func() { _, _ = unix.IoctlGetInt(0, unix.TIOCOUTQ) },
	"prctl":            func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"seccomp":          func() { unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, 0) },
	"x32":              func() { unix.RawSyscall(1<<30|unix.SYS_GETPID, 0, 0, 0) },
}

// attempt is a program that gives up what lodge-vmm gives up, and then does something forbidden.
func attempt() {
	if err := newSyscalls(false).seal(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if do := forbidden[os.Args[1]]; do != nil {
		do()
	}
	os.Exit(0)
}

// Each of them is the process's end.
func TestForbidden(t *testing.T) {
	// Without C, whose library and race detector make calls of their own.
	attempt := filepath.Join(t.TempDir(), "attempt")
	build := exec.Command("go", "test", "-c", "-o", attempt, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name := range forbidden {
		t.Run(name, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), attempt, name).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGSYS {
				t.Errorf("%v, want SIGSYS: %s", err, out)
			}
		})
	}
	if out, err := exec.CommandContext(t.Context(), attempt, "nothing").CombinedOutput(); err != nil {
		t.Errorf("to do nothing: %v: %s", err, out)
	}
}

// BenchmarkStart is the time from lodge-vmm's start to what the first instructions of its guest write to the serial port:
// alone, as lodge-vmm is started from a command line, and in a cell, all that the cell takes included.
func BenchmarkStart(b *testing.B) {
	needRootAndKVM(b)
	dir := b.TempDir()
	if err := writeGuest(filepath.Join(dir, "kernel"), "count"); err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(dir, "count.toml")
	text := []byte("name = \"count\"\nmemory = \"256M\"\ncontrol = \"sock\"\n[boot]\nkernel = \"kernel\"\n")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		b.Fatal(err)
	}
	def, err := definition.Load(path)
	if err != nil {
		b.Fatal(err)
	}
	program := openStatic(b)
	parent, err := cell.OpenParent("lodge-bench")
	if err != nil {
		b.Fatal(err)
	}
	defer parent.Remove()
	var group *cell.Cgroup
	for _, c := range []struct {
		name  string
		start func(out *os.File) (*os.Process, error)
	}{
		{"bare", func(out *os.File) (*os.Process, error) {
			return os.StartProcess(program.Name(), []string{"lodge-vmm", "run", path}, &os.ProcAttr{Files: []*os.File{nil, out, os.Stderr}})
		}},
		{"cell", func(out *os.File) (*os.Process, error) {
			g, err := parent.NewCgroup("bench", cell.GroupLimits{Memory: 512 << 20, Processes: 100, CPUWeight: 100})
			if err != nil {
				return nil, err
			}
			group = g
			p, err := vmm.Start(b.Context(), &vmm.Guest{Definition: def, File: path, Stdio: out}, program,
				cell.Spec{UID: cell.FirstUID + 79, Cgroup: g, Stderr: os.Stderr})
			if err != nil {
				return nil, err
			}
			return p.Process, nil
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				r, w, err := os.Pipe()
				if err != nil {
					b.Fatal(err)
				}
				p, err := c.start(w)
				if err != nil {
					b.Fatal(err)
				}
				w.Close()
				if _, err := r.Read(make([]byte, 1)); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				p.Kill()
				p.Wait()
				r.Close()
				if group != nil {
					if err := group.Remove(b.Context()); err != nil {
						b.Fatal(err)
					}
					group = nil
				}
				b.StartTimer()
			}
		})
	}
}
