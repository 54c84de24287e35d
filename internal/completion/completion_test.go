package completion

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the scripts offer in a real shell.
func TestShells(t *testing.T) {
	commands := []Command{{Name: "list", Help: "List.", Flags: []string{"--json"}}, {Name: "snapshot create", Help: "Make one.", Flags: []string{"--disks"}},
		{Name: "snapshot list", Help: "List them.", Flags: []string{"--json", "--all"}}}
	script, err := Script("bash", "prog", commands)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "complete")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"":                    "list snapshot",
		"l":                   "list",
		"list -":              "--json",
		"snapshot ":           "create list",
		"snapshot c":          "create",
		"snapshot list -":     "--json --all",
		"snapshot create x -": "--disks",
	} {
		words := strings.Split("prog "+line, " ")
		last := words[len(words)-1]
		cmd := exec.Command("bash", "-c", `. "$0"; COMP_WORDS=("${@:2}"); COMP_CWORD=$(($# - 2)); _prog prog "$1"; echo "${COMPREPLY[@]}"`, file, last)
		cmd.Args = append(cmd.Args, words...)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%q: %q, want %q (%v)", line, got, want, err)
		}
	}
	for _, shell := range []string{"zsh", "fish"} {
		script, err := Script(shell, "prog", commands)
		if err != nil || !strings.Contains(script, "snapshot") {
			t.Errorf("%s: %v\n%s", shell, err, script)
		}
		if _, err := exec.LookPath(shell); err != nil {
			continue // their syntax is checked where they are installed
		}
		cmd := exec.Command(shell, "-n", "/dev/stdin")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s\n%s", shell, err, out, script)
		}
	}
}

// A program without commands has its flags completed, and files.
func TestSimple(t *testing.T) {
	flags := Flags("usage: x [--output OUTPUT] [--events] FILE\n\n  --output drm  or so\n")
	if diff := cmp.Diff([]string{"--output", "--events"}, flags); diff != "" {
		t.Fatal(diff)
	}
	want := map[string]string{
		"bash": "complete -f -W '--output --events' lodge-x\n",
		"zsh":  "#compdef lodge-x\n",
		"fish": "complete -c lodge-x -l output\ncomplete -c lodge-x -l events\n",
	}
	for _, shell := range Shells() {
		got, err := Script(shell, "lodge-x", []Command{{Flags: flags}})
		if err != nil || !strings.HasPrefix(got, want[shell]) {
			t.Errorf("%s: %v\n%s", shell, err, got)
		}
	}
	if _, err := Script("tcsh", "lodge-x", []Command{{Flags: flags}}); err == nil || !strings.Contains(err.Error(), "bash, zsh, fish") {
		t.Error(err)
	}
	out, err := exec.Command("bash", "-c", want["bash"]+"complete -p lodge-x; compgen -W '--output --events' -- --o").CombinedOutput()
	if err != nil || string(out) != want["bash"]+"--output\n" {
		t.Errorf("bash: %v\n%s", err, out)
	}
}
