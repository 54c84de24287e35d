package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/guest"
	"github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
)

// TestCell has what a cell is made of tried on the notebook's kernel, which has all of it, and a Debian guest live in one.
func TestCell(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // the first time, images are built
	defer cancel()
	b, err := image.NewBuilder(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	vmm, _, err := b.GoProgram(ctx, "./cmd/lodge-vmm", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	tools, err := guest.Tools(ctx, b, vmm)
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{"bin/incell": "./e2e/incell", "bin/probe": "./hypervisor/manager/cell/probe"}
	for name, pkg := range programs {
		if programs[name], _, err = b.GoProgram(ctx, pkg, "amd64"); err != nil {
			t.Fatal(err)
		}
	}
	maps.Copy(tools, programs)
	if tools["bin/cell.test"], err = b.GoTest(ctx, "./hypervisor/manager/cell", "amd64"); err != nil {
		t.Fatal(err)
	}
	nb, err := notebook.Start(ctx, notebook.Config{Builder: b, Tools: tools, CPUs: 1, Disks: []notebook.Disk{extraDisk}, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nb.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := nb.Shell(ctx, "mkdir -p /sys/fs/cgroup /tmp; mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup; mount -t tracefs none /sys/kernel/tracing; ifconfig lo up"); err != nil {
		t.Fatal(err)
	}
	t.Run("layers", func(t *testing.T) { testLayers(ctx, t, nb) })
	t.Run("guest", func(t *testing.T) { testInhabitant(ctx, t, nb) })
}

// testLayers runs the tests of the package that makes cells.
func testLayers(ctx context.Context, t *testing.T, nb *notebook.Notebook) {
	r, err := nb.Do(ctx, rpc.Cmd{Args: []string{"/tools/bin/cell.test", "-test.v", "-test.timeout=5m"}, Env: []string{"LODGE_PROBE=/tools/bin/probe"}, Dir: "/tmp"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s%s", r.Stdout, r.Stderr)
	if r.Code != 0 || !strings.Contains(r.Stdout, "--- PASS: TestReach") || strings.Contains(r.Stdout, "--- SKIP") {
		t.Errorf("exit status %d", r.Code)
	}
	// The kernel of the notebook has all controllers, so that all limits were tried.
	if strings.Contains(r.Stdout, "no controllers") {
		t.Error("a control group lacks controllers")
	}
}

// ofDrivers are the calls that only a guest with drivers has lodge-vmm make: its test of its list cannot see them.
var ofDrivers = []string{"preadv", "pwritev", "fallocate", "shutdown", "readv", "writev"}

// testInhabitant has a guest in a cell use all that it has, and looks at which system calls that takes.
func testInhabitant(ctx context.Context, t *testing.T, nb *notebook.Notebook) {
	host := guest.InNotebook(nb)
	host.VMM = "/tools/bin/incell"
	url, err := startTap(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	lan, err := host.StartNetwork(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // a call that lodge-vmm may not make is in the kernel's log, if it has auditing
		if log, err := nb.Shell(ctx, "dmesg | grep 'type=1326' || true"); t.Failed() && err == nil {
			t.Logf("the kernel says:\n%s", log)
		}
	}()
	m := &vm{begin: time.Now()}
	m.Guest, err = host.Start(ctx, guest.Config{Name: "amd64", Arch: "amd64", CPUs: 2, CID: 10, Flags: "balloon = true",
		Extra: lan.NIC() + extraDisks + "[[nic]]\nname = \"direct\"\ntap = \"" + tapName + "\"\n"})
	if err != nil {
		t.Fatal(err)
	}
	pid, err := m.Await(ctx, 0, regexp.MustCompile(`incell: process (\d+) lacks (.*)\n`))
	if err != nil {
		t.Fatal(err)
	}
	if pid[2] != "[]" && !strings.Contains(pid[2], "Landlock: ABI") { // Debian's is older than what we know of
		t.Errorf("the cell lacks %s", pid[2])
	}
	const trace = `set -e
cd /sys/kernel/tracing
echo 1 >options/event-fork
known=
while now=$(ls /proc/%s/task); [ "$now" != "$known" ]; do # a thread may begin before its parent is known
	echo $now >>set_event_pid
	known=$now
done
echo 'hist:keys=id.syscall' >events/raw_syscalls/sys_enter/trigger`
	if _, err := nb.Shell(ctx, fmt.Sprintf(trace, pid[1])); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("ready %.1f s after the start", time.Since(m.begin).Seconds())
	if m.agent, err = m.Agent(ctx); err != nil {
		t.Fatal(err)
	}
	l := &lab{nb: nb, host: host, tap: url, lan: lan, vms: map[string]*vm{"amd64": m}, cpus: map[string]int{"amd64": 2}}
	t.Run("disks", func(t *testing.T) { l.testDisks(ctx, t) })
	t.Run("tap", func(t *testing.T) { m.download(ctx, t, url, body) })
	t.Run("vsock to the host", func(t *testing.T) {
		const port = 5000
		if _, _, err := guest.StartServer(ctx, nb.Client, rpc.Self, "echo", "unix", fmt.Sprintf("%s_%d", host.Path("amd64", ".vsock"), port)); err != nil {
			t.Fatal(err)
		}
		conn, err := m.agent.Dial(ctx, "vsock", fmt.Sprintf("2:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		if err := checkEcho(ctx, conn); err != nil {
			t.Error(err)
		}
	})
	for _, command := range [][]string{{"pause"}, {"resume"}, {"status"}} {
		if _, err := m.Command(ctx, command[0]); err != nil {
			t.Error(err)
		}
	}
	if err := m.PowerOff(ctx); err != nil {
		t.Error(err)
	}
	hist, err := nb.Shell(ctx, "cat /sys/kernel/tracing/events/raw_syscalls/sys_enter/hist")
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range ofDrivers {
		if !strings.Contains(hist, "sys_"+call+" ") {
			t.Errorf("lodge-vmm has not made %s:\n%s", call, hist)
		}
	}
}
