// Lodge-vmm runs one guest: a virtual machine in a process of its own. It is also the client of such a process.
//
// This package only parses flags and composes: the machine is hypervisor/machine, the definition of a guest
// hypervisor/definition, the control socket hypervisor/control.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/machine"
)

// Exit statuses. A guest that writes v to the debug-exit port makes it v<<1|1 instead.
const (
	exitOK      = 0
	exitError   = 1
	exitUsage   = 2
	exitCrashed = 4
)

// command is one subcommand.
type command struct {
	name, args, help string
	run              func(ctx context.Context, e *environment, args []string) error
}

func commands() []command {
	return []command{
		{"run", "[--restore DIR [--ignore-disk-changes]] [--outcome FILE] [--log-syscalls] GUEST.toml", "run a guest until it powers off", runGuest},
		{"restore", "[--shared] [--ignore-disk-changes] DIR", "run a guest from a saved state", restoreGuest},
		{"check", "[--json] GUEST.toml | DIR", "validate a definition, or every byte of a saved state", check},
		{"status", "[--json] GUEST", "tell how a running guest is", status},
		{"pause", "GUEST", "pause a running guest", simple("pause")},
		{"resume", "GUEST", "let a paused guest run again", simple("resume")},
		{"save", "[--json] [--stop] GUEST DIR", "save a guest to a directory; with --stop it ends then", save},
		{"power-button", "GUEST", "press a guest's power button", simple("power-button")},
		{"balloon", "[--json] GUEST SIZE", "ask a guest to give back all memory but SIZE, such as 256M", balloonTarget},
		{"nmi", "GUEST", "send a guest a non-maskable interrupt", simple("nmi")},
		{"quit", "GUEST", "switch a guest off, as by pulling the plug", simple("quit")},
		{"extract-kernel", "BZIMAGE VMLINUX", "unpack a kernel image: it then starts several times faster", extractKernel},
		{"completion", "bash | zsh | fish", "print shell completion", completions},
		{"man", "", "print the manual page", manual},
	}
}

// environment is what a command uses of the process, so that tests can give it another.
type environment struct {
	stdin          *os.File
	stdout, stderr io.Writer
	log            *slog.Logger
	handed         *handed
	outcome        *outcomeFile // where it is told how the guest ended; nil is nowhere
}

// usageError is a mistake on the command line.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// exitStatus is an error that only carries an exit status: all has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	end := []os.Signal{unix.SIGTERM}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGHUP} {
		if !signal.Ignored(s) { // as by nohup
			end = append(end, s)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), end...)
	defer stop()
	h := takeHanded()
	e := &environment{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, log: slog.New(slog.NewTextHandler(h.stderr(), nil)), handed: h}
	os.Exit(dispatch(ctx, e, os.Args[1:]))
}

// dispatch runs the command that args name and returns the exit status.
func dispatch(ctx context.Context, e *environment, args []string) int {
	if len(args) == 0 {
		usage(e.stderr)
		return exitUsage
	}
	if strings.HasPrefix(args[0], "-") || args[0] == "help" {
		if args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
			usage(e.stdout)
			return exitOK
		}
		fmt.Fprintf(e.stderr, "lodge-vmm: no flag %q before the command: see lodge-vmm --help\n", args[0])
		return exitUsage
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		for _, a := range args[1:] {
			if a == "--help" || a == "-h" {
				fmt.Fprintf(e.stdout, "usage: lodge-vmm %s %s\n\n%s.\n", c.name, c.args, capital(c.help))
				return exitOK
			}
		}
		return report(e, c, c.run(ctx, e, args[1:]))
	}
	fmt.Fprintf(e.stderr, "lodge-vmm: no command %q: see lodge-vmm --help\n", args[0])
	return exitUsage
}

func report(e *environment, c command, err error) int {
	var usage *usageError
	var status exitStatus
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		fmt.Fprintf(e.stderr, "lodge-vmm %s: %v\nusage: lodge-vmm %s %s\n", c.name, err, c.name, c.args)
		return exitUsage
	case errors.Is(err, context.Canceled):
		fmt.Fprintf(e.stderr, "lodge-vmm %s: interrupted\n", c.name)
		return exitError
	}
	// A join of errors has one on each line.
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(e.stderr, "lodge-vmm %s: %s\n", c.name, strings.TrimSuffix(line, "\n"))
	}
	return exitError
}

// flags takes the named boolean flags out of args, wherever they stand. "--" ends them.
func flags(args []string, known map[string]*bool) (rest []string, err error) {
	for i, a := range args {
		if a == "--" {
			return append(rest, args[i+1:]...), nil
		}
		set, ok := known[a]
		switch {
		case ok:
			*set = true
		case strings.HasPrefix(a, "-") && a != "-":
			return nil, usagef("no flag %q", a)
		default:
			rest = append(rest, a)
		}
	}
	return rest, nil
}

// valueFlag takes the flag of that name out of args, with its value: "" if it is not there.
func valueFlag(args []string, name string) (value string, rest []string) {
	for i, a := range args {
		if a == name && i+1 < len(args) {
			return args[i+1], append(args[:i:i], args[i+2:]...)
		}
	}
	return "", args
}

// outcomeStatus says how a guest ended, and turns it into the command's result.
func outcomeStatus(log *slog.Logger, o machine.Outcome) error {
	switch o.Reason {
	case machine.Crashed:
		log.Error("guest crashed", "detail", o.Detail, "err", o.Err)
		return exitStatus(exitCrashed)
	case machine.DebugExit:
		return exitStatus(o.Code)
	default:
		log.Info("guest ended", "reason", o.Reason.String(), "detail", o.Detail)
		return nil
	}
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
