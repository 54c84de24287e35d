package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
)

// helper is the lodge-net of a network.
type helper struct {
	proc     *process // nil if none runs
	conn     *netctl.Manager
	known    map[string]network.Guest // that it has been told of
	forwards []network.Forward        // the same
	gone     chan struct{}            // closed when proc has ended
	began    time.Time
	fails    int         // how often it has ended early, one after the other
	retry    *time.Timer // starts the next; nil if none is to be
}

// The pause between the end of a lodge-net and the next: it doubles, and after steadyAfter begins anew.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = time.Minute
)

// startHelper starts a lodge-net, which knows all that the record says.
func (c *carrier) startHelper(ctx context.Context) error {
	h := &c.helper
	h.close()
	n := c.rec.Network
	var files []cell.File
	defer func() {
		for _, f := range files {
			f.File.Close()
		}
	}()
	add := func(name string, f *os.File, err error) error {
		if err == nil {
			files = append(files, cell.File{Name: name, File: f})
		}
		return err
	}
	c.note = ""
	h.forwards = nil
	if n.Kind == network.User {
		for _, f := range n.Forwards {
			socket, err := listenForward(ctx, f)
			if err != nil { // the guests can do without
				c.trouble(err)
				continue
			}
			_ = add("forward."+strconv.Itoa(len(h.forwards)), socket, nil)
			h.forwards = append(h.forwards, f)
		}
	}
	n.Forwards = h.forwards
	h.known = make(map[string]network.Guest)
	for _, g := range c.rec.Guests {
		h.known[g.Name] = g
		if n.Kind.Helper() {
			f, err := listenAt("unix", c.socket(g.MAC))
			if err := add("guest."+g.Name, f, err); err != nil {
				return err
			}
		}
	}
	if n.Kind == network.NAT {
		dhcp, packets, listener, err := c.n.m.cfg.Bridge.Sockets(ctx, &n)
		if err != nil {
			return err
		}
		_ = errors.Join(add("dhcp", dhcp, nil), add("dns.udp", packets, nil), add("dns.tcp", listener, nil))
	}
	f, err := configFile(netctl.Config{Network: n, Guests: c.rec.Guests, Resolvers: c.n.resolvers()})
	if err := add("config", f, err); err != nil {
		return err
	}
	for name, kind := range map[string]string{"control": "unix", "manage": "unixpacket"} {
		f, err := listenAt(kind, c.path(name+".sock"))
		if err := add(name, f, err); err != nil {
			return err
		}
	}
	return c.execute(ctx, n.Kind != network.Isolated, files)
}

func (c *carrier) logFile() string { return filepath.Join(c.n.stateDir(c.name), "lodge-net.log") }

// execute starts the program in a cell.
func (c *carrier) execute(ctx context.Context, outside bool, files []cell.File) error {
	if c.n.m.cfg.LodgeNet == "" {
		return errors.New("there is no lodge-net: install it beside lodged, or name it with --net")
	}
	program, err := os.Open(c.n.m.cfg.LodgeNet)
	if err != nil {
		return err
	}
	defer program.Close()
	if err := os.MkdirAll(c.n.stateDir(c.name), 0o700); err != nil {
		return err
	}
	log, err := openLog(c.logFile())
	if err != nil {
		return err
	}
	defer log.Close()
	uid, err := c.n.m.uid(c.n.stateDir(c.name))
	if err != nil {
		return err
	}
	var group *cell.Cgroup
	if parent := c.n.m.cfg.Cgroups; parent != nil {
		if group, err = parent.NewCgroup(c.groupName(), cell.GroupLimits{Memory: helperMemory, Processes: maxProcesses}); err != nil {
			return err
		}
		defer group.Close()
	}
	var p *process
	started, err := cell.Start(ctx, cell.Spec{
		Program: program, Args: []string{"lodge-net"}, Files: files, Stderr: log, UID: uid, Cgroup: group, HostNetwork: outside,
		Limits: cell.Limits{Files: helperFiles},
		Record: func(pid int, lacks []cell.Lack) error {
			var err error
			if p, err = openProcess(pid, 0); err != nil {
				return err
			}
			p.child = true
			c.rec.PID, c.rec.Start = p.pid, p.start
			for _, l := range lacks {
				c.log.Debug("the cell of lodge-net lacks", "layer", l.Layer, "reason", l.Reason)
			}
			return c.write()
		},
	})
	if err != nil {
		if p != nil {
			p.close()
		}
		return err
	}
	_ = started.Release() // p knows it
	c.helper.began = time.Now()
	c.adopt(p)
	c.log.Info("lodge-net runs", "pid", p.pid)
	return nil
}

func (c *carrier) groupName() string { return "network-" + c.name }

// helperMemory is how many bytes a lodge-net may take: beyond that it is ended, and another one started.
const helperMemory = 1 << 30

// helperFiles is how many descriptors a lodge-net may have open: each guest can have 512 connections and 256 flows.
const helperFiles = 64 << 10

// adopt makes p the network's lodge-net.
func (c *carrier) adopt(p *process) {
	h := &c.helper
	h.proc, h.gone = p, make(chan struct{})
	if h.known == nil { // one of the manager before: what it was told is on record
		h.known = make(map[string]network.Guest)
		for _, g := range c.rec.Guests {
			h.known[g.Name] = g
		}
		h.forwards = c.rec.Network.Forwards
	}
	gone := h.gone
	c.n.m.background(func() {
		how, err := p.wait(c.n.m.ctx)
		p.close()
		close(gone)
		if c.n.m.ctx.Err() == nil {
			c.ended(p, how, err)
		}
	})
}

// ended starts another lodge-net after a pause.
func (c *carrier) ended(p *process, how string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.helper
	if h.proc != p || c.closed {
		return
	}
	text := "lodge-net has ended"
	if how != "" {
		text += ": " + how
	}
	if line := lastLine(c.logFile(), h.began); strings.HasPrefix(line, "lodge-net: ") {
		text += ": " + line
	}
	if time.Since(h.began) > steadyAfter {
		h.fails = 0
	}
	h.close()
	c.trouble(errors.Join(errors.New(text), err))
	c.retryLater()
}

// retryLater starts another lodge-net after a pause.
func (c *carrier) retryLater() {
	h := &c.helper
	pause := min(firstPause<<min(h.fails, 16), lastPause)
	h.fails++
	h.retry = time.AfterFunc(pause, func() {
		ctx, cancel := context.WithTimeout(c.n.m.ctx, carrierLimit)
		defer cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closed || c.rec == nil || h.proc != nil {
			return
		}
		if err := c.startHelper(ctx); err != nil {
			c.trouble(fmt.Errorf("lodge-net: %w", err))
			c.retryLater()
			return
		}
		c.publish()
	})
}

// close lets go of the process, which runs on.
func (h *helper) close() {
	if h.retry != nil {
		h.retry.Stop()
	}
	if h.conn != nil {
		h.conn.Close()
	}
	h.retry, h.conn, h.proc = nil, nil, nil
}

// endHelper ends the network's lodge-net, if there is one, and so frees its ports.
func (c *carrier) endHelper() {
	h := &c.helper
	p, gone := h.proc, h.gone
	h.close()
	h.known, h.fails = nil, 0
	if p == nil {
		return
	}
	if err := p.kill(unix.SIGKILL); err != nil {
		c.log.Warn("lodge-net cannot be ended", "err", err)
	}
	select {
	case <-gone:
	case <-time.After(carrierLimit):
		c.log.Warn("lodge-net was killed, and the kernel has not ended it yet", "pid", p.pid)
	}
}

// replaceHelper starts another lodge-net in place of one that does not do what it is told.
func (c *carrier) replaceHelper(ctx context.Context, cause error) error {
	c.log.Warn("lodge-net is replaced", "err", cause)
	c.endHelper()
	if err := c.startHelper(ctx); err != nil {
		c.retryLater()
		return fmt.Errorf("lodge-net: %w", err)
	}
	return nil
}

// tell has lodge-net carry out a change.
func (c *carrier) tell(ctx context.Context, change netctl.Change, file *os.File) (err error) {
	h := &c.helper
	if h.conn == nil {
		if h.conn, err = netctl.DialManager(c.path("manage.sock")); err != nil {
			h.conn = nil
			return err
		}
	}
	return h.conn.Do(ctx, change, file)
}

// tellGuest makes a guest known.
func (c *carrier) tellGuest(ctx context.Context, g network.Guest) (err error) {
	var socket *os.File
	if c.rec.Network.Kind.Helper() {
		if socket, err = listenAt("unix", c.socket(g.MAC)); err != nil {
			return err
		}
		defer socket.Close()
	}
	if err := c.tell(ctx, netctl.Change{Guest: &g}, socket); err != nil {
		return err
	}
	c.helper.known[g.Name] = g
	return nil
}

// tellForwards has lodge-net forward what the definition says.
func (c *carrier) tellForwards(ctx context.Context) error {
	h := &c.helper
	if c.rec.Network.Kind != network.User {
		return nil
	}
	want := c.rec.Network.Forwards
	var stay []network.Forward
	for _, f := range h.forwards {
		if slices.Contains(want, f) {
			stay = append(stay, f)
		} else if err := c.tell(ctx, netctl.Change{Unforward: &f}, nil); err != nil {
			return c.replaceHelper(ctx, err)
		}
	}
	h.forwards, c.note = stay, ""
	for _, f := range want {
		if slices.Contains(stay, f) {
			continue
		}
		socket, err := listenForward(ctx, f)
		if err != nil {
			c.trouble(err)
			continue
		}
		err = c.tell(ctx, netctl.Change{Forward: &f}, socket)
		socket.Close()
		if err != nil {
			return c.replaceHelper(ctx, err)
		}
		h.forwards = append(h.forwards, f)
	}
	return nil
}

// configFile returns a file with a lodge-net's configuration.
func configFile(config netctl.Config) (*os.File, error) {
	fd, err := unix.MemfdCreate("config", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "config")
	err = netctl.WriteConfig(f, config)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// listenAt returns a Unix socket that listens at path, in place of one of an earlier process.
func listenAt(kind, path string) (*os.File, error) {
	if err := remove(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix(kind, &net.UnixAddr{Name: path, Net: kind})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// listenForward returns the socket of a forward. An address that the host does not have yet is no error: it may get it.
func listenForward(ctx context.Context, f network.Forward) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("forward: %s %v: %w", f.Protocol, f.Listen, err)
		}
	}()
	c := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		if e := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) }); e != nil {
			return e
		}
		return err
	}}
	if f.Protocol == network.UDP {
		p, err := c.ListenPacket(ctx, "udp", f.Listen.String())
		if err != nil {
			return nil, err
		}
		defer p.Close()
		return p.(*net.UDPConn).File()
	}
	l, err := c.Listen(ctx, "tcp", f.Listen.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}
