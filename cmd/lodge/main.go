// Command lodge is the user's tool: commands for the manager, and the console in text, for any terminal and for serial lines.
package main

import (
	"context"
	_ "embed"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/lodgehv/lodge/internal/cmdline"
)

// cli is the command line.
type cli struct {
	Manage manageCommands `embed:""`

	Run        runCommand         `cmd:"" help:"Run a guest from an image, without lodged; nothing of it is kept."`
	Doctor     doctorCommand      `cmd:"" help:"Say what this machine can do for guests, and what to do about what it lacks."`
	Report     reportCommand      `cmd:"" help:"Write an archive for those who maintain Lodge: versions, states, definitions, logs; no secrets."`
	Console    consoleCommand     `cmd:"" help:"Manage guests, by the keyboard alone."`
	Completion cmdline.Completion `cmd:"" help:"Print shell completion."`
	Man        cmdline.Man        `cmd:"" help:"Print the manual page."`
}

// Exit statuses.
const (
	exitError = cmdline.ExitError
	exitUsage = cmdline.ExitUsage
)

//go:embed manual.tmpl
var manual string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run carries out a command line and returns the exit status.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	var c cli
	p := cmdline.Program{
		Name: "lodge", Description: "Lodge runs several systems on one notebook. This is its user's tool.",
		Commands: &c, Bind: []any{&c.Manage}, Manual: manual, Status: exitStatus,
	}
	return p.Run(ctx, args, out, errOut)
}
