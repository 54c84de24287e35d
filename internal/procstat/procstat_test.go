package procstat

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const line = "4711 (a (b) c) S 1 4711 4711 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 7 0 98765 1000000 2048 18446744073709551615 1 1 0\n"
	got, err := parse([]byte(line))
	if want := (Stat{'S', 98765, 2 * time.Second, 2048 * uint64(os.Getpagesize())}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", ")", "1 (x) S", "1 (x) " + line[16:60], "1 x S 1 4711 4711 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 7 0 98765 1000000 2048 1"} {
		if got, err := parse([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// The kernel's figures are those of the process: it uses time, has memory, and is gone at some point.
func TestOf(t *testing.T) {
	before, err := Of(os.Getpid())
	if err != nil || before.Resident < 1<<20 || before.Started == 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if now, err := Of(os.Getpid()); err != nil || now.CPU-before.CPU >= 50*time.Millisecond {
			break
		}
	}
	after, err := Of(os.Getpid())
	if err != nil || after.Started != before.Started || after.CPU <= before.CPU {
		t.Errorf("%+v, %v, after %+v", after, err, before)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got, err := Of(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("a process that has ended: %+v, %v", got, err)
	}
	for _, pid := range []int{0, -1} {
		if got, err := Of(pid); err == nil {
			t.Errorf("process %d: %+v", pid, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("1 (x) S 1 1 1 0 -1 0 0 0 0 0 1 2 0 0 20 0 7 0 9 10 11 12"))
	f.Add([]byte("1 () ) S"))
	f.Add([]byte("1 (x) S 1 1 1 0 -1 0 0 0 0 0 274877906943 274877906943 0 0 20 0 7 0 9 10 11 12"))
	f.Add([]byte("1 (x) S 1 1 1 0 -1 0 0 0 0 0 1 733333333333333 0 0 20 0 7 0 9 10 11 12"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parse(b); err == nil && (s.CPU < 0 || s.Resident%uint64(os.Getpagesize()) != 0) {
			t.Errorf("%+v of %q", s, b)
		}
	})
}
