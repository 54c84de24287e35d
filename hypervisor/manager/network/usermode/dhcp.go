package usermode

import (
	"bytes"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// Ports of DHCP, RFC 2131 §4.1.
const (
	dhcpServerPort = 67
	dhcpClientPort = 68
)

// leaseTime is how long a guest may keep its address without asking again. It is the guest's in any case.
const leaseTime = time.Hour

// optionMTU is the interface's MTU, RFC 2132 §5.1.
const optionMTU = 26

// inputDHCP answers a client's message.
func (p *port) inputDHCP(message []byte) {
	request, err := dhcpv4.FromBytes(message)
	if err != nil {
		p.malformed.Add(1)
		return
	}
	if !bytes.Equal(request.ClientHWAddr, p.guest.MAC[:]) {
		p.spoof("MAC", request.ClientHWAddr.String())
		return
	}
	reply := p.answerDHCP(request)
	if reply == nil {
		return
	}
	dst := p.guest.MAC
	if request.IsBroadcast() {
		dst = network.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	p.output(udpFrame(dst, netip.AddrPortFrom(p.net.def.Gateway(), dhcpServerPort),
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), dhcpClientPort), reply.ToBytes()))
}

// serveDHCP answers what comes over c, a socket on the bridge of a nat network, until that is closed. The kernel's firewall has seen
// to it that each guest asks for its own card, and its neighbour table knows which address is whose.
func (n *Net) serveDHCP(c net.PacketConn) {
	buf := make([]byte, maxDatagram)
	for {
		k, _, err := c.ReadFrom(buf)
		if err != nil {
			if n.ctx.Err() == nil {
				n.log.Error("DHCP has ended", "reason", err)
			}
			return
		}
		request, err := dhcpv4.FromBytes(buf[:k])
		if err != nil || len(request.ClientHWAddr) != len(network.MAC{}) {
			continue
		}
		p := n.ports.Load().byMAC[network.MAC(request.ClientHWAddr)]
		if p == nil {
			continue
		}
		reply := p.answerDHCP(request)
		if reply == nil {
			continue
		}
		to := net.IPv4bcast // RFC 2131 §4.1
		switch {
		case request.IsBroadcast() || reply.MessageType() == dhcpv4.MessageTypeNak:
		case !request.ClientIPAddr.IsUnspecified():
			to = p.guest.Address.AsSlice()
		case !reply.YourIPAddr.IsUnspecified():
			to = reply.YourIPAddr
		}
		if _, err := c.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: to, Port: dhcpClientPort}); err != nil {
			n.log.Warn("DHCP cannot answer", "guest", p.guest.Name, "reason", err)
		}
	}
}

// answerDHCP returns the answer to a request of this guest's, or nil if there is none, RFC 2131 §4.3.
func (p *port) answerDHCP(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	reply := p.replyDHCP(request)
	if reply != nil && reply.MessageType() == dhcpv4.MessageTypeAck {
		now := time.Now()
		p.given.Store(&now)
	}
	return reply
}

func (p *port) replyDHCP(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	n := p.net
	gateway, address := n.def.Gateway().AsSlice(), p.guest.Address.AsSlice()
	if request.OpCode != dhcpv4.OpcodeBootRequest {
		return nil
	}
	var kind dhcpv4.MessageType
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		if server := request.ServerIdentifier(); server != nil && !server.Equal(gateway) {
			return nil // it has chosen another server, that of a peer for example
		}
		wanted := request.RequestedIPAddress()
		if wanted == nil || wanted.IsUnspecified() {
			wanted = request.ClientIPAddr // it renews
		}
		kind = dhcpv4.MessageTypeAck
		if !wanted.Equal(address) {
			kind = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
		kind = dhcpv4.MessageTypeAck
	default:
		return nil
	}
	reply, err := dhcpv4.NewReplyFromRequest(request, dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(gateway)))
	if err != nil || kind == dhcpv4.MessageTypeNak {
		return reply
	}
	with := func(m ...dhcpv4.Modifier) {
		for _, f := range m {
			f(reply)
		}
	}
	if request.MessageType() != dhcpv4.MessageTypeInform {
		with(dhcpv4.WithYourIP(address), dhcpv4.WithLeaseTime(uint32(leaseTime/time.Second)))
	}
	with(dhcpv4.WithNetmask(net.CIDRMask(n.def.Subnet.Bits(), 32)),
		dhcpv4.WithDNS(gateway),
		dhcpv4.WithOption(dhcpv4.OptDomainName(n.def.Domain())),
		dhcpv4.WithOption(dhcpv4.OptHostName(p.guest.Name)),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(optionMTU), []byte{mtu >> 8, mtu & 0xff}))
	if n.def.Kind != network.Isolated {
		with(dhcpv4.WithRouter(gateway))
	}
	return reply
}

// udpFrame returns a frame from the gateway with a UDP datagram.
func udpFrame(dst network.MAC, from, to netip.AddrPort, data []byte) []byte {
	udpSize := header.UDPMinimumSize + len(data)
	b := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+udpSize)
	gateway := network.GatewayMAC
	header.Ethernet(b).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(gateway[:]), DstAddr: tcpip.LinkAddress(dst[:]), Type: header.IPv4ProtocolNumber,
	})
	src, dest := tcpip.AddrFrom4(from.Addr().As4()), tcpip.AddrFrom4(to.Addr().As4())
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: src, DstAddr: dest,
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(ip[header.IPv4MinimumSize:])
	u.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: to.Port(), Length: uint16(udpSize)})
	copy(u[header.UDPMinimumSize:], data)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, src, dest, uint16(udpSize))
	u.SetChecksum(^u.CalculateChecksum(checksum.Checksum(data, sum)))
	return b
}
