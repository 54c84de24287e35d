// Package cmdline runs a program's command line, as kong reads it from a struct: its help, its errors, completion and manual page.
package cmdline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/lodgehv/lodge/internal/completion"
)

// Exit statuses that all programs have.
const (
	ExitError = 1
	ExitUsage = 2
)

// Program describes a program to Run.
type Program struct {
	Name, Description string
	// Commands points to the struct of the command line; methods Run take a context.Context, an io.Writer and Bind's values.
	Commands any
	Bind     []any
	// Manual is its manual page in man(7) format, in which the line @COMMANDS@ stands for the commands.
	Manual string
	// Status returns the exit status of an error; nil: ExitError for all.
	Status func(error) int
}

// leave is what kong's exit function panics with: Run catches it.
type leave int

// Run carries out a command line and returns the exit status.
func (p *Program) Run(ctx context.Context, args []string, out, errOut io.Writer) (status int) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case leave: // help was shown
			status = int(r)
		default:
			panic(r)
		}
	}()
	parser, err := kong.New(p.Commands,
		kong.Name(p.Name), kong.Description(p.Description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Writers(out, errOut), kong.Exit(func(code int) { panic(leave(code)) }),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(out, (*io.Writer)(nil)), kong.Bind(append(p.Bind, p)...))
	if err != nil {
		fmt.Fprintf(errOut, "%s: %v\n", p.Name, err)
		return ExitError
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(errOut, "%s: %v: see %s --help\n", p.Name, err, p.Name)
		return ExitUsage
	}
	if err := k.Run(parser); err != nil && !errors.Is(err, context.Canceled) {
		for line := range strings.Lines(err.Error()) { // a join of errors has one on each
			fmt.Fprintf(errOut, "%s %s: %s\n", p.Name, commandName(k.Selected()), strings.TrimSuffix(line, "\n"))
		}
		if p.Status == nil {
			return ExitError
		}
		return p.Status(err)
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

// Completion is the command "completion".
type Completion struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"One of bash, zsh and fish."`
}

// Run prints a script.
func (c *Completion) Run(parser *kong.Kong, p *Program, out io.Writer) error {
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
	script, err := completion.Script(c.Shell, p.Name, list)
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, script)
	return err
}

// Man is the command "man".
type Man struct{}

// Run prints the manual page.
func (Man) Run(parser *kong.Kong, p *Program, out io.Writer) error {
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
	_, err := io.WriteString(out, strings.Replace(p.Manual, "@COMMANDS@\n", list.String(), 1))
	return err
}
