package completion

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
