package e2e_test

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/guest"
	"github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// managerLab is the notebook with lodged, on the notebook's own system bus, and two Debian guests of it: work, whose disk is a
// file, depends on store, whose disk is a block device. All that is done to them is done by the program lodge.
type managerLab struct {
	nb     *notebook.Notebook
	host   *guest.Host
	m      *guest.Manager
	guests map[string]*managed
}

// managed is a guest of the manager's.
type managed struct {
	*guest.Guest
	agent *rpc.Client
}

// state is where the manager keeps things, on a file system that shares blocks.
const state = "/var/lib/lodge"

func TestManager(t *testing.T) {
	l := newManagerLab(t)
	for _, s := range []struct {
		name string
		run  func(l *managerLab, ctx context.Context, t *testing.T)
	}{
		{"import", (*managerLab).testImport},
		{"definitions", (*managerLab).testDefinitions},
		{"who may", (*managerLab).testWhoMay},
		{"dependency start", (*managerLab).testDependencyStart},
		{"networks", (*managerLab).testNetworks},
		{"save", (*managerLab).testSave},
		{"snapshot", (*managerLab).testSnapshot},
		{"disk full", (*managerLab).testDiskFull},
		{"manager killed", (*managerLab).testManagerKilled},
		{"manager killed as it saves", (*managerLab).testManagerKilledSaving},
		{"machine killed", (*managerLab).testMachineKilled},
		{"disposable", (*managerLab).testDisposable},
		{"run", (*managerLab).testRun},
	} {
		ok := t.Run(s.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("test %q takes longer than %v", s.name, limit))
			defer cancel()
			s.run(l, ctx, t)
		})
		if !ok {
			l.explain(t)
			t.FailNow() // what follows builds upon it
		}
	}
}

func newManagerLab(t *testing.T) *managerLab {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // the first time, images are built
	defer cancel()
	b, err := image.NewBuilder(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	disk, err := b.FileSystem(ctx, "xfs", 8<<30)
	if err != nil {
		t.Fatal(err)
	}
	tools, err := guest.ManagerTools(ctx, b, "")
	if err != nil {
		t.Fatal(err)
	}
	nb, err := notebook.Start(ctx, notebook.Config{
		Builder: b, Tools: tools, CPUs: 1, Disks: []notebook.Disk{{Name: "state", Base: disk}}, Log: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nb.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &managerLab{nb: nb, host: guest.InNotebook(nb), guests: make(map[string]*managed)}
	if err := l.host.StartBus(ctx); err != nil {
		t.Fatal(err)
	}
	l.shell(ctx, t, "modprobe xfs && mkdir -p "+state+" && mount -t xfs /disk/state "+state)
	l.startManager(ctx, t)
	return l
}

// startManager starts lodged, as when it was killed.
func (l *managerLab) startManager(ctx context.Context, t *testing.T) {
	t.Helper()
	var err error
	if l.m, err = l.host.StartManager(ctx, nil); err != nil {
		t.Fatal(err)
	}
}

// killManager kills lodged, as by SIGKILL.
func (l *managerLab) killManager(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := l.m.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// explain prints what a failed test may have failed for.
func (l *managerLab) explain(t *testing.T) {
	t.Logf("lodged says:\n%s", l.m.Log())
	for name, g := range l.guests {
		text := g.Console()
		t.Logf("the console of %s:\n%s", name, text[max(0, len(text)-2000):])
	}
	select {
	case <-l.nb.Done():
		t.Log(l.nb.Postmortem())
	default:
		if out, err := l.nb.Shell(context.WithoutCancel(t.Context()), "cd /var/lib/lodge/guests && tail -n 20 */logs/vmm.log; cat */run.json; dmesg | tail -n 20"); err == nil {
			t.Log(out)
		}
	}
}

// shell runs a script in the notebook and returns what it prints.
func (l *managerLab) shell(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	out, err := l.nb.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// lodge runs the program lodge, which is to succeed, and returns what it prints.
func (l *managerLab) lodge(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := l.m.Lodge(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused runs lodge as a user, which is to fail with that exit status and a message that matches.
func (l *managerLab) refused(ctx context.Context, t *testing.T, user string, status int, message, command string) {
	t.Helper()
	r, err := l.nb.Run(ctx, "su", user, "-c", "/tools/bin/lodge "+command)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != status || !regexp.MustCompile(message).MatchString(r.Stderr) {
		t.Errorf("lodge %s as %s: exit status %d, message %q; want %d and a message that matches %q", command, user, r.Code, r.Stderr, status, message)
	}
}

// define defines guests from files that have their definitions.
func (l *managerLab) define(ctx context.Context, t *testing.T, definitions map[string]string) {
	t.Helper()
	args := []string{"define"}
	for name, text := range definitions {
		file := "/tmp/" + name + ".toml"
		if err := l.nb.Put(ctx, strings.NewReader(text), file, 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	l.lodge(ctx, t, args...)
}

func (l *managerLab) await(ctx context.Context, t *testing.T, name, what string, ok func(g client.Guest) bool) client.Guest {
	t.Helper()
	g, err := l.m.Await(ctx, name, what, ok)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (l *managerLab) awaitState(ctx context.Context, t *testing.T, name, state string) client.Guest {
	t.Helper()
	return l.await(ctx, t, name, state, func(g client.Guest) bool { return g.State == state })
}

// attach connects to the console and the agent of a guest that runs.
func (l *managerLab) attach(ctx context.Context, t *testing.T, name string) *managed {
	t.Helper()
	g, err := l.m.Attach(ctx, guest.Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	m := &managed{Guest: g}
	l.guests[name] = m
	if m.agent, err = g.Agent(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *managed) shell(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	out, err := m.agent.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bios is the definition of a guest that runs SeaBIOS, which finds nothing to boot, and does not hear its power button.
func bios(name, more string) string {
	return fmt.Sprintf("name = %q\nmemory = \"32M\"\n%s\n[boot]\nfirmware = \"/usr/share/seabios/bios-256k.bin\"\n", name, more)
}

// testImport imports the disk that guest work boots from later: a qcow2 that qemu-img has made. With a wrong checksum nothing of it
// stays.
func (l *managerLab) testImport(ctx context.Context, t *testing.T) {
	const file = state + "/work.qcow2"
	l.shell(ctx, t, "qemu-img convert -O qcow2 /disk/amd64 "+file)
	l.refused(ctx, t, "root", 1, "(?i)checksum|sha-?256", "import --name work --sha256 "+strings.Repeat("0", 64)+" "+file)
	if out := l.shell(ctx, t, "ls -A "+state+"/images"); out != "" {
		t.Errorf("left over of an import that was refused: %s", out)
	}
	begin := time.Now()
	l.lodge(ctx, t, "import", "--name", "work", file)
	t.Logf("imported in %.1f s", time.Since(begin).Seconds())
	if out := l.lodge(ctx, t, "image", "list"); !regexp.MustCompile(`(?m)^work +1.5 GiB`).MatchString(out) {
		t.Errorf("lodge image list:\n%s", out)
	}
	l.shell(ctx, t, "rm "+file)
}

// island and outside are networks: of guests only, and with a way to the notebook.
const (
	island  = "name = \"island\"\nkind = \"isolated\"\nsubnet = \"10.77.1.0/24\"\npeers = true\n"
	outside = "name = \"outside\"\nkind = \"user\"\nsubnet = \"10.77.2.0/24\"\nhost = true\n"
)

func (l *managerLab) testDefinitions(ctx context.Context, t *testing.T) {
	for name, text := range map[string]string{"island": island, "outside": outside} {
		if err := l.nb.Put(ctx, strings.NewReader(text), "/tmp/"+name+".toml", 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l.lodge(ctx, t, "net", "define", "/tmp/island.toml", "/tmp/outside.toml")
	const card = "[[nic]]\nname = \"lan\"\nnetwork = \"island\"\n"
	store := guest.Config{Name: "store", Arch: "i386", CID: 11, Flags: "label = \"keeps things\"",
		Extra: card + "[ready]\nserial = \"lodge-guest: ready\"\n"}
	work := guest.Config{Name: "work", Arch: "amd64", CID: 10, Disk: "@work", Flags: "depends = [\"store\"]\nslot = 2",
		Extra: card + "[[nic]]\nname = \"way-out\"\nnetwork = \"outside\"\n[ready]\nvsock = 1024\n"}
	definition := strings.Replace(l.m.Definition(work), "path = \"@work\"", "image = \"work\"", 1)
	l.define(ctx, t, map[string]string{"store": l.m.Definition(store)})
	l.define(ctx, t, map[string]string{"work": definition})
	list, err := l.m.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Label != "keeps things" || list[1].Slot != 2 || list[1].State != "defined" || !slices.Equal(list[1].Depends, []string{"store"}) {
		t.Errorf("%+v", list)
	}
	l.shell(ctx, t, "printf 'name = \"wrong\"\\nmemory = \"1G\"\\ncolour = 1\\n' >/tmp/wrong.toml")
	l.refused(ctx, t, "root", 1, `:3: unknown key "colour"`, "define /tmp/wrong.toml")
	second := strings.NewReplacer(`name = "work"`, `name = "second"`, "cid = 10", "cid = 12").Replace(definition)
	if err := l.nb.Put(ctx, strings.NewReader(second), "/tmp/second.toml", 0o644); err != nil {
		t.Fatal(err)
	}
	l.refused(ctx, t, "root", 1, "disk .*work", "define /tmp/second.toml")
}

// testWhoMay has users that are not root try: a member of the group lodge may see and control, and not define; others nothing.
func (l *managerLab) testWhoMay(ctx context.Context, t *testing.T) {
	if out := l.shell(ctx, t, "su member -c '/tools/bin/lodge list'"); !strings.Contains(out, "work") {
		t.Errorf("a member of the group sees %q", out)
	}
	const denied = "(?i)not (allowed|authorized)|polkit|permission"
	l.refused(ctx, t, "member", 4, denied, "delete work")
	l.refused(ctx, t, "stranger", 4, denied, "list")
	l.refused(ctx, t, "stranger", 4, denied, "start work")
}

// testDependencyStart starts a guest: what it depends on is ready first.
func (l *managerLab) testDependencyStart(ctx context.Context, t *testing.T) {
	begin := time.Now()
	started := make(chan error, 1)
	go func() {
		_, err := l.nb.Shell(ctx, "su member -c '/tools/bin/lodge start work'")
		started <- err
	}()
	l.await(ctx, t, "store", "running", func(g client.Guest) bool { return g.PID != 0 })
	if g, err := l.m.Get(ctx, "work"); err != nil || g.State != "waiting" || g.PID != 0 {
		t.Errorf("guest work, which depends on store: %+v, %v", g, err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	store, err := l.m.Get(ctx, "store")
	if err != nil || !store.Ready {
		t.Errorf("guest work was started, and store is not ready: %+v, %v", store, err)
	}
	t.Logf("store was ready and work started after %.1f s", time.Since(begin).Seconds())
	l.await(ctx, t, "work", "ready", func(g client.Guest) bool { return g.Ready })
	t.Logf("work was ready after %.1f s", time.Since(begin).Seconds())
	for name, arch := range map[string]string{"store": "i686", "work": "x86_64"} {
		if got := l.attach(ctx, t, name).shell(ctx, t, "uname -m; hostname"); got != arch+"\n"+name {
			t.Errorf("guest %s is %q", name, got)
		}
	}
	if out := l.lodge(ctx, t, "logs", "store"); !strings.Contains(out, "lodge-guest: ready") {
		t.Errorf("its log:\n%s", out)
	}
}

// testNetworks has guests reach each other on the isolated network, and nothing else; on the other network one reaches the notebook.
func (l *managerLab) testNetworks(ctx context.Context, t *testing.T) {
	work, store := l.guests["work"], l.guests["store"]
	address := func(m *managed, card string) string {
		t.Helper()
		out := m.shell(ctx, t, "until ip -4 -o addr show dev "+card+" | grep -o 'inet [0-9.]*'; do usleep 100000; done")
		return strings.TrimPrefix(out, "inet ")
	}
	a, b := address(work, "eth0"), address(store, "eth0")
	if !strings.HasPrefix(a, "10.77.1.") || !strings.HasPrefix(b, "10.77.1.") || a == b || !strings.HasPrefix(address(work, "eth1"), "10.77.2.") {
		t.Errorf("the guests have the addresses %s and %s", a, b)
	}
	work.shell(ctx, t, "ping -q -c 2 -W 10 -I eth0 "+b)
	store.shell(ctx, t, "ping -q -c 2 -W 10 "+a)

	// The notebook has an address, which the one network leads to and the other does not.
	const host = "198.51.100.1"
	l.shell(ctx, t, "tunctl -t out0 && ifconfig out0 "+host+" netmask 255.255.255.0 up")
	_, line, err := guest.StartServer(ctx, l.nb.Client, rpc.Self, "http", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + host + ":" + line[strings.LastIndexByte(line, ':')+1:] + "/bytes/1000"
	get := func(card string) string {
		return "if curl -sS -m 5 -o /dev/null --interface " + card + " " + url + "; then echo reached; else echo not; fi"
	}
	if got := work.shell(ctx, t, get("eth1")); got != "reached" {
		t.Errorf("by the network that leads outside the notebook is %s", got)
	}
	for _, m := range []*managed{work, store} { // by the gateway too, should it take what is not for it
		if got := m.shell(ctx, t, "ip route replace "+host+" via 10.77.1.1 dev eth0 && "+get("eth0")+" && ip route del "+host); got != "not" {
			t.Errorf("guest %s, by the isolated network: the notebook is %s", m.Name(), got)
		}
	}
	if out := l.lodge(ctx, t, "net", "list"); !regexp.MustCompile(`(?m)^island +isolated +up +10\.77\.1\.0/24 +store,work`).MatchString(out) {
		t.Errorf("lodge net list:\n%s", out)
	}
}

// startCounter starts a counter in a guest, which connections to its agent do not end.
func (m *managed) startCounter(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := m.agent.Do(ctx, rpc.Cmd{Args: []string{rpc.Self, "counter", "-every", "50ms"}, Log: counterLog}); err != nil {
		t.Fatal(err)
	}
	m.counted(ctx, t, 5)
}

// counted waits until the counter has reached n, and returns where it is.
func (m *managed) counted(ctx context.Context, t *testing.T, n int) int {
	t.Helper()
	return (&vm{Guest: m.Guest, agent: m.agent}).counted(ctx, t, n)
}

// testSave saves a guest and starts it again: it goes on where it was.
func (l *managerLab) testSave(ctx context.Context, t *testing.T) {
	work := l.guests["work"]
	work.startCounter(ctx, t)
	l.lodge(ctx, t, "save", "work")
	if g, err := l.m.Get(ctx, "work"); err != nil || g.State != "saved" || g.PID != 0 || g.SavedAt.IsZero() {
		t.Errorf("%+v, %v", g, err)
	}
	begin := time.Now()
	l.lodge(ctx, t, "start", "work")
	work = l.attach(ctx, t, "work")
	t.Logf("answers %.2f s after the start from its saved state", time.Since(begin).Seconds())
	work.counted(ctx, t, work.counted(ctx, t, 0)+5)
}

// testSnapshot makes a snapshot of a guest that runs, and goes back to it: its disk and its memory are what they were.
func (l *managerLab) testSnapshot(ctx context.Context, t *testing.T) {
	work := l.guests["work"]
	work.shell(ctx, t, "echo before | tee /root/before /tmp/before && sync")
	l.lodge(ctx, t, "snapshot", "create", "work", "one")
	if out := l.lodge(ctx, t, "snapshot", "list", "work"); !regexp.MustCompile(`(?m)^one .* yes `).MatchString(out) {
		t.Errorf("lodge snapshot list:\n%s", out)
	}
	work.shell(ctx, t, "rm /root/before /tmp/before; touch /root/after /tmp/after; sync")
	at := work.counted(ctx, t, 0)
	l.lodge(ctx, t, "stop", "--now", "work")
	l.lodge(ctx, t, "restore", "work", "one")
	l.lodge(ctx, t, "start", "work")
	work = l.attach(ctx, t, "work")
	if got := work.shell(ctx, t, "cat /root/before /tmp/before; ls /root/after /tmp/after 2>/dev/null || true"); got != "before\nbefore" {
		t.Errorf("the guest has %q", got)
	}
	t.Logf("the counter was at %d, and is at %d", at, work.counted(ctx, t, 0))
	work.counted(ctx, t, work.counted(ctx, t, 0)+5)
	l.lodge(ctx, t, "snapshot", "delete", "work", "one")
}

// testDiskFull has the host run out of space for a guest's disk: the manager says so, and the guest goes on after space was made.
func (l *managerLab) testDiskFull(ctx context.Context, t *testing.T) {
	const small = "/run/small"
	l.shell(ctx, t, "mkdir "+small+" && mount -t tmpfs -o size=4m small "+small+" && truncate -s 16M "+small+"/disk")
	// The new disk is there from the next start on. What is plugged into a machine that is saved must be there again, so it boots.
	l.lodge(ctx, t, "stop", "work")
	l.edit(ctx, t, "work", `printf '[[disk]]\nname = "small"\npath = "`+small+`/disk"\n' >>`)
	l.lodge(ctx, t, "start", "work")
	work := l.attach(ctx, t, "work")
	written := make(chan string, 1)
	go func() {
		out, err := work.agent.Shell(ctx, "head -c 12582912 /dev/urandom >/tmp/random && dd if=/tmp/random of=/dev/vdb bs=64k conv=fsync 2>/dev/null && sha256sum </tmp/random")
		if err != nil {
			t.Error(err)
		}
		written <- strings.Fields(out + " ?")[0]
	}()
	full := func(g client.Guest) bool { return g.State == "paused" && strings.Contains(g.Note, "disk is full") }
	l.await(ctx, t, "work", "paused for want of space", full)
	if out := l.lodge(ctx, t, "list"); !regexp.MustCompile(`work +paused .*disk is full`).MatchString(out) {
		t.Errorf("lodge list:\n%s", out)
	}
	l.shell(ctx, t, "mount -o remount,size=32m "+small)
	l.lodge(ctx, t, "resume", "work")
	sum := <-written
	if got := work.shell(ctx, t, "head -c 12582912 /dev/vdb | sha256sum"); !strings.HasPrefix(got, sum) {
		t.Errorf("the guest reads %s where it wrote %s", got, sum)
	}
	if out := work.shell(ctx, t, "dmesg | grep -i 'i/o error' || true"); out != "" {
		t.Errorf("the guest was told of errors: %s", out)
	}
	if g, err := l.m.Get(ctx, "work"); err != nil || g.State != "running" || g.Note != "" {
		t.Errorf("%+v, %v", g, err)
	}
}

// edit changes a definition by a shell command, which gets the file's name behind it, as lodge edit's editor.
func (l *managerLab) edit(ctx context.Context, t *testing.T, name, command string) {
	t.Helper()
	if err := l.nb.Put(ctx, strings.NewReader("#!/bin/sh\n"+command+" \"$1\"\n"), "/tmp/editor", 0o755); err != nil {
		t.Fatal(err)
	}
	if out := l.shell(ctx, t, "EDITOR=/tmp/editor lodge edit "+name); !strings.Contains(out, "is changed") {
		t.Errorf("lodge edit: %q", out)
	}
}

func isWork(g client.Guest) bool { return g.Name == "work" }

// testManagerKilled kills lodged while there is a guest in each state. The next one finds them, and carries on.
func (l *managerLab) testManagerKilled(ctx context.Context, t *testing.T) {
	l.lodge(ctx, t, "pause", "store")
	// What copies its disk before it starts, and does so for a while where the file system does not share blocks.
	l.shell(ctx, t, "head -c 200000000 /dev/urandom >/run/large")
	l.define(ctx, t, map[string]string{
		"slow":     bios("slow", "") + "[ready]\nserial = \"what it never prints\"\n",
		"waits":    bios("waits", `depends = ["slow"]`),
		"deaf":     bios("deaf", `stop_timeout = "20s"`),
		"again":    bios("again", "restart = \"on-crash\"\nrestart_delay = \"15s\""),
		"starts":   bios("starts", "disposable = true\ndisk = [{ name = \"d\", path = \"/run/large\" }]"),
		"finished": bios("finished", ""),
	})
	l.lodge(ctx, t, "start", "deaf", "again")
	l.begin(ctx, t, "start waits")
	again, _ := l.m.Get(ctx, "again")
	l.shell(ctx, t, fmt.Sprintf("kill -9 %d", again.PID))
	l.awaitState(ctx, t, "slow", "running")
	l.awaitState(ctx, t, "waits", "waiting")
	l.awaitState(ctx, t, "again", "restarting")
	l.begin(ctx, t, "stop deaf")
	l.awaitState(ctx, t, "deaf", "stopping")
	l.begin(ctx, t, "start starts")
	l.awaitState(ctx, t, "starts", "starting")

	before, err := l.m.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if out := l.shell(ctx, t, fmt.Sprintf("cat /proc/%d/cgroup", before[slices.IndexFunc(before, isWork)].PID)); out != "0::"+guest.CellsGroup+"/guest-work" {
		t.Errorf("the control group of work is %q", out)
	}
	l.killManager(ctx, t)
	killed := time.Now()
	l.startManager(ctx, t) // in the group in which it was: with guests in that it could not be
	after, err := l.m.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the next one answers after %.2f s", time.Since(killed).Seconds())
	state := func(list []client.Guest) string {
		var s []string
		for _, g := range list {
			s = append(s, g.Name+" "+g.State)
		}
		return strings.Join(s, ", ")
	}
	t.Logf("before: %s", state(before))
	t.Logf("after:  %s", state(after))
	const want = "again restarting, deaf stopping, finished defined, slow running, starts starting, store paused, waits waiting, work running"
	if got := state(before); got != want {
		t.Errorf("before, want: %s", want)
	}
	for i, g := range after {
		was := before[i]
		switch g.Name {
		case "starts": // from the beginning, and perhaps already
			if !slices.Contains([]string{"waiting", "starting", "running"}, g.State) {
				t.Errorf("guest starts is %s", g.State)
			}
		default:
			if g.State != was.State || g.PID != was.PID || g.Ready != was.Ready {
				t.Errorf("guest %s was %s, process %d, ready %v, and is %s, process %d, ready %v", g.Name, was.State, was.PID, was.Ready, g.State, g.PID, g.Ready)
			}
		}
	}
	// All goes on: what was stopped ends at its old deadline, what was to be restarted is, and the machines have noticed nothing.
	l.awaitState(ctx, t, "starts", "running")
	l.awaitState(ctx, t, "deaf", "defined")
	if took := time.Since(killed); took > 40*time.Second {
		t.Errorf("guest deaf, which had 20 s to end, had ended after %v", took)
	}
	l.awaitState(ctx, t, "again", "running")
	l.lodge(ctx, t, "resume", "store")
	for name, g := range l.guests {
		if got := g.shell(ctx, t, "hostname"); got != name {
			t.Errorf("guest %s is %q", name, got)
		}
	}
	l.lodge(ctx, t, "stop", "--now", "waits", "slow", "again", "starts")
	if got := l.shell(ctx, t, "pidof lodge-vmm | wc -w"); got != "2" {
		t.Errorf("%s machines are left, want those of work and store", got)
	}
	if got := l.shell(ctx, t, "ls /var/lib/lodge/guests/starts"); strings.Contains(got, "overlay") {
		t.Errorf("what a disposable guest has written is still there: %s", got)
	}
	l.lodge(ctx, t, "delete", "waits", "slow", "again", "starts", "deaf", "finished")
	l.shell(ctx, t, "rm /run/large")
}

// begin runs lodge and does not wait for its end.
func (l *managerLab) begin(ctx context.Context, t *testing.T, command string) {
	t.Helper()
	l.shell(ctx, t, "lodge "+command+" >/dev/null 2>&1 &")
}

// testManagerKilledSaving kills lodged while a guest is being saved: it runs on, and the next save is whole.
func (l *managerLab) testManagerKilledSaving(ctx context.Context, t *testing.T) {
	work := l.guests["work"]
	work.startCounter(ctx, t)
	was := l.awaitState(ctx, t, "work", "running")
	l.begin(ctx, t, "save work")
	l.awaitState(ctx, t, "work", "saving")
	l.killManager(ctx, t)
	l.startManager(ctx, t)
	g := l.awaitState(ctx, t, "work", "running")
	if g.PID != was.PID || !strings.Contains(g.Note, "save it again") {
		t.Errorf("%+v", g)
	}
	work.counted(ctx, t, work.counted(ctx, t, 0)+5)
	if got := l.shell(ctx, t, "ls -A /var/lib/lodge/guests/work"); strings.Contains(got, "lodge-new") {
		t.Errorf("left over of the save: %s", got)
	}
	l.lodge(ctx, t, "save", "work")
	l.lodge(ctx, t, "start", "work")
	work = l.attach(ctx, t, "work")
	work.counted(ctx, t, work.counted(ctx, t, 0)+5)
}

// testMachineKilled kills machines: one has crashed then, the other is started again by its policy.
func (l *managerLab) testMachineKilled(ctx context.Context, t *testing.T) {
	l.define(ctx, t, map[string]string{"again": bios("again", "restart = \"on-crash\"")})
	l.lodge(ctx, t, "start", "again")
	for _, name := range []string{"work", "again"} {
		g, err := l.m.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		l.shell(ctx, t, fmt.Sprintf("kill -9 %d", g.PID))
		if name == "again" {
			now := l.await(ctx, t, name, "running again", func(now client.Guest) bool { return now.State == "running" && now.PID != g.PID })
			if now.Restarts != 1 {
				t.Errorf("%+v", now)
			}
			continue
		}
		if now := l.awaitState(ctx, t, name, "crashed"); !strings.Contains(now.Note, "killed") {
			t.Errorf("%+v", now)
		}
	}
	l.lodge(ctx, t, "stop", "--now", "again")
	l.lodge(ctx, t, "delete", "again")
}

// testDisposable has a guest forget what it has written.
func (l *managerLab) testDisposable(ctx context.Context, t *testing.T) {
	l.edit(ctx, t, "work", `sed -i 's/^slot = 2$/slot = 2\ndisposable = true/'`)
	l.lodge(ctx, t, "start", "work")
	work := l.attach(ctx, t, "work")
	work.shell(ctx, t, "echo wrote >/root/marker && sync")
	l.lodge(ctx, t, "stop", "work")
	if g, err := l.m.Get(ctx, "work"); err != nil || g.State != "defined" {
		t.Errorf("%+v, %v", g, err)
	}
	out := l.shell(ctx, t, "mount -o ro,noload,loop "+state+"/images/work.raw /mnt && ls /mnt/root && umount /mnt; ls -A /var/lib/lodge/guests/work")
	if strings.Contains(out, "marker") || strings.Contains(out, "overlay") {
		t.Errorf("what a disposable guest has written is still there: %s", out)
	}
	l.edit(ctx, t, "work", `sed -i /^disposable/d`)
}

// testRun runs a Debian guest by lodge run, without the manager, and types into it. Nothing of it stays.
func (l *managerLab) testRun(ctx context.Context, t *testing.T) {
	const look = "sha256sum " + state + "/images/work.raw; ls -A " + state + "/tmp; pidof lodge-vmm lodge-net | wc -w"
	l.shell(ctx, t, "mkdir "+state+"/tmp")
	before := l.shell(ctx, t, look)
	in, keys := io.Pipe()
	defer keys.Close()
	p, err := l.host.StartProgram(rpc.Cmd{
		Args: []string{"lodge", "run", "/guests/amd64/vmlinux", "--initrd=/guests/amd64/initrd", "--append=console=ttyS0 root=/dev/vda rw",
			"--disk=" + state + "/images/work.raw", "--memory=256M"},
		Env: []string{"TMPDIR=" + state + "/tmp"}, Stdin: in,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ await, answer string }{
		{`root@\S+:~#`, "echo answer-$((6 * 7))\n"},
		{`\ranswer-42\s`, "cat /sys/bus/virtio/devices/*/device; echo over\n"},
		{`(?s)answer-42.*\s0x0001\s.*\sover\s`, "echo more >>/root/.profile; sync; poweroff\n"}, // it has a card; and it writes
	} {
		if _, err := p.Await(ctx, regexp.MustCompile(step.await)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(keys, step.answer); err != nil {
			t.Fatal(err)
		}
	}
	st, err := p.Wait(ctx)
	if err != nil || st.Code != 0 {
		t.Fatalf("lodge run: %+v, %v\n%s", st, err, p.Said())
	}
	if after := l.shell(ctx, t, look); after != before {
		t.Errorf("afterwards there is\n%s\nand was\n%s", after, before)
	}
}
