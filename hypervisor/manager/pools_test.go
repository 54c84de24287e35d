package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/job"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// file makes a file with content, whole sectors of it, and opens it.
func (r *rig) file(name string, content []byte) Source {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, append(content, make([]byte, (512-len(content)%512)%512)...), 0o600); err != nil {
		r.t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return Source{File: f}
}

// begins returns what an image begins with.
func (r *rig) begins(poolName, image string) string {
	r.t.Helper()
	p, err := r.pool(poolName)
	if err != nil {
		r.t.Fatal(err)
	}
	path, err := p.PathOf(image)
	if err != nil {
		r.t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// An image that is to be made is made at the guest's first start, and never again.
func TestCreatedImage(t *testing.T) {
	r := newRig(t)
	r.define("a", "", "[[disk]]", `name = "home"`, `image = "home"`, `create = "4M"`)
	if n := r.names("default"); len(n) != 0 {
		t.Fatalf("images before the first start: %q", n)
	}
	if keys, err := r.Keys("a"); err != nil || len(keys) != 0 { // lodge start asks for them first
		t.Errorf("keys %q, %v", keys, err)
	}
	r.must(r.Start("a"))
	image, err := r.Image("default", "home")
	if err != nil || image.Size != 4<<20 {
		t.Fatalf("%+v, %v", image, err)
	}
	r.must(r.Kill("a"))
	r.state("a", life.Defined)
	p, err := r.pool("default")
	if err != nil {
		t.Fatal(err)
	}
	path, err := p.PathOf("home")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte("mine"), make([]byte, 4<<20-4)...), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must(r.Start("a"))
	if b := r.begins("default", "home"); b != "mine" {
		t.Errorf("the image begins with %q", b)
	}
}

// names returns the images of a pool.
func (r *rig) names(poolName string) []string {
	r.t.Helper()
	images, err := r.Images(poolName)
	if err != nil {
		r.t.Fatal(err)
	}
	names := []string{}
	for _, i := range images {
		names = append(names, i.Name)
	}
	return names
}

func (r *rig) poolFile(name, text string) {
	r.t.Helper()
	dir := filepath.Join(r.dir, "etc/pools")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, name+".toml"), []byte(text), 0o600)); err != nil {
		r.t.Fatal(err)
	}
}

// Pools come and go with their files, and one that cannot be used is told of and harms nobody.
func TestPools(t *testing.T) {
	r := newRig(t)
	heard := r.Subscribe()
	fast := filepath.Join(r.dir, "fast")
	if err := os.Mkdir(fast, 0o700); err != nil {
		t.Fatal(err)
	}
	r.poolFile("fast", fmt.Sprintf("path = %q\n", fast))
	r.poolFile("away", `path = "/nonexistent/disk"`)
	r.poolFile("wrong", "\npaht = 1\n")
	r.poolFile("relative", "path = \"x\"\n")
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"away": `away.toml:1: path: there is no directory /nonexistent/disk: mount it`, "default": "", "fast": "",
		"relative": `relative.toml:1: path "x"`, "wrong": `wrong.toml:2: unknown key "paht": see lodged(8)`,
	}
	got := r.Pools()
	for _, p := range got {
		if w, ok := want[p.Name]; !ok || (w == "") != (p.Fault == "") || !strings.Contains(p.Fault, w) {
			t.Errorf("pool %s: %q, want %q", p.Name, p.Fault, w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%+v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for heardOf := map[string]bool{}; !heardOf["fast"] || !heardOf["away"]; {
		e, err := heard.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == PoolChanged {
			heardOf[e.Name] = true
		}
	}
	if err := r.CreateImage("fast", "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := r.CreateImage("away", "a", 1<<20); err == nil || !strings.Contains(err.Error(), "mount it") {
		t.Error(err)
	}
	if err := r.CreateImage("none", "a", 1<<20); !errors.Is(err, ErrNoPool) {
		t.Error(err)
	}
	if u, err := r.PoolUsage("fast"); err != nil || u.Images != 1 || u.Virtual != 1<<20 || u.Free == 0 {
		t.Errorf("%+v, %v", u, err)
	}
	// A pool that goes takes away the guests that have disks in it, and gives them back.
	r.define("g", "", `disk = [{ name = "root", image = "fast/a" }]`)
	if err := os.Remove(filepath.Join(r.dir, "etc/pools/fast.toml")); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	if g, err := r.Get("g"); err != nil || !strings.Contains(g.Fault, `no such pool: "fast"`) {
		t.Errorf("%+v, %v", g, err)
	}
	r.poolFile("fast", fmt.Sprintf("path = %q\n", fast))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if g, err := r.Get("g"); err != nil || g.Fault != "" {
		t.Errorf("%+v, %v", g, err)
	}
}

// A guest's disk is an image: it has to be there at the start, and nobody takes it away.
func TestImageDisk(t *testing.T) {
	r := newRig(t)
	r.define("a", "", `disk = [{ name = "root", image = "root" }, { name = "cd", image = "cd", readonly = true }]`)
	if err := r.run(r.Start("a")); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("start without an image: %v", err)
	}
	if err := r.Discard("a"); err != nil && !errors.Is(err, life.ErrNotNow) {
		t.Fatal(err)
	}
	r.must(r.ImportImage("default", "root", r.file("x.raw", []byte("one")), pool.ImportOptions{}))
	cd := make([]byte, 40<<10)
	copy(cd[32<<10+1:], "CD001")
	r.must(r.ImportImage("default", "", r.file("cd.iso", cd), pool.ImportOptions{}))
	r.must(r.Start("a"))
	vmm, err := os.ReadFile(filepath.Join(r.dir, "var/guests/a/vmm.toml"))
	if err != nil || !strings.Contains(string(vmm), "images/root.raw") || !strings.Contains(string(vmm), "images/cd.iso") {
		t.Errorf("%v\n%s", err, vmm)
	}
	if err := r.DeleteImage("default", "root"); !errors.Is(err, store.ErrNeeded) {
		t.Errorf("an image that a guest has: %v", err)
	}
	r.must(r.Stop("a"))
	r.must(r.Snapshot("a", "s"))
	r.must(r.SnapshotImage("default", "root", "s"))
	r.must(r.CloneImage("default", "root@s", "other"))
	if err := r.GrowImage("default", "root", 4096); err != nil {
		t.Error(err)
	}
	r.must(r.RevertImage("default", "root", "s"))
	if i, err := r.Image("default", "root"); err != nil || i.Size != 512 {
		t.Errorf("%+v, %v", i, err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "var/images/root.raw"), make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must(r.Restore("a", "s", false))
	if got := r.begins("default", "root"); got != "one" {
		t.Errorf("the disk has %q", got)
	}
	if diff := cmp.Diff([]string{"cd", "other", "root", "root@s"}, r.names("default")); diff != "" {
		t.Error(diff)
	}
	if err := errors.Join(r.DeleteImage("default", "other"), r.DeleteImage("default", "root@s"), r.Delete("a"), r.DeleteImage("default", "root")); err != nil {
		t.Error(err)
	}
	// A CD is not written to.
	r.define("b", "", `disk = [{ name = "cd", image = "cd" }]`)
	if err := r.run(r.Start("b")); !errors.Is(err, pool.ErrReadOnly) {
		t.Errorf("start with a CD that is to be written to: %v", err)
	}
}

// A snapshot without memory does not need the VMM to save anything, and lets it run on.
func TestSnapshotDisks(t *testing.T) {
	r := newRig(t)
	r.define("a", "save=fail", r.disk("root", "one"))
	r.must(r.Start("a"))
	r.must(r.SnapshotDisks("a", "s"))
	r.state("a", life.Running)
	if list, err := r.Snapshots("a"); err != nil || len(list) != 1 || list[0].Memory || list[0].Disks[0] != "root" {
		t.Errorf("%+v, %v", list, err)
	}
	// Its disks are known to the next manager too.
	r.reopen()
	r.state("a", life.Running)
	r.must(r.SnapshotDisks("a", "t"))
	if list, err := r.Snapshots("a"); err != nil || len(list) != 2 || len(list[1].Disks) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := r.run(r.Snapshot("a", "u")); err == nil {
		t.Error("its memory was saved")
	}
	r.state("a", life.Running)
	r.must(r.Kill("a"))
}

func TestCloneGuest(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(r.dir, "data.img")
	r.must(r.ImportImage("default", "root", r.file("x.raw", []byte("one")), pool.ImportOptions{}))
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.define("a", "words", "slot = 3", `label = "the first"`, `uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"`, "vsock = { cid = 3 }",
		fmt.Sprintf(`disk = [{ name = "root", image = "root" }, { name = "data", path = %q }, { name = "ro", path = %[1]q, readonly = true }]`, path),
		`nic = [{ name = "lan", socket = "/s", mac = "52:54:00:00:00:01" }]`)
	r.must(r.Snapshot("a", "s"))
	if err := os.WriteFile(path, []byte("newer"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must(r.CloneGuest("a", "b", ""))
	r.must(r.CloneGuest("a", "c", "s"))
	if got := []string{r.begins("default", "b-root"), r.begins("default", "b-data"), r.begins("default", "c-data")}; !slices.Equal(got, []string{"one", "newer", "data"}) {
		t.Errorf("disks have %q", got)
	}
	a, _ := r.store.Get("a")
	b, err := r.store.Get("b")
	if err != nil {
		t.Fatal(err)
	}
	if b.Label != "the first" || b.Slot != 0 || b.UUID == a.UUID || b.NICs[0].MAC == a.NICs[0].MAC || b.Vsock.CID == 3 || b.Boot.Cmdline != "words" ||
		b.Disks[0].Image != "default/b-root" || b.Disks[1].Image != "default/b-data" || b.Disks[2].Path != path {
		t.Errorf("%+v", b)
	}
	r.must(r.Start("b"))
	if err := r.run(r.CloneGuest("b", "d", "")); !errors.Is(err, life.ErrNotNow) {
		t.Errorf("clone of a guest that runs: %v", err)
	}
	r.must(r.Kill("b"))
	for want, try := range map[error]func() (uint64, error){
		store.ErrExists:   func() (uint64, error) { return r.CloneGuest("a", "b", "") },
		store.ErrNotFound: func() (uint64, error) { return r.CloneGuest("x", "y", "") },
		ErrNoSnapshot:     func() (uint64, error) { return r.CloneGuest("a", "y", "x") },
		store.ErrName:     func() (uint64, error) { return r.CloneGuest("a", "../y", "") },
		pool.ErrExists: func() (uint64, error) { // an image has the name that its own would get
			if err := r.CreateImage("default", "z-data", 512); err != nil {
				t.Fatal(err)
			}
			return r.CloneGuest("a", "z", "")
		},
	} {
		if err := r.run(try()); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if diff := cmp.Diff([]string{"b-data", "b-root", "c-data", "c-root", "root", "z-data"}, r.names("default")); diff != "" {
		t.Error(diff)
	}
	if left := glob(r.dir, "var/making/*"); left != nil {
		t.Errorf("left over: %v", left)
	}
}

// A guest is exported, and imported again with all of its disks.
func TestOVA(t *testing.T) {
	r := newRig(t)
	r.must(r.ImportImage("default", "root", r.file("x.raw", []byte("one")), pool.ImportOptions{}))
	r.must(r.ImportImage("default", "data", r.file("y.raw", []byte("two")), pool.ImportOptions{}))
	r.define("a", "", "cpus = 3", `nic = [{ name = "lan", network = "default" }]`, `disk = [{ name = "root", image = "root" }, { name = "data", image = "data" }]`)
	ova := filepath.Join(r.dir, "a.ova")
	dst, err := os.Create(ova)
	if err != nil {
		t.Fatal(err)
	}
	r.must(r.ExportGuest("a", dst))
	f, err := os.Open(ova)
	if err != nil {
		t.Fatal(err)
	}
	r.must(r.ImportGuest("default", "b", Source{File: f}, pool.ImportOptions{}))
	b, err := r.store.Get("b")
	if err != nil || b.CPUs != 3 || b.Memory != 64<<20 || len(b.Disks) != 2 || len(b.NICs) != 1 || b.NICs[0].Network != "default" || r.begins("default", "b") != "one" || r.begins("default", "b-2") != "two" {
		t.Errorf("%+v, %v", b, err)
	}
	// Of a disk image.
	r.must(r.ImportGuest("default", "", r.file("c.img", []byte("three")), pool.ImportOptions{}))
	if c, err := r.store.Get("c"); err != nil || c.CPUs != 1 || c.Memory != 1<<30 || c.Disks[0].Image != "default/c" {
		t.Errorf("%+v, %v", c, err)
	}
	before := r.names("default")
	if err := r.run(r.ImportGuest("default", "d", r.file("d.img", []byte("x")), pool.ImportOptions{SHA256: strings.Repeat("0", 64)})); !errors.Is(err, format.ErrChecksum) {
		t.Errorf("a wrong checksum: %v", err)
	}
	// Refused when all of the disk is there: the definition would be wrong.
	if err := r.run(r.ImportGuest("default", "e", r.file("e.img", []byte("x")), pool.ImportOptions{Format: "ova"})); err == nil {
		t.Error("what is no OVA is imported as one")
	}
	image, err := os.Create(filepath.Join(r.dir, "root.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	r.must(r.ExportImage("default", "root", image, pool.ExportOptions{Format: format.QCOW2}))
	if head, err := os.ReadFile(filepath.Join(r.dir, "root.qcow2")); err != nil || !bytes.HasPrefix(head, []byte("QFI\xfb")) {
		t.Errorf("no qcow2: %v", err)
	}
	if diff := cmp.Diff(before, r.names("default")); diff != "" {
		t.Error(diff)
	}
}

// An import that is cancelled leaves nothing, though its source says nothing any more.
func TestImportCancelled(t *testing.T) {
	r := newRig(t)
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(fds[1]), "w")
	defer w.Close()
	if _, err := w.Write(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	id, err := r.ImportGuest("default", "g", Source{File: os.NewFile(uintptr(fds[0]), "pipe")}, pool.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if err := r.Jobs().Cancel(id); err != nil {
		t.Fatal(err)
	}
	if s, err := r.Jobs().Wait(t.Context(), id); err != nil || s.State != job.Cancelled {
		t.Errorf("%+v, %v", s, err)
	}
	if left := append(r.names("default"), glob(r.dir, "var/making/*")...); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// Killed at whatever moment, there is a guest with its images, or none of them.
func TestImportKilled(t *testing.T) {
	r := newRig(t)
	content := make([]byte, 32<<20)
	for i := range content {
		content[i] = byte(rand.Uint32()) | 1
	}
	r.file("source.raw", content).File.Close()
	made := 0
	for round := range 12 {
		r.Close()
		v := startVictim(t, r.dir)
		name := fmt.Sprintf("g%d", round)
		if got := v.do(name, "import"); got != "done <nil>" {
			t.Fatal(got)
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		v.kill()
		r.open()
		_, err := r.Get(name)
		if has := slices.Contains(r.names("default"), name); has != (err == nil) {
			t.Errorf("round %d: image %t, guest: %v", round, has, err)
		}
		if err == nil {
			made++
		}
		if left := append(glob(r.dir, "var/images/.lodge-*"), glob(r.dir, "var/making/*")...); len(left) > 0 {
			t.Errorf("round %d: left over: %v", round, left)
		}
	}
	t.Logf("%d of 12 were made", made)
}

// What the manager has to undo, and what it has not.
func TestFinishMaking(t *testing.T) {
	r := newRig(t)
	make := func(work, guest, tag string) {
		t.Helper()
		p, err := r.pool("default")
		if err != nil {
			t.Fatal(err)
		}
		src := r.file(work, []byte(work))
		from, err := pool.FromFile(src.File)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Import(t.Context(), guest, from, pool.ImportOptions{Work: work}, func(int64, int64) {}); err != nil {
			t.Fatal(err)
		}
		src.close()
		if err := errors.Join(os.MkdirAll(r.makingDir(), 0o700), writeFile(filepath.Join(r.makingDir(), work+".json"), making{guest, tag})); err != nil {
			t.Fatal(err)
		}
	}
	r.define("done", "")
	r.define("other", "")
	_, tag, err := r.Definition("done")
	if err != nil {
		t.Fatal(err)
	}
	make("w1", "done", tag)
	make("w2", "other", "no such tag")
	make("w3", "none", "")
	r.reopen()
	if diff := cmp.Diff([]string{"done"}, r.names("default")); diff != "" {
		t.Error(diff)
	}
	if left := glob(r.dir, "var/making/*"); left != nil {
		t.Errorf("left over: %v", left)
	}
}

// Space that runs out is told before there is none, and nothing is imported into the last of it.
func TestSpaceLow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	r := newRig(t)
	small := filepath.Join(r.dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("lodge-test", small, "tmpfs", 0, "size=100M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(small, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 95<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r.poolFile("small", fmt.Sprintf("path = %q\n", small))
	heard := r.Subscribe()
	defer heard.Close()
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	level := func(want pool.Level) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for {
			e, err := heard.Next(ctx)
			if err != nil {
				t.Fatalf("pools are never %v: %+v", want, r.Pools())
			}
			if pools := r.Pools(); e.Kind == PoolChanged && pools[len(pools)-1].Level == want {
				return
			}
		}
	}
	level(pool.Low)
	if err := os.WriteFile(ballast, make([]byte, 98<<20+512<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	level(pool.Critical)
	if err := r.run(r.ImportImage("small", "a", r.file("a.raw", bytes.Repeat([]byte{1}, 4<<20)), pool.ImportOptions{})); !errors.Is(err, pool.ErrNoSpace) {
		t.Errorf("an import into the last space: %v", err)
	}
}
