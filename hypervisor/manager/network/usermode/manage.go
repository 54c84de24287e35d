package usermode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
)

// Plug gives the guest called name its socket: a stream socket that is connected to its VMM, or one that listens for it, in place
// of an earlier one. It takes f over.
func (n *Net) Plug(name string, f *os.File) error {
	defer f.Close()
	p := n.ports.Load().byName[name]
	if p == nil {
		return fmt.Errorf("network %q: no guest %q is on it", n.def.Name, name)
	}
	listens, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("network %q, guest %q: not a socket: %w", n.def.Name, name, err)
	}
	if listens == 0 {
		conn, err := net.FileConn(f)
		if err != nil {
			return fmt.Errorf("network %q, guest %q: %w", n.def.Name, name, err)
		}
		if !n.run(func() { p.serve(conn) }) {
			conn.Close()
		}
		return nil
	}
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("network %q, guest %q: %w", n.def.Name, name, err)
	}
	p.mu.Lock()
	old := p.listener
	p.listener = l
	p.mu.Unlock()
	if old != nil {
		old.Close()
	}
	if !n.run(func() { p.accept(l) }) {
		l.Close()
	}
	return nil
}

// serve has Close close services; if that has been, they are closed now.
func (n *Net) serve(services ...io.Closer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.services = append(n.services, services...)
	if n.closed {
		for _, s := range services {
			_ = s.Close()
		}
	}
}

// ServeHost is DHCP and DNS for the guests of a network that the host's kernel carries, over sockets that are bound to its bridge: of
// UDP at ports 67 and 53, and one of TCP that listens at 53. It takes the files over, and returns at once.
func (n *Net) ServeHost(dhcp, dnsPackets, dnsListener *os.File) error {
	d, err1 := net.FilePacketConn(dhcp)
	p, err2 := net.FilePacketConn(dnsPackets)
	l, err3 := net.FileListener(dnsListener)
	err := errors.Join(err1, err2, err3, dhcp.Close(), dnsPackets.Close(), dnsListener.Close())
	if err == nil && n.stack != nil {
		err = errors.New("it has servers of its own")
	}
	if err != nil {
		for _, c := range []struct {
			io.Closer
			err error
		}{{d, err1}, {p, err2}, {l, err3}} {
			if c.err == nil {
				c.Close()
			}
		}
		return fmt.Errorf("network %q: sockets for DHCP and DNS: %w", n.def.Name, err)
	}
	n.serve(d)
	n.run(func() { n.serveDHCP(d) })
	n.serveDNS(struct{ net.PacketConn }{p}, l) // of a *net.UDPConn the library would want to know addresses that are one
	return nil
}

// forwardKey is what two forwards of a network cannot have in common.
type forwardKey struct {
	network.Protocol
	netip.AddrPort
}

// AddForward forwards what comes to f's socket, which listens or, of UDP, is bound. It takes the file over.
func (n *Net) AddForward(f network.Forward, socket *os.File) error {
	defer socket.Close()
	def := n.def
	def.Forwards = []network.Forward{f}
	if err := def.Validate(); err != nil {
		return err
	}
	f = def.Forwards[0]
	fail := func(err error) error {
		return fmt.Errorf("network %q: forward: %s %v: socket: %w", n.def.Name, f.Protocol, f.Listen, err)
	}
	var serve func()
	var c io.Closer
	if f.Protocol == network.UDP {
		p, err := net.FilePacketConn(socket)
		if err != nil {
			return fail(err)
		}
		if _, ok := p.(*net.UDPConn); !ok {
			return fail(errors.Join(errors.New("not a UDP socket"), p.Close()))
		}
		c, serve = p, func() { n.ForwardUDP(f, p) }
	} else {
		l, err := net.FileListener(socket)
		if err != nil {
			return fail(err)
		}
		if _, ok := l.(*net.TCPListener); !ok {
			return fail(errors.Join(errors.New("not a TCP socket"), l.Close()))
		}
		c, serve = l, func() { n.ForwardTCP(f, l) }
	}
	key := forwardKey{f.Protocol, f.Listen}
	n.mu.Lock()
	old := n.forwards[key]
	n.forwards[key] = c
	n.mu.Unlock()
	if old != nil {
		old.Close()
	}
	if !n.run(serve) {
		return errors.Join(net.ErrClosed, c.Close())
	}
	return nil
}

// RemoveForward takes no more of what comes to f's socket, and closes that. Connections that were made go on.
func (n *Net) RemoveForward(f network.Forward) error {
	key := forwardKey{f.Protocol, f.Listen}
	n.mu.Lock()
	c := n.forwards[key]
	delete(n.forwards, key)
	n.mu.Unlock()
	if c == nil {
		return fmt.Errorf("network %q: forward: %s %v: there is none", n.def.Name, f.Protocol, f.Listen)
	}
	return c.Close()
}

// maxManagers is how many connections ServeChanges keeps: an old manager's may still be there when a new one comes.
const maxManagers = 4

// ServeChanges carries out what comes over l, of type SOCK_SEQPACKET: each message is a Change, and is answered. Who may connect
// may change everything. It returns when ctx ends or l is closed.
func (n *Net) ServeChanges(ctx context.Context, l *net.UnixListener) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	end := context.AfterFunc(n.ctx, func() { l.Close() })
	defer end()
	slots := make(chan struct{}, maxManagers)
	for {
		conn, err := control.Accept(ctx, l)
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		u, ok := conn.(*net.UnixConn)
		if !ok || !n.run(func() { defer func() { <-slots }(); n.converse(ctx, u) }) {
			conn.Close()
		}
	}
}

func (n *Net) converse(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	end := context.AfterFunc(n.ctx, func() { conn.Close() })
	defer end()
	for {
		message, file, err := receive(conn)
		if err != nil {
			return
		}
		var a netctl.Changed
		if err := n.change(message, file); err != nil {
			a.Error = err.Error()
		}
		b, err := json.Marshal(a)
		if err != nil {
			return
		}
		if _, err := conn.Write(b); err != nil {
			return
		}
	}
}

// receive returns a message and the descriptor that came with it, if one did.
func receive(conn *net.UnixConn) (message []byte, file *os.File, err error) {
	message, oob := make([]byte, netctl.MaxMessage), make([]byte, unix.CmsgSpace(4))
	k, m, flags, _, err := conn.ReadMsgUnix(message, oob)
	if err != nil {
		return nil, nil, err
	}
	if k == 0 {
		return nil, nil, io.EOF
	}
	var fds []int
	if cmsgs, err := unix.ParseSocketControlMessage(oob[:m]); err == nil {
		for _, c := range cmsgs {
			if more, err := unix.ParseUnixRights(&c); err == nil {
				fds = append(fds, more...)
			}
		}
	}
	for i, fd := range fds {
		if i == 0 {
			file = os.NewFile(uintptr(fd), "socket of a guest")
		} else {
			_ = unix.Close(fd)
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		if file != nil {
			file.Close()
		}
		return nil, nil, errors.New("a message that is too long")
	}
	return message[:k], file, nil
}

// change carries out one message. It takes file, which may be nil, over.
func (n *Net) change(message []byte, file *os.File) error {
	var c netctl.Change
	d := json.NewDecoder(strings.NewReader(string(message)))
	d.DisallowUnknownFields()
	err := d.Decode(&c)
	if err == nil && (c.Guest != nil && n.stack != nil || c.Forward != nil) != (file != nil) {
		err = errors.New("a guest and a forward come with a socket, and nothing else does")
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return err
	}
	switch {
	case c.Guest != nil:
		if err := n.SetGuest(*c.Guest); err != nil {
			if file != nil {
				err = errors.Join(err, file.Close())
			}
			return err
		}
		if file == nil {
			return nil
		}
		return n.Plug(c.Guest.Name, file)
	case c.Remove != "":
		return n.RemoveGuest(c.Remove)
	case c.Rules != nil:
		return n.SetRules(*c.Rules)
	case c.Forward != nil:
		return n.AddForward(*c.Forward, file)
	case c.Unforward != nil:
		return n.RemoveForward(*c.Unforward)
	case c.Resolvers != nil:
		n.SetResolvers(*c.Resolvers)
		return nil
	}
	return errors.New("nothing to change")
}

// Methods are what may be asked about the network over a control socket.
func (n *Net) Methods() map[string]control.Handler {
	return map[string]control.Handler{
		"status": func(context.Context, *control.Call) (any, error) { return n.Status(), nil },
		"leases": func(context.Context, *control.Call) (any, error) {
			return struct {
				Leases []netctl.Lease `json:"leases"`
			}{n.Leases()}, nil
		},
	}
}
