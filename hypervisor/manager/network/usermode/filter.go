package usermode

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// mtu is the longest IP packet in bytes; maxFrame the frame that it comes in.
const (
	mtu      = 1500
	maxFrame = header.EthernetMinimumSize + mtu
)

// packet is what is looked at of a guest's IPv4 packet.
type packet struct {
	ip       header.IPv4 // as long as it says
	payload  []byte
	proto    network.Protocol
	src, dst [4]byte
	from, to uint16 // ports; of ICMP's echo the identifier, twice
}

// input takes a frame from the guest. Nothing keeps it.
func (p *port) input(frame []byte) {
	if len(frame) < header.EthernetMinimumSize || len(frame) > maxFrame {
		p.malformed.Add(1)
		return
	}
	eth := header.Ethernet(frame)
	if network.MAC(frame[6:12]) != p.guest.MAC {
		p.spoof("MAC", network.MAC(frame[6:12]).String())
		return
	}
	switch eth.Type() {
	case header.ARPProtocolNumber:
		p.inputARP(frame)
	case header.IPv4ProtocolNumber:
		p.inputIPv4(frame)
	default: // guests try IPv6 all the time
		p.malformed.Add(1)
	}
}

// spoof counts and logs a frame from another's address.
func (p *port) spoof(what, address string) {
	if p.spoofed.Add(1) == 1 {
		p.net.log.Warn("guest sends from an address that is not its own: dropped, as all that follow", "guest", p.guest.Name, what, address)
	}
}

// inputARP lets through what a guest asks and answers as itself.
func (p *port) inputARP(frame []byte) {
	arp := header.ARP(frame[header.EthernetMinimumSize:])
	if len(arp) < header.ARPSize || !arp.IsValid() {
		p.malformed.Add(1)
		return
	}
	sender := [4]byte(arp.ProtocolAddressSender())
	if network.MAC(arp.HardwareAddressSender()) != p.guest.MAC {
		p.spoof("MAC", network.MAC(arp.HardwareAddressSender()).String())
		return
	}
	probe := sender == [4]byte{} && arp.Op() == header.ARPRequest // RFC 5227: asking whether an address is free
	if sender != p.guest.Address.As4() && !probe {
		p.spoof("address", netip.AddrFrom4(sender).String())
		return
	}
	target := [4]byte(arp.ProtocolAddressTarget())
	if target == p.net.def.Gateway().As4() {
		p.net.toStack(header.ARPProtocolNumber, arp[:header.ARPSize])
		return
	}
	if q := p.net.ports.Load().byAddress[target]; q != nil && q != p && p.net.def.Peers {
		q.output(frame)
	}
}

// inputIPv4 lets through what a guest may send as itself.
func (p *port) inputIPv4(frame []byte) {
	k, ok := parseIPv4(frame)
	if !ok {
		p.malformed.Add(1)
		return
	}
	n := p.net
	own := k.src == p.guest.Address.As4()
	if k.proto == network.UDP && k.from == dhcpClientPort && k.to == dhcpServerPort && (own || k.src == [4]byte{}) {
		p.inputDHCP(k.payload[header.UDPMinimumSize:])
		return
	}
	if !own {
		p.spoof("address", netip.AddrFrom4(k.src).String())
		return
	}
	dst := netip.AddrFrom4(k.dst)
	switch {
	case dst == n.def.Gateway():
		n.toStack(header.IPv4ProtocolNumber, k.ip)
	case n.def.Subnet.Contains(dst):
		p.toPeer(frame, &k)
	case network.MAC(frame[:6]) != network.GatewayMAC: // broadcasts and multicasts, mostly
		p.malformed.Add(1)
	case !p.mayLeave(dst, k.proto, k.to):
		p.refused.Add(1)
	default:
		n.toStack(header.IPv4ProtocolNumber, k.ip)
	}
}

// mayLeave reports whether the guest may send to an address outside. All flows to the outside are begun by guests, so that there
// is no need to remember them.
func (p *port) mayLeave(dst netip.Addr, proto network.Protocol, to uint16) bool {
	n := p.net
	return n.def.Kind == network.User && proto != network.ICMP && network.Routable(dst) &&
		(n.def.Host || !n.host.has(dst, n.log)) && n.allows(p, network.Out, proto, dst, to)
}

// parseIPv4 returns what is in a frame, or false if it is not carried here.
func parseIPv4(frame []byte) (k packet, ok bool) {
	k.ip = header.IPv4(frame[header.EthernetMinimumSize:])
	// No options, which can route around what is checked here, and no fragments, of which only the first has ports.
	if !k.ip.IsValid(len(k.ip)) || k.ip.HeaderLength() != header.IPv4MinimumSize || k.ip.More() || k.ip.FragmentOffset() != 0 {
		return packet{}, false
	}
	k.ip = k.ip[:k.ip.TotalLength()]
	k.payload = k.ip[header.IPv4MinimumSize:]
	k.src, k.dst = k.ip.SourceAddress().As4(), k.ip.DestinationAddress().As4()
	switch k.ip.TransportProtocol() {
	case header.TCPProtocolNumber:
		if k.proto, ok = network.TCP, len(k.payload) >= header.TCPMinimumSize; ok {
			k.from, k.to = header.TCP(k.payload).SourcePort(), header.TCP(k.payload).DestinationPort()
		}
	case header.UDPProtocolNumber:
		if k.proto, ok = network.UDP, len(k.payload) >= header.UDPMinimumSize; ok {
			k.from, k.to = header.UDP(k.payload).SourcePort(), header.UDP(k.payload).DestinationPort()
		}
	case header.ICMPv4ProtocolNumber:
		if k.proto, ok = network.ICMP, len(k.payload) >= header.ICMPv4MinimumSize; ok {
			k.from = binary.BigEndian.Uint16(k.payload[4:])
			k.to = k.from
		}
	}
	return k, ok
}

// toPeer gives a frame to another guest, if that is allowed.
func (p *port) toPeer(frame []byte, k *packet) {
	n := p.net
	q := n.ports.Load().byAddress[k.dst]
	if !n.def.Peers || q == nil || q == p || network.MAC(frame[:6]) != q.guest.MAC {
		p.refused.Add(1)
		return
	}
	now := time.Now()
	there := flow{k.proto, k.src, k.dst, k.from, k.to}
	back := flow{k.proto, k.dst, k.src, k.to, k.from}
	if !p.peers.has(there, now) && !q.peers.has(back, now) {
		if !n.allows(p, network.Out, k.proto, q.guest.Address, k.to) || !n.allows(q, network.In, k.proto, p.guest.Address, k.to) {
			p.refused.Add(1)
			return
		}
		if !p.peers.add(there, now) {
			p.overflow.Add(1)
			return
		}
	}
	q.output(frame)
}

// flow is what goes from one guest to another.
type flow struct {
	proto    network.Protocol
	src, dst [4]byte
	from, to uint16
}

// Bounds on the flows that a guest can have begun, and how long one is remembered without a packet.
const (
	maxFlows = 4096
	flowIdle = 10 * time.Minute
)

// flows are those that a guest has begun and was allowed to.
type flows struct {
	mu    sync.Mutex
	last  map[flow]time.Time
	swept time.Time
}

// has reports whether f was allowed, and remembers that it is in use.
func (s *flows) has(f flow, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.last[f]
	if !ok || now.Sub(last) > flowIdle {
		return false
	}
	if now.Sub(last) > time.Second {
		s.last[f] = now
	}
	return true
}

// add remembers f, unless there are too many.
func (s *flows) add(f flow, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = make(map[flow]time.Time)
	}
	if len(s.last) >= maxFlows {
		if now.Sub(s.swept) < time.Second { // looking through all of them for each packet would be the guest's way to keep us busy
			return false
		}
		s.swept = now
		for g, last := range s.last {
			if now.Sub(last) > flowIdle {
				delete(s.last, g)
			}
		}
		if len(s.last) >= maxFlows {
			return false
		}
	}
	s.last[f] = now
	return true
}

// hostAge is for how long the host's addresses are believed.
const hostAge = 5 * time.Second

// hostAddresses are the host's own, and those that reach it as broadcasts.
type hostAddresses struct {
	mu    sync.Mutex
	known map[netip.Addr]bool
	until time.Time
	list  func() ([]net.Addr, error) // net.InterfaceAddrs, but for tests
}

// has reports whether a is the host's. As long as nobody can tell, everything is.
func (h *hostAddresses) has(a netip.Addr, log interface{ Error(string, ...any) }) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.After(h.until) {
		h.known, h.until = nil, now.Add(hostAge)
		addrs, err := h.list()
		if err != nil {
			log.Error("the host's own addresses cannot be told: nothing is let out", "reason", err)
			return true
		}
		h.known = make(map[netip.Addr]bool)
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || !p.Addr().Is4() {
				continue
			}
			h.known[p.Addr()] = true
			h.known[broadcastOf(p)] = true
		}
	}
	return h.known == nil || h.known[a]
}

// broadcastOf returns the last address of an IPv4 prefix.
func broadcastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	v := binary.BigEndian.Uint32(b[:]) | uint32(uint64(1)<<(32-p.Bits())-1)
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}
