package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"strings"
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

// completion prints a script that completes the commands, and files after them.
func completion(_ context.Context, e *environment, args []string) error {
	if len(args) != 1 {
		return usagef("want one shell")
	}
	var names, fish strings.Builder
	for _, c := range commands() {
		fmt.Fprintf(&names, "%s ", c.name)
		fmt.Fprintf(&fish, "complete -c lodge-vmm -n __fish_use_subcommand -f -a %s -d '%s'\n", c.name, strings.ReplaceAll(c.help, "'", `\'`))
	}
	list := strings.TrimSpace(names.String())
	switch args[0] {
	case "bash":
		fmt.Fprintf(e.stdout, `_lodge_vmm() {
	if [ "$COMP_CWORD" = 1 ]; then
		COMPREPLY=($(compgen -W "%s" -- "$2"))
	else
		COMPREPLY=($(compgen -f -- "$2"))
	fi
}
complete -o filenames -F _lodge_vmm lodge-vmm
`, list)
	case "zsh":
		fmt.Fprintf(e.stdout, "#compdef lodge-vmm\nif (( CURRENT == 2 )); then compadd %s; else _files; fi\n", list)
	case "fish":
		fmt.Fprint(e.stdout, fish.String())
	default:
		return usagef("no shell %q: one of bash, zsh, fish", args[0])
	}
	return nil
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
