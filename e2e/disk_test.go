package e2e_test

import (
	"context"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/e2e/guest"
)

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
