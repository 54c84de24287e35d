package usermode

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/internal/framing"
)

// httpServer serves "hello" on the loopback and returns its port.
func httpServer(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// get fetches a page from a guest.
func get(g *guest, to netip.AddrPort, limit time.Duration) (string, error) {
	c := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return g.dial("tcp", to, limit) }}}
	r, err := c.Get("http://" + to.String() + "/")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// soon is how long a test waits for what must not come.
const soon = 300 * time.Millisecond

func TestHTTP(t *testing.T) {
	n := start(t, config(network.User))
	g := plug(t, n, alice)
	g.up()
	to := netip.AddrPortFrom(outside, httpServer(t))
	for range 3 {
		if body, err := get(g, to, timeout); err != nil || body != "hello" {
			t.Fatalf("%q, %v", body, err)
		}
	}
	eventually(t, "the connections have ended", func() bool { return statusOf(n, "alice").TCP == 0 })
	// Nobody listens there: the guest is told, and does not wait.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	l.Close()
	if _, err := g.dial("tcp", netip.AddrPortFrom(outside, port), timeout); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("connection to a closed port: %v", err)
	}
}

// What a guest must not reach, it does not: each case with the network that it is on.
func TestNoWayOut(t *testing.T) {
	port := httpServer(t)
	deny := func(r network.Rule) []network.Rule { return []network.Rule{r} }
	tests := []struct {
		name  string
		kind  network.Kind
		rules []network.Rule
		to    string
		ok    bool
	}{
		{"outside", network.User, nil, "198.51.100.7", true},
		{"isolated", network.Isolated, nil, "198.51.100.7", false},
		{"loopback", network.User, nil, "127.0.0.1", false},
		{"this network", network.User, nil, "0.0.0.1", false},
		{"metadata", network.User, nil, "169.254.169.254", false},
		{"multicast", network.User, nil, "224.0.0.1", false},
		{"reserved", network.User, nil, "255.255.255.255", false},
		{"host", network.User, nil, "192.0.2.1", false},
		{"host's broadcast", network.User, nil, "192.0.2.255", false},
		{"neighbour of the host", network.User, nil, "192.0.2.2", true},
		{"gateway", network.User, nil, "10.77.0.1", false},
		{"nobody", network.User, nil, "10.77.0.99", false},
		{"all denied", network.User, deny(network.Rule{Direction: network.Out, Action: network.Deny}), "198.51.100.7", false},
		{"in denied", network.User, deny(network.Rule{Direction: network.In, Action: network.Deny}), "198.51.100.7", true},
		{"other guest denied", network.User, deny(network.Rule{Guest: "bob", Direction: network.Out, Action: network.Deny}), "198.51.100.7", true},
		{"prefix denied", network.User, deny(network.Rule{Direction: network.Out, Action: network.Deny, CIDR: netip.MustParsePrefix("198.51.100.0/24")}), "198.51.100.7", false},
		{"udp denied", network.User, deny(network.Rule{Direction: network.Out, Action: network.Deny, Protocol: network.UDP}), "198.51.100.7", true},
		{"port denied", network.User, deny(network.Rule{Direction: network.Out, Action: network.Deny, Protocol: network.TCP, Ports: network.Ports{First: port, Last: port}}), "198.51.100.7", false},
		{"first fits", network.User, []network.Rule{
			{Guest: "alice", Direction: network.Out, Action: network.Allow, Protocol: network.TCP, Ports: network.Ports{First: port, Last: port}},
			{Direction: network.Out, Action: network.Deny},
		}, "198.51.100.7", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := config(tt.kind)
			c.Network.Rules = tt.rules
			n := start(t, c)
			g := plug(t, n, alice)
			g.up()
			limit := soon
			if tt.ok {
				limit = timeout
			}
			body, err := get(g, netip.AddrPortFrom(netip.MustParseAddr(tt.to), port), limit)
			if (err == nil && body == "hello") != tt.ok {
				t.Errorf("%q, %v: want ok = %v", body, err, tt.ok)
			}
		})
	}
}

// With host = true a guest reaches the host, but not its loopback; rules can be changed while it runs.
func TestHostAndRules(t *testing.T) {
	c := config(network.User)
	c.Network.Host = true
	n := start(t, c)
	g := plug(t, n, alice)
	g.up()
	port := httpServer(t)
	if _, err := get(g, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), timeout); err != nil {
		t.Errorf("host: %v", err)
	}
	if _, err := get(g, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), soon); err == nil {
		t.Error("reaches the loopback")
	}
	if err := n.SetRules([]network.Rule{{Direction: "up", Action: network.Deny}}); err == nil {
		t.Error("takes a rule that is none")
	}
	if err := n.SetRules([]network.Rule{{Direction: network.Out, Action: network.Deny}}); err != nil {
		t.Fatal(err)
	}
	if _, err := get(g, netip.AddrPortFrom(outside, port), soon); err == nil {
		t.Error("reaches the outside against the new rules")
	}
	if s := statusOf(n, "alice"); s.Refused == 0 {
		t.Errorf("nothing counts as refused: %+v", s)
	}
}

func TestUDP(t *testing.T) {
	echo, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			k, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			echo.WriteTo(buf[:k], from)
		}
	}()
	n := start(t, config(network.User))
	g := plug(t, n, alice)
	g.up()
	c, err := g.dial("udp", netip.AddrPortFrom(outside, echo.LocalAddr().(*net.UDPAddr).AddrPort().Port()), timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{1, 100, mtu - 28} {
		c.SetDeadline(time.Now().Add(timeout))
		want := strings.Repeat("x", size)
		if _, err := c.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		if k, err := c.Read(buf); err != nil || string(buf[:k]) != want {
			t.Fatalf("%d bytes: %d, %v", size, k, err)
		}
	}
	if s := statusOf(n, "alice"); s.UDP != 1 {
		t.Errorf("%d flows, want 1", s.UDP)
	}
	if err := n.RemoveGuest("alice"); err != nil {
		t.Fatal(err)
	}
	if s := statusOf(n, "alice"); s.Name != "" {
		t.Errorf("still there: %+v", s)
	}
}

// A guest cannot open more than its share of flows, and what it has too many is counted.
func TestFlowsAreBounded(t *testing.T) {
	n := start(t, config(network.User))
	sink, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to := netip.AddrPortFrom(outside, sink.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	g := plug(t, n, alice)
	for i := range uint16(maxUDP + 50) {
		g.send(datagram(network.GatewayMAC, alice.MAC, netip.AddrPortFrom(alice.Address, 1000+i), to, "x"))
	}
	eventually(t, "all are seen", func() bool { return statusOf(n, "alice").Sent == maxUDP+50 })
	if s := statusOf(n, "alice"); s.UDP != maxUDP || s.Overflow != 50 {
		t.Errorf("%d flows and %d refused, want %d and 50", s.UDP, s.Overflow, maxUDP)
	}
}

// request sends a DHCP message and returns the answer, or nil.
func request(t *testing.T, g *guest, m *dhcpv4.DHCPv4, limit time.Duration) *dhcpv4.DHCPv4 {
	t.Helper()
	g.send(datagram(network.MAC{255, 255, 255, 255, 255, 255}, g.self.MAC, netip.MustParseAddrPort("0.0.0.0:68"),
		netip.MustParseAddrPort("255.255.255.255:67"), string(m.ToBytes())))
	for end := time.Now().Add(limit); ; {
		frame := g.next(end)
		if frame == nil {
			return nil
		}
		if k, ok := parseIPv4(frame); ok && k.to == dhcpClientPort {
			a, err := dhcpv4.FromBytes(k.payload[header.UDPMinimumSize:])
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
	}
}

func TestDHCP(t *testing.T) {
	for _, kind := range []network.Kind{network.User, network.Isolated} {
		t.Run(string(kind), func(t *testing.T) {
			n := start(t, config(kind))
			g := plug(t, n, alice)
			discover, err := dhcpv4.NewDiscovery(net.HardwareAddr(alice.MAC[:]))
			if err != nil {
				t.Fatal(err)
			}
			offer := request(t, g, discover, timeout)
			if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer {
				t.Fatalf("offer: %v", offer)
			}
			if n.Leases()[0].Given != nil {
				t.Error("a lease before it is asked for")
			}
			ask, err := dhcpv4.NewRequestFromOffer(offer)
			if err != nil {
				t.Fatal(err)
			}
			ack := request(t, g, ask, timeout)
			if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
				t.Fatalf("ack: %v", ack)
			}
			routers := []string{"10.77.0.1"}
			if kind == network.Isolated {
				routers = nil
			}
			type answer struct {
				Address, Mask, Domain, Host string
				Routers, DNS                []string
			}
			texts := func(ips []net.IP) (s []string) {
				for _, ip := range ips {
					s = append(s, ip.String())
				}
				return s
			}
			got := answer{ack.YourIPAddr.String(), net.IP(ack.SubnetMask()).String(), ack.DomainName(), ack.HostName(),
				texts(ack.Router()), texts(ack.DNS())}
			want := answer{"10.77.0.10", "255.255.255.0", "test.internal", "alice", routers, []string{"10.77.0.1"}}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if l := n.Leases()[0]; l.Guest != "alice" || l.Given == nil {
				t.Errorf("lease: %+v", l)
			}
			// Another's address is refused, and another's card gets no answer.
			ask.UpdateOption(dhcpv4.OptRequestedIPAddress(net.IP(bob.Address.AsSlice())))
			if nak := request(t, g, ask, timeout); nak == nil || nak.MessageType() != dhcpv4.MessageTypeNak {
				t.Errorf("asking for another's address: %v", nak)
			}
			discover.ClientHWAddr = net.HardwareAddr(bob.MAC[:])
			if a := request(t, g, discover, soon); a != nil {
				t.Errorf("asking for another's card: %v", a)
			}
			if s := statusOf(n, "alice"); s.Spoofed != 1 {
				t.Errorf("%d spoofed, want 1", s.Spoofed)
			}
		})
	}
}

// resolver answers every A question with 203.0.113.5, and long TXT ones.
func resolver(t *testing.T) netip.AddrPort {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		h := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET}
		if q.Question[0].Qtype == dns.TypeTXT {
			for range 20 {
				a.Answer = append(a.Answer, &dns.TXT{Hdr: h, Txt: []string{strings.Repeat("y", 200)}})
			}
		} else {
			a.Answer = []dns.RR{&dns.A{Hdr: h, A: net.IPv4(203, 0, 113, 5)}}
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			a.Truncate(dns.MinMsgSize)
		}
		w.WriteMsg(a)
	})
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := packets.LocalAddr().(*net.UDPAddr).AddrPort()
	listener, err := net.Listen("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: listener, Handler: handler}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return at
}

// lookUp asks the gateway.
func lookUp(t *testing.T, g *guest, protocol, name string, kind uint16) *dns.Msg {
	t.Helper()
	c, err := g.dial(protocol, netip.AddrPortFrom(gateway, 53), timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	conn := &dns.Conn{Conn: c}
	if protocol == "udp" {
		conn.Conn = packetConn{c.(*gonet.UDPConn)}
	}
	q := new(dns.Msg).SetQuestion(name, kind)
	if err := conn.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	a, err := conn.ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	if a.Id != q.Id {
		t.Error("answer to another question")
	}
	return a
}

// packetConn lets package dns see that a connection is one of datagrams.
type packetConn struct{ *gonet.UDPConn }

func TestDNS(t *testing.T) {
	at := resolver(t)
	tests := []struct {
		name  string
		kind  network.Kind
		peers bool
		ask   string
		rcode int
		want  string
	}{
		{"outside", network.User, false, "example.org.", dns.RcodeSuccess, "203.0.113.5"},
		{"isolated", network.Isolated, false, "example.org.", dns.RcodeNameError, ""},
		{"self", network.Isolated, false, "Alice.test.internal.", dns.RcodeSuccess, "10.77.0.10"},
		{"gateway", network.User, false, "gateway.test.internal.", dns.RcodeSuccess, "10.77.0.1"},
		{"peer", network.User, true, "bob.test.internal.", dns.RcodeSuccess, "10.77.0.11"},
		{"no peers", network.User, false, "bob.test.internal.", dns.RcodeNameError, ""},
		{"nobody", network.User, true, "eve.test.internal.", dns.RcodeNameError, ""},
	}
	for _, tt := range tests {
		for _, protocol := range []string{"udp", "tcp"} {
			t.Run(tt.name+"/"+protocol, func(t *testing.T) {
				c := config(tt.kind)
				c.Network.Peers = tt.peers
				c.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), at} // the first does not answer
				g := plug(t, start(t, c), alice)
				g.up()
				a := lookUp(t, g, protocol, tt.ask, dns.TypeA)
				got := ""
				for _, rr := range a.Answer {
					got += rr.(*dns.A).A.String()
				}
				if a.Rcode != tt.rcode || got != tt.want {
					t.Errorf("%s %q, want %s %q", dns.RcodeToString[a.Rcode], got, dns.RcodeToString[tt.rcode], tt.want)
				}
			})
		}
	}
}

// What does not fit into a datagram is asked for again by TCP.
func TestDNSTruncates(t *testing.T) {
	c := config(network.User)
	c.Resolvers = []netip.AddrPort{resolver(t)}
	g := plug(t, start(t, c), alice)
	g.up()
	if a := lookUp(t, g, "udp", "long.example.", dns.TypeTXT); !a.Truncated {
		t.Errorf("%d answers by UDP, and not truncated", len(a.Answer))
	}
	if a := lookUp(t, g, "tcp", "long.example.", dns.TypeTXT); a.Truncated || len(a.Answer) != 20 {
		t.Errorf("%d answers by TCP, truncated: %v", len(a.Answer), a.Truncated)
	}
}

// echoServer echoes lines at the guest's port 7.
func echoServer(t *testing.T, g *guest) {
	t.Helper()
	l, err := gonet.ListenTCP(g.stack, fullAddress(g.self.Address, 7), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	t.Cleanup(func() { l.Close() })
}

// echo sends a line and reports whether it comes back.
func echo(c net.Conn, err error, limit time.Duration) error {
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte("ping\n")); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "ping\n" {
		err = fmt.Errorf("%q came back", line)
	}
	return err
}

func TestPeers(t *testing.T) {
	from := func(r network.Rule) []network.Rule { r.Action = network.Deny; return []network.Rule{r} }
	tests := []struct {
		name                string
		kind                network.Kind
		peers               bool
		rules               []network.Rule
		aliceToBob, bobToHe bool
	}{
		{"no peers", network.User, false, nil, false, false},
		{"peers", network.User, true, nil, true, true},
		{"peers, isolated", network.Isolated, true, nil, true, true},
		{"alice may not begin", network.User, true, from(network.Rule{Guest: "alice", Direction: network.Out}), false, true},
		{"bob is not to be reached", network.Isolated, true, from(network.Rule{Guest: "bob", Direction: network.In}), false, true},
		{"bob is not to be reached by alice", network.User, true, from(network.Rule{Guest: "bob", Direction: network.In, CIDR: netip.MustParsePrefix("10.77.0.10/32")}), false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := config(tt.kind)
			c.Network.Peers, c.Network.Rules = tt.peers, tt.rules
			n := start(t, c)
			a, b := plug(t, n, alice), plug(t, n, bob)
			a.up()
			b.up()
			echoServer(t, a)
			echoServer(t, b)
			for _, way := range []struct {
				from, to *guest
				ok       bool
			}{{a, b, tt.aliceToBob}, {b, a, tt.bobToHe}} {
				limit := soon
				if way.ok {
					limit = timeout
				}
				conn, err := way.from.dial("tcp", netip.AddrPortFrom(way.to.self.Address, 7), limit)
				if err := echo(conn, err, limit); (err == nil) != way.ok {
					t.Errorf("%s to %s: %v, want ok = %v", way.from.self.Name, way.to.self.Name, err, way.ok)
				}
			}
		})
	}
}

// What a guest sends as somebody else goes nowhere, and is counted.
func TestSpoofing(t *testing.T) {
	c := config(network.User)
	c.Network.Peers = true
	n := start(t, c)
	a, b := plug(t, n, alice), plug(t, n, bob)
	arp := func(op header.ARPOp, mac network.MAC, sender, target netip.Addr) []byte {
		h := header.ARP(make([]byte, header.ARPSize))
		h.SetIPv4OverEthernet()
		h.SetOp(op)
		copy(h.HardwareAddressSender(), mac[:])
		copy(h.ProtocolAddressSender(), sender.AsSlice())
		copy(h.ProtocolAddressTarget(), target.AsSlice())
		return h
	}
	eve := network.MAC{0x52, 0x54, 0, 0, 0, 9}
	at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 9) }
	spoofed := [][]byte{
		datagram(bob.MAC, eve, at(alice.Address), at(bob.Address), "another MAC"),
		datagram(bob.MAC, network.GatewayMAC, at(gateway), at(bob.Address), "as the gateway"),
		datagram(bob.MAC, alice.MAC, at(gateway), at(bob.Address), "from the gateway's address"),
		datagram(network.GatewayMAC, alice.MAC, at(bob.Address), at(outside), "from bob's address"),
		datagram(network.GatewayMAC, alice.MAC, at(netip.IPv4Unspecified()), at(outside), "from nowhere"),
		ethernet(bob.MAC, alice.MAC, header.ARPProtocolNumber, arp(header.ARPReply, alice.MAC, gateway, bob.Address)),
		ethernet(bob.MAC, alice.MAC, header.ARPProtocolNumber, arp(header.ARPReply, eve, alice.Address, bob.Address)),
		ethernet(network.GatewayMAC, alice.MAC, header.ARPProtocolNumber, arp(header.ARPRequest, alice.MAC, bob.Address, gateway)),
	}
	for _, f := range spoofed {
		a.send(f)
	}
	for _, f := range [][]byte{ // these are as themselves, but do not go there
		datagram(bob.MAC, alice.MAC, at(alice.Address), at(outside), "by bob"),
		datagram(network.MAC{255, 255, 255, 255, 255, 255}, alice.MAC, at(alice.Address), at(bob.Address), "to all"),
		datagram(network.MAC{255, 255, 255, 255, 255, 255}, alice.MAC, at(alice.Address), at(n.def.Broadcast()), "to all"),
	} {
		a.send(f)
	}
	a.send(datagram(bob.MAC, alice.MAC, at(alice.Address), at(bob.Address), "honest"))
	frame := b.next(time.Now().Add(timeout))
	if frame == nil || !strings.HasSuffix(string(frame), "honest") {
		t.Errorf("bob got %q", frame)
	}
	if s := statusOf(n, "alice"); s.Spoofed != uint64(len(spoofed)) || s.Malformed+s.Refused != 3 {
		t.Errorf("%d spoofed, %d malformed, %d refused; want %d and 3 together", s.Spoofed, s.Malformed, s.Refused, len(spoofed))
	}
	// The gateway answers for itself alone.
	a.send(ethernet(network.MAC{255, 255, 255, 255, 255, 255}, alice.MAC, header.ARPProtocolNumber, arp(header.ARPRequest, alice.MAC, alice.Address, outside)))
	a.send(ethernet(network.MAC{255, 255, 255, 255, 255, 255}, alice.MAC, header.ARPProtocolNumber, arp(header.ARPRequest, alice.MAC, alice.Address, gateway)))
	reply := header.ARP(a.next(time.Now().Add(timeout))[header.EthernetMinimumSize:])
	if reply.Op() != header.ARPReply || netip.AddrFrom4([4]byte(reply.ProtocolAddressSender())) != gateway {
		t.Errorf("ARP answer of %v", reply.ProtocolAddressSender())
	}
}

func TestForwards(t *testing.T) {
	c := config(network.User)
	c.Network.Rules = []network.Rule{{Guest: "bob", Direction: network.In, Action: network.Deny, CIDR: netip.MustParsePrefix("127.0.0.0/8")}}
	n := start(t, c)
	listen := func(guest string) string {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go n.ForwardTCP(network.Forward{Protocol: network.TCP, Guest: guest, Port: 7}, l)
		return l.Addr().String()
	}
	toAlice, toBob := listen("alice"), listen("bob")
	conn, err := net.Dial("tcp", toAlice)
	if err := echo(conn, err, timeout); err == nil {
		t.Error("a guest that is not there answers")
	}
	for _, g := range []*guest{plug(t, n, alice), plug(t, n, bob)} {
		g.up()
		echoServer(t, g)
		u := fullAddress(g.self.Address, 7)
		packets, err := gonet.DialUDP(g.stack, &u, nil, ipv4.ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		defer packets.Close()
		go func() {
			buf := make([]byte, 100)
			for {
				k, from, err := packets.ReadFrom(buf)
				if err != nil {
					return
				}
				packets.WriteTo(buf[:k], from)
			}
		}()
	}
	conn, err = net.Dial("tcp", toAlice)
	if err := echo(conn, err, timeout); err != nil {
		t.Errorf("alice: %v", err)
	}
	conn, err = net.Dial("tcp", toBob)
	if err := echo(conn, err, timeout); err == nil {
		t.Error("bob answers, against the rules")
	}
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go n.ForwardUDP(network.Forward{Protocol: network.UDP, Guest: "alice", Port: 7}, packets)
	for range 2 {
		conn, err = net.Dial("udp", packets.LocalAddr().String())
		if err := echo(conn, err, timeout); err != nil {
			t.Errorf("alice by UDP: %v", err)
		}
	}
}

// A guest that does not read holds nobody up, and loses what is too much.
func TestDeafGuest(t *testing.T) {
	c := config(network.Isolated)
	c.Network.Peers = true
	n := start(t, c)
	a, _ := plug(t, n, alice), plug(t, n, bob)
	frame := datagram(bob.MAC, alice.MAC, netip.AddrPortFrom(alice.Address, 9), netip.AddrPortFrom(bob.Address, 9), strings.Repeat("z", 1400))
	_ = a.conn.SetWriteDeadline(time.Now().Add(timeout))
	for range 4 * outboxSize / len(frame) {
		a.send(frame)
	}
	eventually(t, "frames for bob are dropped", func() bool { return statusOf(n, "bob").Overflow > 0 })
	discover, err := dhcpv4.NewDiscovery(net.HardwareAddr(alice.MAC[:]))
	if err != nil {
		t.Fatal(err)
	}
	if request(t, a, discover, timeout) == nil {
		t.Error("alice gets no answer any more")
	}
}

// The manager's socket: a guest comes with its listening socket, its VMM comes back, rules change, the guest goes.
func TestManage(t *testing.T) {
	c := config(network.User)
	c.Guests = nil
	n := start(t, c)
	dir := t.TempDir()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "manage"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go n.ServeChanges(ctx, l)
	m, err := netctl.DialManager(filepath.Join(dir, "manage"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	path := filepath.Join(dir, "alice")
	gl, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := gl.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	do := func(c netctl.Change, file *os.File, ok bool) {
		t.Helper()
		if err := m.Do(ctx, c, file); (err == nil) != ok {
			t.Errorf("%+v: %v, want ok = %v", c, err, ok)
		}
	}
	do(netctl.Change{}, nil, false)
	do(netctl.Change{Guest: &alice}, nil, false)
	do(netctl.Change{Remove: "alice"}, f, false)
	do(netctl.Change{Guest: &alice}, f, true)
	for range 2 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "alice is connected", func() bool { return statusOf(n, "alice").Connected })
		conn.Close()
		eventually(t, "alice is gone", func() bool { return !statusOf(n, "alice").Connected })
	}
	same := bob
	same.Address = alice.Address
	do(netctl.Change{Guest: &same}, f, false)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	do(netctl.Change{Guest: &bob}, null, false)
	do(netctl.Change{Rules: &[]network.Rule{{Direction: network.Out, Action: network.Deny}}}, nil, true)
	do(netctl.Change{Remove: "alice"}, nil, true)
	do(netctl.Change{Remove: "alice"}, nil, false)
}

// A network ends while its guests send.
func TestCloseWhileGuestsSend(t *testing.T) {
	frame := datagram(network.GatewayMAC, alice.MAC, netip.AddrPortFrom(alice.Address, 9), netip.AddrPortFrom(gateway, 9), "x")
	framed := append(framing.AppendPrefix(nil, len(frame)), frame...)
	for range 30 {
		n := start(t, config(network.User))
		g := plug(t, n, alice)
		var wg sync.WaitGroup
		sending := make(chan struct{})
		wg.Go(func() {
			for once := sync.OnceFunc(func() { close(sending) }); ; once() {
				if _, err := g.conn.Write(framed); err != nil {
					return // the network has ended
				}
			}
		})
		<-sending
		n.Close()
		wg.Wait()
	}
}
