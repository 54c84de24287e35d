package e2e_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/e2e/guest"
	"github.com/lodgehv/lodge/e2e/notebook"
)

// extraDisk is a disk of the notebook's; guest amd64 has it past the page cache, and the notebook's own to read.
var extraDisk = notebook.Disk{Name: "extra", Size: 64 << 20}

const extraDisks = `[[disk]]
name = "extra"
path = "/disk/extra"
direct = true
serial = "LODGE-EXTRA-1"
[[disk]]
name = "system"
path = "/disk/system"
readonly = true
`

// testDisks uses what the root disk does not show: direct I/O, a serial number, discarding, a disk that is read only.
func (l *lab) testDisks(ctx context.Context, t *testing.T) {
	m := l.guest(ctx, t, "amd64")
	const script = `set -e
cat /sys/block/vdb/serial; echo
cat /sys/block/vdc/ro
head -c 8388608 /dev/urandom >/tmp/random
dd if=/tmp/random of=/dev/vdb bs=64k oflag=direct conv=fsync 2>/dev/null
dd if=/dev/vdb bs=4k count=2048 iflag=direct 2>/dev/null | cmp - /tmp/random && echo same
blkdiscard -o 0 -l 4194304 /dev/vdb
blkdiscard -z -o 4194304 -l 4194304 /dev/vdb
dd if=/dev/vdb bs=4M skip=1 count=1 iflag=direct 2>/dev/null | tr -d '\0' | wc -c
dd if=/dev/zero of=/dev/vdc bs=512 count=1 oflag=direct 2>&1 | grep -o 'not permitted\|Read-only\|Operation not' | head -n 1
rm /tmp/random`
	got := strings.Split(m.shell(ctx, t, script), "\n")
	want := []string{"LODGE-EXTRA-1", "1", "same", "0"}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("%q, want %q", got, want)
	}
	if len(got) != len(want)+1 {
		t.Errorf("a disk that is read only was written to: %q", got)
	}
}

// testEntropy has the kernel's generator of hardware random numbers be ours.
func (l *lab) testEntropy(ctx context.Context, t *testing.T) {
	amd64, i386 := l.pair(ctx, t)
	for _, m := range []*vm{amd64, i386} {
		out := m.shell(ctx, t, "cat /sys/class/misc/hw_random/rng_current; head -c 4096 /dev/hwrng | sha256sum; head -c 4096 /dev/hwrng | sha256sum")
		lines := strings.Split(out, "\n")
		if len(lines) != 3 || !strings.HasPrefix(lines[0], "virtio_rng") || lines[1] == lines[2] {
			t.Errorf("guest %s: %s", m.Name(), out)
		}
	}
}

// dataSize is how much data writes: 64 MiB.
const dataSize = "67108864"

// data returns the checksum of /root/data, which it has written and synced if it was not there.
func (m *vm) data(ctx context.Context, t *testing.T) string {
	t.Helper()
	return m.shell(ctx, t, "[ -e /root/data.sum ] || { /usr/lib/lodge/agent fill /root/data "+dataSize+" 7 >/root/data.sum; sync; }; cat /root/data.sum")
}

func (l *lab) testKill(ctx context.Context, t *testing.T) {
	m := l.guest(ctx, t, "amd64")
	sum := m.data(ctx, t)
	if err := m.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	m = l.guest(ctx, t, "amd64")
	if got := m.shell(ctx, t, "/usr/lib/lodge/agent sum /root/data "+dataSize); got != sum {
		t.Errorf("data written before the kill: sum %s, want %s", got, sum)
	}
	if got := m.data(ctx, t); got != sum {
		t.Errorf("data.sum is %q now, was %q", got, sum)
	}
}

func (l *lab) testOneDisk(ctx context.Context, t *testing.T) {
	l.guest(ctx, t, "i386")
	path := l.host.Path("second", ".toml")
	def := l.host.Definition(guest.Config{Name: "second", Arch: "i386"})
	if err := l.host.Put(ctx, strings.NewReader(def), path, 0o644); err != nil {
		t.Fatal(err)
	}
	l.refused(ctx, t, `disk "root": /disk/i386 is in use by another guest`, "run", path)
}

func (l *lab) testDefinitionErrors(ctx context.Context, t *testing.T) {
	const good = "name = \"x\"\nmemory = \"64M\"\n[boot]\nkernel = \"/guests/amd64/vmlinux\"\n"
	path := l.host.Path("wrong", ".toml")
	for _, c := range []struct{ def, message string }{
		{"cpu = 2\n" + good, `wrong\.toml:1: unknown key "cpu"`},
		{good + "initrd = \"no-such\"\n", `wrong\.toml:5: initrd /run/no-such does not exist`},
		{good + "[[nic]]\nname = \"a\"\ntap = \"t\"\n[[nic]]\nname = \"a\"\ntap = \"u\"\n", `wrong\.toml:9: two nics are called "a"`},
		{strings.Replace(good, "64M", "400G", 1), `wrong\.toml:2: memory = "400G": this host has \d+ MiB`},
	} {
		if err := l.host.Put(ctx, strings.NewReader(c.def), path, 0o644); err != nil {
			t.Fatal(err)
		}
		l.refused(ctx, t, c.message, "run", path)
	}
}
