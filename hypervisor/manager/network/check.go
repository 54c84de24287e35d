package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/lodgehv/lodge/hypervisor/definition"
)

// Limits of a network.
const (
	maxForwards = 64
	maxRules    = 256
	maxDNS      = 4
	minBits     = 16 // of a subnet's prefix
	maxBits     = 29
)

// isName reports whether s can name a network: "lodge-" and it have to fit into an interface's name, of 15 bytes.
func isName(s string) bool {
	for i, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (i == 0 || c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= 9
}

// isInterface reports whether s can name an interface of the host's.
func isInterface(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !slices.ContainsFunc([]byte(s), func(c byte) bool {
		return c <= ' ' || c > '~' || c == '/' || c == ':' || c == '%'
	})
}

// fault makes an error about a key.
type fault func(key, format string, args ...any) error

// check reports all that is wrong with n.
func (n *Network) check(fault fault) error {
	var errs []error
	fail := func(key, format string, args ...any) { errs = append(errs, fault(key, format, args...)) }
	if !isName(n.Name) {
		fail("name", "name %q: up to 9 lower-case letters, digits and '-' are possible", n.Name)
	}
	if !slices.Contains([]Kind{User, NAT, Bridged, Isolated}, n.Kind) {
		fail("kind", "kind %q: one of %s, %s, %s, %s", n.Kind, User, NAT, Bridged, Isolated)
		return errors.Join(errs...)
	}
	n.checkSubnet(fail)
	if (n.Kind == Bridged) != (n.Uplink != "") {
		fail("uplink", "uplink belongs to a bridged network, which needs it")
	} else if n.Kind == Bridged && !isInterface(n.Uplink) {
		fail("uplink", "uplink %q: not the name of an interface: see ip link", n.Uplink)
	}
	outside := n.Kind == User || n.Kind == NAT
	if n.Host && !outside {
		fail("host", "host belongs to user and nat networks")
	}
	if len(n.DNS) > 0 && !outside {
		fail("dns", "dns belongs to user and nat networks")
	}
	if len(n.DNS) > maxDNS {
		fail("dns", "%d resolvers: at most %d are possible", len(n.DNS), maxDNS)
	}
	for _, a := range n.DNS {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			fail("dns", "dns %v: not the address of a resolver", a)
		}
	}
	n.checkForwards(fail, outside)
	n.checkRules(fail)
	return errors.Join(errs...)
}

func (n *Network) checkSubnet(fail func(key, format string, args ...any)) {
	switch s := n.Subnet; {
	case n.Kind == Bridged && s != netip.Prefix{}:
		fail("subnet", "subnet: a bridged network has that of its uplink: leave it out")
	case n.Kind == Bridged:
	case !s.IsValid():
		fail("subnet", "no subnet: set it to one that is not used here, such as \"10.77.0.0/24\"")
	case !s.Addr().Is4() || s.Bits() < minBits || s.Bits() > maxBits:
		fail("subnet", "subnet %v: IPv4 from /%d to /%d is possible", s, minBits, maxBits)
	case unusable(s.Addr()):
		fail("subnet", "subnet %v: these addresses are for something else: use a part of 10.0.0.0/8 or 192.168.0.0/16", s)
	}
}

// unusable reports whether no guest and nobody outside can have address a: this machine, link-local, multicast, reserved.
func unusable(a netip.Addr) bool {
	return a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240)
}

// Routable reports whether a can be the address of somebody outside.
func Routable(a netip.Addr) bool { return a.IsValid() && !unusable(a) }

func (n *Network) checkForwards(fail func(key, format string, args ...any), outside bool) {
	if len(n.Forwards) > 0 && !outside {
		fail("forward[0]", "forwards belong to user and nat networks")
	}
	if len(n.Forwards) > maxForwards {
		fail(fmt.Sprintf("forward[%d]", maxForwards), "%d forwards: at most %d are possible", len(n.Forwards), maxForwards)
	}
	for i, f := range n.Forwards {
		at := fmt.Sprintf("forward[%d]", i)
		if f.Protocol != TCP && f.Protocol != UDP {
			fail(at+".protocol", "forward: protocol %q: one of %s, %s", f.Protocol, TCP, UDP)
		}
		if !f.Listen.IsValid() || f.Listen.Port() == 0 {
			fail(at+".listen", "forward: set listen to an address and port of the host's, such as \"127.0.0.1:8080\"")
		} else if n.Kind == NAT && (!f.Listen.Addr().Is4() || f.Listen.Addr().IsLoopback()) {
			fail(at+".listen", "forward: listen %v: on a nat network an IPv4 address that others reach, or 0.0.0.0", f.Listen)
		}
		if f.Port == 0 {
			fail(at+".port", "forward: set port to the guest's, from 1 up to 65535")
		}
		if !definition.IsName(f.Guest) {
			fail(at+".guest", "forward: guest %q: set it to the name of a guest", f.Guest)
		}
		for _, g := range n.Forwards[:i] {
			if f.Listen.IsValid() && g.Listen.IsValid() && collide(f, g) {
				fail(at+".listen", "forward: %s %v is used twice: choose another port", f.Protocol, f.Listen)
			}
		}
	}
}

// collide reports whether two forwards cannot listen at the same time.
func collide(f, g Forward) bool {
	a, b := f.Listen.Addr(), g.Listen.Addr()
	return f.Protocol == g.Protocol && f.Listen.Port() == g.Listen.Port() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

func (n *Network) checkRules(fail func(key, format string, args ...any)) {
	if len(n.Rules) > 0 && n.Kind == Bridged {
		fail("rule[0]", "rules: what a bridged network carries, its other machines see too: use a nat network for a firewall")
	}
	if len(n.Rules) > maxRules {
		fail(fmt.Sprintf("rule[%d]", maxRules), "%d rules: at most %d are possible", len(n.Rules), maxRules)
	}
	for i, r := range n.Rules {
		at := fmt.Sprintf("rule[%d]", i)
		if r.Guest != "" && !definition.IsName(r.Guest) {
			fail(at+".guest", "rule: guest %q: set it to the name of a guest, or leave it out", r.Guest)
		}
		if r.Direction != In && r.Direction != Out {
			fail(at+".direction", "rule: direction %q: one of %s, %s", r.Direction, In, Out)
		}
		if r.Action != Allow && r.Action != Deny {
			fail(at+".action", "rule: action %q: one of %s, %s", r.Action, Allow, Deny)
		}
		if !slices.Contains([]Protocol{"", TCP, UDP, ICMP}, r.Protocol) {
			fail(at+".protocol", "rule: protocol %q: one of %s, %s, %s, or leave it out", r.Protocol, TCP, UDP, ICMP)
		}
		if r.CIDR != (netip.Prefix{}) && (!r.CIDR.IsValid() || !r.CIDR.Addr().Is4()) {
			fail(at+".cidr", "rule: cidr %v: write an IPv4 prefix such as \"10.0.0.0/8\", or leave it out", r.CIDR)
		}
		if r.Ports != (Ports{}) && r.Protocol != TCP && r.Protocol != UDP {
			fail(at+".ports", "rule: ports belong to protocol %s or %s", TCP, UDP)
		}
	}
}

// together reports what n cannot have in common with another network: addresses, ports of the host's, an uplink.
func (n *Network) together(o *Network, fault fault) error {
	var errs []error
	fail := func(key, format string, args ...any) { errs = append(errs, fault(key, format, args...)) }
	if n.Subnet.IsValid() && o.Subnet.IsValid() && n.Subnet.Overlaps(o.Subnet) {
		fail("subnet", "subnet %v overlaps %v of network %q: choose another", n.Subnet, o.Subnet, o.Name)
	}
	if n.Uplink != "" && n.Uplink == o.Uplink {
		fail("uplink", "uplink %s is also network %q's: an interface can be in one bridge", n.Uplink, o.Name)
	}
	for i, f := range n.Forwards {
		if slices.ContainsFunc(o.Forwards, func(g Forward) bool { return collide(f, g) }) {
			fail(fmt.Sprintf("forward[%d].listen", i), "forward: %s %v is also used by network %q: choose another port", f.Protocol, f.Listen, o.Name)
		}
	}
	return errors.Join(errs...)
}

// CheckGuests reports what is wrong with the guests of a network: all have another name, MAC and, unless the network is bridged,
// address in its subnet.
func (n *Network) CheckGuests(guests []Guest) error {
	var errs []error
	names, macs, addresses := map[string]bool{}, map[MAC]string{GatewayMAC: "the gateway"}, map[netip.Addr]string{n.Gateway(): "the gateway"}
	for _, g := range guests {
		fail := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("network %q, guest %q: "+format, append([]any{n.Name, g.Name}, args...)...))
		}
		if !definition.IsName(g.Name) {
			fail("not the name of a guest")
		} else if names[g.Name] {
			fail("is there twice")
		}
		names[g.Name] = true
		if g.MAC[0]&1 != 0 || g.MAC == (MAC{}) {
			fail("mac %v: not a unicast address", g.MAC)
		} else if other, taken := macs[g.MAC]; taken {
			fail("mac %v is that of %s too", g.MAC, other)
		}
		macs[g.MAC] = g.Name
		if n.Kind == Bridged {
			continue
		}
		if g.Address != n.Gateway() && !n.isGuest(g.Address) {
			fail("address %v: not one of subnet %v", g.Address, n.Subnet)
		} else if other, taken := addresses[g.Address]; taken {
			fail("address %v is that of %s too", g.Address, other)
		}
		addresses[g.Address] = g.Name
	}
	return errors.Join(errs...)
}
