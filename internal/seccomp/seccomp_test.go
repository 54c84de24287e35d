package seccomp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// attempts are what a child does with a list that names but what Go needs and a few calls more.
var attempts = map[string]struct {
	do   func() error
	want syscall.Errno // 0: it succeeds
	ends bool          // by SIGSYS
}{
	"allowed":        {do: func() error { _, err := unix.FcntlInt(0, unix.F_GETFD, 0); return err }},
	"another value":  {do: func() error { _, err := unix.FcntlInt(0, unix.F_GETFL, 0); return err }},
	"a third value":  {do: func() error { _, err := unix.FcntlInt(0, unix.F_DUPFD, 0); return err }, ends: true},
	"another call":   {do: func() error { return unix.Uname(new(unix.Utsname)) }, ends: true},
	"fails":          {do: func() error { _, err := unix.Open("/", 0, 0); return err }, want: unix.ENOENT},
	"second rule":    {do: func() error { _, _, e := unix.RawSyscall(unix.SYS_UMASK, 0o22, 0, 0); return errOf(e) }},
	"first rule":     {do: func() error { _, _, e := unix.RawSyscall(unix.SYS_UMASK, 0o77, 0, 0); return errOf(e) }, want: unix.EXDEV},
	"masked, not so": {do: func() error { return mmap(unix.PROT_READ | unix.PROT_EXEC) }, ends: true},
	"masked, so":     {do: func() error { return mmap(unix.PROT_READ) }},
	"two conditions": {do: func() error { _, _, e := unix.RawSyscall(unix.SYS_SCHED_GET_PRIORITY_MAX, 1, 2, 0); return errOf(e) }},
	"one of two":     {do: func() error { _, _, e := unix.RawSyscall(unix.SYS_SCHED_GET_PRIORITY_MAX, 1, 3, 0); return errOf(e) }, ends: true},
	"x32":            {do: func() error { _, _, e := unix.RawSyscall(x32|unix.SYS_GETPID, 0, 0, 0); return errOf(e) }, ends: true},
	"in a new thread": {do: func() error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- unix.Uname(new(unix.Utsname))
		}()
		return <-done
	}, ends: true},
	"narrower": {do: func() error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			l := List{Rules: GoThread()}
			if err := l.Thread(); err != nil {
				done <- err
				return
			}
			_, err := unix.FcntlInt(0, unix.F_GETFD, 0)
			done <- err
		}()
		return <-done
	}, ends: true},
}

func errOf(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func mmap(prot int) error {
	_, err := unix.Mmap(-1, 0, 4096, prot, unix.MAP_PRIVATE|unix.MAP_ANON)
	return err
}

func list() List {
	return List{Rules: slices.Concat(GoThread(), GoProcess(), []Rule{
		{Call: unix.SYS_FCNTL, Only: []Arg{{Index: 1, Values: []uint32{unix.F_GETFD, unix.F_GETFL}}}},
		{Call: unix.SYS_OPENAT, Fails: unix.ENOENT},
		{Call: unix.SYS_UMASK, Only: []Arg{{Index: 0, Values: []uint32{0o77}}}, Fails: unix.EXDEV},
		{Call: unix.SYS_UMASK},
		{Call: unix.SYS_SCHED_GET_PRIORITY_MAX, Only: []Arg{{Index: 0, Values: []uint32{0, 1}}, {Index: 1, Values: []uint32{2}}}},
		{Call: unix.SYS_SECCOMP, Only: []Arg{{Index: 1, Values: []uint32{0}}}},
	})}
}

func TestMain(m *testing.M) {
	name := os.Getenv("LODGE_TEST_ATTEMPT")
	if name == "" {
		os.Exit(m.Run())
	}
	l := list()
	if err := l.Process(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := attempts[name].do(); err != nil {
		fmt.Print(err)
	}
	os.Exit(0)
}

// build builds this test without C, whose library and race detector make calls of their own.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "child")
	cmd := exec.Command("go", "test", "-c", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func TestList(t *testing.T) {
	child := build(t)
	for name, a := range attempts {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(child)
			cmd.Env = append(os.Environ(), "LODGE_TEST_ATTEMPT="+name)
			out, err := cmd.Output()
			var exit *exec.ExitError
			ended := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGSYS
			want := ""
			if a.want != 0 {
				want = a.want.Error()
			}
			if ended != a.ends || !ended && (err != nil || string(out) != want) {
				t.Errorf("%v: %q, want %q, ended by SIGSYS: %v", err, out, want, a.ends)
			}
		})
	}
}

// A list that the kernel could not take, or that could allow what it should not, is refused.
func TestRefused(t *testing.T) {
	many := make([]uint32, maxJump)
	for name, r := range map[string]Rule{
		"too many values": {Call: 1, Only: []Arg{{Index: 0, Values: many}}},
		"no values":       {Call: 1, Only: []Arg{{Index: 0}}},
		"no argument":     {Call: 1, Only: []Arg{{Index: 6, Values: []uint32{1}}}},
	} {
		l := List{Rules: []Rule{r}}
		if _, err := l.program(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	l := List{Rules: Allow(make([]uintptr, unix.BPF_MAXINSNS)...)}
	if _, err := l.program(); err == nil {
		t.Error("too long a list: no error")
	}
}
