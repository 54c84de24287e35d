package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/lodgehv/lodge/internal/completion"
)

// usage prints the overview of all commands.
func usage(w io.Writer) {
	fmt.Fprint(w, "Lodge-vmm runs one guest, and commands running ones.\n\nusage: lodge-vmm COMMAND …\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-15s %s\n", c.name, c.help)
	}
	fmt.Fprint(w, `
GUEST is the definition of a guest (with a control socket in it), or the socket. On the terminal of a guest, Ctrl-]
presses its power button, and Ctrl-] once more switches it off.
'lodge-vmm COMMAND --help' tells more about one.

exit status: 0 the guest powered off, or the command succeeded; 1 error; 2 wrong usage; 4 the guest crashed;
a guest that writes v to the debug-exit port makes it 2v+1.
`)
}

// flagsOf returns the flags of a command, as its synopsis names them.
func flagsOf(c command) []string {
	return append(regexp.MustCompile(`--[a-z-]+`).FindAllString(c.args, -1), "--help")
}

// completions prints a script that completes the commands, and their flags and files after them.
func completions(_ context.Context, e *environment, args []string) error {
	if len(args) != 1 {
		return usagef("want one shell")
	}
	var list []completion.Command
	for _, c := range commands() {
		list = append(list, completion.Command{Name: c.name, Help: c.help, Flags: flagsOf(c)})
	}
	script, err := completion.Script(args[0], "lodge-vmm", list)
	if err != nil {
		return usagef("%v", err)
	}
	_, err = io.WriteString(e.stdout, script)
	return err
}

//go:embed manual.tmpl
var manualText string

// manual prints the manual page, in man(7) format.
func manual(_ context.Context, e *environment, args []string) error {
	if len(args) != 0 {
		return usagef("want no arguments")
	}
	var list strings.Builder
	for _, c := range commands() {
		fmt.Fprintf(&list, ".TP\n.B %s %s\n%s.\n", strings.ReplaceAll(c.name, "-", `\-`), strings.ReplaceAll(c.args, "-", `\-`), capital(c.help))
	}
	_, err := io.WriteString(e.stdout, strings.Replace(manualText, "@COMMANDS@\n", list.String(), 1))
	return err
}
