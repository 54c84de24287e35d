package manager

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
)

// idleManager starts a manager in a process of its own with n guests that run and do nothing.
func idleManager(t testing.TB, n int) *victimProcess {
	t.Helper()
	r := newRig(t)
	for i := range n {
		r.define(fmt.Sprintf("g%d", i), "", "[vsock]", fmt.Sprintf("cid = %d", i+3))
	}
	r.Close()
	v := startVictim(t, r.dir)
	for i := range n {
		name := fmt.Sprintf("g%d", i)
		if got := v.do(name, "start"); got != "done <nil>" {
			t.Fatal(got)
		}
		awaitRecord(t, r.dir, name, life.Running)
	}
	t.Cleanup(func() {
		v.kill()
		r.open() // for the rig to close
	})
	time.Sleep(10 * watchPause) // until the last answers are in
	return v
}

// wakeups returns how often the threads of a process have gone to sleep and been woken, proc_pid_status(5).
func wakeups(t testing.TB, pid int) (n int) {
	t.Helper()
	for _, file := range glob("/proc", fmt.Sprintf("%d/task/*/status", pid)) {
		n += field(t, file, "voluntary_ctxt_switches:")
	}
	return n
}

func field(t testing.TB, file, key string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, key); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s: no %s", file, key)
	return 0
}

// While nothing happens a manager does nothing.
func TestIdle(t *testing.T) {
	v := idleManager(t, 4)
	const seconds = 3
	quiet := 1 << 30
	for range 3 { // the runtime has its own business once in a while, such as a collection every two minutes
		before := wakeups(t, v.cmd.Process.Pid)
		time.Sleep(seconds * time.Second)
		if quiet = min(quiet, wakeups(t, v.cmd.Process.Pid)-before); quiet == 0 {
			return
		}
	}
	t.Errorf("%d wake-ups in %d seconds at best", quiet, seconds)
}

// BenchmarkIdle tells what 16 guests cost that do nothing.
func BenchmarkIdle(b *testing.B) {
	v := idleManager(b, 16)
	pid := v.cmd.Process.Pid
	before := wakeups(b, pid)
	const seconds = 5
	for b.Loop() {
		time.Sleep(seconds * time.Second)
	}
	b.ReportMetric(float64(wakeups(b, pid)-before)/seconds/float64(b.N), "wakeups/s")
	b.ReportMetric(float64(field(b, fmt.Sprintf("/proc/%d/status", pid), "VmRSS:"))/1024, "MiB")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkList lists 100 guests.
func BenchmarkList(b *testing.B) {
	r := newRig(b)
	for i := range 100 {
		r.define(fmt.Sprintf("g%d", i), "")
	}
	for b.Loop() {
		if len(r.List()) != 100 {
			b.Fatal("not all")
		}
	}
}

// BenchmarkStart starts and kills a guest whose VMM does nothing: what the manager adds.
func BenchmarkStart(b *testing.B) {
	r := newRig(b)
	r.define("a", "")
	for b.Loop() {
		if err := r.run(r.Start("a")); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.run(r.Kill("a")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
