// Package network describes the networks that guests are on: what people write of them (strict TOML), which address which
// guest has, and what its firewall lets through. Package usermode carries a network's frames in a process of their own;
// package bridge has the host's kernel do so.
package network

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"

	"github.com/lodgehv/lodge/hypervisor/definition"
)

// Kind is how a network gets to the outside.
type Kind string

// The kinds of networks.
const (
	User     Kind = "user"     // a jailed process opens its guests' connections anew: it needs no privilege
	NAT      Kind = "nat"      // a bridge of the host's, whose kernel translates addresses
	Bridged  Kind = "bridged"  // a bridge with one of the host's interfaces: guests are on its network
	Isolated Kind = "isolated" // like User, with no way out
)

// Helper reports whether a network of this kind is carried by a process of its own (lodge-net).
func (k Kind) Helper() bool { return k == User || k == Isolated }

// Network is one network, as people describe it. lodge-network(5) explains the keys.
type Network struct {
	Name   string       `toml:"name"`             // up to 9 letters, digits and '-': "lodge-" and it name an interface
	Kind   Kind         `toml:"kind"`             //
	Subnet netip.Prefix `toml:"subnet,omitempty"` // IPv4, /16 to /29; its first address is the gateway's. Not of bridged networks
	DNS    []netip.Addr `toml:"dns,omitempty"`    // resolvers; the host's if it is missing. Of user and nat networks
	Uplink string       `toml:"uplink,omitempty"` // the host's interface that a bridged network is joined to
	Peers  bool         `toml:"peers,omitempty"`  // guests reach each other, as far as rules let them
	Host   bool         `toml:"host,omitempty"`   // guests of a user or nat network reach the host's own addresses

	Forwards []Forward `toml:"forward,omitempty"` // of user and nat networks
	Rules    []Rule    `toml:"rule,omitempty"`    // of all but bridged networks
}

// Forward is a port of the host's that leads to a guest.
type Forward struct {
	Protocol Protocol       `toml:"protocol,omitempty"` // tcp or udp; tcp if it is missing
	Listen   netip.AddrPort `toml:"listen"`
	Guest    string         `toml:"guest"`
	Port     uint16         `toml:"port"`
}

// Guest is a guest's card on a network.
type Guest struct {
	Name    string
	MAC     MAC
	Address netip.Addr // the zero Addr on bridged networks, where somebody else gives addresses
}

// MAC is an Ethernet address.
type MAC [6]byte

// ParseMAC returns the unicast address that s is written for.
func ParseMAC(s string) (MAC, error) {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 || m[0]&1 != 0 || MAC(m) == (MAC{}) {
		return MAC{}, fmt.Errorf("mac %q: write a unicast address such as 52:54:00:12:34:56", s)
	}
	return MAC(m), nil
}

// String returns m in lower case with colons.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}

// GatewayMAC is the gateway's address on networks that a process carries: locally administered, and no guest's.
var GatewayMAC = MAC{0x52, 'L', 'o', 'd', 'g', 'e'}

// Gateway returns the address of the gateway: the subnet's first.
func (n *Network) Gateway() netip.Addr { return n.Subnet.Masked().Addr().Next() }

// Domain returns the domain in which the network's guests have names.
func (n *Network) Domain() string { return n.Name + ".internal" }

// offset returns the address that is i behind the subnet's own.
func (n *Network) offset(i uint32) netip.Addr {
	b := n.Subnet.Masked().Addr().As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += i
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// size returns the number of addresses in the subnet.
func (n *Network) size() uint32 { return 1 << (32 - n.Subnet.Bits()) }

// Broadcast returns the subnet's last address.
func (n *Network) Broadcast() netip.Addr { return n.offset(n.size() - 1) }

// isGuest reports whether a guest can have the address a.
func (n *Network) isGuest(a netip.Addr) bool {
	return n.Subnet.Contains(a) && a != n.Subnet.Addr() && a != n.Gateway() && a != n.Broadcast()
}

// firstGuest is the first address that a guest can have: behind the subnet's own and the gateway's.
const firstGuest = 2

// ErrFull is what Assign returns when all addresses of a subnet are taken.
var ErrFull = errors.New("no address is free")

// Assign returns the address for a card. It is derived from the card's MAC, so that it is the same again without having been
// kept, as long as no other card has it: what taken, which may be nil, says. Keep what was assigned all the same: two cards may
// want one address, and then it depends on who comes first.
func (n *Network) Assign(mac MAC, taken func(netip.Addr) bool) (netip.Addr, error) {
	count := n.size() - firstGuest - 1 // the last is for broadcasts
	h := fnv.New32a()
	_, _ = h.Write(mac[:])
	for i := range count {
		a := n.offset(firstGuest + (h.Sum32()%count+i)%count)
		if taken == nil || !taken(a) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("network %q, subnet %v: %w", n.Name, n.Subnet, ErrFull)
}

// Parse validates b, the content of a file that errors call name. The error is a join of *definition.Error.
func Parse(name string, b []byte) (*Network, error) {
	n, _, err := parse(name, b)
	return n, err
}

// parse is Parse that also tells where the keys are.
func parse(name string, b []byte) (*Network, *definition.Keys, error) {
	n := &Network{}
	keys, err := definition.Decode(name, "lodge-network(5)", b, n)
	if err != nil {
		return nil, nil, err
	}
	n.complete()
	if err := n.check(keys.Fault); err != nil {
		return nil, nil, err
	}
	return n, keys, nil
}

// Validate is what Parse checks, for a network that comes from elsewhere.
func (n *Network) Validate() error {
	n.complete()
	return n.check(func(_, format string, args ...any) error {
		return fmt.Errorf("network %q: "+format, append([]any{n.Name}, args...)...)
	})
}

// complete fills in what may be missing.
func (n *Network) complete() {
	for i := range n.Forwards {
		if n.Forwards[i].Protocol == "" {
			n.Forwards[i].Protocol = TCP
		}
	}
	n.Subnet = n.Subnet.Masked()
}
