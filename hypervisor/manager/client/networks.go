package client

import (
	"context"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Network is a network as it was when it was asked for. The fields are those of docs/api.
type Network struct {
	Name, Kind      string
	Subnet, Gateway string
	Uplink          string
	DNS             []string
	Peers, Host     bool
	Forwards        []Forward
	Rules           []Rule
	Fault           string
	DefinitionTag   string
	Up, Stale       bool
	Note            string
	PID             uint32
	Guests          []NetworkGuest
}

// Forward is a port of the host's that leads to a guest.
type Forward struct {
	Protocol string // tcp or udp
	Listen   string // address and port
	Guest    string
	Port     uint16
}

// Rule is a rule of a network's firewall. What may be missing is "".
type Rule struct{ Guest, Direction, Action, Protocol, CIDR, Ports string }

// NetworkGuest is a guest that is on a network.
type NetworkGuest struct{ Name, MAC, Address string }

// NetworkTraffic is what has gone over a network for a guest.
type NetworkTraffic struct {
	Guest                                 string
	Connected                             bool
	Sent, SentBytes                       uint64 // frames, and bytes
	Received, ReceivedBytes               uint64
	Malformed, Spoofed, Refused, Overflow uint64 // frames that were dropped
	TCP, UDP                              uint64 // connections and flows to the outside
}

// structs are the values of a property that is an array of structures.
func structs[T any](p properties, name string) []T {
	list := []T{}
	if v, ok := p[name]; ok {
		_ = v.Store(&list) // of a manager of another version it may be something else
	}
	return list
}

func (p properties) network() Network {
	str := func(name string) string { return value[string](p, name) }
	return Network{
		Name: str("Name"), Kind: str("Kind"), Subnet: str("Subnet"), Gateway: str("Gateway"), Uplink: str("Uplink"),
		DNS: value[[]string](p, "DNS"), Peers: value[bool](p, "Peers"), Host: value[bool](p, "Host"),
		Forwards: structs[Forward](p, "Forwards"), Rules: structs[Rule](p, "Rules"), Fault: str("Fault"),
		DefinitionTag: str("DefinitionTag"), Up: value[bool](p, "Up"), Stale: value[bool](p, "Stale"), Note: str("Note"),
		PID: value[uint32](p, "PID"), Guests: structs[NetworkGuest](p, "Guests"),
	}
}

// Networks returns all networks by name.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	var list []entry
	if err := c.call(ctx, ManagerPath, ManagerInterface, "ListNetworks", nil, &list); err != nil {
		return nil, err
	}
	networks := make([]Network, len(list))
	for n, e := range list {
		networks[n] = e.Properties.network()
	}
	return networks, nil
}

// Network returns a network.
func (c *Client) Network(ctx context.Context, name string) (Network, error) {
	var path dbus.ObjectPath // the manager says what is wrong with a name
	if err := c.call(ctx, ManagerPath, ManagerInterface, "GetNetwork", []any{name}, &path); err != nil {
		return Network{}, err
	}
	p, err := c.all(ctx, path, NetworkInterface)
	return p.network(), err
}

// CheckNetwork validates a definition and saves nothing.
func (c *Client) CheckNetwork(ctx context.Context, definition string) error {
	return c.call(ctx, ManagerPath, ManagerInterface, "CheckNetwork", []any{definition})
}

// DefineNetwork adds a network and returns its name.
func (c *Client) DefineNetwork(ctx context.Context, definition string) (network string, err error) {
	var path dbus.ObjectPath
	if err := c.call(ctx, ManagerPath, ManagerInterface, "DefineNetwork", []any{definition}, &path); err != nil {
		return "", err
	}
	o, _ := ParsePath(path)
	return o.Network, nil
}

// networkCall calls a method of a network.
func (c *Client) networkCall(ctx context.Context, network, method string, args []any, out ...any) error {
	if network == "" || strings.ContainsRune(network, 0) {
		return &Error{ErrorPrefix + "InvalidName", fmt.Sprintf("%q is no name of a network", network)}
	}
	return c.call(ctx, NetworkPath(network), NetworkInterface, method, args, out...)
}

// NetworkDefinition returns a network's definition and its tag.
func (c *Client) NetworkDefinition(ctx context.Context, network string) (text, tag string, err error) {
	return text, tag, c.networkCall(ctx, network, "GetDefinition", nil, &text, &tag)
}

// SetNetworkDefinition replaces a network's definition if it is still the one that tag belongs to, else it is ErrChanged; "" replaces
// any.
func (c *Client) SetNetworkDefinition(ctx context.Context, network, text, tag string) error {
	return c.networkCall(ctx, network, "SetDefinition", []any{text, tag})
}

// DeleteNetwork removes a network that no guest has a card on.
func (c *Client) DeleteNetwork(ctx context.Context, network string) error {
	return c.networkCall(ctx, network, "Delete", nil)
}

// AddForward has a port of the host's lead to a guest.
func (c *Client) AddForward(ctx context.Context, network string, f Forward) error {
	return c.networkCall(ctx, network, "AddForward", []any{f.Protocol, f.Listen, f.Guest, f.Port})
}

// RemoveForward removes the forward that listens as f does.
func (c *Client) RemoveForward(ctx context.Context, network string, f Forward) error {
	return c.networkCall(ctx, network, "RemoveForward", []any{f.Protocol, f.Listen})
}

// AddRule adds a rule before the one that is at a position, which counts from 0, or behind the last.
func (c *Client) AddRule(ctx context.Context, network string, position uint32, r Rule) error {
	return c.networkCall(ctx, network, "AddRule", []any{position, r.Guest, r.Direction, r.Action, r.Protocol, r.CIDR, r.Ports})
}

// RemoveRule removes a rule.
func (c *Client) RemoveRule(ctx context.Context, network string, position uint32) error {
	return c.networkCall(ctx, network, "RemoveRule", []any{position})
}

// Traffic returns what has gone over a network for each guest that is on it.
func (c *Client) Traffic(ctx context.Context, network string) (list []NetworkTraffic, err error) {
	return list, c.networkCall(ctx, network, "GetTraffic", nil, &list)
}
