package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where standard error is the journal's, what becomes of guests is there with fields.
func TestJournal(t *testing.T) {
	h := newHome(t)
	h.write("bare", "name = \"bare\"\nmemory = \"32M\"\nautostart = true\n[boot]\nkernel = \"/absent\"\n")
	socket := filepath.Join(h.dir, "journal")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	program := filepath.Join(h.dir, "lodged")
	build := exec.Command("go", "build", "-o", program, "-ldflags=-X=github.com/coreos/go-systemd/v22/journal.journalSocket="+socket, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	stderr, err := os.Create(filepath.Join(h.dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(stderr.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config-dir", filepath.Join(h.dir, "etc"), "--state-dir", filepath.Join(h.dir, "var"),
		"--run-dir", filepath.Join(h.dir, "run"), "--vmm", filepath.Join(programs, "lodge-vmm"), "--bus", "none")
	cmd.Env = append(os.Environ(), fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino))
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(stderr.Name()); err != nil || len(b) > 0 {
			t.Errorf("beside the journal it says %q, %v", b, err)
		}
	}()
	_ = l.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 64<<10)
	for seen := ""; ; {
		n, err := l.Read(b)
		if err != nil {
			t.Fatalf("%v, after\n%s", err, seen)
		}
		entry := string(b[:n])
		seen += entry + "\n"
		has := func(field string) bool { return strings.Contains("\n"+entry, "\n"+field+"\n") }
		if has("GUEST=bare") && has("STATE=defined") && has("PRIORITY=6") && strings.Contains(entry, "\nNOTE=") {
			return
		}
	}
}

// Where it is told to, the log is in a file.
func TestLogToFile(t *testing.T) {
	h := newHome(t)
	h.write("wrong", "name = 1\n")
	file := filepath.Join(h.dir, "lodged.log")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // as soon as it has begun
	err := run(ctx, []string{"--config-dir", filepath.Join(h.dir, "etc"), "--state-dir", filepath.Join(h.dir, "var"), "--run-dir",
		filepath.Join(h.dir, "run"), "--vmm", filepath.Join(programs, "lodge-vmm"), "--bus", "none", "--log", file}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "wrong.toml:1") {
		t.Errorf("%s, %v", b, err)
	}
	err = run(ctx, []string{"--vmm", "x", "--log", h.dir}, io.Discard, io.Discard)
	if err == nil || !strings.HasPrefix(err.Error(), "--log: ") {
		t.Error(err)
	}
}
