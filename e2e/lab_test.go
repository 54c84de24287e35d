package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/guest"
	"github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
)

// names are the two guests, called after their architectures.
var names = []string{"amd64", "i386"}

// lab is the notebook with the guests' networks and the guests.
type lab struct {
	cpus  map[string]int // of the guests
	nb    *notebook.Notebook
	host  *guest.Host
	lan   *guest.Network // both guests are on it
	tap   string         // web server on the tap device of guest amd64, as a URL
	passt string         // web server behind the passt of guest i386, as a URL
	vms   map[string]*vm
}

// vm is a running guest with a connection to its agent.
type vm struct {
	*guest.Guest
	agent *rpc.Client
	begin time.Time
}

// limit is more than any subtest takes, also beside other work: in it up to two starts of a guest.
const limit = 5 * time.Minute

func TestGuests(t *testing.T) {
	l := newLab(t)
	for _, s := range []struct {
		name string
		run  func(l *lab, ctx context.Context, t *testing.T)
	}{
		{"start", (*lab).testStart},
		{"kernel log", (*lab).testKernelLog},
		{"lspci", (*lab).testLSPCI},
		{"netstack", (*lab).testNetstack},
		{"tap", (*lab).testTap},
		{"passt", (*lab).testPasst},
		{"ping", (*lab).testPing},
		{"vsock", (*lab).testVsock},
		{"one disk for one guest", (*lab).testOneDisk},
		{"definition errors", (*lab).testDefinitionErrors},
		{"disks", (*lab).testDisks},
		{"entropy", (*lab).testEntropy},
		{"restore", (*lab).testRestore},
		{"kernel log after restore", (*lab).testKernelLog},
		{"kill", (*lab).testKill},
		{"hostile guest", (*lab).testHostile},
		{"reboot", (*lab).testReboot},
		{"balloon", (*lab).testBalloon},
		{"power off", (*lab).testPowerOff},
		{"power button", (*lab).testPowerButton},
		{"other CPUs", (*lab).testOtherCPUs},
		{"disk full", (*lab).testDiskFull},
	} {
		ok := t.Run(s.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("test %q takes longer than %v", s.name, limit))
			defer cancel()
			s.run(l, ctx, t)
		})
		if !ok {
			l.explain(t)
		}
		if l.gone() {
			t.Fatal("the notebook has ended: what follows cannot run")
		}
	}
}

func newLab(t *testing.T) *lab {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // the first time, images are built
	defer cancel()
	b, err := image.NewBuilder(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	vmm, _, err := b.GoProgram(ctx, "./cmd/lodge-vmm", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	tools, err := guest.Tools(ctx, b, vmm)
	if err != nil {
		t.Fatal(err)
	}
	if tools["bin/hostile"], _, err = b.GoProgram(ctx, "./e2e/hostile", "amd64"); err != nil {
		t.Fatal(err)
	}
	// With two processors the emulator resets the notebook within minutes when guests run on both: see README.md.
	nb, err := notebook.Start(ctx, notebook.Config{Builder: b, Tools: tools, CPUs: 1, Disks: []notebook.Disk{extraDisk}, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{nb: nb, host: guest.InNotebook(nb), cpus: map[string]int{"amd64": 2, "i386": 1}, vms: make(map[string]*vm)}
	t.Cleanup(func() {
		if err := nb.Close(); err != nil {
			t.Error(err)
		}
	})
	if l.lan, err = l.host.StartNetwork(ctx); err != nil {
		t.Fatal(err)
	}
	if l.tap, err = startTap(ctx, l.host); err != nil {
		t.Fatal(err)
	}
	if l.passt, err = startPasst(ctx, l.host); err != nil {
		t.Fatal(err)
	}
	return l
}

// gone reports whether the notebook has ended.
func (l *lab) gone() bool {
	select {
	case <-l.nb.Done():
		return true
	default:
		return false
	}
}

// explain prints what a failed test may have failed for.
func (l *lab) explain(t *testing.T) {
	for _, name := range names {
		if m := l.vms[name]; m != nil {
			text := m.Console()
			t.Logf("the console of %s:\n%s", name, text[max(0, len(text)-3000):])
		}
	}
	if l.gone() {
		t.Log(l.nb.Postmortem())
	}
}

// config describes the guests: both are on the network of netstack, and each has a card beside, guest amd64 at a tap device
// and guest i386 at passt. Guest amd64 has further disks.
func (l *lab) config(name string) guest.Config {
	c := guest.Config{Name: name, Arch: name, CPUs: l.cpus[name], CID: 11, Extra: l.lan.NIC(), Flags: "balloon = true"}
	card := fmt.Sprintf("socket = %q", passtSocket)
	if name == "amd64" {
		c.CID = 10
		c.Extra += extraDisks
		card = fmt.Sprintf("tap = %q", tapName)
	}
	c.Extra += "[[nic]]\nname = \"direct\"\n" + card + "\n"
	return c
}

// pair returns both guests, running.
func (l *lab) pair(ctx context.Context, t *testing.T) (amd64, i386 *vm) {
	t.Helper()
	for _, name := range names { // both at once
		l.launch(ctx, t, name)
	}
	return l.guest(ctx, t, "amd64"), l.guest(ctx, t, "i386")
}

// guest returns a guest, running.
func (l *lab) guest(ctx context.Context, t *testing.T, name string) *vm {
	t.Helper()
	m := l.launch(ctx, t, name)
	if m.agent == nil {
		initAt, readyAt, err := m.Ready(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("guest %s: init at %.1f s, ready at %.1f s of its clock, %.1f s after the start", name, initAt, readyAt, time.Since(m.begin).Seconds())
		l.connect(ctx, t, m)
	}
	return m
}

func (l *lab) launch(ctx context.Context, t *testing.T, name string) *vm {
	t.Helper()
	if m := l.vms[name]; m != nil {
		select {
		case <-m.Done():
		default:
			return m
		}
	}
	g, err := l.host.Start(ctx, l.config(name))
	if err != nil {
		t.Fatal(err)
	}
	l.vms[name] = &vm{Guest: g, begin: time.Now()}
	return l.vms[name]
}

// connect connects to the guest's agent, anew after a restore or reboot.
func (l *lab) connect(ctx context.Context, t *testing.T, m *vm) {
	t.Helper()
	var err error
	if m.agent, err = m.Agent(ctx); err != nil {
		t.Fatal(err)
	}
}

// shell runs a script in the guest and returns what it prints.
func (m *vm) shell(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	out, err := m.agent.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// shell runs a script in the notebook and returns what it prints.
func (l *lab) shell(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	out, err := l.nb.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused runs lodge-vmm in the notebook, where it is to fail with exit status 1 and a message that matches.
func (l *lab) refused(ctx context.Context, t *testing.T, message string, args ...string) {
	t.Helper()
	r, err := l.nb.Run(ctx, append([]string{l.host.VMM}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 1 || !regexp.MustCompile(message).MatchString(r.Stderr) {
		t.Errorf("lodge-vmm %s: exit status %d, message %q; want 1 and a message that matches %q", strings.Join(args, " "), r.Code, r.Stderr, message)
	}
}

// until tries until ok is true or ctx ends: for what the guest does not announce.
func until(ctx context.Context, t *testing.T, what string, ok func() (bool, error)) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok()
		if err != nil && !errors.Is(err, errNotYet) {
			t.Fatalf("%s: %v", what, err)
		}
		if done {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v (last: %v)", what, context.Cause(ctx), err)
		}
	}
}

// errNotYet is the error of a condition that is to be tried again.
var errNotYet = errors.New("not yet")
