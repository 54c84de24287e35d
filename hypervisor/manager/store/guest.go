package store

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/internal/deffile"
)

// Guest is a guest as its file defines it: a machine, which the keys of lodge-vmm(1) describe, and what the manager is to know.
type Guest struct {
	definition.Definition

	Disks []Disk `toml:"disk,omitempty"`

	Label string `toml:"label,omitempty"` // a few words about it
	Color string `toml:"color,omitempty"` // of its bar: a name such as "blue"
	Icon  string `toml:"icon,omitempty"`  // a name such as "mail"
	Slot  int    `toml:"slot,omitempty"`  // 1 to 9, for the chord that switches to it; 0 is none

	Autostart     bool     `toml:"autostart,omitempty"`
	AutostartOnAC bool     `toml:"autostart_on_ac,omitempty"` // autostart waits until the host has mains power
	Priority      int      `toml:"priority,omitempty"`        // -100 to 100; what autostart starts first
	StopPriority  int      `toml:"stop_priority,omitempty"`   // -100 to 100; what is stopped first of all
	Depends       []string `toml:"depends,omitempty"`         // guests that are ready before it starts, and stopped after it
	Ready         Probe    `toml:"ready,omitempty"`           // when it is; as soon as it runs if it is missing

	Restart      Restart  `toml:"restart,omitempty"`
	RestartDelay Duration `toml:"restart_delay,omitempty"` // before the first restart; doubles up to five minutes. 1s if it is missing
	StopTimeout  Duration `toml:"stop_timeout,omitempty"`  // from the power button until it is switched off. 1m if it is missing

	Disposable bool   `toml:"disposable,omitempty"` // what it writes to its disks is dropped when it stops
	Template   bool   `toml:"template,omitempty"`   // once it was ready, it starts from how it was then, with its memory
	Input      Input  `toml:"input,omitempty"`
	Shares     Shares `toml:"shares,omitempty"`
}

// Probe says how it is found out that a guest is ready to serve those that depend on it. At most one of Serial, Vsock and TCP
// is set.
type Probe struct {
	Serial  string   `toml:"serial,omitempty"`  // what it prints on its first serial port
	Vsock   uint32   `toml:"vsock,omitempty"`   // the port that it listens on
	TCP     string   `toml:"tcp,omitempty"`     // the address and port that accept connections
	Timeout Duration `toml:"timeout,omitempty"` // after which it counts as failed. 2m if it is missing
}

// IsZero reports whether nothing is to be probed.
func (p Probe) IsZero() bool { return p.Serial == "" && p.Vsock == 0 && p.TCP == "" }

// Restart is the policy for a guest that has ended without the user's doing.
type Restart string

// The policies.
const (
	Never   Restart = "never"
	OnCrash Restart = "on-crash"
	Always  Restart = "always" // also when it powers off
)

// Input says what the guest gets of the seat's keyboards and pointers while it is on the screen. "focus", all, if it is
// missing; or "none".
type Input struct {
	Keyboard string `toml:"keyboard,omitempty"`
	Pointer  string `toml:"pointer,omitempty"`
}

// The values of Input.
const (
	InputFocus = "focus"
	InputNone  = "none"
)

// Shares are bounds of the guest's process.
type Shares struct {
	CPU    int             `toml:"cpu,omitempty"`    // of the processors beside others, 1 to 10000; 100 if it is missing
	Memory definition.Size `toml:"memory,omitempty"` // most that its process may use, more than the guest's memory; unlimited if it is missing
}

// Duration is a time such as "90s" or "2m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("time %q: write it with a unit, such as \"90s\" or \"2m\"", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Limits of a definition.
const (
	maxDepends  = 32
	maxDuration = 24 * time.Hour
	maxProbe    = 256
)

// Sockets are where the sockets and logs of a guest are unless its definition says otherwise.
type Sockets struct {
	Run  string // directory of the guest's sockets
	Logs string // directory of its logs
}

// Parse reads and validates a guest's file, which errors call file; its name is to be that of the guest. Relative paths are
// relative to dir. images, which may be nil, finds the images of pools. The error is a join of *definition.Error.
func Parse(file, dir string, s Sockets, images Images, b []byte) (*Guest, error) {
	if images == nil {
		images = noImages
	}
	g := &Guest{}
	type fault struct {
		key, format string
		args        []any
	}
	var faults []fault // of what is prepared before it can be told
	err := definition.ParseExtended(file, dir, b, definition.Extension{
		Into: g, Definition: &g.Definition, Manual: "lodge-guest(5)", Networks: true,
		Prepare: func() {
			g.place(s)
			g.placeDisks(s, images, func(key, format string, args ...any) { faults = append(faults, fault{key, format, args}) })
		},
		Check: func(fail func(key, format string, args ...any)) {
			for _, f := range faults {
				fail(f.key, f.format, f.args...)
			}
			g.check(file, s, fail)
		},
	})
	if err != nil {
		return nil, err
	}
	g.completeDisks(dir)
	g.complete()
	return g, nil
}

// place gives a guest the sockets that the manager needs, where it has named none.
func (g *Guest) place(s Sockets) {
	in := func(name string) string { return filepath.Join(s.Run, name) }
	if g.Control == "" {
		g.Control = in("control.sock")
	}
	if g.Serial.Mode == "" && g.Serial.Path == "" && g.Serial.Log == "" {
		g.Serial = definition.Serial{Mode: "socket", Path: in("serial.sock"), Log: filepath.Join(s.Logs, "serial.log")}
	}
	if g.Display != nil && g.Display.Path == "" {
		g.Display.Path = in("display.sock")
	}
	if g.Console != nil && g.Console.Path == "" {
		g.Console.Path = in("console.sock")
	}
	if g.Vsock != nil && g.Vsock.Path == "" {
		g.Vsock.Path = in("vsock.sock")
	}
}

func (g *Guest) check(file string, s Sockets, fail func(key, format string, args ...any)) {
	if base := strings.TrimSuffix(filepath.Base(file), deffile.Suffix); definition.IsName(g.Name) && g.Name != base {
		fail("name", "name %q: the file is called %s%s: use one name for both", g.Name, base, deffile.Suffix)
	}
	if g.Control != filepath.Join(s.Run, "control.sock") {
		fail("control", "control: the manager chooses that socket: leave it out")
	}
	if g.Serial.Mode == "stdio" {
		fail("serial.mode", "serial: a guest of the manager has no terminal: leave mode out, which keeps a log and lets one type")
	}
	for i, n := range g.NICs {
		if n.Network != "" && slices.ContainsFunc(g.NICs[:i], func(o definition.NIC) bool { return o.Network == n.Network }) {
			fail(fmt.Sprintf("nic[%d].network", i), "nic %q: another card is on network %q too: a guest has one card on a network", n.Name, n.Network)
		}
	}
	g.checkDisposable(fail)
	g.checkLooks(fail)
	g.checkOrder(fail)
	g.checkEnds(fail)
}

// checkDisposable checks what only disposable guests can have.
func (g *Guest) checkDisposable(fail func(key, format string, args ...any)) {
	for i, k := range g.Disks {
		at := fmt.Sprintf("disk[%d]", i)
		switch {
		case k.Keep && (k.ReadOnly || !g.Disposable):
			fail(at+".keep", "disk %q: keep is for what a disposable guest writes to: set disposable = true, or leave keep out", k.Name)
		case g.Template && k.URL != "":
			fail(at+".url", "disk %q: of what a url names it cannot be told whether it was changed: with template = true, use a path or an image", k.Name)
		}
	}
	switch {
	case g.Template && !g.Disposable:
		fail("template", "template: each start would begin with what the disks were before: set disposable = true too, and keep for disks whose content is to stay")
	case g.Template && g.Ready.IsZero():
		fail("template", "template: it is made when the guest is ready: say by [ready] when that is")
	}
}

// Keeps reports whether the guest writes to the disk of that name itself, though it is disposable.
func (g *Guest) Keeps(disk string) bool {
	return slices.ContainsFunc(g.Disks, func(k Disk) bool { return k.Name == disk && k.Keep })
}

// checkLooks checks what people see.
func (g *Guest) checkLooks(fail func(key, format string, args ...any)) {
	if len(g.Label) > 64 || strings.ContainsFunc(g.Label, func(r rune) bool { return !unicode.IsPrint(r) }) {
		fail("label", "label %q: use up to 64 bytes of printable text", g.Label)
	}
	for _, k := range []struct{ key, value string }{{"color", g.Color}, {"icon", g.Icon}} {
		if k.value != "" && (len(k.value) > 32 || strings.ContainsFunc(k.value, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' })) {
			fail(k.key, "%s %q: give a name of up to 32 small letters, digits and '-'", k.key, k.value)
		}
	}
	if g.Slot < 0 || g.Slot > 9 {
		fail("slot", "slot = %d: 1 to 9 are possible, or 0 for none", g.Slot)
	}
	for _, k := range []struct{ key, value string }{{"keyboard", g.Input.Keyboard}, {"pointer", g.Input.Pointer}} {
		if k.value != "" && k.value != InputFocus && k.value != InputNone {
			fail("input."+k.key, "input: %s %q: one of %s, %s", k.key, k.value, InputFocus, InputNone)
		}
	}
}

// checkOrder checks what is started and stopped when.
func (g *Guest) checkOrder(fail func(key, format string, args ...any)) {
	for _, k := range []struct {
		key   string
		value int
	}{{"priority", g.Priority}, {"stop_priority", g.StopPriority}} {
		if k.value < -100 || k.value > 100 {
			fail(k.key, "%s = %d: from -100 to 100", k.key, k.value)
		}
	}
	if g.AutostartOnAC && !g.Autostart {
		fail("autostart_on_ac", "autostart_on_ac: the guest is not started with the machine: set autostart = true too, or leave this out")
	}
	if len(g.Depends) > maxDepends {
		fail("depends", "depends: %d guests: at most %d are possible", len(g.Depends), maxDepends)
	}
	for i, name := range g.Depends {
		switch {
		case !definition.IsName(name):
			fail("depends", "depends: %q is no name of a guest", name)
		case name == g.Name:
			fail("depends", "depends: the guest depends on itself")
		case slices.Contains(g.Depends[:i], name):
			fail("depends", "depends: %q is there twice", name)
		}
	}
	p, n := g.Ready, 0
	for _, set := range []bool{p.Serial != "", p.Vsock != 0, p.TCP != ""} {
		if set {
			n++
		}
	}
	switch {
	case n > 1:
		fail("ready", "ready: set one of serial, vsock and tcp")
	case n == 0 && p.Timeout != 0:
		fail("ready", "ready: timeout belongs to one of serial, vsock and tcp")
	case p.Vsock != 0 && g.Vsock == nil:
		fail("ready.vsock", "ready: vsock needs the device: add [vsock] with a cid")
	case p.Serial != "" && g.SerialLog() == "":
		fail("ready.serial", "ready: serial needs a log of the first serial port: leave [serial] out, or give it a log")
	}
	if len(p.Serial) > maxProbe || strings.ContainsAny(p.Serial, "\r\n") {
		fail("ready.serial", "ready: serial: up to %d bytes of one line", maxProbe)
	}
	if p.TCP != "" {
		if host, port, err := net.SplitHostPort(p.TCP); err != nil || host == "" || port == "" || len(p.TCP) > maxProbe {
			fail("ready.tcp", "ready: tcp %q: write it as ADDRESS:PORT", p.TCP)
		}
	}
}

// checkEnds checks how the guest ends, and its bounds.
func (g *Guest) checkEnds(fail func(key, format string, args ...any)) {
	if r := []Restart{"", Never, OnCrash, Always}; !slices.Contains(r, g.Restart) {
		fail("restart", "restart %q: one of %s, %s, %s", g.Restart, Never, OnCrash, Always)
	}
	for _, k := range []struct {
		key   string
		value Duration
	}{{"restart_delay", g.RestartDelay}, {"stop_timeout", g.StopTimeout}, {"ready.timeout", g.Ready.Timeout}} {
		if d := time.Duration(k.value); d != 0 && (d < time.Second || d > maxDuration) {
			fail(k.key, "%s = %q: from 1s to 24h", k.key, d)
		}
	}
	if c := g.Shares.CPU; c < 0 || c > 10000 {
		fail("shares.cpu", "shares: cpu = %d: from 1 to 10000", c)
	}
	if m := g.Shares.Memory; m != 0 && m < g.Memory+minOverhead {
		fail("shares.memory", "shares: memory = %q: the guest has %v, and its process needs %v more", m, g.Memory, definition.Size(minOverhead))
	}
}

// minOverhead is what a VMM's process needs beside the guest's memory, in bytes.
const minOverhead = 64 << 20

func (g *Guest) complete() {
	set := func(d *Duration, v time.Duration) {
		if *d == 0 {
			*d = Duration(v)
		}
	}
	set(&g.RestartDelay, time.Second)
	set(&g.StopTimeout, time.Minute)
	set(&g.Ready.Timeout, 2*time.Minute)
	if g.Restart == "" {
		g.Restart = Never
	}
	if g.Input.Keyboard == "" {
		g.Input.Keyboard = InputFocus
	}
	if g.Input.Pointer == "" {
		g.Input.Pointer = InputFocus
	}
	if g.Shares.CPU == 0 {
		g.Shares.CPU = 100
	}
}

// SerialLog returns the file that has what the guest prints on its first serial port, or "".
func (g *Guest) SerialLog() string {
	if g.Serial.Mode == "file" {
		return g.Serial.Path
	}
	return g.Serial.Log
}
