package manager

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/internal/broker"
)

// Each guest has a user of its own as long as there is anything of it, and nobody else gets it before.
func TestUID(t *testing.T) {
	m := &Manager{cfg: Config{StateDir: t.TempDir()}}
	dir := func(name string) string {
		d := filepath.Join(m.cfg.StateDir, name)
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := func(name string, id uint32) {
		t.Helper()
		if got, err := m.uid(dir(name)); err != nil || got != id {
			t.Errorf("%s is user %d, %v; want %d", name, got, err, id)
		}
	}
	want("guests/a", cell.FirstUID)
	want("guests/b", cell.FirstUID+1)
	want("networks/a", cell.FirstUID+2)
	want("guests/b", cell.FirstUID+1)
	if err := os.RemoveAll(dir("guests/b")); err != nil {
		t.Fatal(err)
	}
	want("guests/c", cell.FirstUID+1)
	if err := os.WriteFile(filepath.Join(dir("guests/root"), uidName), []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := m.uid(dir("guests/root")); err == nil {
		t.Errorf("a guest is user %d", id)
	}
	if id, err := m.uid(dir("guests/d")); err == nil {
		t.Errorf("%d, though nobody knows who has which", id)
	}
}

// A guest reaches what its definition names, and nothing else.
func TestConnect(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"vsock_7", "lan", "daemon", "other"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	def := &definition.Definition{
		Vsock: &definition.Vsock{CID: 3, Path: filepath.Join(dir, "vsock")},
		NICs:  []definition.NIC{{Name: "lan", Socket: filepath.Join(dir, "lan")}, {Name: "tap", Tap: "tap0"}},
		Disks: []definition.Disk{{Name: "far", Socket: filepath.Join(dir, "daemon")}, {Name: "near", Path: filepath.Join(dir, "other")}},
	}
	for r, ok := range map[broker.Request]bool{
		{What: broker.Vsock, Port: 7}: true, {What: broker.Vsock, Port: 8}: false, {What: broker.NIC, Name: "lan"}: true,
		{What: broker.NIC, Name: "tap"}: false, {What: broker.NIC, Name: "../other"}: false, {What: broker.Disk, Name: "far"}: true,
		{What: broker.Disk, Name: "near"}: false, {What: broker.Disk}: false, {What: "file", Name: "/etc/passwd"}: false, {}: false,
	} {
		f, err := connect(def, r)
		if (err == nil) != ok {
			t.Errorf("%+v: %v", r, err)
		}
		if f != nil {
			f.Close()
		}
	}
	if _, err := connect(&definition.Definition{}, broker.Request{What: broker.Vsock, Port: 7}); err == nil {
		t.Error("a guest without vsock connects to the host")
	}
}

// The broker of a VMM is answered by whichever manager there is.
func TestBrokerOfNextManager(t *testing.T) {
	r := newRig(t)
	r.define("a", "", "[vsock]", "cid = 3")
	r.must(r.Start("a"))
	r.state("a", life.Running)
	l, err := net.Listen("unix", filepath.Join(r.dir, "run/guests/a/vsock.sock_7"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 {
		r.reopen()
		g, err := r.find("a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		for ctx.Err() == nil && g.call(ctx, time.Second, "connect", nil, nil, nil) != nil { // the broker comes in a moment
			time.Sleep(time.Millisecond)
		}
		if err := ctx.Err(); err != nil {
			t.Fatal("the guest cannot connect to the host")
		}
		cancel()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}
