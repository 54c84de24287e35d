package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
)

// status is what "lodge-vmm status --json" tells.
type status struct {
	State   string
	PID     int
	Reboots int
	Balloon struct{ Actual int64 }
}

func (m *vm) status(ctx context.Context, t *testing.T) (s status) {
	t.Helper()
	out, err := m.Command(ctx, "status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("status: %v: %s", err, out)
	}
	return s
}

// kib reads a field in KiB from a file in /proc, and returns it in bytes.
func kib(t *testing.T, text string) (n int64) {
	t.Helper()
	var name, unit string
	if _, err := fmt.Sscan(text, &name, &n, &unit); err != nil || unit != "kB" {
		t.Fatalf("%q is not a field in kB: %v", text, err)
	}
	return n << 10
}

func (l *lab) resident(ctx context.Context, t *testing.T, pid int) int64 {
	t.Helper()
	return kib(t, l.shell(ctx, t, fmt.Sprintf("grep VmRSS /proc/%d/status", pid)))
}

func (l *lab) testBalloon(ctx context.Context, t *testing.T) {
	const taken = 80 << 20
	amd64, i386 := l.pair(ctx, t)
	for _, m := range []*vm{amd64, i386} {
		available := func() int64 { return kib(t, m.shell(ctx, t, "grep MemAvailable /proc/meminfo")) }
		// Memory that was never used is not resident, and the balloon could not give it back. What is freed is not for long: the
		// guest reports its free pages two seconds later.
		m.shell(ctx, t, "head -c 100M /dev/zero >/dev/shm/used")
		pid := m.status(ctx, t).PID
		residentBefore := l.resident(ctx, t, pid)
		m.shell(ctx, t, "rm /dev/shm/used")
		availableBefore := available()

		set := func(keep int64) {
			if _, err := m.Command(ctx, "balloon", fmt.Sprintf("%dM", keep>>20)); err != nil {
				t.Fatal(err)
			}
			until(ctx, t, "the balloon's size", func() (bool, error) {
				return m.status(ctx, t).Balloon.Actual == 256<<20-keep, nil
			})
		}
		set(256<<20 - taken)
		availableAfter, residentAfter := available(), l.resident(ctx, t, pid)
		t.Logf("guest %s: available %d → %d MiB, resident %d → %d MiB", m.Name(), availableBefore>>20, availableAfter>>20, residentBefore>>20, residentAfter>>20)
		if availableBefore-availableAfter < taken*3/4 {
			t.Errorf("guest %s: a balloon of %d MiB takes %d MiB", m.Name(), taken>>20, (availableBefore-availableAfter)>>20)
		}
		if residentBefore-residentAfter < taken/2 {
			t.Errorf("guest %s: a balloon of %d MiB gives the host %d MiB", m.Name(), taken>>20, (residentBefore-residentAfter)>>20)
		}

		set(256 << 20)
		// The device knows what comes out of the balloon before the guest's kernel uses it.
		until(ctx, t, fmt.Sprintf("memory to come back to guest %s", m.Name()), func() (bool, error) {
			return available()-availableAfter >= taken*3/4, nil
		})
	}
}
