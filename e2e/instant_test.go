package e2e_test

import (
	"context"
	"fmt"
	"image"
	"image/color"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/desk"
	"github.com/lodgehv/lodge/e2e/guest"
	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// instantLab is a notebook with the instant-on guest, by the definition that comes with it, and a server for it to talk to.
type instantLab struct {
	*desk.Desk
	server *guest.Program
}

// instantHost is the server's address, which is the notebook's.
const instantHost = "198.51.100.1"

// Colours of the guest's screen: the page that the server has, and the browser's first.
var (
	serverPage = color.RGBA{0xd0, 0xff, 0xd0, 255}
	white      = color.RGBA{255, 255, 255, 255}
)

// instantSetup mounts the state, and the guest's files where their definition looks for them; and gives the notebook an address that guests reach.
const instantSetup = `set -e
modprobe xfs
mkdir -p /var/lib/lodge
mount -t xfs /disk/state /var/lib/lodge
mkdir -p /var/lib/lodge/instant
mount -t ext4 -o ro /disk/instant /var/lib/lodge/instant
mkdir -p /etc/lodge/networks
cat >/etc/lodge/networks/default.toml <<NET
name = "default"
kind = "user"
subnet = "10.77.9.0/24"
host = true
NET
tunctl -t out0
ifconfig out0 ` + instantHost + ` netmask 255.255.255.0 up
`

func TestInstant(t *testing.T) {
	l := newInstantLab(t)
	for _, s := range []struct {
		name string
		run  func(l *instantLab, ctx context.Context, t *testing.T)
	}{
		{"first boot", (*instantLab).testFirstBoot},
		{"restore", (*instantLab).testRestore},
		{"page", (*instantLab).testPage},
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

func newInstantLab(t *testing.T) *instantLab {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // the first time, images are built
	defer cancel()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := lodgeimage.NewBuilder(t.Output())
	check(err)
	_, files, err := b.Instant(ctx)
	check(err)
	state, err := b.FileSystem(ctx, "xfs", 8<<30)
	check(err)
	tools, err := guest.ManagerTools(ctx, b, "")
	check(err)
	tools["bin/webmail"], _, err = b.GoProgram(ctx, "./e2e/webmail/program", "amd64")
	check(err)
	nb, err := notebook.Start(ctx, notebook.Config{
		Builder: b, Tools: tools, CPUs: 1, Disks: []notebook.Disk{{Name: "state", Base: state}, {Name: "instant", Base: files}}, Log: t.Output(),
	})
	check(err)
	t.Cleanup(func() {
		if err := nb.Close(); err != nil {
			t.Error(err)
		}
	})
	host := guest.InNotebook(nb)
	check(host.StartBus(ctx))
	_, err = nb.Shell(ctx, instantSetup)
	check(err)
	l := &instantLab{}
	l.server, err = host.StartProgram(rpc.Cmd{Args: []string{"webmail", instantHost}})
	check(err)
	_, err = l.server.Await(ctx, regexp.MustCompile(`ready`))
	check(err)
	m, err := host.StartManager(ctx, nil, "--seat", "/run/seat.ctl")
	check(err)
	_, err = nb.Shell(ctx, `set -e
sed -e 's/^cmdline = "/&instant.mail=username@`+instantHost+` instant.mail-tls=no /' /var/lib/lodge/instant/instant.toml >/tmp/instant.toml
lodge define /tmp/instant.toml`)
	check(err)
	l.Desk, err = desk.On(ctx, nb, m, desk.Config{Shots: "../out/instant", Log: t.Output()}, desk.Desktop{Name: "instant", Color: "orange", Slot: 1})
	check(err)
	check(l.StartSeat())
	return l
}

// explain prints what a failed test may have failed for.
func (l *instantLab) explain(t *testing.T) {
	ctx := context.WithoutCancel(t.Context())
	if _, err := l.Shoot(ctx, "failed"); err != nil {
		t.Log(err)
	}
	said := l.server.Said()
	t.Logf("lodged says:\n%s\nthe server says:\n%s", l.Manager.Log(), said[max(0, len(said)-3000):])
	select {
	case <-l.Notebook.Done():
		t.Log(l.Notebook.Postmortem())
	default:
		if out, err := l.Notebook.Shell(ctx, "cd /var/lib/lodge/guests/instant && tail -n 30 logs/vmm.log logs/serial.log; cat run.json; ls -lR template"); err == nil {
			t.Log(out)
		}
	}
}

func (l *instantLab) shell(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	out, err := l.Notebook.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (l *instantLab) lodge(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	if _, err := l.Manager.Lodge(ctx, args...); err != nil {
		t.Fatal(err)
	}
}

func (l *instantLab) await(ctx context.Context, t *testing.T, what string, ok func(g client.Guest) bool) client.Guest {
	t.Helper()
	g, err := l.Manager.Await(ctx, "instant", what, ok)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// ready waits until the guest is, and returns since when it runs.
func (l *instantLab) ready(ctx context.Context, t *testing.T) client.Guest {
	t.Helper()
	return l.await(ctx, t, "ready", func(g client.Guest) bool { return g.Ready && g.State == "running" })
}

// seen waits until the screen below the bar is as ok wants it, and leaves the picture as shot.
func (l *instantLab) seen(ctx context.Context, t *testing.T, shot, what string, ok func(img image.Image) bool) image.Image {
	t.Helper()
	var img image.Image
	until(ctx, t, what+" on the screen", func() (bool, error) {
		var err error
		img, err = l.Shoot(ctx, shot)
		return err == nil && ok(img), err
	})
	return img
}

// shows returns whether at least part of the screen, from 0 to 1, has a colour.
func shows(c color.RGBA, part float64) func(image.Image) bool {
	return func(img image.Image) bool { return desk.Share(img, img.Bounds(), c) >= part }
}

func (l *instantLab) typed(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	if err := l.Type(ctx, text); err != nil {
		t.Fatal(err)
	}
}

// asked waits until the server was asked for something, in what it has said after the first skip bytes.
func (l *instantLab) asked(ctx context.Context, t *testing.T, skip int, what string) {
	t.Helper()
	re := regexp.MustCompile(what)
	until(ctx, t, fmt.Sprintf("%q asked of the server", what), func() (bool, error) {
		return re.MatchString(l.server.Said()[skip:]), errNotYet
	})
}

// awaitTemplate waits until the guest has a template that was made after from.
func (l *instantLab) awaitTemplate(ctx context.Context, t *testing.T, before string) string {
	t.Helper()
	made := ""
	until(ctx, t, "a template", func() (bool, error) {
		var err error
		made, err = l.Notebook.Shell(ctx, "cat /var/lib/lodge/guests/instant/template/template.json 2>/dev/null || true")
		return made != "" && made != before, err
	})
	return made
}

// testFirstBoot boots the guest, which then has a template.
func (l *instantLab) testFirstBoot(ctx context.Context, t *testing.T) {
	begin := time.Now()
	l.lodge(ctx, t, "start", "instant")
	l.ready(ctx, t)
	t.Logf("booted and painted after %.1f s", time.Since(begin).Seconds())
	l.awaitTemplate(ctx, t, "")
	l.ready(ctx, t)
	l.seen(ctx, t, "booted", "the browser's window", shows(white, 0.5))
	t.Log(l.shell(ctx, t, "du -m /var/lib/lodge/guests/instant/template/memory/ram; free -m | sed -n 2p"))
}

// again switches the guest off and on, and waits until its window is there.
func (l *instantLab) again(ctx context.Context, t *testing.T, shot string) {
	t.Helper()
	l.lodge(ctx, t, "stop", "--now", "instant")
	begin := time.Now()
	l.lodge(ctx, t, "start", "instant")
	started := time.Since(begin)
	l.seen(ctx, t, shot, "the browser's window", shows(white, 0.5))
	t.Logf("runs after %.2f s, window seen after %.2f s", started.Seconds(), time.Since(begin).Seconds())
	if out := l.shell(ctx, t, "tail -n 1 /var/lib/lodge/guests/instant/vmm.toml; cat /var/lib/lodge/guests/instant/run.json"); !strings.Contains(out, `"template":true`) {
		t.Errorf("it did not come from its template: %s", out)
	}
}

// testRestore starts the guest from its template. What was written is gone, the clock goes right, and its first key is answered.
func (l *instantLab) testRestore(ctx context.Context, t *testing.T) {
	l.again(ctx, t, "restored")
	begin := time.Now()
	before := l.seen(ctx, t, "restored", "the browser's window", shows(white, 0.5))
	if err := l.Press(ctx, "ctrl", "l"); err != nil {
		t.Fatal(err)
	}
	address := image.Rect(0, desk.Bar+32, desk.Width, desk.Bar+160)
	l.seen(ctx, t, "first-key", "an answer to a key", func(img image.Image) bool { return differ(before, img, address) })
	t.Logf("first key answered after %.2f s", time.Since(begin).Seconds())
	// What it uses first is known by now.
	until(ctx, t, "the working set", func() (bool, error) {
		out, err := l.Notebook.Shell(ctx, "grep -o off /var/lib/lodge/guests/instant/template/working-set.json 2>/dev/null | wc -l")
		return strings.TrimSpace(out) != "0", err
	})
}

// testPage has the browser, in which the address is selected, show a page of the server's.
func (l *instantLab) testPage(ctx context.Context, t *testing.T) {
	skip := len(l.server.Said())
	l.typed(ctx, t, instantHost+"/\n")
	l.asked(ctx, t, skip, `GET / by NetSurf`)
	l.seen(ctx, t, "page", "the page", shows(serverPage, 0.4))
}
