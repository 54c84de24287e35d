package usermode

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// Bounds on what one guest can ask at the same time, and on the answer's time.
const (
	maxAsking   = 32
	maxDNSConns = 8
	dnsLimit    = 5 * time.Second // of one resolver
)

// maxAnswer is the longest answer by UDP in bytes that a resolver may give, RFC 6891 §6.2.5.
const maxAnswer = 4096

// nameTTL is for how many seconds a guest's name may be remembered.
const nameTTL = 60

// startDNS answers at the gateway's port 53.
func (n *Net) startDNS() error {
	at := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(n.def.Gateway().As4()), Port: 53}
	packets, err := gonet.DialUDP(n.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	listener, err := gonet.ListenTCP(n.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		packets.Close()
		return err
	}
	n.serveDNS(packets, listener)
	return nil
}

// serveDNS answers what comes over packets and connections of listener, until n is closed, which closes both.
func (n *Net) serveDNS(packets net.PacketConn, listener net.Listener) {
	n.serve(packets, listener)
	for _, s := range []*dns.Server{
		{PacketConn: packets, Handler: n},
		{Listener: &bounded{Listener: listener, net: n, open: map[netip.Addr]int{}}, Handler: n},
	} {
		n.run(func() {
			if err := s.ActivateAndServe(); err != nil && n.ctx.Err() == nil {
				n.log.Error("DNS has ended", "reason", err)
			}
		})
	}
}

// bounded is a listener that refuses a guest which has too many connections.
type bounded struct {
	net.Listener
	net  *Net
	mu   sync.Mutex
	open map[netip.Addr]int
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := addrOf(conn.RemoteAddr())
		b.mu.Lock()
		ok := b.open[from] < maxDNSConns
		if ok {
			b.open[from]++
		}
		b.mu.Unlock()
		if !ok {
			conn.Close()
			continue
		}
		c := &counted{Conn: conn, closed: func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.open[from]--; b.open[from] == 0 {
				delete(b.open, from)
			}
		}}
		context.AfterFunc(b.net.ctx, func() { c.Close() })
		return c, nil
	}
}

// counted is a connection whose end is told.
type counted struct {
	net.Conn
	once   sync.Once
	closed func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

// addrOf returns the IP address in a, which is the stack's.
func addrOf(a net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}

// ServeDNS implements dns.Handler.
func (n *Net) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	from := addrOf(w.RemoteAddr())
	if !from.Is4() {
		return
	}
	p := n.ports.Load().byAddress[from.As4()]
	if p == nil {
		return
	}
	if !take(&p.asking, maxAsking) {
		p.overflow.Add(1)
		return
	}
	defer p.asking.Add(-1)
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	a := n.answer(p, q, tcp)
	a.Id = q.Id
	if size := 512; !tcp {
		if o := q.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), size), mtu-60)
		}
		a.Truncate(size)
	}
	_ = w.WriteMsg(a) // the guest asks again
}

// answer answers what is about this network; other questions go to the resolvers.
func (n *Net) answer(p *port, q *dns.Msg, tcp bool) *dns.Msg {
	a := new(dns.Msg).SetReply(q)
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		return a.SetRcode(q, dns.RcodeNotImplemented)
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	host, ours := strings.CutSuffix(name, "."+n.def.Domain()+".")
	if !ours && name != n.def.Domain()+"." {
		if len(*n.resolve.Load()) == 0 {
			return a.SetRcode(q, dns.RcodeNameError)
		}
		return n.ask(p, q, tcp)
	}
	a.Authoritative = true
	address, ok := n.lookUp(p, host)
	if !ok {
		return a.SetRcode(q, dns.RcodeNameError)
	}
	if question.Qtype == dns.TypeA && question.Qclass == dns.ClassINET {
		a.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: nameTTL}, A: address.AsSlice(),
		}}
	}
	return a
}

// lookUp returns the address of a name in the network's domain, as far as p may know it.
func (n *Net) lookUp(p *port, host string) (netip.Addr, bool) {
	if host == "gateway" {
		return n.def.Gateway(), true
	}
	for name, q := range n.ports.Load().byName {
		if strings.EqualFold(name, host) && (q == p || n.def.Peers) {
			return q.guest.Address, true
		}
	}
	return netip.Addr{}, false
}

// ask asks the resolvers, one after the other.
func (n *Net) ask(p *port, q *dns.Msg, tcp bool) *dns.Msg {
	c := dns.Client{Timeout: dnsLimit, UDPSize: maxAnswer}
	if tcp {
		c.Net = "tcp"
	}
	var errs []error
	for _, r := range *n.resolve.Load() {
		question := q.Copy()
		question.Id = dns.Id() // not one that the guest has chosen
		a, _, err := c.ExchangeContext(p.ctx, question, r.String())
		if err == nil {
			return a
		}
		errs = append(errs, err)
	}
	n.log.Debug("no resolver answers", "guest", p.guest.Name, "reason", errors.Join(errs...))
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}
