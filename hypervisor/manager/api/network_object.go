package api

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

func networkInterface() *iface {
	forward := []arg{{"protocol", "s", 0}, {"listen", "s", 0}}
	return &iface{
		name: client.NetworkInterface,
		doc:  "A network of guests, at " + string(client.NetworksPath) + "/NAME.",
		methods: []method{
			{name: "GetDefinition", action: View, out: []arg{{"definition", "s", 0}, {"tag", "s", 0}}, call: getNetworkDefinition,
				doc: "The text of its file, and the tag that SetDefinition takes."},
			{name: "SetDefinition", action: Define, in: []arg{{"definition", "s", maxText}, {"tag", "s", 0}}, call: setNetworkDefinition,
				doc: "Replaces its definition if it is still the one that the tag belongs to; an empty tag replaces any. " +
					"Rules and forwards hold at once, the rest when the network comes up the next time."},
			{name: "Delete", action: Define, call: deleteNetwork, doc: "Removes it, if no guest has a card on it."},
			{name: "AddForward", action: Define, in: append(forward, arg{"guest", "s", 0}, arg{"port", "q", 0}), call: addForward,
				doc: "Has what comes to a port of the host's lead to a guest: tcp or udp, the host's address and port such as " +
					"127.0.0.1:8080, the guest and its port."},
			{name: "RemoveForward", action: Define, in: forward, call: removeForward, doc: "Removes a forward."},
			{name: "AddRule", action: Define, in: []arg{{"position", "u", 0}, {"guest", "s", 0}, {"direction", "s", 0}, {"action", "s", 0},
				{"protocol", "s", 0}, {"cidr", "s", 0}, {"ports", "s", 0}}, call: addRule,
				doc: "Adds a rule to the firewall, before the one that is at a position, which counts from 0, or behind the last. " +
					"The rest are the keys of a rule; what may be missing is an empty string."},
			{name: "RemoveRule", action: Define, in: []arg{{"position", "u", 0}}, call: removeRule, doc: "Removes a rule."},
			{name: "GetTraffic", action: View, out: []arg{{"guests", dbus.SignatureOf([]client.NetworkTraffic{}).String(), 0}}, call: getTraffic,
				doc: "What has gone over it for each guest on it, since that came: name; whether it is connected; frames and bytes that it " +
					"sent, frames and bytes that it received; frames that were dropped: not what the network carries, from another's " +
					"address, refused by the firewall, not taken in time; connections and flows to the outside. Of a network that the " +
					"host's kernel carries, all that was dropped at the guest's card is among the last kind, and neither what its firewall " +
					"dropped nor connections are counted."},
		},
		properties: []property{
			{"Name", "s", true, "Its name."},
			{"Kind", "s", false, "user, nat, bridged or isolated. This and the next are as it is up, or else as it is defined."},
			{"Subnet", "s", false, "Its addresses, such as 10.77.0.0/24; empty of a bridged network."},
			{"Gateway", "s", false, "The address of its gateway, DHCP and DNS."},
			{"Uplink", "s", false, "The host's interface that a bridged network is joined to."},
			{"DNS", "as", false, "Its resolvers; the host's if there are none."},
			{"Peers", "b", false, "Guests reach each other."},
			{"Host", "b", false, "Guests reach the host's own addresses."},
			{"Forwards", dbus.SignatureOf([]client.Forward{}).String(), false, "Ports of the host's that lead to guests: protocol, the host's address and port, guest, its port."},
			{"Rules", dbus.SignatureOf([]client.Rule{}).String(), false, "Its firewall: guest, direction, action, protocol, cidr, ports."},
			{"Fault", "s", false, "What is wrong with its definition: guests cannot be started on it."},
			{"DefinitionTag", "s", false, "Another one whenever its definition is another."},
			{"Up", "b", false, "Guests are on it."},
			{"Stale", "b", false, "It is up as an older definition says."},
			{"Note", "s", false, "What people should know: why it does not work."},
			{"PID", "u", false, "The process of its lodge-net, or 0."},
			{"Guests", dbus.SignatureOf([]client.NetworkGuest{}).String(), false, "The guests that are on it: name, MAC, and address, which is empty on a bridged network."},
		},
		values: func(r *request) (props, error) {
			n, err := r.Manager.GetNetwork(r.object.Network)
			if err != nil {
				return nil, err
			}
			return r.networkProps(&n), nil
		},
	}
}

// networkProps are the properties of a network.
func (s *server) networkProps(n *manager.Network) props {
	v := dbus.MakeVariant
	str := func(s string) dbus.Variant { return v(text(s, maxErrorText)) }
	var gateway, subnet string
	if n.Subnet.IsValid() {
		gateway, subnet = n.Gateway().String(), n.Subnet.String()
	}
	dns := []string{}
	for _, a := range n.DNS {
		dns = append(dns, a.String())
	}
	forwards := []client.Forward{}
	for _, f := range n.Forwards {
		forwards = append(forwards, client.Forward{Protocol: string(f.Protocol), Listen: f.Listen.String(), Guest: f.Guest, Port: f.Port})
	}
	rules := []client.Rule{}
	for _, r := range n.Rules {
		ports, _ := r.Ports.MarshalText() // has no errors
		w := client.Rule{Guest: r.Guest, Direction: string(r.Direction), Action: string(r.Action), Protocol: string(r.Protocol), Ports: string(ports)}
		if r.CIDR.IsValid() {
			w.CIDR = r.CIDR.String()
		}
		rules = append(rules, w)
	}
	guests := []client.NetworkGuest{}
	for _, g := range n.Guests {
		w := client.NetworkGuest{Name: g.Name, MAC: g.MAC.String()}
		if g.Address.IsValid() {
			w.Address = g.Address.String()
		}
		guests = append(guests, w)
	}
	_, tag, err := s.Manager.NetworkDefinition(n.Name)
	if err != nil {
		tag = "" // it has none any more
	}
	return props{"Name": v(n.Name), "Kind": v(string(n.Kind)), "Subnet": v(subnet), "Gateway": v(gateway), "Uplink": v(n.Uplink), "DNS": v(dns),
		"Peers": v(n.Peers), "Host": v(n.Host), "Forwards": v(forwards), "Rules": v(rules), "Fault": str(n.Fault), "DefinitionTag": v(tag),
		"Up": v(n.Up), "Stale": v(n.Stale), "Note": str(n.Note), "PID": v(number(n.PID)), "Guests": v(guests)}
}

func listNetworks(_ context.Context, r *request) ([]any, error) {
	list := []entry{}
	for _, n := range r.Manager.ListNetworks() {
		list = append(list, entry{client.NetworkPath(n.Name), r.networkProps(&n)})
	}
	return []any{list}, nil
}

func getNetwork(_ context.Context, r *request) ([]any, error) {
	n, err := r.Manager.GetNetwork(r.str(0))
	if err != nil {
		return nil, err
	}
	return []any{client.NetworkPath(n.Name)}, nil
}

func checkNetwork(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.CheckNetwork([]byte(r.str(0)))
}

func defineNetwork(_ context.Context, r *request) ([]any, error) {
	name, err := r.Manager.DefineNetwork([]byte(r.str(0)))
	if err != nil {
		return nil, err
	}
	return []any{client.NetworkPath(name)}, nil
}

func getNetworkDefinition(_ context.Context, r *request) ([]any, error) {
	b, tag, err := r.Manager.NetworkDefinition(r.object.Network)
	return []any{text(string(b), maxText), tag}, err
}

func setNetworkDefinition(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.EditNetwork(r.object.Network, []byte(r.str(0)), r.str(1))
}

func deleteNetwork(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.DeleteNetwork(r.object.Network)
}

// forwardOf returns the forward that the first arguments of a call describe, as far as they do.
func forwardOf(r *request) (f network.Forward, err error) {
	f.Protocol = network.Protocol(r.str(0))
	if f.Listen, err = netip.ParseAddrPort(r.str(1)); err != nil {
		err = standard(invalidArgsError, fmt.Sprintf("listen %.80q: write an address and port of the host's, such as 127.0.0.1:8080", r.str(1)))
	}
	return f, err
}

func addForward(_ context.Context, r *request) ([]any, error) {
	f, err := forwardOf(r)
	if err != nil {
		return nil, err
	}
	f.Guest, f.Port = r.str(2), r.args[3].(uint16)
	return nil, r.Manager.AddForward(r.object.Network, f)
}

func removeForward(_ context.Context, r *request) ([]any, error) {
	f, err := forwardOf(r)
	if err != nil {
		return nil, err
	}
	return nil, r.Manager.RemoveForward(r.object.Network, f)
}

func addRule(_ context.Context, r *request) ([]any, error) {
	rule := network.Rule{Guest: r.str(1), Direction: network.Direction(r.str(2)), Action: network.Action(r.str(3)), Protocol: network.Protocol(r.str(4))}
	if s := r.str(5); s != "" {
		var err error
		if rule.CIDR, err = netip.ParsePrefix(s); err != nil {
			return nil, standard(invalidArgsError, fmt.Sprintf("cidr %.80q: write an IPv4 prefix such as 10.0.0.0/8, or leave it empty", s))
		}
	}
	if s := r.str(6); s != "" {
		if err := rule.Ports.UnmarshalText([]byte(s)); err != nil {
			return nil, standard(invalidArgsError, text(err.Error(), maxString))
		}
	}
	return nil, r.Manager.AddRule(r.object.Network, int(number(int(r.uint32(0)))), rule)
}

func removeRule(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.RemoveRule(r.object.Network, int(number(int(r.uint32(0)))))
}

func getTraffic(ctx context.Context, r *request) ([]any, error) {
	guests, err := r.Manager.NetworkTraffic(ctx, r.object.Network)
	list := []client.NetworkTraffic{}
	for _, g := range guests {
		list = append(list, client.NetworkTraffic{Guest: g.Name, Connected: g.Connected, Sent: g.Sent, SentBytes: g.SentBytes,
			Received: g.Received, ReceivedBytes: g.ReceivedBytes, Malformed: g.Malformed, Spoofed: g.Spoofed, Refused: g.Refused,
			Overflow: g.Overflow, TCP: uint64(max(g.TCP, 0)), UDP: uint64(max(g.UDP, 0))})
	}
	return []any{list}, err
}
