package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/internal/ptytest"
)

const seabios = "/usr/share/seabios/bios-256k.bin"

func TestMain(m *testing.M) {
	cell.RunInit(os.Args)
	testscript.Main(removing{m}, map[string]func(){"lodge-vmm": main, "attempt": attempt, "panic-on-terminal": func() {
		t := terminal{in: os.Stdin}
		if err := t.raw(); err != nil {
			panic(err)
		}
		go panic("as was asked for")
		select {}
	}})
}

// removing removes what tests have built, after them.
type removing struct{ *testing.M }

func (m removing) Run() int {
	defer func() {
		if staticDir != "" {
			os.RemoveAll(staticDir)
		}
	}()
	return m.M.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("SEABIOS", seabios)
			e.Values[connsKey{}] = map[string]net.Conn{}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "kvm" {
				return false, fmt.Errorf("no condition %q", cond)
			}
			return haveKVM(), nil
		},
		Cmds: scriptCommands,
	})
}

func haveKVM() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission)
}

// The terminal is raw while the guest runs, Ctrl-] leaves, and afterwards the terminal is as it was; so it is when the
// process is told to end, or to dump its goroutines, and when the guest cannot start.
func TestTerminal(t *testing.T) {
	if !haveKVM() {
		t.Skip("needs /dev/kvm")
	}
	// What is ignored here, as under nohup, lodge-vmm would ignore too. What is handled it gets as if nothing was.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	dir := t.TempDir()
	write := func(name, firmware string) string {
		path := filepath.Join(dir, name)
		text := fmt.Sprintf("name = \"tty\"\nmemory = \"16M\"\n[boot]\nfirmware = %q\n", firmware)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty := filepath.Join(dir, "empty.bin")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good, bad := write("good.toml", seabios), write("bad.toml", empty)
	button, deaf := writeDefinition(t, "button"), writeDefinition(t, "count")
	typing := func(keys ...byte) func(*os.Process, *os.File) error {
		return func(_ *os.Process, tty *os.File) error {
			_, err := tty.Write(keys)
			return err
		}
	}
	signalling := func(s os.Signal) func(*os.Process, *os.File) error {
		return func(p *os.Process, _ *os.File) error { return p.Signal(s) }
	}
	for name, tc := range map[string]struct {
		guest string
		leave func(p *os.Process, tty *os.File) error
		code  int
	}{
		"power button":   {button, typing(escape), exitOK},
		"escape key":     {good, typing('x', escape, escape), exitOK},
		"a deaf guest":   {deaf, typing(append(bytes.Repeat([]byte{'x'}, 3000), escape, escape)...), exitOK},
		"told to end":    {good, signalling(unix.SIGTERM), exitOK},
		"terminal hangs": {good, signalling(unix.SIGHUP), exitOK},
		"told to dump":   {good, signalling(unix.SIGQUIT), -1},
		"cannot start":   {bad, nil, exitError},
	} {
		t.Run(name, func(t *testing.T) {
			host, terminal := ptytest.Open(t)
			before := ptytest.Termios(t, terminal)
			if before.Lflag&unix.ICANON == 0 {
				t.Fatal("the terminal is raw already")
			}
			cmd := lodgeVMM(t, "run", tc.guest)
			cmd.Dir = t.TempDir() // for a core
			cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			drained := make(chan struct{})
			go func() { // what it prints has to go somewhere
				defer close(drained)
				b := make([]byte, 4096)
				for {
					if _, err := host.Read(b); err != nil {
						return
					}
				}
			}()
			if tc.leave != nil {
				deadline := time.Now().Add(30 * time.Second)
				for ptytest.Termios(t, terminal).Lflag&unix.ICANON != 0 {
					if time.Now().After(deadline) {
						t.Fatal("the terminal does not become raw")
					}
					time.Sleep(time.Millisecond)
				}
				if err := tc.leave(cmd.Process, host); err != nil {
					t.Error(err)
				}
			}
			err := cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tc.code {
				t.Errorf("exit status %d (%v), want %d", got, err, tc.code)
			}
			if after := ptytest.Termios(t, terminal); after != before {
				t.Errorf("the terminal was left as %+v, was %+v", after, before)
			}
			host.Close()
			<-drained
		})
	}
}

// Under nohup a guest outlives its terminal.
func TestIgnoredHangup(t *testing.T) {
	if !haveKVM() {
		t.Skip("needs /dev/kvm")
	}
	def := writeDefinition(t, "echo")
	vmm := lodgeVMM(t, "run", def)
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `trap "" HUP; exec "$0" "$@"`}, vmm.Args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var err error
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = call(t.Context(), def, "pause", nil, nil, nil); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"resume", "quit"} {
		if err := call(t.Context(), def, method, nil, nil, nil); err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A panic ends the process by a signal, so that shells put the terminal right.
func TestPanicOnTerminal(t *testing.T) {
	_, terminal := ptytest.Open(t)
	cmd := self(t, "panic-on-terminal")
	cmd.Dir = t.TempDir() // for a core
	cmd.Stdin = terminal
	out, err := cmd.CombinedOutput()
	if s := cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != unix.SIGABRT || !bytes.Contains(out, []byte("as was asked for")) {
		t.Errorf("%v, want SIGABRT:\n%s", err, out)
	}
}

// lodgeVMM returns a command that runs lodge-vmm. It is killed if it does not end.
func lodgeVMM(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return self(t, "lodge-vmm", args...)
}

// self returns a command that runs this test binary as one of TestMain's programs.
func self(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, link, args...)
}

// writeDefinition writes the definition of a guest of guests, with its serial port on standard input and output.
func writeDefinition(t *testing.T, guest string) string {
	t.Helper()
	dir := t.TempDir()
	if err := writeGuest(filepath.Join(dir, "kernel"), guest); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, guest+".toml")
	text := fmt.Sprintf("name = %q\nmemory = \"16M\"\ncontrol = \"sock\"\n[boot]\nkernel = \"kernel\"\n", guest)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
