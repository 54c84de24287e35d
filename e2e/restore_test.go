package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
)

func (l *lab) testRestore(ctx context.Context, t *testing.T) {
	for _, c := range []struct {
		name, guest string
		stop        bool // by "save --stop"; otherwise the guest is paused, saved and killed
		flags       []string
	}{
		{"amd64 private", "amd64", false, nil},
		{"amd64 shared", "amd64", true, []string{"--shared"}},
		{"i386 private", "i386", false, nil},
	} {
		t.Run(c.name, func(t *testing.T) { l.saveAndRestore(ctx, t, c.guest, c.stop, c.flags...) })
	}
}

// standstill is how long a guest is saved at least: in less, a clock that stood still could not be told from one that went on.
const standstill = 5 * time.Second

// counterLog is where a guest's counter writes to.
const counterLog = "/tmp/counter"

func (l *lab) saveAndRestore(ctx context.Context, t *testing.T, name string, stop bool, flags ...string) {
	m := l.guest(ctx, t, name)
	sum := m.data(ctx, t)
	// Detached: the agent's connections end with the machine, and what they have started with them.
	pid, err := m.agent.Do(ctx, rpc.Cmd{Args: []string{rpc.Self, "counter", "-every", "50ms"}, Log: counterLog})
	if err != nil {
		t.Fatal(err)
	}
	m.counted(ctx, t, 0)

	dir := "/tmp/saved-" + name
	saved := time.Now()
	if stop {
		if _, err := m.Command(ctx, "save", "--stop", dir); err != nil {
			t.Fatal(err)
		}
		if code, err := m.Wait(ctx); err != nil || code != 0 {
			t.Fatalf("after save --stop, lodge-vmm exits with %d, %v", code, err)
		}
	} else {
		// What the guest wrote to its disk after the save would be unknown to what is restored.
		for _, c := range [][]string{{"pause"}, {"save", dir}} {
			if _, err := m.Command(ctx, c[0], c[1:]...); err != nil {
				t.Fatal(err)
			}
		}
		if s := m.status(ctx, t); s.State != "paused" {
			t.Errorf("after pause and save, the guest is %s", s.State)
		}
		if err := m.Kill(ctx); err != nil {
			t.Fatal(err)
		}
	}
	l.damage(ctx, t, dir)
	time.Sleep(time.Until(saved.Add(standstill)))

	begin := time.Now()
	g, err := l.host.Restore(l.config(name), dir, flags...)
	if err != nil {
		t.Fatal(err)
	}
	m = &vm{Guest: g, begin: begin}
	l.vms[name] = m
	l.connect(ctx, t, m)
	t.Logf("saved for %.1f s, answers %.2f s after its restore", begin.Sub(saved).Seconds(), time.Since(begin).Seconds())

	m.counted(ctx, t, m.counted(ctx, t, 0)+10)
	l.checkClock(ctx, t, m)
	m.download(ctx, t, l.lan.URL, body)
	m.download(ctx, t, map[string]string{"amd64": l.tap, "i386": l.passt}[name], body)
	if got := m.shell(ctx, t, "/usr/lib/lodge/agent sum /root/data "+dataSize); got != sum {
		t.Errorf("data written before: sum %s, want %s", got, sum)
	}
	m.shell(ctx, t, "kill "+strings.TrimSpace(pid.Stdout)+" && rm "+counterLog)
	l.shell(ctx, t, "rm -r "+dir)
}

// counted waits until the guest's counter has reached n, and returns where it is. Its numbers have no gap.
func (m *vm) counted(ctx context.Context, t *testing.T, n int) int {
	t.Helper()
	last := -1
	until(ctx, t, fmt.Sprintf("the counter of guest %s to %d", m.Name(), n), func() (bool, error) {
		out, err := m.agent.Shell(ctx, "cat "+counterLog)
		if err != nil {
			return false, err
		}
		last = -1
		for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); last++ {
			if f := strings.Fields(s.Text()); len(f) == 3 && f[0] != strconv.Itoa(last+1) {
				return false, fmt.Errorf("the counter goes from %d to %s", last, f[0])
			}
		}
		return last >= n, nil
	})
	return last
}

// checkClock compares the guest's clock with the notebook's.
func (l *lab) checkClock(ctx context.Context, t *testing.T, m *vm) {
	t.Helper()
	read := func(out string) float64 {
		s, err := strconv.ParseFloat(out, 64)
		if err != nil {
			t.Fatalf("date: %v", err)
		}
		return s
	}
	before := read(l.shell(ctx, t, "date +%s")) // the notebook's knows no fractions
	guest := read(m.shell(ctx, t, "date +%s.%N"))
	after := read(l.shell(ctx, t, "date +%s"))
	t.Logf("guest %s: its clock says %.1f, the notebook's %.0f to %.0f", m.Name(), guest, before, after)
	if guest < before-2 || guest > after+1+2 {
		t.Errorf("guest %s: its clock says %.1f, the notebook's %.0f to %.0f", m.Name(), guest, before, after)
	}
}

// damage makes damaged copies of the state in dir, each of which is to be refused by name.
func (l *lab) damage(ctx context.Context, t *testing.T, dir string) {
	t.Helper()
	for _, c := range []struct{ what, script, message string }{
		{"a changed byte", "printf X | dd of=$D/state bs=1 seek=3000 conv=notrunc 2>/dev/null", "damaged"},
		{"half of the state", "s=$(stat -c %s $D/state); truncate -s $((s / 2)) $D/state", "cut short"},
		{"another file", "head -c 10000 /bin/agent >$D/state", "not a saved state"},
		{"no memory", "rm $D/ram", "ram: no such file"},
		{"memory cut short", "rm $D/ram; head -c 1000000 " + dir + "/ram >$D/ram", "cut short"},
	} {
		// The memory is large: a link to it does where it is not what is damaged.
		bad := dir + "-damaged"
		l.shell(ctx, t, fmt.Sprintf("D=%s; rm -rf $D; mkdir $D; cp %s/state $D; ln %[2]s/ram $D; %s", bad, dir, c.script))
		t.Log(c.what)
		l.refused(ctx, t, c.message, "restore", bad)
	}
	l.shell(ctx, t, "rm -r "+dir+"-damaged")
}
