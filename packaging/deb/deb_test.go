package main

import (
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/internal/completion"
)

// install runs in a mount namespace, as root, on a copy of this system that is thrown away: $1 is an empty directory, $2 the package.
// It tells, by name, which files are not as before.
const install = `
set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
cp "$2" "$1/lodge.deb"
touch "$1/root/lodge.deb"
mount --bind "$1/lodge.deb" "$1/root/lodge.deb"
changed() {
	echo "== $1"
	(cd "$2/upper" && find . ! -type d ! -name lodge.deb | sort)
}
run() { chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
root=$1/root
run dpkg --force-unsafe-io -i /lodge.deb >&2
changed installed "$1"
echo "== said"
run lodge completion bash | tail -n1
run lodge version 2>/dev/null | head -n1
run getent group lodge
run sh -c 'for p in lodge lodged lodge-image lodge-init lodge-net lodge-seat lodge-vmm; do $p --help >/dev/null && echo $p; done'
run dpkg -V lodge
run systemd-analyze verify lodged.service lodge-cells.service lodge-guests.service lodge-seat.service >&2
rm -f "$root/run/systemd/systemd-units-load" # its own
mkdir -p "$root/etc/lodge/guests" "$root/var/lib/lodge/images" "$root/var/lib/lodge/versions/work" "$root/var/lib/lodge/guests"
echo text | tee "$root/etc/lodge/guests/work.toml" "$root/var/lib/lodge/images/disk.raw" "$root/var/lib/lodge/versions/work/1.toml" >/dev/null
run dpkg --force-unsafe-io -i /lodge.deb >&2 # an upgrade
changed upgraded "$1"
run dpkg -r lodge >&2
changed removed "$1"
run dpkg -P lodge >&2
changed purged "$1"
rm -r "$root/var/lib/lodge"
run dpkg --force-unsafe-io -i /lodge.deb >&2
run dpkg -P lodge >&2
changed purged-at-once "$1"
`

// dpkgs are files that belong to dpkg and to those who keep groups, by the begins of their names.
var dpkgs = []string{"./var/lib/dpkg/", "./var/log/", "./etc/group", "./etc/gshadow", "./etc/subgid", "./etc/subuid", "./etc/.pwd.lock",
	"./etc/passwd", "./etc/shadow", "./run/adduser", "./var/cache/", "./var/lib/systemd/deb-systemd-helper"}

// The package is installed, upgraded, removed and purged on a copy of this system, and nothing is left but what is the user's.
func TestInstall(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	file, err := build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "copy")
	if err := os.Mkdir(copied, 0o755); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation=private", "sh", "-c", install, "sh", copied, file)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, said.String())
	}
	changed := make(map[string][]string)
	at := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "== "); ok {
			at = name
			continue
		}
		if at == "said" || !slices.ContainsFunc(dpkgs, func(p string) bool { return strings.HasPrefix(line, p) }) {
			changed[at] = append(changed[at], line)
		}
	}
	for _, want := range []string{"./usr/bin/lodged", "./usr/lib/systemd/system/lodged.service", "./usr/share/dbus-1/system.d/org.lodgehv.Lodge1.conf",
		"./usr/share/polkit-1/actions/org.lodgehv.Lodge1.policy", "./usr/share/polkit-1/rules.d/50-org.lodgehv.Lodge1.rules",
		"./usr/share/man/man5/lodge-guest.5.gz", "./usr/share/bash-completion/completions/lodge", "./usr/share/doc/lodge/copyright",
		"./usr/lib/systemd/system/lodge-cells.service", "./usr/lib/systemd/system/lodge-seat.service", "./usr/bin/lodge-image",
		"./etc/systemd/system/multi-user.target.wants/lodged.service", "./etc/systemd/system/multi-user.target.wants/lodge-guests.service"} {
		if !slices.Contains(changed["installed"], want) {
			t.Errorf("not installed: %s", want)
		}
	}
	version := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "lodge_"), "_amd64.deb")
	if said := strings.Join(changed["said"], "\n"); !strings.HasPrefix(said, "complete -o filenames -F _lodge lodge\nlodge  "+version+"\nlodge:x:") ||
		!strings.HasSuffix(said, ":\nlodge\nlodged\nlodge-image\nlodge-init\nlodge-net\nlodge-seat\nlodge-vmm") {
		t.Errorf("the programs say:\n%s", said)
	}
	kept := []string{"./etc/lodge/guests/work.toml", "./var/lib/lodge/images/disk.raw", "./var/lib/lodge/versions/work/1.toml"}
	withUsers := slices.Sorted(slices.Values(append(kept, changed["installed"]...)))
	for at, want := range map[string][]string{
		"upgraded": withUsers, "removed": kept, "purged": {"./var/lib/lodge/images/disk.raw"}, "purged-at-once": nil,
	} {
		got := slices.DeleteFunc(changed[at], func(f string) bool {
			// Removed, the service is masked, so that what is left of it is not started.
			return at == "removed" && strings.HasPrefix(f, "./etc/systemd/system/")
		})
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want, +got):\n%s", at, diff)
		}
	}
	if !strings.Contains(said.String(), "the guests' disks and saved states are kept: /var/lib/lodge") {
		t.Errorf("it is not told that disks are kept:\n%s", said.String())
	}
	t.Run("pages", func(t *testing.T) { pages(t, file) })
}

// pages checks that each program has a manual page, which has the flags that its help has.
func pages(t *testing.T, file string) {
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "-x", file, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, section := range programs {
		help, err := exec.CommandContext(t.Context(), filepath.Join(dir, "usr/bin", name), "--help").Output()
		if err != nil {
			t.Error(err)
		}
		digit := string(rune('0' + section))
		f, err := os.Open(filepath.Join(dir, "usr/share/man/man"+digit, name+"."+digit+".gz"))
		if err != nil {
			t.Error(err)
			continue
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		page, err := io.ReadAll(z)
		if err != nil {
			t.Error(err)
		}
		f.Close()
		text := strings.ReplaceAll(string(page), `\-`, "-")
		for _, flag := range completion.Flags(string(help)) {
			if !strings.Contains(text, flag) && flag != "--help" {
				t.Errorf("%s(%s) does not tell of %s", name, digit, flag)
			}
		}
		if !strings.Contains(text, ".TH "+strings.ToUpper(name)+" "+digit) {
			t.Errorf("%s(%s) begins with %.60q", name, digit, text)
		}
	}
}
