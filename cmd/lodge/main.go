// Command lodge is the user's tool: commands for the manager, and the console in text, for any terminal and for serial lines.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/lodgehv/lodge/internal/completion"
)

// cli is the command line.
type cli struct {
	Manage manageCommands `embed:""`

	Run        runCommand        `cmd:"" help:"Run a guest from an image, without lodged; nothing of it is kept."`
	Doctor     doctorCommand     `cmd:"" help:"Say what this machine can do for guests, and what to do about what it lacks."`
	Report     reportCommand     `cmd:"" help:"Write an archive for those who maintain Lodge: versions, states, definitions, logs; no secrets."`
	Console    consoleCommand    `cmd:"" help:"Manage guests, by the keyboard alone."`
	Completion completionCommand `cmd:"" help:"Print shell completion."`
	Man        manCommand        `cmd:"" help:"Print the manual page."`
}

// Exit statuses.
const (
	exitError = 1
	exitUsage = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// leave is what kong's exit function panics with: run catches it.
type leave int

// run carries out a command line and returns the exit status.
func run(ctx context.Context, args []string, out, errOut io.Writer) (status int) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case leave: // help was shown
			status = int(r)
		default:
			panic(r)
		}
	}()
	var c cli
	parser, err := kong.New(&c,
		kong.Name("lodge"), kong.Description("Lodge runs several systems on one notebook. This is its user's tool."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Writers(out, errOut), kong.Exit(func(code int) { panic(leave(code)) }),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(out, (*io.Writer)(nil)), kong.Bind(&c.Manage))
	if err != nil {
		fmt.Fprintln(errOut, "lodge:", err)
		return exitError
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(errOut, "lodge: %v: see lodge --help\n", err)
		return exitUsage
	}
	if err := k.Run(parser); err != nil && !errors.Is(err, context.Canceled) {
		for line := range strings.Lines(err.Error()) { // a join of errors has one on each
			fmt.Fprintf(errOut, "lodge %s: %s\n", commandName(k.Selected()), strings.TrimSuffix(line, "\n"))
		}
		return exitStatus(err)
	}
	return 0
}

// commandName returns what a command is called, with its group if it is in one.
func commandName(n *kong.Node) string {
	if n.Parent != nil && n.Parent.Type == kong.CommandNode {
		return n.Parent.Name + " " + n.Name
	}
	return n.Name
}

// completionCommand is the command "completion".
type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"One of bash, zsh and fish."`
}

// Run prints a script.
func (c *completionCommand) Run(parser *kong.Kong, out io.Writer) error {
	var list []completion.Command
	for _, n := range parser.Model.Leaves(true) {
		k := completion.Command{Name: commandName(n), Help: n.Help}
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				k.Flags = append(k.Flags, "--"+f.Name)
			}
		}
		list = append(list, k)
	}
	script, err := completion.Script(c.Shell, "lodge", list)
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, script)
	return err
}

// manCommand is the command "man".
type manCommand struct{}

//go:embed manual.tmpl
var manual string

// Run prints the manual page, in man(7) format.
func (manCommand) Run(parser *kong.Kong, out io.Writer) error {
	var list strings.Builder
	escape := func(s string) string { return strings.ReplaceAll(s, "-", `\-`) }
	for _, n := range parser.Model.Leaves(true) {
		fmt.Fprintf(&list, ".SS %s\n%s\n", escape(n.Summary()), escape(n.Help))
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				if f.Name != "help" {
					fmt.Fprintf(&list, ".TP\n.B %s\n%s\n", escape(f.ShortSummary()), escape(f.Help))
				}
			}
		}
	}
	_, err := io.WriteString(out, strings.Replace(manual, "@COMMANDS@\n", list.String(), 1))
	return err
}
