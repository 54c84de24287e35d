package bridge

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// families are those in which a network has a table: what a guest sends is checked where it enters the bridge; what leaves the
// network is checked and translated where the kernel routes.
var families = []nftables.TableFamily{nftables.TableFamilyBridge, nftables.TableFamilyINet}

// setTables replaces the tables of a nat network, in one transaction.
func setTables(n *network.Network, guests []network.Guest) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, f := range families {
		t := &nftables.Table{Family: f, Name: Name(n)}
		c.AddTable(t) // so that there is one to delete
		c.DelTable(t)
		c.AddTable(t)
		if f == nftables.TableFamilyBridge {
			addEntry(c, t, guests)
		} else {
			addRouting(c, t, n, guests)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: tables %s: %w", Name(n), err)
	}
	return nil
}

// removeTables removes the tables of the networks whose names goes satisfies, and reports whether others are left.
func removeTables(goes func(name string) bool) (left bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	for _, f := range families {
		tables, err := c.ListTablesOfFamily(f)
		if err != nil {
			return false, fmt.Errorf("nftables: list tables: %w", err)
		}
		for _, t := range tables {
			name, ours := strings.CutPrefix(t.Name, prefix)
			switch {
			case !ours:
			case goes(name):
				c.DelTable(t)
			default:
				left = true
			}
		}
	}
	if err := c.Flush(); err != nil {
		return left, fmt.Errorf("nftables: remove tables: %w", err)
	}
	return left, nil
}

// checks reports whether a nat network's firewall knows the tap of a card.
func checks(n *network.Network, mac network.MAC) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyBridge)
	if err != nil {
		return false, fmt.Errorf("nftables: list chains: %w", err)
	}
	return slices.ContainsFunc(chains, func(ch *nftables.Chain) bool {
		return ch.Table.Name == Name(n) && ch.Name == TapName(mac)
	}), nil
}

// Verdicts.
func accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }
func drop() expr.Any   { return &expr.Verdict{Kind: expr.VerdictDrop} }

// is compares what load puts into register 1 with data.
func is(load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

// isNot is the opposite of is.
func isNot(load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data}}
}

// meta loads what is known of a packet beside its bytes.
func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

// field loads bytes of a packet's header.
func field(base expr.PayloadBase, offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size}
}

// iface is an interface's name as the kernel compares it: with its end.
func iface(name string) []byte { return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...) }

// Offsets of fields.
const (
	etherSource  = 6
	ipv4Source   = 12
	ipv4Dest     = 16
	arpSenderMAC = 8 // RFC 826, for Ethernet and IPv4
	arpSenderIP  = 14
	portDest     = 2      // of TCP and UDP
	dhcpClient   = 8 + 28 // chaddr of DHCP in UDP, RFC 2131 §2
)

// rule adds a rule of all parts.
func rule(c *nftables.Conn, ch *nftables.Chain, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: ch.Table, Chain: ch}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	c.AddRule(r)
}

func only(e expr.Any) []expr.Any { return []expr.Any{e} }

// addEntry adds what a guest's tap lets in: ARP and IPv4 from its own addresses, and DHCP's questions.
func addEntry(c *nftables.Conn, t *nftables.Table, guests []network.Guest) {
	ch := c.AddChain(&nftables.Chain{Name: "entry", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter})
	etherType := func(v uint16) []expr.Any { return is(meta(expr.MetaKeyPROTOCOL), binaryutil.BigEndian.PutUint16(v)) }
	network4 := func(offset uint32) expr.Any { return field(expr.PayloadBaseNetworkHeader, offset, 4) }
	for _, g := range guests {
		// Each guest has a chain, so that a frame meets its own rules only.
		own := c.AddChain(&nftables.Chain{Name: TapName(g.MAC), Table: t})
		rule(c, ch, is(meta(expr.MetaKeyIIFNAME), iface(TapName(g.MAC))), only(&expr.Verdict{Kind: expr.VerdictJump, Chain: own.Name}))
		rule(c, own, isNot(field(expr.PayloadBaseLLHeader, etherSource, 6), g.MAC[:]), only(drop()))
		arp := etherType(unix.ETH_P_ARP)
		rule(c, own, arp, isNot(field(expr.PayloadBaseNetworkHeader, arpSenderMAC, 6), g.MAC[:]), only(drop()))
		rule(c, own, arp, is(network4(arpSenderIP), g.Address.AsSlice()), only(accept()))
		rule(c, own, arp, is(network4(arpSenderIP), make([]byte, 4)), only(accept())) // a probe, RFC 5227
		toDHCP := append(is(meta(expr.MetaKeyL4PROTO), []byte{unix.IPPROTO_UDP}),
			is(field(expr.PayloadBaseTransportHeader, portDest, 2), []byte{0, 67})...)
		rule(c, own, etherType(unix.ETH_P_IP), toDHCP, isNot(field(expr.PayloadBaseTransportHeader, dhcpClient, 6), g.MAC[:]), only(drop()))
		rule(c, own, etherType(unix.ETH_P_IP), is(network4(ipv4Source), g.Address.AsSlice()), only(accept()))
		rule(c, own, etherType(unix.ETH_P_IP), is(network4(ipv4Source), make([]byte, 4)), is(network4(ipv4Dest), []byte{255, 255, 255, 255}),
			toDHCP, only(accept()))
		rule(c, own, only(drop()))
	}
}

// addRouting adds what the kernel routes between the network and the outside, and how it translates that.
func addRouting(c *nftables.Conn, t *nftables.Table, n *network.Network, guests []network.Guest) {
	bridge := iface(Name(n))
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: prio})
	}
	from, to := is(meta(expr.MetaKeyIIFNAME), bridge), is(meta(expr.MetaKeyOIFNAME), bridge)
	answers := []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}

	forward := base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	// From a guest to another: routed, though the bridge keeps them apart; or bridged, where br_netfilter shows that here.
	if n.Peers {
		rule(c, forward, from, to, only(accept()))
	} else {
		rule(c, forward, from, to, only(drop()))
	}
	for _, way := range [][]expr.Any{from, to} {
		rule(c, forward, way, answers, only(accept()))
	}
	// From outside comes what was forwarded, and nothing else.
	notForwarded := []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4), Mask: binaryutil.NativeEndian.PutUint32(ctStatusDNAT)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}
	rule(c, forward, to, notForwarded, only(drop()))
	rule(c, forward, from, prefixMatch(ipv4Dest, linkLocal), only(drop())) // routers do not pass it on, RFC 3927 §2.7
	for _, r := range n.Rules {
		way, own, other := from, uint32(ipv4Source), uint32(ipv4Dest)
		if r.Direction == network.In {
			way, own, other = to, ipv4Dest, ipv4Source
		}
		for _, g := range guests {
			if r.Guest == "" || r.Guest == g.Name {
				rule(c, forward, way, match(&r, g.Address, own, other))
			}
		}
	}

	// Of the host itself a guest gets DHCP, DNS and echo, and the rest only if the network says so.
	input := base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	rule(c, input, from, answers, only(accept()))
	if !n.Host {
		l4 := func(proto byte) []expr.Any { return is(meta(expr.MetaKeyL4PROTO), []byte{proto}) }
		port := func(p uint16) []expr.Any {
			return is(field(expr.PayloadBaseTransportHeader, portDest, 2), binaryutil.BigEndian.PutUint16(p))
		}
		rule(c, input, from, l4(unix.IPPROTO_UDP), port(67), only(accept()))
		rule(c, input, from, l4(unix.IPPROTO_UDP), port(53), only(accept()))
		rule(c, input, from, l4(unix.IPPROTO_TCP), port(53), only(accept()))
		rule(c, input, from, l4(unix.IPPROTO_ICMP), only(accept()))
		rule(c, input, from, only(drop()))
	}

	out := base("masquerade", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	subnet := prefixMatch(ipv4Source, n.Subnet)
	rule(c, out, is(meta(expr.MetaKeyNFPROTO), []byte{unix.NFPROTO_IPV4}), subnet, isNot(meta(expr.MetaKeyOIFNAME), bridge), only(&expr.Masq{}))

	in := base("forwards", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	for _, f := range n.Forwards {
		for _, g := range guests {
			if g.Name == f.Guest {
				addForward(c, in, bridge, f, g)
			}
		}
	}
}

// linkLocal is where a host finds what configures it, such as a cloud's metadata: it is not for guests.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// ctStatusDNAT is IPS_DST_NAT of the kernel: the flow's destination was translated.
const ctStatusDNAT = 1 << 5

// addForward translates what comes for a port of the host's.
func addForward(c *nftables.Conn, ch *nftables.Chain, bridge []byte, f network.Forward, g network.Guest) {
	proto := byte(unix.IPPROTO_TCP)
	if f.Protocol == network.UDP {
		proto = unix.IPPROTO_UDP
	}
	parts := [][]expr.Any{
		is(meta(expr.MetaKeyNFPROTO), []byte{unix.NFPROTO_IPV4}),
		isNot(meta(expr.MetaKeyIIFNAME), bridge),
		// To the host itself, not what it routes for others.
		{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}},
	}
	if !f.Listen.Addr().IsUnspecified() {
		parts = append(parts, is(field(expr.PayloadBaseNetworkHeader, ipv4Dest, 4), f.Listen.Addr().AsSlice()))
	}
	parts = append(parts,
		is(meta(expr.MetaKeyL4PROTO), []byte{proto}),
		is(field(expr.PayloadBaseTransportHeader, portDest, 2), binaryutil.BigEndian.PutUint16(f.Listen.Port())),
		[]expr.Any{
			&expr.Immediate{Register: 1, Data: g.Address.AsSlice()},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(f.Port)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
		})
	rule(c, ch, parts...)
}

// prefixMatch compares the address at offset with a prefix.
func prefixMatch(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(uint64(1)<<(32-p.Bits())-1))
	return []expr.Any{
		field(expr.PayloadBaseNetworkHeader, offset, 4),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// match is r for one guest, whose address is at offset own; that of the other side is at offset other. It ends with the verdict.
func match(r *network.Rule, guest netip.Addr, own, other uint32) []expr.Any {
	e := append(is(meta(expr.MetaKeyNFPROTO), []byte{unix.NFPROTO_IPV4}), is(field(expr.PayloadBaseNetworkHeader, own, 4), guest.AsSlice())...)
	if r.CIDR.IsValid() && r.CIDR.Bits() > 0 {
		e = append(e, prefixMatch(other, r.CIDR)...)
	}
	protos := map[network.Protocol]byte{network.TCP: unix.IPPROTO_TCP, network.UDP: unix.IPPROTO_UDP, network.ICMP: unix.IPPROTO_ICMP}
	if p, ok := protos[r.Protocol]; ok {
		e = append(e, is(meta(expr.MetaKeyL4PROTO), []byte{p})...)
	}
	if r.Ports != (network.Ports{}) {
		e = append(e, field(expr.PayloadBaseTransportHeader, portDest, 2),
			&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binaryutil.BigEndian.PutUint16(r.Ports.First), ToData: binaryutil.BigEndian.PutUint16(r.Ports.Last)})
	}
	if r.Action == network.Deny {
		return append(e, drop())
	}
	return append(e, accept())
}
