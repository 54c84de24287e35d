package e2e_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/guest"
)

// testDiskFull has the notebook run out of space for a guest's disk: the guest is paused and says why, also when it is
// resumed too early; with more space it runs on, and has lost nothing. It ends with the guest.
func (l *lab) testDiskFull(ctx context.Context, t *testing.T) {
	const dir = "/run/small"
	host := func(script string) {
		t.Helper()
		if _, err := l.host.Shell(ctx, script); err != nil {
			t.Fatal(err)
		}
	}
	host("mkdir " + dir + " && mount -t tmpfs -o size=4m small " + dir + " && truncate -s 16M " + dir + "/disk")
	defer host("umount " + dir)
	g, err := l.host.Start(ctx, guest.Config{
		Name: "full", Arch: "amd64", CID: 12, Extra: "[[disk]]\nname = \"small\"\npath = \"" + dir + "/disk\"\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &vm{Guest: g, begin: time.Now()}
	l.connect(ctx, t, m)
	written := make(chan string, 1)
	go func() {
		out, err := m.agent.Shell(ctx, "head -c 12582912 /dev/urandom >/tmp/random && dd if=/tmp/random of=/dev/vdb bs=64k conv=fsync 2>/dev/null && sha256sum </tmp/random")
		if err != nil {
			t.Error(err)
		}
		written <- strings.Fields(out + " ?")[0]
	}()
	m.awaitReason(ctx, t, "disk-full")
	if _, err := m.Command(ctx, "resume"); err != nil {
		t.Fatal(err)
	}
	m.awaitReason(ctx, t, "disk-full")
	select {
	case <-written:
		t.Error("the guest has written more than there is space for")
	default:
	}
	host("mount -o remount,size=32m " + dir)
	if _, err := m.Command(ctx, "resume"); err != nil {
		t.Fatal(err)
	}
	sum := <-written
	if got := m.shell(ctx, t, "head -c 12582912 /dev/vdb | sha256sum"); !strings.HasPrefix(got, sum) {
		t.Errorf("the guest reads %s where it wrote %s", got, sum)
	}
	if out := m.shell(ctx, t, "dmesg | grep -i 'i/o error' || true"); out != "" {
		t.Errorf("the guest was told of errors: %s", out)
	}
	if err := m.PowerOff(ctx); err != nil {
		t.Error(err)
	}
}

// awaitReason waits until the guest is paused for that reason.
func (m *vm) awaitReason(ctx context.Context, t *testing.T, reason string) {
	t.Helper()
	for {
		out, err := m.Command(ctx, "status", "--json")
		if err != nil {
			t.Fatal(err)
		}
		var s struct{ State, Reason string }
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatal(err)
		}
		if s.State == "paused" && s.Reason == reason {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %v", out, context.Cause(ctx))
		}
	}
}
