package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/guest"
	"github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
	"github.com/lodgehv/lodge/e2e/powercut"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// cutLab is a notebook whose power is cut while lodged works: all that lodged keeps is on a disk that loses then what was not
// flushed. After each cut the notebook is again as it was before lodged was started for the first time, but for that disk.
type cutLab struct {
	nb    *notebook.Notebook
	disk  *powercut.Server
	host  *guest.Host
	m     *guest.Manager
	rnd   *rand.Rand
	files model
	cuts  int
	n     int // of what was made last, for names
	log   []string

	imported string // the checksum of the image that is imported

	records int // that the guest has said to be on its disk, in this round
}

// model is which contents the files of lodged may have, by their paths below keep and their SHA-256; "" is that there is none, and
// something that there is any. A file has one content, unless the power was cut while it was to get another.
type model map[string][]string

const something = "something"

// imported is where the image is that is imported.
const imported = "/run/image.qcow2"

// keep is where all is that outlives a cut.
const keep = "/var/lib/lodge"

// TestPowerCut cuts the notebook's power at random times while lodged defines guests, makes snapshots and puts them back, and
// while a guest writes. What lodge has said to be done is done afterwards; what was under way is done or not begun; nothing else
// is there. What a guest's disk has said to be written is.
func TestPowerCut(t *testing.T) {
	l := newCutLab(t)
	for _, s := range []struct {
		name string
		cuts int
		work func(l *cutLab, ctx context.Context, t *testing.T, begun func()) error
	}{
		{"define", 14, (*cutLab).define},
		{"snapshot", 14, (*cutLab).snapshot},
		{"import", 10, (*cutLab).importImages},
		{"guest writes", 12, (*cutLab).guestWrites},
	} {
		ok := t.Run(s.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 2*limit, fmt.Errorf("test %q takes longer than %v", s.name, 2*limit))
			defer cancel()
			for range s.cuts {
				l.round(ctx, t, s.work)
				if t.Failed() {
					t.FailNow()
				}
			}
		})
		if !ok {
			l.explain(t)
			return
		}
	}
}

func newCutLab(t *testing.T) *cutLab {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("LODGE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("LODGE_SEED=%d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // the first time, images are built
	defer cancel()
	b, err := image.NewBuilder(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	tools, err := guest.ManagerTools(ctx, b, "")
	if err != nil {
		t.Fatal(err)
	}
	empty, err := b.FileSystem(ctx, "ext4", 384<<20)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := powercut.Load(empty)
	if err != nil {
		t.Fatal(err)
	}
	l := &cutLab{rnd: rand.New(rand.NewPCG(seed, 0)), files: make(model)}
	socket := filepath.Join(b.Dir, ".powercut") // always the same: it is a part of what names the state after the boot
	_ = os.Remove(socket)
	if l.disk, err = powercut.Serve(disk, socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.disk.Close(); err != nil {
			t.Error(err)
		}
	})
	l.nb, err = notebook.Start(ctx, notebook.Config{
		Builder: b, Tools: tools, CPUs: 1, Disks: []notebook.Disk{{Name: "keep", NBD: socket}}, Log: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.nb.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := guest.InNotebook(l.nb).StartBus(ctx); err != nil {
		t.Fatal(err)
	}
	// The guest that writes has the usual kernel and drivers, and the agent as its only program.
	l.shell(ctx, t, `set -e
mkdir -p `+keep+` /run/writer
ln -s `+keep+`/etc /etc/lodge
cat >/run/writer/init <<'END'
#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
while read -r m; do busybox insmod "$m"; done </modules
until [ -b /dev/vda ]; do busybox usleep 10000; done
exec /agent records /dev/vda
END
chmod +x /run/writer/init
cp /bin/agent /run/writer
cd /run/writer
printf 'init\nagent\n' | cpio -o -H newc >/run/writer.cpio
cat /guests/amd64/initrd /run/writer.cpio >/run/writer.initrd
rm -r /run/writer /run/writer.cpio
head -c 2000000 /dev/urandom >/run/random
truncate -s 8M /run/random
qemu-img convert -O qcow2 /run/random `+imported+`
qemu-img convert -O qcow2 -c /run/random `+imported+`.compressed`)
	l.imported = strings.Fields(l.shell(ctx, t, "sha256sum /run/random; rm /run/random"))[0]
	if err := l.nb.Checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	l.mount(ctx, t)
	l.shell(ctx, t, "cd "+keep+"; mkdir -p etc/guests images; sync")
	l.startManager(ctx, t)
	return l
}

func (l *cutLab) shell(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	out, err := l.nb.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mount makes the notebook one that was just switched on: the boot's number is another, and its disk is read anew. The file
// system does not help those who forget to sync what they rename, and the kernel writes early, so that much of what is to be
// written later than something else is on the disk's way before it.
func (l *cutLab) mount(ctx context.Context, t *testing.T) {
	t.Helper()
	l.shell(ctx, t, fmt.Sprintf(`set -e
echo %08x-0000-4000-8000-000000000000 >/run/boot
mount --bind /run/boot /proc/sys/kernel/random/boot_id
echo 10 >/proc/sys/vm/dirty_writeback_centisecs
echo 10 >/proc/sys/vm/dirty_expire_centisecs
blockdev --flushbufs /disk/keep
mount -t ext4 -o noauto_da_alloc /disk/keep `+keep, l.cuts))
}

func (l *cutLab) startManager(ctx context.Context, t *testing.T) {
	t.Helper()
	l.host = guest.InNotebook(l.nb)
	var err error
	if l.m, err = l.host.StartManager(ctx, nil); err != nil {
		t.Fatal(err)
	}
}

// explain prints what a failed test may have failed for.
func (l *cutLab) explain(t *testing.T) {
	t.Logf("the round's commands:\n%s", strings.Join(l.log, "\n"))
	if l.m != nil {
		t.Logf("lodged says:\n%s", l.m.Log())
	}
	if l.nb.Client != nil {
		if out, err := l.nb.Shell(context.WithoutCancel(t.Context()), "cd "+keep+"; find . -type f | xargs ls -l; tail -n 20 guests/*/logs/*; dmesg | tail -n 20"); err == nil {
			t.Log(out)
		}
	}
}

// round has lodged work, cuts the power after a random time, and looks at what is there when it is back. work calls begun when
// the time is to begin, and returns when a command has failed, as they do with the power.
func (l *cutLab) round(ctx context.Context, t *testing.T, work func(l *cutLab, ctx context.Context, t *testing.T, begun func()) error) {
	t.Helper()
	const most = 2 * time.Second
	after := time.Duration(l.rnd.Float64() * float64(most))
	begun, done := make(chan struct{}), make(chan error, 1)
	l.log, l.records = nil, 0
	go func() { done <- work(l, ctx, t, func() { close(begun) }) }()
	select {
	case <-begun:
	case err := <-done:
		t.Fatal(err)
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
	case err := <-done:
		t.Fatalf("before the power was cut: %v", err)
	}
	l.nb.Cut()
	l.disk.Disconnect()
	if err := <-done; !errors.Is(err, rpc.ErrClosed) {
		t.Errorf("when the power was cut: %v", err)
	}
	written, lost := l.disk.Cut(l.rnd)
	l.cuts++
	t.Logf("cut %d, after %.2f s and %d commands: of %d blocks that were not flushed %d are lost", l.cuts, after.Seconds(), len(l.log), written, lost)
	if err := l.nb.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	l.mount(ctx, t)
	l.startManager(ctx, t)
	l.check(ctx, t)
}

// do runs lodge, after which a file is to have that content, or be gone if that is "".
func (l *cutLab) do(ctx context.Context, file, content, stdin string, env []string, args ...string) error {
	l.log = append(l.log, strings.Join(args, " "))
	if l.files[file] == nil {
		l.files[file] = []string{""}
	}
	l.files[file] = append(l.files[file], content)
	args = append([]string{"lodge"}, args...)
	r, err := l.host.Do(ctx, rpc.Cmd{Args: args, Env: env, Stdin: strings.NewReader(stdin)})
	if err == nil {
		err = r.Check(args...)
	}
	if err == nil {
		l.files[file] = []string{content}
	}
	return err
}

// is returns the one content that a file has between two commands.
func (l *cutLab) is(file string) string {
	if c := l.files[file]; len(c) == 1 {
		return c[0]
	}
	return ""
}

// present returns the files that there are and whose paths match.
func (l *cutLab) present(pattern string) (list []string) {
	for _, file := range slices.Sorted(maps.Keys(l.files)) {
		if ok, _ := path.Match(pattern, file); ok && l.is(file) != "" {
			list = append(list, file)
		}
	}
	return list
}

// companion are files that the model does not know, by their paths below keep, and which file has to be there for each: "" is
// none. What else there is is an orphan.
var companion = []struct {
	re   *regexp.Regexp
	file string
}{
	{regexp.MustCompile(`^lock$`), ""},
	{regexp.MustCompile(`^versions/[^/.]+/\d+\.toml$`), ""},
	{regexp.MustCompile(`^guests/([^/.]+)/(?:run\.json|uid|vmm\.toml|outcome\.json|logs/(?:vmm|serial)\.log(?:\.\d)?)$`), "etc/guests/$1.toml"},
	{regexp.MustCompile(`^guests/(g\d+)/snapshots/s/snapshot\.json$`), "etc/guests/$1.toml"},
	{regexp.MustCompile(`^guests/([^/.]+)/suspended/ram$`), "guests/$1/suspended/state"},
	{regexp.MustCompile(`^guests/([^/.]+)/snapshots/([^/.]+)/(?:snapshot\.json|screen\.png|memory/state|memory/ram)$`), "guests/$1/snapshots/$2/root.raw"},
	{regexp.MustCompile(`^images/([^/.]+\.raw)\.json$`), "images/$1"},
}

// orphan says what is wrong with a file that the model does not know.
func orphan(file string, now map[string]string) string {
	for _, c := range companion {
		if m := c.re.FindStringSubmatchIndex(file); m != nil {
			if with := string(c.re.ExpandString(nil, c.file, file, m)); with != "" && now[with] == "" {
				return "and " + with + " is not"
			}
			return ""
		}
	}
	return "and nobody has made it"
}

// check compares what is there with what may be.
func (l *cutLab) check(ctx context.Context, t *testing.T) {
	t.Helper()
	now := make(map[string]string)
	out := l.shell(ctx, t, "cd "+keep+" && find . -type f | xargs sha256sum")
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		now[strings.TrimPrefix(f[1], "./")] = f[0]
	}
	for file, sum := range now {
		if file == writerDisk {
			continue
		}
		if l.files[file] == nil {
			if wrong := orphan(file, now); wrong != "" {
				t.Errorf("%s is there (%s), %s", file, sum, wrong)
			}
		}
	}
	if l.records > 0 {
		l.checkRecords(ctx, t)
	}
	for file, may := range l.files {
		if !slices.Contains(may, now[file]) && (now[file] == "" || !slices.Contains(may, something)) {
			t.Errorf("%s has the content %q, one of %q is possible", file, now[file], may)
		}
		if l.files[file] = []string{now[file]}; now[file] == "" {
			delete(l.files, file)
		}
	}
	list, err := l.m.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range list {
		names = append(names, "etc/guests/"+g.Name+".toml")
		if g.Fault != "" || g.PID != 0 {
			t.Errorf("after the power cut: %+v", g)
		}
	}
	if want := l.present("etc/guests/*"); !slices.Equal(names, want) {
		t.Errorf("lodged knows of %v, there are %v", names, want)
	}
	l.checkSnapshots(ctx, t, now)
}

// checkSnapshots compares lodged's list of snapshots with the files, and has lodge-vmm read all that was saved.
func (l *cutLab) checkSnapshots(ctx context.Context, t *testing.T, now map[string]string) {
	t.Helper()
	if l.is(snapDefinition) == "" {
		return
	}
	out, err := l.m.Lodge(ctx, "snapshot", "list", "--json", "snap")
	if err != nil {
		t.Fatal(err)
	}
	var list []client.Snapshot
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	if l.is(snapSaved) != "" {
		l.shell(ctx, t, "lodge-vmm check "+keep+"/"+path.Dir(snapSaved))
	}
	var files []string
	for _, s := range list {
		dir := "guests/snap/snapshots/" + s.Name
		files = append(files, dir+"/root.raw")
		if s.Memory != (now[dir+"/memory/state"] != "") || s.Memory != (now[dir+"/memory/ram"] != "") {
			t.Errorf("snapshot %s has memory or not: %v", s.Name, s.Memory)
		}
		if s.Memory {
			l.shell(ctx, t, "lodge-vmm check "+keep+"/"+dir+"/memory")
		}
	}
	if slices.Sort(files); !slices.Equal(files, l.present("guests/snap/snapshots/*/root.raw")) {
		t.Errorf("lodged knows of %v, there are %v", files, l.present("guests/snap/snapshots/*/root.raw"))
	}
}

func sumOf(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// define defines guests, changes and deletes them.
func (l *cutLab) define(ctx context.Context, t *testing.T, begun func()) error {
	const dir, suffix = "etc/guests/", ".toml"
	for begun(); ; {
		l.n++
		name := fmt.Sprintf("g%d", l.n)
		have := l.present(dir + "g*")
		what := l.rnd.IntN(4)
		fresh := len(have) == 0 || what == 0 && len(have) < 8
		if !fresh {
			name = strings.TrimSuffix(path.Base(have[l.rnd.IntN(len(have))]), suffix)
		}
		file := dir + name + suffix
		text := bios(name, fmt.Sprintf("label = \"number %d\"", l.n)) + "#" + strings.Repeat(" more than a block", 300) + "\n"
		var err error
		switch {
		case fresh:
			if err = l.do(ctx, file, sumOf(text), text, nil, "define", "-"); err == nil && l.n%2 == 0 {
				_, err = l.m.Lodge(ctx, "snapshot", "create", name, "s") // so that there is more of it to delete
			}
		case what == 1 && len(have) > 2:
			err = l.do(ctx, file, "", "", nil, "delete", name)
		default:
			if err = l.host.Put(ctx, strings.NewReader(text), "/run/edited", 0o644); err == nil {
				err = l.do(ctx, file, sumOf(text), "", []string{"EDITOR=cp /run/edited"}, "edit", name)
			}
		}
		if err != nil {
			return err
		}
	}
}

// The guest of which snapshots are made, its disk, and its saved state.
const (
	snapDefinition = "etc/guests/snap.toml"
	snapDisk       = "images/snap.raw"
	snapSaved      = "guests/snap/suspended/state"
)

// snapshot makes snapshots of a guest and deletes them: of one that runs, so that they have its memory, and that one is saved and
// started again; or of one that is off, and these are put back too.
func (l *cutLab) snapshot(ctx context.Context, t *testing.T, begun func()) error {
	if l.is(snapSaved) != "" { // its disk is about to change
		if err := l.do(ctx, snapSaved, "", "", nil, "start", "snap"); err != nil {
			return err
		}
		if _, err := l.m.Lodge(ctx, "stop", "--now", "snap"); err != nil {
			return err
		}
	}
	// The disk gets another content, which is not lodged's to keep whole.
	l.n++
	sum, err := l.host.Shell(ctx, fmt.Sprintf("agent fill %s/%s 1048576 %d", keep, snapDisk, l.n))
	if err != nil {
		return err
	}
	l.files[snapDisk] = []string{sum}
	if l.is(snapDefinition) == "" {
		text := bios("snap", "disk = [{ name = \"root\", path = \""+keep+"/"+snapDisk+"\" }]")
		if err := l.do(ctx, snapDefinition, sumOf(text), text, nil, "define", "-"); err != nil {
			return err
		}
	}
	runs := l.cuts%2 == 0
	if runs {
		if _, err := l.m.Lodge(ctx, "start", "snap"); err != nil {
			return err
		}
	}
	for begun(); ; {
		l.n++
		have := l.present("guests/snap/snapshots/*/root.raw")
		var old, name string
		if len(have) > 0 {
			old = have[l.rnd.IntN(len(have))]
			name = path.Base(path.Dir(old))
		}
		var err error
		switch {
		case len(have) > 3:
			err = l.do(ctx, old, "", "", nil, "snapshot", "delete", "snap", name)
		case runs && l.n%2 == 0:
			if err = l.do(ctx, snapSaved, something, "", nil, "save", "snap"); err == nil {
				err = l.do(ctx, snapSaved, "", "", nil, "start", "snap")
			}
		case len(have) > 1 && l.n%2 == 0:
			err = l.do(ctx, snapDisk, l.is(old), "", nil, "restore", "--cold", "snap", name)
		default:
			err = l.do(ctx, fmt.Sprintf("guests/snap/snapshots/s%d/root.raw", l.n), l.is(snapDisk), "", nil, "snapshot", "create", "snap", fmt.Sprintf("s%d", l.n))
		}
		if err != nil {
			return err
		}
	}
}

// importImages imports an image that qemu-img has made, again and again, and deletes what it has imported.
func (l *cutLab) importImages(ctx context.Context, t *testing.T, begun func()) error {
	for begun(); ; {
		l.n++
		var err error
		if have := l.present("images/i*.raw"); len(have) > 3 {
			old := have[l.rnd.IntN(len(have))]
			err = l.do(ctx, old, "", "", nil, "image", "delete", strings.TrimSuffix(path.Base(old), ".raw"))
		} else {
			name := fmt.Sprintf("i%d", l.n)
			err = l.do(ctx, "images/"+name+".raw", l.imported, "", nil, "import", "--name", name, imported+[]string{"", ".compressed"}[l.n%2])
		}
		if err != nil {
			return err
		}
	}
}

// writerDisk is the disk of the guest that writes.
const writerDisk = "images/writer.raw"

// guestWrites starts a guest that writes records, and counts those that it says are on its disk: they are after the cut.
func (l *cutLab) guestWrites(ctx context.Context, t *testing.T, begun func()) error {
	const definition = "etc/guests/writer.toml"
	if l.is(definition) == "" {
		text := "name = \"writer\"\nmemory = \"128M\"\n[boot]\nkernel = \"/guests/amd64/vmlinux\"\ninitrd = \"/run/writer.initrd\"\n" +
			"cmdline = \"console=ttyS0 quiet\"\n[[disk]]\nname = \"root\"\npath = \"" + keep + "/" + writerDisk + "\"\n"
		if err := l.do(ctx, definition, sumOf(text), text, nil, "define", "-"); err != nil {
			return err
		}
	}
	// A new disk for each round: the numbers begin with 1 again.
	if _, err := l.host.Shell(ctx, "cd "+keep+" && rm -f "+writerDisk+" && head -c 262144 /dev/zero >"+writerDisk+" && sync"); err != nil {
		return err
	}
	if _, err := l.m.Lodge(ctx, "start", "writer"); err != nil {
		return err
	}
	g, err := l.m.Attach(ctx, guest.Config{Name: "writer"})
	if err != nil {
		return err
	}
	first := regexp.MustCompile(`record (\d+)\r?\n`)
	if _, err := g.Await(ctx, 0, first); err != nil {
		return err
	}
	begun()
	<-g.Done()
	said := first.FindAllStringSubmatch(g.Console(), -1)
	newest, err := strconv.Atoi(said[len(said)-1][1])
	if err != nil {
		return err
	}
	l.records = newest
	return rpc.ErrClosed
}

// checkRecords looks for the records that the guest has said to be on its disk: in each block is the newest of these, or one that
// it had not said yet.
func (l *cutLab) checkRecords(ctx context.Context, t *testing.T) {
	t.Helper()
	there := strings.Fields(l.shell(ctx, t, "agent recorded "+keep+"/"+writerDisk))
	newest := 0
	for block, text := range there {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		want := 0 // the newest whose place it is
		if l.records >= block {
			want = l.records - (l.records-block)%len(there)
		}
		if n < want || n < 0 || n%len(there) != block && n != 0 {
			t.Errorf("block %d has record %d, and %d was said to be there", block, n, want)
		}
		newest = max(newest, n)
	}
	t.Logf("the guest has told of %d records, %d are there", l.records, newest)
}
