// Package completion writes the scripts by which shells complete a program's commands, and the flags and files after them.
package completion

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Command is one command of a program. One without a name is all of a program that has no commands.
type Command struct {
	Name, Help string
	Flags      []string // "--json"
}

// Flags returns the long flags that a program's help names, in their order.
func Flags(help string) (flags []string) {
	for _, f := range regexp.MustCompile(`--[a-z][a-z-]*`).FindAllString(help, -1) {
		if !slices.Contains(flags, f) {
			flags = append(flags, f)
		}
	}
	return flags
}

// Shells are those that Script knows.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// Script returns the script for a shell. The error names the shells that there are.
func Script(shell, program string, commands []Command) (string, error) {
	if len(commands) == 1 && commands[0].Name == "" {
		return simple(shell, program, commands[0].Flags)
	}
	function := "_" + strings.ReplaceAll(program, "-", "_")
	var names, cases, fish strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&names, "%s ", c.Name)
		fmt.Fprintf(&cases, "\t%s) flags='%s' ;;\n", c.Name, strings.Join(c.Flags, " "))
		fmt.Fprintf(&fish, "complete -c %s -n __fish_use_subcommand -f -a %s -d '%s'\n", program, c.Name, strings.ReplaceAll(c.Help, "'", `\'`))
		for _, f := range c.Flags {
			fmt.Fprintf(&fish, "complete -c %s -n '__fish_seen_subcommand_from %s' -l %s\n", program, c.Name, strings.TrimPrefix(f, "--"))
		}
	}
	list := strings.TrimSpace(names.String())
	switch shell {
	case "bash":
		return fmt.Sprintf(`%s() {
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
complete -o filenames -F %[1]s %[4]s
`, function, cases.String(), list, program), nil
	case "zsh":
		return fmt.Sprintf(`#compdef %s
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
`, program, cases.String(), list), nil
	case "fish":
		return fish.String(), nil
	}
	return "", errShell(shell)
}

func errShell(shell string) error {
	return fmt.Errorf("no shell %q: one of %s", shell, strings.Join(Shells(), ", "))
}

// simple is Script for a program without commands.
func simple(shell, program string, flags []string) (string, error) {
	switch shell {
	case "bash":
		return fmt.Sprintf("complete -f -W '%s' %s\n", strings.Join(flags, " "), program), nil
	case "zsh":
		return fmt.Sprintf(`#compdef %s
if [[ $PREFIX = -* ]]; then
	compadd -- %s
else
	_files
fi
`, program, strings.Join(flags, " ")), nil
	case "fish":
		var b strings.Builder
		for _, f := range flags {
			fmt.Fprintf(&b, "complete -c %s -l %s\n", program, strings.TrimPrefix(f, "--"))
		}
		return b.String(), nil
	}
	return "", errShell(shell)
}
