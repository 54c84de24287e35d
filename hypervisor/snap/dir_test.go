package snap

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// fillWith returns what writes a saved machine whose files all hold content.
func fillWith(content string) func(string) error {
	return func(tmp string) error {
		for _, name := range []string{StateName, RAMName} {
			if err := os.WriteFile(filepath.Join(tmp, name), []byte(content), 0o600); err != nil {
				return err
			}
		}
		return nil
	}
}

// whole returns the content of the saved machine in dir: "" if there is none. Half of one is a failure.
func whole(t *testing.T, dir string) string {
	t.Helper()
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return ""
	}
	state, err1 := os.ReadFile(filepath.Join(dir, StateName))
	ram, err2 := os.ReadFile(filepath.Join(dir, RAMName))
	if err := errors.Join(err1, err2); err != nil || string(state) != string(ram) {
		t.Fatalf("not whole: %q, %q, %v", state, ram, err)
	}
	return string(state)
}

func only(t *testing.T, dir string) {
	t.Helper()
	if all, _ := filepath.Glob(dir + "*"); len(all) != 1 {
		t.Errorf("left over: %v", all)
	}
}

func TestPublishDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm")
	for _, content := range []string{"one", "two"} {
		if err := PublishDir(dir, fillWith(content)); err != nil {
			t.Fatal(err)
		}
		if got := whole(t, dir); got != content {
			t.Errorf("holds %q, want %q", got, content)
		}
	}
	failed := errors.New("disk full")
	if err := PublishDir(dir, func(tmp string) error { fillWith("three")(tmp); return failed }); !errors.Is(err, failed) {
		t.Error(err)
	}
	if got := whole(t, dir); got != "two" {
		t.Errorf("after a failure: %q", got)
	}
	only(t, dir)
}

// TestPublishDirSpares what is not a saved machine.
func TestPublishDirSpares(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	for _, dir := range []string{home, home + ".tmp-notes"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "thesis"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{home, file} {
		if err := PublishDir(dir, fillWith("x")); err == nil {
			t.Errorf("%s was replaced", dir)
		}
	}
	if err := os.Remove(filepath.Join(home, "thesis")); err != nil {
		t.Fatal(err)
	}
	if err := PublishDir(home, fillWith("x")); err != nil {
		t.Error("empty directory:", err)
	}
	if _, err := os.Stat(filepath.Join(home+".tmp-notes", "thesis")); err != nil {
		t.Error(err)
	}
}

// TestPublishDirBeside holds that a save does not remove what another is writing.
func TestPublishDirBeside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm")
	if err := PublishDir(dir, func(tmp string) error {
		if err := PublishDir(dir, fillWith("inner")); err != nil {
			return err
		}
		return fillWith("outer")(tmp)
	}); err != nil {
		t.Fatal(err)
	}
	if got := whole(t, dir); got != "outer" {
		t.Errorf("holds %q", got)
	}
	only(t, dir)
}

// TestPublishDirKilled kills a process before each step, with and without an old directory.
func TestPublishDirKilled(t *testing.T) {
	if step := os.Getenv("LODGE_TEST_KILL"); step != "" {
		err := publish(os.Getenv("LODGE_TEST_DIR"), fillWith("new"), func(at string) {
			if at == step {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // until it arrives
			}
		})
		t.Fatal("survived:", err)
	}
	for _, old := range []string{"", "old"} {
		want := old
		for _, step := range []string{"mkdir", "write", "sync", "rename", "sync parent", "remove old"} {
			dir := filepath.Join(t.TempDir(), "vm")
			if old != "" {
				if err := PublishDir(dir, fillWith(old)); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestPublishDirKilled$")
			cmd.Env = append(os.Environ(), "LODGE_TEST_KILL="+step, "LODGE_TEST_DIR="+dir)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("killed before %s: %v: %s", step, err, out)
			}
			if step == "sync parent" { // the step before was the rename
				want = "new"
			}
			if got := whole(t, dir); got != want {
				t.Errorf("killed before %s: holds %q, want %q", step, got, want)
			}
			// The next save works and tidies up.
			if err := PublishDir(dir, fillWith("next")); err != nil || whole(t, dir) != "next" {
				t.Errorf("after a kill before %s: %v", step, err)
			}
			only(t, dir)
		}
	}
}
