package usermode

import (
	"errors"
	"fmt"
	"net"

	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// nic is the stack's only interface.
const nic = 1

// tcpBuffer is how many bytes one direction of a connection can hold: there is no distance between a guest and here that would
// take more, and a guest can have maxTCP connections.
const tcpBuffer = 256 << 10

// startStack makes the gateway's TCP/IP.
func (n *Net) startStack() error {
	n.host.list = net.InterfaceAddrs
	link, err := tap.NewLinkEndpoint(false, mtu, network.GatewayMAC.String(), n.def.Gateway().String(), nil)
	if err != nil {
		return fmt.Errorf("network %q: %w", n.def.Name, err)
	}
	n.link = link
	link.Connect(n)
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	subnet, err := tcpip.NewSubnet(tcpip.AddrFrom4(n.def.Subnet.Addr().As4()),
		tcpip.MaskFromBytes(net.CIDRMask(n.def.Subnet.Bits(), 32)))
	if err != nil {
		return fmt.Errorf("network %q: %w", n.def.Name, err)
	}
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer, Max: tcpBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer, Max: tcpBuffer}
	err = errors.Join(
		n.failed(n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)),
		n.failed(n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &receive)),
		n.failed(n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &send)),
		n.failed(n.stack.CreateNIC(nic, link)),
		n.failed(n.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol:          ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddrFrom4(n.def.Gateway().As4()).WithPrefix(),
		}, stack.AddressProperties{})),
	)
	if err != nil {
		return err
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: nic}})
	if n.def.Kind == network.User { // an isolated network has nobody who would answer for the outside
		err = errors.Join(n.failed(n.stack.SetSpoofing(nic, true)), n.failed(n.stack.SetPromiscuousMode(nic, true)))
		n.forwardOut()
	}
	return err
}

// failed makes an error of the stack's one of Go's.
func (n *Net) failed(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("network %q: TCP/IP: %v", n.def.Name, err)
}

// addNeighbour tells the stack where a guest is, so that it asks nobody.
func (n *Net) addNeighbour(g network.Guest) error {
	if n.stack == nil {
		return nil
	}
	return n.failed(n.stack.AddStaticNeighbor(nic, ipv4.ProtocolNumber, tcpip.AddrFrom4(g.Address.As4()), tcpip.LinkAddress(g.MAC[:])))
}

func (n *Net) removeNeighbour(g network.Guest) {
	if n.stack == nil {
		return
	}
	_ = n.stack.RemoveNeighbor(nic, ipv4.ProtocolNumber, tcpip.AddrFrom4(g.Address.As4()))
}

// toStack gives the stack a packet, which it copies. At its end the stack lets go of the interface, and packets are dropped.
func (n *Net) toStack(proto tcpip.NetworkProtocolNumber, b []byte) {
	n.stackMu.RLock()
	defer n.stackMu.RUnlock()
	if n.stackDown {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	n.link.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// DeliverNetworkPacket implements tap.NetworkSwitch: it takes a frame from the stack. What is for nobody here is dropped.
func (n *Net) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	eth := header.Ethernet(pkt.LinkHeader().Slice())
	if len(eth) < header.EthernetMinimumSize {
		return
	}
	if p := n.ports.Load().byMAC[network.MAC(eth[:6])]; p != nil {
		p.output(pkt.AsSlices()...)
	}
}
