package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"regexp"
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

// flagsOf returns the flags of a command, as its synopsis names them.
func flagsOf(c command) []string {
	return append(regexp.MustCompile(`--[a-z-]+`).FindAllString(c.args, -1), "--help")
}

// completion prints a script that completes the commands, and their flags and files after them.
func completion(_ context.Context, e *environment, args []string) error {
	if len(args) != 1 {
		return usagef("want one shell")
	}
	var names, cases, fish strings.Builder
	for _, c := range commands() {
		flags := flagsOf(c)
		fmt.Fprintf(&names, "%s ", c.name)
		fmt.Fprintf(&cases, "\t%s) flags='%s' ;;\n", c.name, strings.Join(flags, " "))
		fmt.Fprintf(&fish, "complete -c lodge-vmm -n __fish_use_subcommand -f -a %s -d '%s'\n", c.name, strings.ReplaceAll(c.help, "'", `\'`))
		for _, f := range flags {
			fmt.Fprintf(&fish, "complete -c lodge-vmm -n '__fish_seen_subcommand_from %s' -l %s\n", c.name, strings.TrimPrefix(f, "--"))
		}
	}
	list := strings.TrimSpace(names.String())
	switch args[0] {
	case "bash":
		fmt.Fprintf(e.stdout, `_lodge_vmm() {
	local flags=
	case ${COMP_WORDS[1]} in
%s	esac
	if [ "$COMP_CWORD" = 1 ]; then
		COMPREPLY=($(compgen -W "%s" -- "$2"))
	elif [[ $2 = -* ]]; then
		COMPREPLY=($(compgen -W "$flags" -- "$2"))
	else
		COMPREPLY=($(compgen -f -- "$2"))
	fi
}
complete -o filenames -F _lodge_vmm lodge-vmm
`, cases.String(), list)
	case "zsh":
		fmt.Fprintf(e.stdout, `#compdef lodge-vmm
local flags=
case ${words[2]} in
%sesac
if (( CURRENT == 2 )); then
	compadd %s
elif [[ $PREFIX = -* ]]; then
	compadd -- ${=flags}
else
	_files
fi
`, cases.String(), list)
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
