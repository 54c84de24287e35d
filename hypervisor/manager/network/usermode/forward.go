package usermode

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// Bounds on what comes from the outside over one forward.
const (
	maxForwarded = 256 // flows of UDP; connections count as the guest's
	guestLimit   = 10 * time.Second
)

// forwarded returns the guest that somebody outside reaches by f, or nil if it is not there or does not want it.
func (n *Net) forwarded(f network.Forward, from net.Addr) *port {
	p := n.ports.Load().byName[f.Guest]
	if p == nil {
		return nil
	}
	if !n.allows(p, network.In, f.Protocol, addrOf(from), f.Port) {
		p.refused.Add(1)
		return nil
	}
	return p
}

// ForwardTCP gives the connections that l accepts to the guest that f names. It returns when l is closed or n is.
func (n *Net) ForwardTCP(f network.Forward, l net.Listener) {
	stop := context.AfterFunc(n.ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := control.Accept(n.ctx, l)
		if err != nil {
			return
		}
		p := n.forwarded(f, conn.RemoteAddr())
		if p == nil || !take(&p.tcp, maxTCP) {
			conn.Close()
			continue
		}
		if !n.run(func() { defer p.tcp.Add(-1); n.connect(p, f, conn) }) {
			p.tcp.Add(-1)
			conn.Close()
		}
	}
}

// connect connects somebody outside to a guest.
func (n *Net) connect(p *port, f network.Forward, conn net.Conn) {
	ctx, cancel := context.WithTimeout(p.ctx, guestLimit)
	defer cancel()
	inside, err := gonet.DialContextTCP(ctx, n.stack, fullAddress(p.guest.Address, f.Port), ipv4.ProtocolNumber)
	if err != nil {
		n.log.Debug("guest does not answer", "guest", p.guest.Name, "port", f.Port, "reason", err)
		conn.Close()
		return
	}
	splice(p.ctx, inside, conn)
}

func fullAddress(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(a.As4()), Port: port}
}

// ForwardUDP gives the datagrams that come to c to the guest that f names, and its answers back. It returns when c is closed or n
// is.
func (n *Net) ForwardUDP(f network.Forward, c net.PacketConn) {
	stop := context.AfterFunc(n.ctx, func() { c.Close() })
	defer stop()
	var mu sync.Mutex
	flows := map[string]net.Conn{} // to the guest, by who is outside
	buf := make([]byte, maxDatagram)
	for {
		k, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			n.log.Error("a forward has ended", "protocol", f.Protocol, "listen", f.Listen, "reason", err)
			return
		}
		p := n.forwarded(f, from)
		if p == nil {
			continue
		}
		mu.Lock()
		inside := flows[from.String()]
		full := len(flows) >= maxForwarded
		mu.Unlock()
		if inside == nil {
			if full {
				p.overflow.Add(1)
				continue
			}
			to := fullAddress(p.guest.Address, f.Port)
			inside, err = gonet.DialUDP(n.stack, nil, &to, ipv4.ProtocolNumber)
			if err != nil {
				n.log.Debug("no flow to the guest", "guest", p.guest.Name, "port", f.Port, "reason", err)
				continue
			}
			mu.Lock()
			flows[from.String()] = inside
			mu.Unlock()
			if !n.run(func() {
				giveBack(p.ctx, inside, c, from)
				mu.Lock()
				delete(flows, from.String())
				mu.Unlock()
			}) {
				inside.Close()
			}
		}
		_, _ = inside.Write(buf[:k]) // it may be lost, as anywhere
	}
}

// giveBack writes what a guest answers to who is outside, until it has been silent for a while. It closes inside.
func giveBack(ctx context.Context, inside net.Conn, c net.PacketConn, to net.Addr) {
	stop := context.AfterFunc(ctx, func() { inside.Close() })
	defer stop()
	defer inside.Close()
	buf := make([]byte, maxDatagram)
	for {
		_ = inside.SetReadDeadline(time.Now().Add(udpIdle))
		k, err := inside.Read(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:k], to)
	}
}
