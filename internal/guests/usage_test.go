package guests

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const line = "4711 (a (b) c) S 1 4711 4711 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 7 0 98765 1000000 2048 18446744073709551615 1 1 0\n"
	got, err := parseStat([]byte(line))
	if want := (usage{98765, 2 * time.Second, 2048 * uint64(os.Getpagesize())}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", ")", "1 (x) S", "1 (x) " + line[16:60], "1 x S 1 4711 4711 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 7 0 98765 1000000 2048 1"} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// The kernel's figures are those of the process: it uses time, has memory, and is gone at some point.
func TestUsage(t *testing.T) {
	before, err := usageOf(os.Getpid())
	if err != nil || before.resident < 1<<20 || before.started == 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	began := time.Now()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if now, err := usageOf(os.Getpid()); err != nil || now.cpu-before.cpu >= 50*time.Millisecond {
			break
		}
	}
	after, err := usageOf(os.Getpid())
	if err != nil || after.started != before.started || after.cpu <= before.cpu {
		t.Errorf("%+v, %v, after %+v", after, err, before)
	}
	s := sample{1, after.started, after.cpu, time.Now(), -1}
	old := sample{1, before.started, before.cpu, began, -1}
	if share := s.since(old); share <= 0 || share > 100*64 {
		t.Errorf("a share of %.1f %%", share)
	}
	if share := s.since(sample{2, old.started, old.cpu, old.at, -1}); share >= 0 {
		t.Errorf("another process's share is %.1f %%", share)
	}
	if s.soon(sample{1, s.started, s.cpu, s.at.Add(time.Second), -1}) || !s.soon(sample{1, s.started, s.cpu, s.at.Add(time.Millisecond), -1}) {
		t.Error("what is soon")
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{cmd.Process.Pid, 0, -1} {
		if got, err := usageOf(pid); err == nil {
			t.Errorf("process %d, which is not there: %+v", pid, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (x) S 1 1 1 0 -1 0 0 0 0 0 1 2 0 0 20 0 7 0 9 10 11 12"))
	f.Add([]byte("1 () ) S"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, err := parseStat(b); err == nil && (u.cpu < 0 || u.resident%uint64(os.Getpagesize()) != 0) {
			t.Errorf("%+v of %q", u, b)
		}
	})
}
