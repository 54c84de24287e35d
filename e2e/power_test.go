package e2e_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
)

func (l *lab) testReboot(ctx context.Context, t *testing.T) {
	m := l.guest(ctx, t, "amd64")
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	id, reboots, shown := m.shell(ctx, t, bootID), m.status(ctx, t).Reboots, len(m.Console())
	if _, err := m.agent.Start(rpc.Cmd{Args: []string{"reboot"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Await(ctx, shown, regexp.MustCompile(`lodge-guest: ready`)); err != nil {
		t.Fatal(err)
	}
	l.connect(ctx, t, m)
	if m.shell(ctx, t, bootID) == id {
		t.Error("the guest's kernel is the one from before the reboot")
	}
	if s := m.status(ctx, t); s.Reboots != reboots+1 || s.State != "running" {
		t.Errorf("status says %+v; there were %d reboots before", s, reboots)
	}
}

func (l *lab) testPowerOff(ctx context.Context, t *testing.T) {
	m := l.guest(ctx, t, "i386")
	if _, err := m.agent.Start(rpc.Cmd{Args: []string{"poweroff"}}); err != nil {
		t.Fatal(err)
	}
	l.checkOff(ctx, t, m)
}

func (l *lab) testPowerButton(ctx context.Context, t *testing.T) {
	m := l.guest(ctx, t, "amd64")
	if _, err := m.Command(ctx, "power-button"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Await(ctx, 0, regexp.MustCompile(`lodge-guest: power button`)); err != nil {
		t.Error(err)
	}
	l.checkOff(ctx, t, m)
}

// testOtherCPUs starts both guests, which are off, with the other's number of processors.
func (l *lab) testOtherCPUs(ctx context.Context, t *testing.T) {
	l.cpus["amd64"], l.cpus["i386"] = l.cpus["i386"], l.cpus["amd64"]
	amd64, i386 := l.pair(ctx, t)
	for _, m := range []*vm{amd64, i386} {
		if got, want := m.shell(ctx, t, "nproc"), fmt.Sprint(l.cpus[m.Name()]); got != want {
			t.Errorf("guest %s has %s processors, want %s", m.Name(), got, want)
		}
	}
	l.testKernelLog(ctx, t)
	for _, m := range []*vm{amd64, i386} {
		if err := m.PowerOff(ctx); err != nil {
			t.Error(err)
		}
	}
}

// checkOff waits for the end of a guest that is switching itself off.
func (l *lab) checkOff(ctx context.Context, t *testing.T, m *vm) {
	t.Helper()
	code, err := m.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if code != 0 || !strings.Contains(m.Console(), "lodge-guest: stop") {
		t.Errorf("guest %s: lodge-vmm exits with %d after:\n%s", m.Name(), code, m.Console())
	}
}
