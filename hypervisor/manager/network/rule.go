package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is a protocol above IP.
type Protocol string

// The protocols that rules and forwards know.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	ICMP Protocol = "icmp"
)

// Direction is who begins, as a guest sees it.
type Direction string

// The directions.
const (
	Out Direction = "out" // the guest does
	In  Direction = "in"  // somebody else does
)

// Action is what a rule does.
type Action string

// The actions.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
)

// Rule is a rule of the firewall. The first that fits decides; if none does, the guest may. Answers belong to what they answer.
type Rule struct {
	Guest     string       `toml:"guest,omitempty"` // all if it is missing
	Direction Direction    `toml:"direction"`
	Action    Action       `toml:"action"`
	Protocol  Protocol     `toml:"protocol,omitempty"`               // any if it is missing
	CIDR      netip.Prefix `toml:"cidr,omitempty" json:",omitzero"`  // of the other side; any if it is missing
	Ports     Ports        `toml:"ports,omitempty" json:",omitzero"` // that it goes to; any if it is missing. Of tcp and udp
}

// Ports is a range of ports, written "80" or "8000-8080". The zero value is all of them.
type Ports struct{ First, Last uint16 }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Ports) UnmarshalText(b []byte) error {
	first, last, isRange := strings.Cut(string(b), "-")
	if !isRange {
		last = first
	}
	f, err1 := strconv.ParseUint(first, 10, 16)
	l, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || f == 0 || l < f {
		return fmt.Errorf("ports %q: write \"80\" or \"8000-8080\"", b)
	}
	*p = Ports{uint16(f), uint16(l)}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (p Ports) MarshalText() ([]byte, error) {
	switch {
	case p == Ports{}:
		return nil, nil
	case p.First == p.Last:
		return strconv.AppendUint(nil, uint64(p.First), 10), nil
	}
	return fmt.Appendf(nil, "%d-%d", p.First, p.Last), nil
}

// fits reports whether r is about a flow.
func (r *Rule) fits(guest string, d Direction, p Protocol, other netip.Addr, port uint16) bool {
	return (r.Guest == "" || r.Guest == guest) && r.Direction == d &&
		(r.Protocol == "" || r.Protocol == p) &&
		(!r.CIDR.IsValid() || r.CIDR.Contains(other)) &&
		(r.Ports == Ports{} || p != ICMP && port >= r.Ports.First && port <= r.Ports.Last)
}

// Allows reports whether a guest may begin (Out), or be the end of (In), a flow of protocol p between it and other. port is the
// one that the flow goes to; ICMP has none.
func Allows(rules []Rule, guest string, d Direction, p Protocol, other netip.Addr, port uint16) bool {
	for i := range rules {
		if r := &rules[i]; r.fits(guest, d, p, other, port) {
			return r.Action == Allow
		}
	}
	return true
}
