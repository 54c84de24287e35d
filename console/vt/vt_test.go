package vt

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if is, err := RunGuardian(os.Args); is {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("LODGE_TEST_VT") != "" {
		victim()
	}
	os.Exit(m.Run())
}

// fake is the kernel: terminal 7 of which 1 is on the screen.
type fake struct {
	mu     sync.Mutex
	active int
	mode   mode
	log    []string
	fail   string // the ioctl that fails
}

func (f *fake) get(name string, nr uintptr) (int, error) {
	if name == f.fail {
		return 0, unix.EIO
	}
	return 3, nil
}

func (f *fake) set(name string, nr uintptr, v int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprint(name, " ", v))
	if name == f.fail {
		return unix.EIO
	}
	if nr == nrActivate {
		switch {
		case v == 7 && f.active != 7:
			f.active = 7
			return f.signal(f.mode.acqSig)
		case v != 7 && f.active == 7 && f.mode.mode == vtProcess:
			return f.signal(f.mode.relSig)
		default:
			f.active = v
		}
	}
	if nr == nrRelDisp && v == 1 {
		f.active = 2
	}
	return nil
}

func (f *fake) signal(s int16) error {
	if f.mode.mode != vtProcess {
		return nil
	}
	return unix.Kill(os.Getpid(), unix.Signal(s))
}

func (f *fake) setMode(m mode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprint("VT_SETMODE ", m.mode))
	f.mode = m
	if f.fail == "VT_SETMODE" {
		return unix.EIO
	}
	return nil
}

func (f *fake) state() (state, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return state{active: uint16(f.active)}, nil
}

func (f *fake) file() *os.File { return nil }
func (f *fake) close() error   { f.log = append(f.log, "close"); return nil }

// taken returns what was done, and forgets it.
func (f *fake) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	log := f.log
	f.log = nil
	return log
}

func TestConsole(t *testing.T) {
	f := &fake{active: 1}
	calls := make(chan string, 8)
	c, err := newConsole(Config{Release: func() { calls <- "release" }, Acquire: func() { calls <- "acquire" }}, f, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	check := func(what string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, f.taken()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	check("taken", "VT_SETMODE 1", "KDSETMODE 1", "KDSKBMODE 4", "VT_ACTIVATE 7", "VT_RELDISP 2")
	if !c.Active() || len(calls) > 0 {
		t.Errorf("active: %t, calls: %d", c.Active(), len(calls))
	}
	await := func(what string) {
		t.Helper()
		select {
		case got := <-calls:
			if got != what {
				t.Errorf("%s, want %s", got, what)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no %s", what)
		}
	}
	if err := c.Switch(2); err != nil {
		t.Fatal(err)
	}
	await("release")
	for f.mu.Lock(); f.active != 2; f.mu.Lock() { // released after the call
		f.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	f.mu.Unlock()
	check("left", "VT_ACTIVATE 2", "VT_RELDISP 1")
	if c.Active() {
		t.Error("active, though another is on the screen")
	}
	if err := c.Switch(7); err != nil {
		t.Fatal(err)
	}
	await("acquire")
	check("come back", "VT_ACTIVATE 7", "VT_RELDISP 2")
	for _, n := range []int{0, -1, 64} {
		if err := c.Switch(n); err == nil {
			t.Errorf("changed to terminal %d", n)
		}
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	check("given back", "KDSKBMODE 3", "KDSETMODE 0", "VT_SETMODE 0", "VT_ACTIVATE 1", "close")
}

// TestFail has each step of taking a terminal fail: it is put back.
func TestFail(t *testing.T) {
	for _, step := range []string{"VT_SETMODE", "KDSETMODE", "KDSKBMODE", "VT_ACTIVATE", "VT_RELDISP"} {
		f := &fake{active: 1, fail: step}
		c, err := newConsole(Config{}, f, 7)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.start(); !errors.Is(err, unix.EIO) {
			t.Errorf("%s fails: %v", step, err)
		}
		log := strings.Join(f.taken(), ", ")
		if want := "KDSKBMODE 3, KDSETMODE 0, VT_SETMODE 0"; !strings.Contains(log, want) {
			t.Errorf("%s fails: %s", step, log)
		}
	}
	if _, err := newConsole(Config{}, &fake{fail: "KDGKBMODE"}, 7); !errors.Is(err, unix.EIO) {
		t.Errorf("no keyboard mode: %v", err)
	}
}

// TestLayout holds the structures against the kernel's (include/uapi/linux/vt.h).
func TestLayout(t *testing.T) {
	if n := unsafe.Sizeof(mode{}); n != 8 {
		t.Errorf("struct vt_mode has %d bytes, the kernel's 8", n)
	}
	if n := unsafe.Sizeof(state{}); n != 6 {
		t.Errorf("struct vt_stat has %d bytes, the kernel's 6", n)
	}
}

// victim takes a terminal, says which, and does what it was told.
func victim() {
	c, err := Open(Config{})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println("terminal", c.n, c.before)
	switch os.Getenv("LODGE_TEST_VT") {
	case "close":
		if err := c.Close(); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case "panic":
		panic("a crash")
	}
	select {}
}

// TestEndings ends a program that has a terminal in every way: the terminal is as it was afterwards, and the one that was
// on the screen is on it again.
func TestEndings(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	control, err := openTTY("/dev/tty0")
	if err != nil {
		if _, err := Open(Config{}); !errors.Is(err, ErrNone) {
			t.Errorf("no terminals: %v", err)
		}
		return
	}
	defer control.close()
	if m, err := control.get("KDGETMODE", nrKDGetMode); err != nil || m != kdText {
		t.Logf("somebody is looking at a desktop: not tried (%v)", err)
		return
	}
	before, err := control.state()
	if err != nil {
		t.Fatal(err)
	}
	// What is ignored here, as under nohup, the process would ignore too. What is handled it gets as if nothing was.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	for _, end := range []string{"close", "panic", "kill", "terminate", "hang up"} {
		t.Run(end, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "LODGE_TEST_VT="+end)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			var n, was int
			if _, err := fmt.Sscanf(line, "terminal %d %d", &n, &was); err != nil || was != int(before.active) {
				t.Fatalf("%q: %v", line, err)
			}
			vt, err := openTTY(fmt.Sprint("/dev/tty", n))
			if err != nil {
				t.Fatal(err)
			}
			defer vt.close()
			if end != "close" && end != "panic" {
				look(t, vt, kdGraphics, kOff, n)
			}
			switch end {
			case "kill":
				err = cmd.Process.Kill()
			case "terminate":
				err = cmd.Process.Signal(unix.SIGTERM)
			case "hang up":
				err = cmd.Process.Signal(unix.SIGHUP)
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			look(t, vt, kdText, 3, was)
		})
	}
}

// look waits until a terminal has the given modes, and another the screen.
func look(t *testing.T, vt *tty, kd, kb, active int) {
	t.Helper()
	var got [3]int
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var errs [3]error
		var s state
		got[0], errs[0] = vt.get("KDGETMODE", nrKDGetMode)
		got[1], errs[1] = vt.get("KDGKBMODE", nrKDGKBMode)
		s, errs[2] = vt.state()
		got[2] = int(s.active)
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		if got == [3]int{kd, kb, active} {
			return
		}
	}
	t.Errorf("graphics mode %d, keyboard mode %d, terminal %d on the screen; want %d, %d, %d", got[0], got[1], got[2], kd, kb, active)
}
