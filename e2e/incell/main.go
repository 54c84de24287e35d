// Incell is lodge-vmm for tests in which guests live in cells: "incell run GUEST.toml" starts lodge-vmm in one, with the
// guest's console on standard output, and ends when it does. It says on standard error which process that is and what its cell
// lacks. All other commands are lodge-vmm's own, which lies beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/vmm"
	"github.com/lodgehv/lodge/internal/broker"
)

func main() {
	cell.RunInit(os.Args)
	program := filepath.Join(filepath.Dir(os.Args[0]), "lodge-vmm")
	if len(os.Args) != 3 || os.Args[1] != "run" {
		fmt.Fprintln(os.Stderr, unix.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ()))
		os.Exit(1)
	}
	code, err := run(context.Background(), program, os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "incell:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(ctx context.Context, program, file string) (code int, err error) {
	def, err := definition.Load(file)
	if err != nil {
		return 0, err
	}
	f, err := os.Open(program)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	parent, err := cell.OpenParent("lodge")
	if err != nil {
		return 0, err
	}
	g, err := parent.NewCgroup(def.Name, cell.GroupLimits{Memory: uint64(def.Memory) + 128<<20, Processes: 256, CPUWeight: 100})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, g.Remove(ctx)) }()
	serve, ask, err := broker.Pair()
	if err != nil {
		return 0, err
	}
	defer ask.Close()
	go func() {
		if err := broker.Serve(ctx, serve, func(_ context.Context, r broker.Request) (*os.File, error) { return connect(def, r) }); err != nil {
			fmt.Fprintln(os.Stderr, "incell:", err)
		}
	}()
	p, err := vmm.Start(ctx, &vmm.Guest{Definition: def, File: file, Broker: ask, Stdio: os.Stdout}, f,
		cell.Spec{UID: cell.FirstUID + 1, Cgroup: g, Stderr: os.Stderr, Limits: cell.Limits{Data: uint64(def.Memory) + 512<<20}})
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(os.Stderr, "incell: process %d lacks %v\n", p.Pid, p.Lacks)
	state, err := p.Wait()
	if err != nil {
		return 0, err
	}
	if s := state.Sys().(syscall.WaitStatus); s.Signaled() {
		return 0, fmt.Errorf("lodge-vmm was ended by signal %d (%v)", s.Signal(), s.Signal())
	}
	return state.ExitCode(), nil
}

// connect makes the connection that a guest asks for.
func connect(def *definition.Definition, r broker.Request) (*os.File, error) {
	path := ""
	if r.What == broker.Vsock && def.Vsock != nil {
		path = def.Vsock.Path + "_" + strconv.FormatUint(uint64(r.Port), 10)
	}
	for _, n := range def.NICs {
		if r.What == broker.NIC && n.Name == r.Name && n.Socket != "" {
			path = n.Socket
		}
	}
	if path == "" {
		return nil, errors.New("nothing of the guest's: " + strings.TrimSpace(r.What+" "+r.Name))
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.File()
}
