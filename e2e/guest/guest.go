// Package guest runs Debian guests under lodge-vmm for the end-to-end tests and for `make run`, wherever a machine with
// /dev/kvm and an agent is: in the simulated notebook, or on this machine itself.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
)

// Host is a machine that lodge-vmm runs on.
type Host struct {
	*rpc.Client
	VMM      string                    // path of lodge-vmm there
	Netstack string                    // path of netstack, for StartNetwork
	Agent    string                    // path of the agent, for its small servers
	Firmware string                    // path of SeaBIOS there
	Run      string                    // directory for sockets and definitions
	Of       func(arch string) BootSet // what guests of an architecture boot from
}

// BootSet is what guests of an architecture boot from: files, as paths on the Host, and what their kernel's command line
// needs.
type BootSet struct{ Kernel, Initrd, Disk, Cmdline string }

// AgentPort is the vsock port of the agent inside a guest.
const AgentPort = 1024

// Config describes a guest. Sockets are named after it: see Path.
type Config struct {
	Name     string
	Arch     string // amd64 or i386
	CPUs     int    // 0 is 1
	MemoryMB int    // 0 is 256
	CID      uint32 // vsock, for the agent; 0 leaves it out
	Cmdline  string // added to the kernel's command line
	Disk     string // in place of the architecture's
	Initrd   string // in place of the architecture's
	BootDisk string // a disk that the firmware starts, in place of a kernel; its kernel finds the guest's disk as /dev/vdb
	Extra    string // TOML that is appended, such as [[nic]] tables
	Flags    string // keys of the definition's top level, such as "balloon = true"
	Console  io.Writer
}

// Guest is a guest that was started.
type Guest struct {
	cfg  Config
	host *Host
	record

	in      io.Writer // its console
	done    <-chan struct{}
	wait    func(ctx context.Context) (code int, err error)
	off     func(ctx context.Context) error // presses its power button
	kill    func(ctx context.Context) error
	control string // sockets
	vsock   string
}

// Path returns the path on the host of the guest's file that ends in suffix: ".toml", ".sock" (control), ".vsock".
func (h *Host) Path(name, suffix string) string { return path.Join(h.Run, name+suffix) }

// Definition returns the guest's definition.
func (h *Host) Definition(c Config) string {
	set := h.Of(c.Arch)
	if c.Disk != "" {
		set.Disk = c.Disk
	}
	if c.Initrd != "" {
		set.Initrd = c.Initrd
	}
	if c.MemoryMB == 0 {
		c.MemoryMB = defaultMemory
	}
	var b strings.Builder
	fmt.Fprintf(&b, "name = %q\ncpus = %d\nmemory = \"%dM\"\ncontrol = %q\n%s\n",
		c.Name, max(c.CPUs, 1), c.MemoryMB, h.Path(c.Name, ".sock"), c.Flags)
	if c.BootDisk != "" {
		fmt.Fprintf(&b, "[boot]\nfirmware = %q\n[[disk]]\nname = \"boot\"\npath = %q\nreadonly = true\n", h.Firmware, c.BootDisk)
	} else {
		fmt.Fprintf(&b, "[boot]\nkernel = %q\ninitrd = %q\ncmdline = \"console=ttyS0 root=/dev/vda rw panic=-1 quiet lodge.name=%s%s\"\n",
			set.Kernel, set.Initrd, c.Name, spaced(set.Cmdline)+spaced(c.Cmdline))
	}
	fmt.Fprintf(&b, "[[disk]]\nname = \"root\"\npath = %q\n", set.Disk)
	if c.CID != 0 {
		fmt.Fprintf(&b, "[vsock]\ncid = %d\npath = %q\n", c.CID, h.Path(c.Name, ".vsock"))
	}
	return b.String() + c.Extra
}

// spaced returns s behind a space, or nothing if there is nothing.
func spaced(s string) string {
	if s == "" {
		return ""
	}
	return " " + s
}

const defaultMemory = 256

// Start starts a guest from its kernel. It does not wait for it.
func (h *Host) Start(ctx context.Context, c Config) (*Guest, error) {
	def := h.Path(c.Name, ".toml")
	if err := h.Put(ctx, strings.NewReader(h.Definition(c)), def, 0o644); err != nil {
		return nil, fmt.Errorf("guest %s: %w", c.Name, err)
	}
	return h.start(c, h.VMM, "run", def)
}

// Restore starts a guest from a state that was saved in dir, by command "restore" with the given flags.
func (h *Host) Restore(c Config, dir string, flags ...string) (*Guest, error) {
	return h.start(c, append(append([]string{h.VMM, "restore"}, flags...), dir)...)
}

func (h *Host) start(c Config, args ...string) (*Guest, error) {
	g := &Guest{cfg: c, host: h, record: newRecord(c.Console), control: h.Path(c.Name, ".sock"), vsock: h.Path(c.Name, ".vsock")}
	stdin, in := io.Pipe()
	g.in = in
	proc, err := h.Client.Start(rpc.Cmd{Args: args, Stdin: stdin, Stdout: &g.record, Stderr: &g.record})
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", c.Name, err)
	}
	g.done = proc.Done()
	g.wait = func(ctx context.Context) (int, error) {
		s, err := proc.Wait(ctx)
		return s.Code, err
	}
	g.off = func(ctx context.Context) error {
		_, err := g.Command(ctx, "power-button")
		return err
	}
	g.kill = func(ctx context.Context) error {
		if err := proc.Kill(); err != nil {
			return err
		}
		_, err := proc.Wait(ctx)
		return err
	}
	return g, nil
}

// Name returns the guest's name.
func (g *Guest) Name() string { return g.cfg.Name }

// Done is closed when lodge-vmm has ended.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Console returns what the guest's console has shown.
func (g *Guest) Console() string { return g.String() }

// Type types text on the guest's console.
func (g *Guest) Type(text string) error {
	_, err := io.WriteString(g.in, text)
	return err
}

// Await waits until the console shows something that re matches, after the first skip bytes, and returns the match with
// its groups. If lodge-vmm or ctx ends first, the error shows the console's end.
func (g *Guest) Await(ctx context.Context, skip int, re *regexp.Regexp) ([]string, error) {
	m, err := g.await(ctx, skip, re, g.done)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", g.cfg.Name, err)
	}
	return m, nil
}

var (
	initRE  = regexp.MustCompile(`lodge-guest: init ([0-9.]+)\s`)
	readyRE = regexp.MustCompile(`lodge-guest: ready ([0-9.]+)\s`)
)

// Ready waits until the guest's user land is up, and returns when, in seconds of the guest's own clock since its start,
// its init was started and when it was up.
func (g *Guest) Ready(ctx context.Context) (initAt, readyAt float64, err error) {
	m, err := g.Await(ctx, 0, readyRE)
	if err != nil {
		return 0, 0, err
	}
	if i := initRE.FindStringSubmatch(g.Console()); i != nil {
		initAt, _ = strconv.ParseFloat(i[1], 64) // the expression matches numbers; "1.2.3" would be the guest's mistake
	}
	readyAt, _ = strconv.ParseFloat(m[1], 64)
	return initAt, readyAt, nil
}

// Command runs "lodge-vmm command … guest …" and returns its standard output. args after the first may name more.
func (g *Guest) Command(ctx context.Context, command string, args ...string) (string, error) {
	line := append([]string{g.host.VMM, command, g.control}, args...)
	r, err := g.host.Client.Run(ctx, line...)
	if err == nil {
		err = r.Check(line...)
	}
	return r.Stdout, err
}

// Agent connects to the agent inside the guest over vsock, as soon as it answers. It is what to do again after a reboot or
// restore.
func (g *Guest) Agent(ctx context.Context) (*rpc.Client, error) {
	for {
		c, err := g.agent(ctx)
		if err == nil {
			return c, nil
		}
		select {
		case <-time.After(200 * time.Millisecond): // the guest cannot tell us when it listens
		case <-g.done:
			return nil, fmt.Errorf("guest %s: ended: %w:\n%s", g.cfg.Name, err, tail(g.Console()))
		case <-ctx.Done():
			return nil, fmt.Errorf("guest %s: its agent: %w (%w)", g.cfg.Name, err, context.Cause(ctx))
		}
	}
}

func (g *Guest) agent(ctx context.Context) (*rpc.Client, error) {
	conn, err := g.DialVsock(ctx, AgentPort)
	if err != nil {
		return nil, err
	}
	return rpc.NewClient(ctx, conn)
}

// DialVsock connects to a vsock port of the guest through lodge-vmm's socket: "CONNECT port", answered by "OK number".
func (g *Guest) DialVsock(ctx context.Context, port uint32) (io.ReadWriteCloser, error) {
	conn, err := g.host.Dial(ctx, "unix", g.vsock)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := vsockConnect(conn, port); err != nil {
		return nil, errors.Join(fmt.Errorf("vsock port %d: %w", port, err), conn.Close())
	}
	return conn, nil
}

func vsockConnect(conn io.ReadWriter, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	var line []byte
	for b := make([]byte, 1); len(line) < 64; line = append(line, b[0]) {
		if _, err := io.ReadFull(conn, b); err != nil {
			return err
		}
		if b[0] == '\n' {
			break
		}
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("answer %q, want OK", line)
	}
	return nil
}

// Wait waits for the end of lodge-vmm and returns its exit status.
func (g *Guest) Wait(ctx context.Context) (int, error) {
	code, err := g.wait(ctx)
	if err != nil {
		return 0, fmt.Errorf("guest %s: %w:\n%s", g.cfg.Name, err, tail(g.Console()))
	}
	return code, nil
}

// Kill ends lodge-vmm at once, as by SIGKILL, and waits for that.
func (g *Guest) Kill(ctx context.Context) error { return g.kill(ctx) }

// PowerOff presses the guest's power button and waits until it is off.
func (g *Guest) PowerOff(ctx context.Context) error {
	if err := g.off(ctx); err != nil {
		return err
	}
	code, err := g.Wait(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("guest %s: lodge-vmm exits with %d:\n%s", g.cfg.Name, code, tail(g.Console()))
	}
	return err
}
