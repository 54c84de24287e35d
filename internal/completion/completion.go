// Package completion writes the scripts by which shells complete a program's commands, and the flags and files after them.
package completion

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Command is one command of a program. The name of one in a group has two words: "snapshot create". One without a name is all of a
// program that has no commands.
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
	var names []string // of commands and groups
	groups := make(map[string][]string)
	var cases, fish strings.Builder
	for _, c := range commands {
		name, inner, grouped := strings.Cut(c.Name, " ")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		help, pattern := strings.ReplaceAll(c.Help, "'", `\'`), name+`\ *`
		seen, first := "__fish_seen_subcommand_from "+name, !grouped
		if grouped {
			first = len(groups[name]) == 0
			groups[name] = append(groups[name], inner)
			pattern = name + `\ ` + inner
		}
		fmt.Fprintf(&cases, "\t%s) flags='%s' ;;\n", pattern, strings.Join(c.Flags, " "))
		if first {
			what := help
			if grouped {
				what = "Commands for this"
			}
			fmt.Fprintf(&fish, "complete -c %s -n __fish_use_subcommand -f -a %s -d '%s'\n", program, name, what)
		}
		if grouped {
			fmt.Fprintf(&fish, "complete -c %s -n '%s' -f -a %s -d '%s'\n", program, seen, inner, help)
			seen += "; and __fish_seen_subcommand_from " + inner
		}
		for _, f := range c.Flags {
			fmt.Fprintf(&fish, "complete -c %s -n '%s' -l %s\n", program, seen, strings.TrimPrefix(f, "--"))
		}
	}
	var inner strings.Builder // by the word before
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		fmt.Fprintf(&inner, "\t2\\ %s) words='%s' ;;\n", name, strings.Join(groups[name], " "))
	}
	list := strings.Join(names, " ")
	switch shell {
	case "bash":
		return fmt.Sprintf(`%[1]s() {
	local flags= words=
	case "$COMP_CWORD ${COMP_WORDS[1]}" in
	1\ *) words='%[2]s' ;;
%[3]s	esac
	case "${COMP_WORDS[1]} ${COMP_WORDS[2]}" in
%[4]s	esac
	if [ -n "$words" ]; then
		COMPREPLY=($(compgen -W "$words" -- "$2"))
	elif [[ $2 = -* ]]; then
		COMPREPLY=($(compgen -W "$flags" -- "$2"))
	else
		COMPREPLY=($(compgen -f -- "$2"))
	fi
}
complete -o filenames -F %[1]s %[5]s
`, function, list, inner.String(), cases.String(), program), nil
	case "zsh":
		return fmt.Sprintf(`#compdef %[1]s
local flags= choice=
case "$((CURRENT - 1)) ${words[2]}" in
	1\ *) choice='%[2]s' ;;
%[3]sesac
case "${words[2]} ${words[3]}" in
%[4]sesac
if [[ -n $choice ]]; then
	compadd ${=choice}
elif [[ $PREFIX = -* ]]; then
	compadd -- ${=flags}
else
	_files
fi
`, program, list, strings.ReplaceAll(inner.String(), "words=", "choice="), cases.String()), nil
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
