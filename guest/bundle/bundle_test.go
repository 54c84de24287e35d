package bundle

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/appliance"
)

// guestDir returns a directory with a guest.
func guestDir(t *testing.T, name, definition string) string {
	t.Helper()
	dir := t.TempDir()
	for file, content := range map[string]string{name + ".toml": definition, "vmlinux": "a kernel", "root.squashfs": "a system", ".hidden": "no"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	real := filepath.Join(t.TempDir(), "kernel") // a link stands for what it leads to
	if err := errors.Join(os.Rename(filepath.Join(dir, "vmlinux"), real), os.Symlink(real, filepath.Join(dir, "vmlinux"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

const mailGuest = `name = "mail"
memory = "384M"
[boot]
kernel = "/var/lib/elsewhere/vmlinux"
[[disk]]
name = "system"
path = "root.squashfs" # its system
readonly = true
[[disk]]
name = "other"
path = "/srv/other.img"
[[disk]]
name = "home"
image = "home"
create = "8G"
`

// debugfs reads a file of a file system that is not mounted.
func debugfs(t *testing.T, image, command string) string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/debugfs", "-R", command, image).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Guests come along with their files, and their definitions name those. The same guests give the same bytes.
func TestMake(t *testing.T) {
	dir, out := guestDir(t, "mail", mailGuest), t.TempDir()
	one, two := filepath.Join(out, "one"), filepath.Join(out, "two")
	for _, file := range []string{one, two} {
		time.Sleep(time.Second) // of which file systems keep times
		if err := Make(t.Context(), file, dir); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("/usr/sbin/e2label", one).Output(); err != nil || string(out) != appliance.GuestsLabel+"\n" {
		t.Errorf("label %q, %v", out, err)
	}
	want := strings.NewReplacer("/var/lib/elsewhere/vmlinux", "/guests/mail/vmlinux", `"root.squashfs"`, `"/guests/mail/root.squashfs"`).Replace(mailGuest)
	if got := debugfs(t, one, "cat etc/guests/mail.toml"); got != want {
		t.Errorf("the definition is\n%s", got)
	}
	if got := debugfs(t, one, "cat mail/root.squashfs"); got != "a system" {
		t.Errorf("the system is %q", got)
	}
	if got := debugfs(t, one, "cat mail/vmlinux"); got != "a kernel" {
		t.Errorf("the kernel is %q", got)
	}
	if got := debugfs(t, one, "ls -p mail"); strings.Contains(got, "hidden") || strings.Contains(got, "toml") {
		t.Errorf("files that are not the guest's: %s", got)
	}
	if out, err := exec.Command("/usr/sbin/e2fsck", "-f", "-n", one).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	a, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(two)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("made once more it differs")
	}
	if left, _ := filepath.Glob(filepath.Join(out, ".guests-*")); left != nil {
		t.Errorf("left: %v", left)
	}
}

// What no guest can be made of is told, and nothing is left of it.
func TestMakeRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		dirs []string
		want string
	}{
		"no guest":   {[]string{t.TempDir()}, "has 0 files NAME.toml"},
		"twice":      {[]string{guestDir(t, "mail", mailGuest), guestDir(t, "mail", mailGuest)}, "guest mail is there twice"},
		"other name": {[]string{guestDir(t, "post", mailGuest)}, "post.toml:1: "},
		"wrong":      {[]string{guestDir(t, "mail", "memory = 1\n")}, "mail.toml:"},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			if err := Make(t.Context(), filepath.Join(out, "x"), tc.dirs...); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if left, _ := os.ReadDir(out); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
