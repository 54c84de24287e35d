package usermode

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Bounds on what one guest can keep open outside. Together with tcpBuffer they bound what it can make this process hold.
const (
	maxTCP      = 512
	maxUDP      = 256
	maxDialling = 64
)

// How long connections are waited for, and flows kept that nothing comes over.
const (
	dialLimit     = 20 * time.Second
	udpIdle       = time.Minute
	keepaliveIdle = 2 * time.Minute
	keepaliveStep = 30 * time.Second
	maxDatagram   = 64 << 10
)

// forwardOut has the stack hand over what guests begin with the outside.
func (n *Net) forwardOut() {
	t := tcp.NewForwarder(n.stack, 0, maxGuests*maxDialling, n.outTCP)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, t.HandlePacket)
	u := udp.NewForwarder(n.stack, n.outUDP)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, u.HandlePacket)
}

// ends returns the guest that has begun a flow, and where that goes; nil if the guest is gone or the flow does not leave.
func (n *Net) ends(id stack.TransportEndpointID) (*port, netip.AddrPort) {
	to := netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
	if n.def.Subnet.Contains(to.Addr()) { // a port of the gateway that nobody listens at
		return nil, to
	}
	return n.ports.Load().byAddress[id.RemoteAddress.As4()], to
}

// outTCP makes the connection that a guest has asked for, and only when it stands lets the guest's stand.
func (n *Net) outTCP(r *tcp.ForwarderRequest) {
	p, to := n.ends(r.ID())
	if p == nil || !take(&p.tcp, maxTCP) {
		r.Complete(true)
		return
	}
	defer p.tcp.Add(-1)
	if !take(&p.dialling, maxDialling) {
		p.overflow.Add(1)
		r.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, dialLimit)
	outside, err := n.dial(ctx, "tcp4", to.String())
	cancel()
	p.dialling.Add(-1)
	if err != nil {
		n.log.Debug("no connection", "guest", p.guest.Name, "to", to, "reason", err)
		r.Complete(true)
		return
	}
	var queue waiter.Queue
	ep, tcpErr := r.CreateEndpoint(&queue)
	r.Complete(tcpErr != nil)
	if tcpErr != nil {
		outside.Close()
		return
	}
	keepAlive(ep)
	splice(p.ctx, gonet.NewTCPConn(&queue, ep), outside)
}

// keepAlive has the stack find out when a guest has forgotten a connection, by a reboot for example.
func keepAlive(ep tcpip.Endpoint) {
	ep.SocketOptions().SetKeepAlive(true)
	idle, step := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveStep)
	_ = ep.SetSockOpt(&idle) // the only errors are of endpoints that are closed
	_ = ep.SetSockOpt(&step)
}

// halfCloser is a connection whose sending side can be closed.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// splice copies between two connections until both directions have ended, or ctx has. It closes both.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var wg sync.WaitGroup
	for _, dir := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, err := io.Copy(dir[1], dir[0])
			if half, ok := dir[1].(halfCloser); ok && err == nil && half.CloseWrite() == nil {
				return
			}
			a.Close()
			b.Close()
		})
	}
	wg.Wait()
	a.Close()
	b.Close()
}

// outUDP opens a flow that a guest has begun. It is called where frames are carried, and does not wait.
func (n *Net) outUDP(r *udp.ForwarderRequest) {
	p, to := n.ends(r.ID())
	if p == nil {
		return
	}
	if !take(&p.udp, maxUDP) {
		p.overflow.Add(1)
		return
	}
	outside, err := n.dial(p.ctx, "udp4", to.String())
	if err != nil {
		n.log.Debug("no flow", "guest", p.guest.Name, "to", to, "reason", err)
		p.udp.Add(-1)
		return
	}
	var queue waiter.Queue
	ep, tcpErr := r.CreateEndpoint(&queue)
	if tcpErr != nil {
		outside.Close()
		p.udp.Add(-1)
		return
	}
	inside := gonet.NewUDPConn(&queue, ep)
	if !n.run(func() {
		defer p.udp.Add(-1)
		relay(p.ctx, inside, outside)
	}) {
		inside.Close()
		outside.Close()
	}
}

// relay copies datagrams between two connected sockets until none has come for a while, or ctx ends. It closes both.
func relay(ctx context.Context, a, b net.Conn) {
	end := func() { a.Close(); b.Close() }
	stop := context.AfterFunc(ctx, end)
	defer stop()
	idle := time.AfterFunc(udpIdle, end)
	defer idle.Stop()
	var wg sync.WaitGroup
	for _, dir := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			buf := make([]byte, maxDatagram)
			for {
				k, err := dir[0].Read(buf)
				if errors.Is(err, syscall.ECONNREFUSED) {
					continue // nobody listens there, yet
				}
				if err != nil {
					end()
					return
				}
				idle.Reset(udpIdle)
				_, _ = dir[1].Write(buf[:k]) // it may be lost, as anywhere
			}
		})
	}
	wg.Wait()
}
