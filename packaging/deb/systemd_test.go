package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// underSystemd installs the package as install does, and starts systemd on that copy as the first process of a PID namespace, with a
// network and a control group of its own. $1 is an empty directory, $2 the package, $3 what systemd starts when the units are up; it
// prints what that printed, and after "== journal" what the journal has of Lodge's units.
const underSystemd = `
set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/cgroup"
mount -t cgroup2 none "$1/cgroup"
group=$1/cgroup/lodge-test.$$
mkdir "$group"
trap 'find "$group" -depth -type d -exec rmdir {} +' EXIT

root=$1/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/kvm "$root/dev/"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/run/lock"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# Nothing of the machine's own but what Lodge needs, and no policy that keeps services from being started.
units=$root/etc/systemd/system
rm -rf "$units"/*.wants "$root/usr/sbin/policy-rc.d" "$root/etc/lodge" "$root/var/lib/lodge" "$root/var/log/journal"
for u in systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-logind.service systemd-networkd.service \
	systemd-timesyncd.service console-getty.service getty.target; do
	ln -sf /dev/null "$units/$u"
done
mkdir "$root/var/log/journal"
cp "$2" "$root/root/lodge.deb"
chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg --force-unsafe-io -i /root/lodge.deb >&2
printf '%s\n' "$3" >"$root/root/test.sh"
cat >"$units/lodge-test.service" <<UNIT
[Unit]
After=lodged.service lodge-guests.service
[Service]
Type=oneshot
ExecStart=/bin/sh /root/test.sh
StandardOutput=file:/root/said
StandardError=file:/root/said
Environment=LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
UNIT
mkdir -p "$units/multi-user.target.wants"
ln -s ../lodge-test.service "$units/multi-user.target.wants/"

# The control group's namespace begins at the group in which unshare is.
sh -c 'echo $$ >"$1/cgroup.procs" && exec unshare --pid --fork --kill-child --cgroup --ipc --net --mount sh -c "
	mount -t proc proc $2/proc
	mount -t sysfs sysfs $2/sys
	mount -t cgroup2 none $2/sys/fs/cgroup
	exec chroot $2 env container=lodge-test /lib/systemd/systemd --log-target=journal --show-status=0 --unit=multi-user.target"' sh "$group" "$root" >&2 || true
cat "$root/root/said"
echo "== journal"
journalctl --no-pager --quiet -D "$root/var/log/journal" -o cat -u lodged -u lodge-guests -u lodge-cells
`

// lives is what is done there. Guests are machines in which nothing but the firmware runs, so that they end when their time is over.
const lives = `
set -eu
guests() { pidof lodge-vmm | tr " " "\n" | sort | tr "\n" " "; }
up() { # the next lodged, with all guests
	for i in $(seq 100); do
		if [ "$(systemctl show -p MainPID --value lodged)" != "$1" ] && [ "$(lodge list 2>/dev/null | grep -cw running)" = 2 ]; then
			return
		fi
		sleep 0.2
	done
	echo "no new lodged with its guests:"; lodge list; systemctl --no-pager status lodged
}
main() { systemctl show -p MainPID --value lodged; }
define() {
	printf 'name = "%s"\nmemory = "64M"\nstop_timeout = "1s"\nboot = { firmware = "/usr/share/seabios/bios-256k.bin" }\n%s\n' "$1" "$2" >"/tmp/$1.toml"
	lodge define "/tmp/$1.toml"
}
define base ''
define upon 'depends = ["base"]'
lodge start upon >/dev/null
before=$(guests)
same() { [ "$(guests)" = "$before" ] && echo "$1: the same guests" || echo "$1: guests were $before and are $(guests)"; }
lodged=$(main); systemctl restart lodged; up "$lodged"; same restarted
lodged=$(main); kill -9 "$lodged"; up "$lodged"; same killed
lodged=$(main); dpkg --force-unsafe-io -i /root/lodge.deb >/dev/null 2>/root/dpkg.err || cat /root/dpkg.err; up "$lodged"; same upgraded
for p in $(guests); do grep -o '/system.slice/lodge-cells.service/.*' "/proc/$p/cgroup" | sed 's,/[^/]*$,/...,'; done | sort -u
systemctl is-active lodged lodge-cells lodge-guests
lodge stop --now --all
lodge list | grep -cw running || true
lodge start upon >/dev/null
journalctl --sync
echo over
kill -s RTMIN+4 1 # power off
`

// Under systemd itself, guests outlive a restart, a crash and an upgrade of lodged, and are stopped in order when the machine goes down.
func TestSystemd(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/kvm")
	}
	f.Close()
	dir := t.TempDir()
	file, err := build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "copy")
	if err := os.Mkdir(copied, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var said strings.Builder
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation=private", "sh", "-c", underSystemd, "sh", copied, file, lives)
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, said.String())
	}
	done, journal, _ := strings.Cut(string(out), "== journal\n")
	const want = "restarted: the same guests\nkilled: the same guests\nupgraded: the same guests\n" +
		"/system.slice/lodge-cells.service/...\nactive\nactive\nactive\n0\nover\n"
	if !strings.HasSuffix(done, want) {
		t.Errorf("it went so:\n%s\nnot so:\n%s", done, want)
	}
	at := 0
	for _, next := range []string{
		"\nStopping lodge-guests.service", "\nguest upon, which depends on it, is stopped first\n", "\npower button pressed;",
		"\nguest is defined state=defined before=stopping because=ended", "\npower button pressed;",
		"\nguest is defined state=defined before=stopping because=ended", "\nStopped lodge-guests.service", "\nStopping lodged.service",
		"\nStopped lodged.service", "\nStopping lodge-cells.service", "\nStopped lodge-cells.service",
	} {
		i := strings.Index(journal[at:], next)
		if i < 0 {
			t.Errorf("after the first %d bytes of the journal, there is no %q in it:\n%s", at, next, journal)
			break
		}
		at += i + len(next) - 1
	}
}
