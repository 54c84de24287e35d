package api

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// do begins a job and waits for its end.
func (r *rig) do(begin func(ctx context.Context) (uint64, error)) (client.Job, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	return r.c.Do(ctx, begin, nil, nil)
}

// Images are imported from files, pipes and servers, copied, exported and deleted by a client, who is told what is wrong.
func TestImages(t *testing.T) {
	r := newRig(t, nil)
	ctx := t.Context()
	content := bytes.Repeat([]byte("lodge "), 4096)
	path := filepath.Join(r.dir, "disk.img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	importAs := func(i client.Import) error {
		_, err := r.do(func(ctx context.Context) (uint64, error) { return r.c.ImportImage(ctx, i) })
		return err
	}
	if err := importAs(client.Import{Pool: "default", File: open()}); err != nil {
		t.Fatal(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	go func() {
		_, _ = pw.Write(content)
		pw.Close()
	}()
	if err := importAs(client.Import{Pool: "default", Name: "piped", File: pr}); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(r.dir)))
	defer server.Close()
	if err := importAs(client.Import{Pool: "default", Name: "fetched", URL: server.URL + "/disk.img"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disk", "piped", "fetched"} {
		b, err := os.ReadFile(filepath.Join(r.dir, "var/images", name+".raw"))
		if err != nil || !bytes.Equal(b, content) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for want, i := range map[*client.Error]client.Import{
		client.ErrExists:                                 {Pool: "default", File: open()},
		client.ErrNotFound:                               {Pool: "none", File: open()},
		{Name: client.ErrorPrefix + "InvalidName"}:       {Pool: "default", Name: "../x", File: open()},
		{Name: client.ErrorPrefix + "Damaged"}:           {Pool: "default", Name: "x", File: open(), SHA256: strings.Repeat("0", 64)},
		{Name: "org.freedesktop.DBus.Error.InvalidArgs"}: {Pool: "default", Name: "x", File: open(), Format: "floppy"},
		{Name: client.ErrorPrefix + "Failed"}:            {Pool: "default", Name: "x", URL: "file:///etc/passwd"},
	} {
		if err := importAs(i); !errors.Is(err, want) {
			t.Errorf("%+v: %v, want %s", i, err, want.Name)
		}
	}
	for _, begin := range []func(ctx context.Context) (uint64, error){
		func(ctx context.Context) (uint64, error) { return r.c.CloneImage(ctx, "default", "disk", "other") },
		func(ctx context.Context) (uint64, error) { return r.c.SnapshotImage(ctx, "default", "disk", "s") },
		func(ctx context.Context) (uint64, error) { return r.c.RevertImage(ctx, "default", "disk", "s") },
	} {
		if _, err := r.do(begin); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(r.c.CreateImage(ctx, "default", "new", 1<<20), r.c.GrowImage(ctx, "default", "new", 2<<20), r.c.DeleteImage(ctx, "default", "other")); err != nil {
		t.Error(err)
	}
	if err := r.c.CreateImage(ctx, "default", "huge", 1<<63); err == nil {
		t.Error("an image of 8 EiB is made")
	}
	images, err := r.c.Images(ctx, "default")
	var names []string
	for _, i := range images {
		names = append(names, i.Name)
	}
	if got := strings.Join(names, " "); err != nil || got != "disk disk@s fetched new piped" || images[0].Origin != "disk.img" || images[0].Size != uint64(len(content)) ||
		!images[1].ReadOnly || images[3].Size != 2<<20 {
		t.Errorf("%s: %+v, %v", got, images, err)
	}
	if u, err := r.c.Usage(ctx, "default"); err != nil || u.Images != 5 || u.Total < u.Free {
		t.Errorf("%+v, %v", u, err)
	}
	if pools, err := r.c.Pools(ctx); err != nil || len(pools) != 1 || pools[0].Name != "default" || pools[0].Fault != "" {
		t.Errorf("%+v, %v", pools, err)
	}

	out, err := os.Create(filepath.Join(r.dir, "out.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := r.do(func(ctx context.Context) (uint64, error) {
		return r.c.ExportImage(ctx, "default", "disk@s", out, "raw", "")
	}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out.Name()); err != nil || !bytes.Equal(b, content) {
		t.Errorf("exported %d bytes, %v", len(b), err)
	}
}

// A descriptor does not let its sender do more than it could do itself.
func TestGivenFiles(t *testing.T) {
	dir := t.TempDir()
	path, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(path, []byte("x"), 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path        string
		flags       int
		read, write bool
	}{
		{path, unix.O_RDONLY, true, false},
		{path, unix.O_WRONLY, false, true},
		{path, unix.O_RDWR, true, true},
		{path, unix.O_WRONLY | unix.O_APPEND, false, false},
		{path, unix.O_PATH, false, false},
		{fifo, unix.O_PATH, false, false},
		{fifo, unix.O_RDONLY | unix.O_NONBLOCK, true, false},
		{dir, unix.O_RDONLY, false, false},
		{"/dev/zero", unix.O_RDWR, false, false},
	} {
		fd, err := unix.Open(tt.path, tt.flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for write, want := range map[bool]bool{false: tt.read, true: tt.write} {
			f, err := openGiven(fd, write)
			if (err == nil) != want {
				t.Errorf("%s, flags %#x, to write %t: %v", tt.path, tt.flags, write, err)
			}
			if err == nil {
				f.Close()
			}
		}
		unix.Close(fd)
	}
}

// Guests are cloned and exported, and imported again.
func TestGuestImages(t *testing.T) {
	r := newRig(t, nil)
	ctx := t.Context()
	if err := r.c.CreateImage(ctx, "default", "root", 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Define(ctx, definitionOf("one")+"[[disk]]\nname = \"root\"\nimage = \"root\"\n"); err != nil {
		t.Fatal(err)
	}
	if err := r.c.DeleteImage(ctx, "default", "root"); !errors.Is(err, &client.Error{Name: client.ErrorPrefix + "Needed"}) {
		t.Errorf("an image that a guest has: %v", err)
	}
	begin := func(begin func(ctx context.Context) (uint64, error)) {
		t.Helper()
		if _, err := r.do(begin); err != nil {
			t.Fatal(err)
		}
	}
	begin(func(ctx context.Context) (uint64, error) { return r.c.SnapshotDisks(ctx, "one", "s") })
	begin(func(ctx context.Context) (uint64, error) { return r.c.CloneGuest(ctx, "one", "two", "") })
	begin(func(ctx context.Context) (uint64, error) { return r.c.CloneGuest(ctx, "one", "three", "s") })
	out, err := os.Create(filepath.Join(r.dir, "four.ova"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	begin(func(ctx context.Context) (uint64, error) { return r.c.ExportGuest(ctx, "two", out) })
	begin(func(ctx context.Context) (uint64, error) {
		in, err := os.Open(out.Name())
		if err != nil {
			return 0, err
		}
		defer in.Close()
		return r.c.ImportGuest(ctx, client.Import{Pool: "default", File: in})
	})
	var names []string
	guests, err := r.c.Guests(ctx)
	for _, g := range guests {
		names = append(names, g.Name)
	}
	if got := strings.Join(names, " "); err != nil || got != "four one three two" {
		t.Errorf("guests %s, %v", got, err)
	}
}

// Who listens hears of pools and images.
func TestPoolSignals(t *testing.T) {
	r := newRig(t, nil)
	conn := r.connect()
	signals := make(chan *dbus.Signal, 100)
	conn.Signal(signals)
	if got := errorOf(conn, client.ManagerPath, client.ManagerInterface+".Subscribe"); got != "" {
		t.Fatal(got)
	}
	pools := filepath.Join(r.dir, "etc/pools")
	if err := errors.Join(os.MkdirAll(pools, 0o700), os.WriteFile(filepath.Join(pools, "fast.toml"), []byte("path = \""+r.dir+"\"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	hear := func(name string, path dbus.ObjectPath) {
		t.Helper()
		for deadline := time.After(10 * time.Second); ; {
			select {
			case s := <-signals:
				if s.Path == path && strings.HasSuffix(s.Name, "."+name) {
					return
				}
			case <-deadline:
				t.Fatalf("no %s", name)
			}
		}
	}
	if err := r.m.Reload(); err != nil {
		t.Fatal(err)
	}
	hear("PoolAdded", client.ManagerPath)
	if err := r.c.CreateImage(t.Context(), "fast", "x", 512); err != nil {
		t.Fatal(err)
	}
	hear("ImagesChanged", client.PoolPath("fast"))
	if err := os.Remove(filepath.Join(pools, "fast.toml")); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Reload(); err != nil {
		t.Fatal(err)
	}
	hear("PoolRemoved", client.ManagerPath)
}

// The key of an encrypted disk comes by a descriptor, and is known to be needed before.
func TestGiveKey(t *testing.T) {
	r := newRig(t, nil)
	ctx := t.Context()
	disk := filepath.Join(r.dir, "disk.luks")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Define(ctx, definitionOf("one")+"[[disk]]\nname = \"root\"\npath = \""+disk+"\"\nformat = \"luks\"\n"); err != nil {
		t.Fatal(err)
	}
	keys := func(want string) {
		t.Helper()
		if got, err := r.c.Keys(ctx, "one"); err != nil || strings.Join(got, " ") != want {
			t.Errorf("keys needed of %v, want %q: %v", got, want, err)
		}
	}
	start := func() error {
		_, err := r.do(func(ctx context.Context) (uint64, error) { return r.c.Start(ctx, "one") })
		return err
	}
	keys("root")
	if err := start(); !errors.Is(err, client.ErrKeyNeeded) {
		t.Errorf("start without a key: %v", err)
	}
	for name, key := range map[string][]byte{"none": {}, "long": make([]byte, maxKey+1)} {
		if err := r.c.GiveKey(ctx, "one", "root", key); err == nil {
			t.Errorf("a key that is %s is taken", name)
		}
	}
	if err := r.c.GiveKey(ctx, "one", "other", []byte("x")); err == nil {
		t.Error("a key of no disk is taken")
	}
	keys("root")
	if err := r.c.GiveKey(ctx, "one", "root", []byte("x")); err != nil {
		t.Fatal(err)
	}
	keys("")
	if err := start(); err == nil || errors.Is(err, client.ErrKeyNeeded) {
		t.Errorf("start of what is no LUKS: %v", err)
	}
	keys("root")
	// Nobody waits for a pipe that says nothing.
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	conn := r.connect()
	if got := errorOf(conn, client.GuestPath("one"), client.GuestInterface+".GiveKey", "root", dbus.UnixFD(pr.Fd())); got != "Failed" {
		t.Errorf("of a pipe that is silent: %q", got)
	}
}
