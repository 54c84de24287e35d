// Package completion writes the scripts by which shells complete a program's commands, and the flags and files after them.
package completion

import (
	"fmt"
	"strings"
)

// Command is one command of a program.
type Command struct {
	Name, Help string
	Flags      []string // "--json"
}

// Shells are those that Script knows.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// Script returns the script for a shell. The error names the shells that there are.
func Script(shell, program string, commands []Command) (string, error) {
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
	return "", fmt.Errorf("no shell %q: one of %s", shell, strings.Join(Shells(), ", "))
}
