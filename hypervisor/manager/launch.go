package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/vmm"
)

// Launch says what VMM to start.
type Launch struct {
	Definition        *definition.Definition
	File              string // that has it, for lodge-vmm run
	Restore           string // directory of the saved state to go on from; "" is none
	IgnoreDiskChanges bool   // of that state
	Outcome           string // file that is told how the guest ended
	Log               *os.File

	// Of a cell:
	UID    uint32       // the user that it runs as, which is no other guest's
	Cgroup *cell.Cgroup // where it runs; nil is where this process does
	Broker *os.File     // the end of a broker.Pair that asks
}

// Launcher starts VMMs that outlive this process.
type Launcher interface {
	// Launch starts one. Before it runs, record is called with the number of its process, and with what its cell lacks; only if
	// that returns nil the VMM runs: whenever this process is killed, either the process is on record or it ends by itself.
	Launch(ctx context.Context, l Launch, record func(pid int, lacks []cell.Lack) error) error
	// Program returns the path of the program that it starts.
	Program() string
}

// Cells starts VMMs in cells. The caller's program must have called cell.RunInit first of all.
type Cells struct {
	VMM string // the program lodge-vmm
}

// Program implements Launcher.
func (c *Cells) Program() string { return c.VMM }

// Launch implements Launcher.
func (c *Cells) Launch(ctx context.Context, l Launch, record func(pid int, lacks []cell.Lack) error) error {
	program, err := os.Open(c.VMM)
	if err != nil {
		return err
	}
	defer program.Close()
	p, err := vmm.Start(ctx, &vmm.Guest{Definition: l.Definition, File: l.File, Restore: l.Restore, IgnoreDiskChanges: l.IgnoreDiskChanges,
		Outcome: l.Outcome, Broker: l.Broker}, program, cell.Spec{UID: l.UID, Cgroup: l.Cgroup, Stdout: l.Log, Stderr: l.Log, Record: record})
	if err != nil {
		return err
	}
	return p.Release()
}

// Plain starts VMMs as processes in sessions of their own, without a cell around them: for tests, and to find out whether a fault
// is the cell's.
type Plain struct {
	VMM string // the program lodge-vmm
}

// Program implements Launcher.
func (p *Plain) Program() string { return p.VMM }

// gateName is what the program calls itself that waits to become a VMM.
const gateName = "lodge-vmm-gate"

// gateFD is the descriptor of a gate's pipe.
const gateFD = 3

// Launch implements Launcher. The caller's program must have called RunGate first of all: it is started once more, waits at a
// pipe until its number was recorded, and becomes the VMM. If we are killed before, the pipe is closed and it ends.
func (p *Plain) Launch(ctx context.Context, l Launch, record func(pid int, lacks []cell.Lack) error) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	proc, err := os.StartProcess("/proc/self/exe", append([]string{gateName, p.VMM}, l.args()...), &os.ProcAttr{
		Files: []*os.File{null, l.Log, l.Log, r}, Env: environment(), Sys: &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.VMM, err)
	}
	r.Close()
	if err = ctx.Err(); err == nil {
		err = record(proc.Pid, nil)
	}
	if err != nil {
		w.Close() // it ends
		_, e := proc.Wait()
		return errors.Join(err, e)
	}
	if _, err := w.Write([]byte{1}); err != nil {
		return fmt.Errorf("%s: %w", p.VMM, err) // its end is noticed by who has its record
	}
	return proc.Release()
}

// args returns the arguments of a lodge-vmm that opens its files by itself.
func (l *Launch) args() []string {
	args := []string{"lodge-vmm", "run", "--outcome", l.Outcome}
	if l.Restore != "" {
		args = append(args, "--restore", l.Restore)
		if l.IgnoreDiskChanges {
			args = append(args, "--ignore-disk-changes")
		}
	}
	return append(args, l.File)
}

// environment is what a VMM gets of ours: nothing that is meant for this process, such as sockets of the service manager.
func environment() (env []string) {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "LISTEN_") && !strings.HasPrefix(name, "NOTIFY_") && !strings.HasPrefix(name, "WATCHDOG_") && name != "INVOCATION_ID" && name != "JOURNAL_STREAM" {
			env = append(env, v)
		}
	}
	return env
}

// RunGate is to be called first of all by a program that uses Plain. In a process that Plain has started it does not return.
func RunGate() {
	if len(os.Args) < 3 || os.Args[0] != gateName {
		return
	}
	gate := os.NewFile(gateFD, "gate")
	if n, err := gate.Read(make([]byte, 1)); n != 1 {
		if !errors.Is(err, io.EOF) {
			fmt.Fprintf(os.Stderr, "%s: %v\n", gateName, err)
		}
		os.Exit(1)
	}
	gate.Close()
	err := unix.Exec(os.Args[1], os.Args[2:], os.Environ())
	fmt.Fprintf(os.Stderr, "%s: %s: %v\n", gateName, os.Args[1], err)
	os.Exit(1)
}
