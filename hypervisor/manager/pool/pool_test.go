package pool

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// An image's life.
func TestLife(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "made", "by", "us"), nil)
	i, err := p.Create("root", 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if i.Name != "root" || i.Size != 1<<30 || i.Allocated > 4096 || i.ReadOnly || time.Since(i.Created) > time.Minute {
		t.Errorf("%+v", i)
	}
	if err := p.Grow("root", 2<<30); err != nil {
		t.Fatal(err)
	}
	list, err := p.List()
	if err != nil || len(list) != 1 || list[0].Size != 2<<30 {
		t.Errorf("%+v: %v", list, err)
	}
	u, err := p.Usage()
	if err != nil || u.Images != 1 || u.Virtual != 2<<30 || u.Free <= 0 || u.Free > u.Total {
		t.Errorf("%+v: %v", u, err)
	}
	if diff := cmp.Diff([]string{"root.raw", "root.raw.json"}, files(t, p)); diff != "" {
		t.Error(diff)
	}
	if err := p.Delete("root"); err != nil {
		t.Fatal(err)
	}
	if left := files(t, p); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

func TestRefusals(t *testing.T) {
	p := open(t, t.TempDir(), func(o *Options) { o.MaxSize = 1 << 40 })
	for _, name := range []string{"root", "used"} {
		if _, err := p.Create(name, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Snapshot(t.Context(), "root", "s", CopyOptions{}, nothing); err != nil {
		t.Fatal(err)
	}
	used, err := p.OpenDisk("used", false)
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	if err := os.Symlink("/etc/passwd", filepath.Join(p.Path(), "link.raw")); err != nil {
		t.Fatal(err)
	}
	second := func(_ any, err error) error { return err }
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"a path", second(p.Create("../x", 512)), ErrName},
		{"an absolute path", second(p.Create("/x", 512)), ErrName},
		{"a hidden file", second(p.Create(".x", 512)), ErrName},
		{"no name", second(p.Create("", 512)), ErrName},
		{"a zero byte", second(p.Create("a\x00b", 512)), ErrName},
		{"a line", second(p.Create("a\nb", 512)), ErrName},
		{"a long name", second(p.Create(strings.Repeat("x", 65), 512)), ErrName},
		{"a snapshot by Create", second(p.Create("root@x", 512)), ErrName},
		{"a snapshot by Clone", second(p.Clone(t.Context(), "root", "root@x", CopyOptions{}, nothing)), ErrName},
		{"a snapshot of a snapshot", second(p.Snapshot(t.Context(), "root@s", "x", CopyOptions{}, nothing)), ErrName},
		{"a snapshot with a bad name", second(p.Snapshot(t.Context(), "root", "../x", CopyOptions{}, nothing)), ErrName},
		{"a name twice", second(p.Create("root", 512)), ErrExists},
		{"a clone over another", second(p.Clone(t.Context(), "root", "used", CopyOptions{}, nothing)), ErrExists},
		{"no size", second(p.Create("x", 0)), ErrSize},
		{"half a sector", second(p.Create("x", 100)), ErrSize},
		{"less than nothing", second(p.Create("x", -512)), ErrSize},
		{"too large", second(p.Create("x", 2<<40)), ErrSize},
		{"shrinking", p.Grow("root", 512), ErrSize},
		{"growing too much", p.Grow("root", 2<<40), ErrSize},
		{"growing a snapshot", p.Grow("root@s", 2<<20), ErrReadOnly},
		{"writing to a snapshot", second(p.OpenDisk("root@s", false)), ErrReadOnly},
		{"no image", p.Delete("nobody"), ErrNotFound},
		{"a symbolic link", second(p.OpenDisk("link", true)), ErrNotFound},
		{"deleting what is used", p.Delete("used"), ErrInUse},
		{"two guests", second(p.OpenDisk("used", false)), ErrInUse},
		{"reading what is written to", second(p.OpenDisk("used", true)), ErrInUse},
		{"cloning what is written to", second(p.Clone(t.Context(), "used", "x", CopyOptions{}, nothing)), ErrInUse},
		{"reverting what is used", p.Revert(t.Context(), "used", "s", nothing), ErrInUse},
		{"another user of the pool", second(Open(p.Path(), Options{})), ErrInUse},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	// What does not change it may be done: the guest is paused.
	if _, err := p.Clone(t.Context(), "used", "copy", CopyOptions{Paused: true}, nothing); err != nil {
		t.Error(err)
	}
	if err := p.Grow("used", 2<<20); err != nil {
		t.Error(err)
	}
	want := []string{
		"copy.raw", "copy.raw.json", "link.raw", "root.raw", "root.raw.json", "root@s.raw", "root@s.raw.json", "used.raw", "used.raw.json",
	}
	if diff := cmp.Diff(want, files(t, p)); diff != "" {
		t.Error(diff)
	}
}

// Two readers share an image, and keep writers away until the last has gone.
func TestReadersShare(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	if _, err := p.Create("cd", 1<<20); err != nil {
		t.Fatal(err)
	}
	a, err := p.OpenDisk("cd", true)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.OpenDisk("cd", true)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, err := p.OpenDisk("cd", false); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	b.Close()
	c, err := p.OpenDisk("cd", false)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// Clones, snapshots and disposables, where files can share blocks and where not.
func TestCopies(t *testing.T) {
	for _, kind := range []string{"here", "tmpfs", "ext4", "btrfs", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			if kind != "here" {
				dir = mounted(t, kind, 512<<20)
			}
			p := open(t, filepath.Join(dir, "pool"), nil)
			raw := rawDisk(t, 20<<20+512, 1)
			write(t, p, "root", raw)
			before, err := p.space()
			if err != nil {
				t.Fatal(err)
			}
			var done, total int64
			progress := func(d, n int64) { done, total = d, n }
			clone, err := p.Clone(t.Context(), "root", "clone", CopyOptions{}, progress)
			if err != nil {
				t.Fatal(err)
			}
			root, err := p.Get("root")
			if err != nil {
				t.Fatal(err)
			}
			if done != root.Size || total != root.Size {
				t.Errorf("progress %d of %d at the end, want %d", done, total, root.Size)
			}
			if clone.Parent != "root" || clone.Size != root.Size || clone.Allocated > root.Allocated+1<<20 {
				t.Errorf("%+v of %+v", clone, root)
			}
			same(t, raw.Name(), fileName(t, p, "clone"))
			if kind == "btrfs" || kind == "xfs" {
				unix.Sync()
				after, err := p.space()
				if err != nil {
					t.Fatal(err)
				}
				if used := before.Free - after.Free; used > root.Allocated/2 {
					t.Errorf("the clone takes %d bytes of its own, of %d", used, root.Allocated)
				}
			}

			if _, err := p.Snapshot(t.Context(), "root", "first", CopyOptions{}, nothing); err != nil {
				t.Fatal(err)
			}
			overwrite(t, p, "root", "changed")
			same(t, raw.Name(), fileName(t, p, "root@first"))
			same(t, raw.Name(), fileName(t, p, "clone"))
			if err := p.Revert(t.Context(), "root", "first", nothing); err != nil {
				t.Fatal(err)
			}
			same(t, raw.Name(), fileName(t, p, "root"))
			overwrite(t, p, "root", "again") // it is no snapshot

			d, err := p.Disposable(t.Context(), "clone", CopyOptions{}, nothing)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.WriteAt([]byte("thrown away"), 0); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 8<<10)
			want := make([]byte, 8<<10)
			if _, err := d.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := raw.ReadAt(want, 0); err != nil {
				t.Fatal(err)
			}
			if copy(want, "thrown away"); !bytes.Equal(got, want) {
				t.Error("a disposable copy differs from its image")
			}
			d.Close()
			same(t, raw.Name(), fileName(t, p, "clone"))
			if err := p.Delete("root"); err != nil {
				t.Fatal(err)
			}
			want2 := []string{"clone.raw", "clone.raw.json", "root@first.raw", "root@first.raw.json"}
			if diff := cmp.Diff(want2, files(t, p)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func overwrite(t *testing.T, p *Pool, name, text string) {
	t.Helper()
	f, err := p.OpenDisk(name, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 1000); err != nil {
		t.Fatal(err)
	}
}

// A copy that is cancelled leaves nothing.
func TestCancelledCopy(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	write(t, p, "root", rawDisk(t, 40<<20, 1))
	before := files(t, p)
	for _, c := range []struct {
		name string
		do   func(ctx context.Context, progress Progress) error
	}{
		{"clone", func(ctx context.Context, progress Progress) error {
			_, err := p.Clone(ctx, "root", "x", CopyOptions{}, progress)
			return err
		}},
		{"disposable", func(ctx context.Context, progress Progress) error {
			_, err := p.Disposable(ctx, "root", CopyOptions{}, progress)
			return err
		}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.do(ctx, nothing); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(before, files(t, p)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

// What a crash has left is removed by the next Open, and what was to appear together does.
func TestClean(t *testing.T) {
	for _, c := range []struct {
		name         string
		files        map[string]string
		want         []string
		says         string // of the error
		becomesOther string // the content of a.raw
	}{
		{"temporary files", map[string]string{tmpPrefix + "x": "", "a.raw": "a"}, []string{"a.raw"}, "", "a"},
		{"what is known of an image that is not there", map[string]string{"a.raw.json": "{}", "b.iso.json": "{}"}, []string{}, "", ""},
		{"what is not ours", map[string]string{"notes.txt": "", ".hidden": "", "x.json": "", "-.raw.json": ""},
			[]string{"-.raw.json", ".hidden", "notes.txt", "x.json"}, "", ""},
		{"a list of which nothing was done", map[string]string{
			publishPrefix + "1": `[{"from":".lodge-new-1","to":"a.raw.json"},{"from":".lodge-new-2","to":"a.raw"}]`,
			tmpPrefix + "1":     "{}", tmpPrefix + "2": "new", tmpPrefix + "3": "",
		}, []string{"a.raw", "a.raw.json"}, "", "new"},
		{"a list of which a part was done", map[string]string{
			publishPrefix + "1": `[{"from":".lodge-new-1","to":"a.raw"},{"from":".lodge-new-2","to":"b.raw"}]`,
			"a.raw":             "new", tmpPrefix + "2": "b",
		}, []string{"a.raw", "b.raw"}, "", "new"},
		{"a list of which all was done", map[string]string{
			publishPrefix + "1": `[{"from":".lodge-new-1","to":"a.raw"}]`, "a.raw": "new",
		}, []string{"a.raw"}, "", "new"},
		{"a list that overwrites", map[string]string{
			publishPrefix + "1": `[{"from":".lodge-new-1","to":"a.raw"}]`, "a.raw": "old", tmpPrefix + "1": "new",
		}, []string{".lodge-new-1", ".lodge-publish-1", "a.raw"}, "exists", "old"},
		{"a list with a path", map[string]string{publishPrefix + "1": `[{"from":".lodge-new-1","to":"../a.raw"}]`},
			[]string{".lodge-publish-1"}, "remove it", ""},
		{"a list that is none", map[string]string{publishPrefix + "1": `hello`}, []string{".lodge-publish-1"}, "remove it", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p, err := Open(dir, Options{})
			if (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v, want %q", err, c.says)
			}
			if err == nil {
				defer p.Close()
			}
			if diff := cmp.Diff(c.want, files(t, &Pool{path: dir})); diff != "" {
				t.Error(diff)
			}
			if c.becomesOther != "" {
				if b, err := os.ReadFile(filepath.Join(dir, "a.raw")); err != nil || string(b) != c.becomesOther {
					t.Errorf("a.raw has %q: %v", b, err)
				}
			}
		})
	}
}

// What is known of an image may be missing or damaged: it is an image all the same.
func TestForeignImages(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a.raw": "a", "b.raw": "b", "b.raw.json": "{", "c.iso": "c", "c.iso.json": `{"origin":"there"}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "a.raw.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := open(t, dir, nil)
	list, err := p.List()
	if err != nil || len(list) != 3 || list[0].Name != "a" || list[1].Name != "b" || list[2].Origin != "there" || !list[2].ReadOnly {
		t.Errorf("%+v: %v", list, err)
	}
}

func TestLevel(t *testing.T) {
	const low, critical = 1000, 100
	now := Level(-1)
	for _, c := range []struct {
		free int64
		want Level
	}{
		{5000, Enough}, {1000, Enough}, {999, Low}, {1001, Low}, {1249, Low}, {1250, Enough}, {1001, Enough},
		{99, Critical}, {101, Critical}, {124, Critical}, {125, Low}, {101, Low}, {99, Critical}, {1249, Low}, {99, Critical}, {1250, Enough},
	} {
		if now = level(now, c.free, low, critical); now != c.want {
			t.Fatalf("%v with %d bytes free, want %v", now, c.free, c.want)
		}
	}
	for _, c := range []struct {
		level Level
		free  int64
		want  time.Duration
	}{
		{Enough, 1 << 50, watchMax}, {Enough, 10<<30 + 10<<20, watchMin}, {Enough, 20 << 30, 20 * time.Second},
		{Low, 9 << 30, 16 * time.Second}, {Low, 1 << 30, watchMin}, {Critical, 0, 10 * time.Second},
	} {
		if got := watchPause(c.level, c.free, 10<<30, 1<<30); got != c.want {
			t.Errorf("%v with %d bytes free: the next look after %v, want %v", c.level, c.free, got, c.want)
		}
	}
}

func TestWatch(t *testing.T) {
	dir := mounted(t, "tmpfs", 64<<20)
	p := open(t, filepath.Join(dir, "pool"), func(o *Options) { o.Low, o.Critical = 40<<20, 20<<20 })
	signals := make(chan Level, 10)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Watch(ctx, func(l Level, _ Usage) { signals <- l }) }()
	await := func(want Level) {
		t.Helper()
		select {
		case got := <-signals:
			if got != want {
				t.Fatalf("%v, want %v", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no signal, want %v", want)
		}
	}
	await(Enough)
	if err := os.WriteFile(filepath.Join(dir, "other"), make([]byte, 30<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	await(Low)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
