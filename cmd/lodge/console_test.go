package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3/vt"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/internal/ptytest"
)

// person is somebody before a terminal in which lodge console runs.
type person struct {
	t        *testing.T
	host     *os.File
	terminal *os.File
	screen   vt.MockTerm
	cmd      *exec.Cmd
	ended    chan error
	errOut   strings.Builder
}

// sit starts lodge console in a terminal. answers says whether the terminal answers questions, as one on a serial line may not.
func sit(t *testing.T, term string, answers bool, args ...string) *person {
	t.Helper()
	p := &person{t: t, screen: vt.NewMockTerm(vt.MockOptSize{X: 80, Y: 25}, vt.MockOptColors(0)), ended: make(chan error, 1)}
	p.host, p.terminal = ptytest.Open(t)
	if err := unix.IoctlSetWinsize(int(p.terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 80}); err != nil {
		t.Fatal(err)
	}
	if err := p.screen.Start(); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(exe, args...)
	p.cmd.Args[0] = "lodge"
	p.cmd.Env = append(os.Environ(), "TERM="+term, "LC_ALL=C", "NO_COLOR=1")
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = p.terminal, p.terminal, &p.errOut
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := p.host.Read(b)
			if err != nil {
				return
			}
			_, _ = p.screen.Write(b[:n]) // it takes everything
		}
	})
	if answers {
		wg.Go(func() {
			b := make([]byte, 4096)
			for {
				n, err := p.screen.Read(b)
				if err != nil || n == 0 {
					return
				}
				if _, err := p.host.Write(b[:n]); err != nil {
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		_ = p.host.Close()
		_ = p.screen.Stop()
		_ = p.screen.Close()
		wg.Wait()
	})
	return p
}

func (p *person) text() string {
	var b strings.Builder
	for y := range vt.Row(25) {
		for x := range vt.Col(80) {
			c := p.screen.GetCell(vt.Coord{X: x, Y: y}).C
			b.WriteString(c + strings.Repeat(" ", max(0, 1-len(c))))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (p *person) sees(want string) {
	p.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(p.text(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("no %q:\n%s\n%s", want, p.text(), p.errOut.String())
		}
	}
}

func (p *person) types(keys string) {
	p.t.Helper()
	if _, err := p.host.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

// leaves waits until the console has ended, with the terminal as it was.
func (p *person) leaves(before unix.Termios) {
	p.t.Helper()
	select {
	case err := <-p.ended:
		if p.ended <- err; err != nil {
			p.t.Errorf("%v: %s", err, p.errOut.String())
		}
	case <-time.After(30 * time.Second):
		p.t.Fatal("it does not end")
	}
	if after := ptytest.Termios(p.t, p.terminal); after != before {
		p.t.Errorf("the terminal was %+v and is %+v", before, after)
	}
}

// files writes a seat's file and a guest's definition, whose kernel is not there.
func files(t *testing.T) (seat string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"seat.toml": "[[guest]]\nname = \"work\"\ncolor = \"blue\"\nslot = 1\ndisplay = \"work.display\"\ndefinition = \"work.toml\"\n" +
			"[[guest]]\nname = \"home\"\ncolor = \"green\"\nslot = 2\ndisplay = \"home.display\"\n",
		"work.toml": "name = \"work\"\nmemory = \"1G\"\ncontrol = \"work.sock\"\n[boot]\nkernel = \"absent\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "seat.toml")
}

// The console in a terminal, from its start to its end: by a key, and by signals.
func TestConsole(t *testing.T) {
	for _, tc := range []struct {
		term    string
		answers bool
		leave   func(p *person)
	}{
		{"xterm", true, func(p *person) { p.types("q") }},
		{"linux", true, func(p *person) { p.types("\x03") }},
		{"vt100", false, func(p *person) { p.types("\x1b"); p.sees("Lodge - guests"); p.types("q") }},
		{"xterm", true, func(p *person) { _ = p.cmd.Process.Signal(unix.SIGTERM) }},
		{"xterm", true, func(p *person) { _ = p.cmd.Process.Signal(unix.SIGHUP) }},
	} {
		t.Run(tc.term, func(t *testing.T) {
			p := sit(t, tc.term, tc.answers, "console", files(t))
			before := before(t)
			p.sees("Lodge - guests")
			p.sees(">1 work")
			p.sees("off")
			p.types("s")
			p.sees("absent does not exist: correct the path")
			p.types("\x1b[B")
			p.sees(">2 home")
			p.sees(`set definition = "GUEST.toml" for it`)
			p.types("1")
			p.sees("switching is only possible on the seat")
			p.types("\r")
			p.sees("Lodge - work")
			tc.leave(p)
			p.leaves(before)
		})
	}
}

// Without a seat's file the console has the guests of lodged, and hears when there is another one.
func TestConsoleOfManager(t *testing.T) {
	address, m, err := startManager(t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	define := func(name string, slot int) {
		t.Helper()
		text := fmt.Sprintf("name = %q\nmemory = \"64M\"\nslot = %d\n[boot]\nkernel = \"/absent\"\n", name, slot)
		if _, err := m.Define([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	define("work", 1)
	t.Setenv("LODGE_BUS", address)
	p := sit(t, "xterm", true, "console")
	before := before(t)
	p.sees(">1 work")
	p.sees("off")
	define("home", 2)
	p.sees(" 2 home")
	p.types("\r")
	p.sees("Lodge - work")
	p.sees("defined, since")
	p.types("s1") // the seat of the tests shows work
	p.types("2")
	p.types("m")
	p.sees("kernel /absent does not exist")
	p.sees("guest home is not running")
	p.types("q")
	p.leaves(before)

	t.Setenv("LODGE_BUS", "unix:path=/nowhere")
	p = sit(t, "xterm", true, "console")
	select {
	case err := <-p.ended:
		p.ended <- err
		if p.cmd.ProcessState.ExitCode() != exitNoManager || !strings.Contains(p.errOut.String(), "lodged does not answer") {
			t.Errorf("%v: %s", err, p.errOut.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
}

// before returns the settings of a new terminal.
func before(t *testing.T) unix.Termios {
	t.Helper()
	_, terminal := ptytest.Open(t)
	return ptytest.Termios(t, terminal)
}

// A terminal that is named is used, whatever the console was started from; one that goes away ends it.
func TestNamedTerminal(t *testing.T) {
	p := sit(t, "vt100", false, "console", "--tty=/dev/null", files(t))
	select {
	case err := <-p.ended:
		p.ended <- err
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitError || !strings.Contains(p.errOut.String(), "/dev/null") {
			t.Errorf("%v: %s", err, p.errOut.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	host, terminal := ptytest.Open(t)
	name := terminal.Name()
	p = sit(t, "vt100", false, "console", "--tty="+name, files(t))
	b := make([]byte, 1<<16)
	var got string
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(got, "work"); {
		_ = host.SetReadDeadline(deadline)
		n, err := host.Read(b)
		if err != nil {
			t.Fatalf("%v: %q", err, got)
		}
		got += string(b[:n])
	}
	if err := errors.Join(terminal.Close(), host.Close()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.ended:
		p.ended <- err
		if err == nil || !strings.Contains(p.errOut.String(), "terminal") {
			t.Errorf("%v: %s", err, p.errOut.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end, on a terminal that is gone")
	}
}
