package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/guest"
)

// hostileRounds is how many rounds of garbage the hostile guest is to do, and hostileLimit how long it is given for them.
const (
	hostileRounds = 8
	hostileLimit  = 60 * time.Second
	hostileMin    = 1                // rounds without which the test says nothing: a guest may well bring itself to a halt
	hostilePause  = 10 * time.Second // for which the neighbour may stand still beyond what the notebook, whose host may be busy, does
)

// testHostile runs a guest beside guest i386 whose init is the program hostile. Its VMM may run on, or end as it does when
// a guest resets, crashes or switches off its machine; it may not grow, stop to answer, or stop its neighbour.
func (l *lab) testHostile(ctx context.Context, t *testing.T) {
	neighbour := l.guest(ctx, t, "i386")
	l.shell(ctx, t, "cd /tools/bin && echo hostile | cpio -o -H newc >/run/hostile.cpio && truncate -s 64M /run/hostile.img")
	g, err := l.host.Start(ctx, guest.Config{
		Name: "hostile", Arch: "amd64", MemoryMB: 128, CID: 12, Initrd: "/run/hostile.cpio", Disk: "/run/hostile.img",
		Cmdline: fmt.Sprintf("rdinit=/hostile loglevel=1 lodge.rounds=%d", hostileRounds), // what its kernel has to say takes most of its time
		Extra:   l.lan.NIC() + "[console]\npath = \"/run/hostile.console\"\n", Flags: "balloon = true",
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Await(ctx, 0, regexp.MustCompile(`hostile: seed \d+`)); err != nil {
		t.Fatal(err)
	}
	counting, control := startCounting(t, neighbour.agent), startCounting(t, l.nb.Client)
	m := &vm{Guest: g}
	pid := m.status(ctx, t).PID
	resident := int64(0)
	deadline := time.Now().Add(hostileLimit)
	over := false
	for !over && time.Now().Before(deadline) {
		select {
		case <-g.Done():
			over = true
		case <-time.After(500 * time.Millisecond):
			if out, err := l.nb.Shell(ctx, fmt.Sprintf("grep VmHWM /proc/%d/status", pid)); err == nil {
				resident = max(resident, kib(t, out))
			}
			over = regexp.MustCompile(`hostile: (done|failed)`).MatchString(g.Console())
		}
	}
	text := g.Console()
	rounds := strings.Count(text, "hostile: round")
	pause, whole := counting.stop(), control.stop()
	t.Logf("%d rounds, at most %d MiB resident, the neighbour's longest pause %v, the notebook's own %v", rounds, resident>>20, pause, whole)
	if rounds < hostileMin || strings.Contains(text, "hostile: failed") {
		t.Errorf("there was not much of an attack: %d rounds", rounds)
	}
	if resident > 128<<20+64<<20 {
		t.Errorf("the VMM of a guest of 128 MiB has grown to %d MiB", resident>>20)
	}
	if pause-whole > hostilePause {
		t.Errorf("the neighbour stood still for %v, the notebook itself for %v", pause, whole)
	}
	l.endHostile(ctx, t, m)
	if text := g.Console(); strings.Contains(text, "panic: ") && strings.Contains(text, "goroutine ") || strings.Contains(text, "fatal error: ") {
		t.Error("lodge-vmm panicked")
	}
	if t.Failed() {
		t.Logf("the console of hostile:\n%s", g.Console())
	}
}

// endHostile ends the hostile guest, which may have ended itself.
func (l *lab) endHostile(ctx context.Context, t *testing.T, m *vm) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, fmt.Errorf("the VMM of the hostile guest does not answer"))
	defer cancel()
	_, quit := m.Command(ctx, "quit") // which fails where the guest switches off its machine just now
	code, err := m.Wait(ctx)
	if err != nil {
		t.Error(err, quit)
		_ = m.Kill(context.WithoutCancel(ctx))
	} else if code != 0 && code != 4 { // off, or crashed
		t.Errorf("lodge-vmm exits with %d", code)
	}
}

// counting follows a counter.
type counting struct {
	proc    *rpc.Process
	longest chan time.Duration
	result  time.Duration
	stopped bool
}

// startCounting starts a counter where an agent is, whose lines are timed as they arrive.
func startCounting(t *testing.T, agent *rpc.Client) *counting {
	t.Helper()
	out, in := io.Pipe()
	p, err := agent.Start(rpc.Cmd{Args: []string{rpc.Self, "counter"}, Stdout: in})
	if err != nil {
		t.Fatal(err)
	}
	c := &counting{proc: p, longest: make(chan time.Duration, 1)}
	go func() {
		<-p.Done()
		in.Close()
	}()
	go func() {
		var longest time.Duration
		last, want := time.Now(), 0
		for s := bufio.NewScanner(out); s.Scan(); want++ {
			if n, _, _ := strings.Cut(s.Text(), " "); n != strconv.Itoa(want) {
				longest = time.Hour // a gap in the numbers: not what a counter does
			}
			longest = max(longest, time.Since(last))
			last = time.Now()
		}
		c.longest <- max(longest, time.Since(last))
	}()
	t.Cleanup(func() { c.stop() })
	return c
}

// stop ends the counter and returns the longest time between two of its numbers.
func (c *counting) stop() time.Duration {
	if !c.stopped {
		c.stopped = true
		if c.proc.Kill() == nil {
			c.result = <-c.longest
		} else {
			c.result = time.Hour // its machine is gone
		}
	}
	return c.result
}
