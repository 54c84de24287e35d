package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// netCommands are those about networks of guests.
type netCommands struct {
	List       netListCommand       `cmd:"" help:"List the networks."`
	Show       netShowCommand       `cmd:"" help:"Tell all about a network: its guests, what has gone over it, forwards and rules."`
	Define     netDefineCommand     `cmd:"" help:"Add a network, or several, from files."`
	Edit       netEditCommand       `cmd:"" help:"Change a network's definition in the editor of VISUAL or EDITOR. Rules and forwards hold at once."`
	Delete     netDeleteCommand     `cmd:"" help:"Remove networks that no guest has a card on."`
	Forward    netForwardCommand    `cmd:"" help:"Have a port of the host's lead to a guest."`
	Unforward  netUnforwardCommand  `cmd:"" help:"Remove a forward."`
	AddRule    netAddRuleCommand    `cmd:"" help:"Add a rule to a network's firewall. The first that fits decides; if none does, the guest may."`
	RemoveRule netRemoveRuleCommand `cmd:"" help:"Remove a rule from a network's firewall."`
}

type netListCommand struct {
	JSON bool `name:"json" help:"Print for programs."`
}

// Run lists the networks.
func (c *netListCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	networks, err := k.Networks(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return asJSON(out, networks)
	}
	rows := [][]string{{"NETWORK", "KIND", "STATE", "SUBNET", "GUESTS", "NOTE"}}
	for _, n := range networks {
		var guests []string
		for _, g := range n.Guests {
			guests = append(guests, g.Name)
		}
		note, _, _ := strings.Cut(netNote(&n), "\n")
		rows = append(rows, []string{n.Name, orDash(n.Kind), netState(&n), orDash(n.Subnet), orDash(strings.Join(guests, ",")), printable(note)})
	}
	return table(out, rows)
}

func netState(n *client.Network) string {
	switch {
	case n.Stale:
		return "up, stale"
	case n.Up:
		return "up"
	}
	return "down"
}

func netNote(n *client.Network) string {
	if n.Fault != "" {
		return n.Fault
	}
	return n.Note
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type netShowCommand struct {
	Network string `arg:"" help:"Name of the network."`
	JSON    bool   `name:"json" help:"Print for programs."`
}

// Run tells all about a network.
func (c *netShowCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	n, err := k.Network(ctx, c.Network)
	if err != nil {
		return err
	}
	traffic, err := k.Traffic(ctx, c.Network)
	if err != nil {
		return err
	}
	if c.JSON {
		return asJSON(out, struct {
			client.Network
			Traffic []client.NetworkTraffic
		}{n, traffic})
	}
	rows := [][]string{{"network", n.Name}, {"kind", orDash(n.Kind)}, {"state", netState(&n)}}
	add := func(what, text string) {
		if text != "" {
			rows = append(rows, []string{what, text})
		}
	}
	add("subnet", n.Subnet)
	add("gateway", n.Gateway)
	add("uplink", n.Uplink)
	add("dns", strings.Join(n.DNS, ", "))
	add("peers", map[bool]string{true: "reach each other"}[n.Peers])
	add("host", map[bool]string{true: "is reached"}[n.Host])
	for line := range strings.Lines(netNote(&n)) {
		add("note", printable(strings.TrimSpace(line)))
	}
	for _, f := range n.Forwards {
		add("forward", fmt.Sprintf("%s %s to %s port %d", f.Protocol, f.Listen, f.Guest, f.Port))
	}
	for i, r := range n.Rules {
		add(fmt.Sprintf("rule %d", i), ruleText(&r))
	}
	if err := table(out, rows); err != nil || len(n.Guests) == 0 {
		return err
	}
	fmt.Fprintln(out)
	return table(out, guestRows(n.Guests, traffic))
}

// ruleText is a rule for people.
func ruleText(r *client.Rule) string {
	guest := "all guests"
	if r.Guest != "" {
		guest = r.Guest
	}
	words := []string{r.Action, r.Direction, "of", guest}
	for _, w := range []struct{ what, text string }{{"", r.Protocol}, {"other side ", r.CIDR}, {"ports ", r.Ports}} {
		if w.text != "" {
			words = append(words, w.what+w.text)
		}
	}
	return strings.Join(words, " ")
}

func guestRows(guests []client.NetworkGuest, traffic []client.NetworkTraffic) [][]string {
	rows := [][]string{{"GUEST", "ADDRESS", "MAC", "SENT", "RECEIVED", "DROPPED", "CONNECTIONS"}}
	for _, g := range guests {
		row := []string{g.Name, orDash(g.Address), g.MAC, "-", "-", "-", "-"}
		for _, t := range traffic {
			if t.Guest == g.Name {
				row = append(row[:3], size(t.SentBytes), size(t.ReceivedBytes), fmt.Sprint(t.Malformed+t.Spoofed+t.Refused+t.Overflow), fmt.Sprint(t.TCP+t.UDP))
			}
		}
		rows = append(rows, row)
	}
	return rows
}

type netDefineCommand struct {
	Files []string `arg:"" name:"file" help:"Definitions of networks; - is the standard input."`
}

// Run adds networks.
func (c *netDefineCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return m.defineFiles(ctx, c.Files, func(k *client.Client, text string) error {
		name, err := k.DefineNetwork(ctx, text)
		if err == nil {
			fmt.Fprintf(out, "network %s is defined\n", name)
		}
		return err
	})
}

type netEditCommand struct {
	Network string `arg:"" help:"Name of the network."`
}

// Run lets the user edit a definition until it is valid, or left as it was.
func (c *netEditCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	text, tag, err := k.NetworkDefinition(ctx, c.Network)
	if err != nil {
		return err
	}
	return editText(ctx, out, "network "+c.Network, text, func(edited string) error {
		return k.SetNetworkDefinition(ctx, c.Network, edited, tag)
	})
}

type netDeleteCommand struct {
	Networks []string `arg:"" name:"network" help:"Names of networks."`
}

// Run removes networks.
func (c *netDeleteCommand) Run(ctx context.Context, m *manageCommands) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	var errs []error
	for _, n := range c.Networks {
		errs = append(errs, k.DeleteNetwork(ctx, n))
	}
	return errors.Join(errs...)
}

// listenArg is the host's side of a forward.
type listenArg struct {
	Network string `arg:"" help:"Name of the network."`
	Listen  string `arg:"" help:"The host's port: ADDRESS:PORT; PORT is that of 127.0.0.1."`
	UDP     bool   `name:"udp" help:"Of UDP, in place of TCP."`
}

func (l *listenArg) forward() client.Forward {
	f := client.Forward{Protocol: "tcp", Listen: l.Listen}
	if l.UDP {
		f.Protocol = "udp"
	}
	if _, err := strconv.ParseUint(l.Listen, 10, 16); err == nil {
		f.Listen = net.JoinHostPort("127.0.0.1", l.Listen)
	}
	return f
}

type netForwardCommand struct {
	listenArg
	To string `arg:"" help:"The guest's: GUEST:PORT."`
}

// Run adds a forward.
func (c *netForwardCommand) Run(ctx context.Context, m *manageCommands) error {
	f := c.forward()
	guest, port, _ := strings.Cut(c.To, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || guest == "" {
		return fmt.Errorf("%q: write it as GUEST:PORT, such as web:80", c.To)
	}
	f.Guest, f.Port = guest, uint16(n)
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return k.AddForward(ctx, c.Network, f)
}

type netUnforwardCommand struct{ listenArg }

// Run removes a forward.
func (c *netUnforwardCommand) Run(ctx context.Context, m *manageCommands) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return k.RemoveForward(ctx, c.Network, c.forward())
}

type netAddRuleCommand struct {
	Network   string `arg:"" help:"Name of the network."`
	Action    string `arg:"" enum:"allow,deny" help:"allow or deny."`
	Direction string `arg:"" enum:"out,in" help:"Who begins: out, the guest; in, somebody else."`
	Guest     string `placeholder:"NAME" help:"Of one guest; of all if it is missing."`
	Protocol  string `placeholder:"NAME" help:"tcp, udp or icmp; any if it is missing."`
	CIDR      string `name:"cidr" placeholder:"PREFIX" help:"Of the other side, such as 10.0.0.0/8; anybody if it is missing."`
	Ports     string `placeholder:"N-N" help:"That it goes to; any if it is missing."`
	At        uint32 `default:"0" placeholder:"N" help:"The position, which counts from 0; the rule that is there comes after it."`
}

// Run adds a rule.
func (c *netAddRuleCommand) Run(ctx context.Context, m *manageCommands) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return k.AddRule(ctx, c.Network, c.At, client.Rule{Guest: c.Guest, Direction: c.Direction, Action: c.Action, Protocol: c.Protocol, CIDR: c.CIDR, Ports: c.Ports})
}

type netRemoveRuleCommand struct {
	Network string `arg:"" help:"Name of the network."`
	At      uint32 `arg:"" help:"Its position, which counts from 0: see lodge net show."`
}

// Run removes a rule.
func (c *netRemoveRuleCommand) Run(ctx context.Context, m *manageCommands) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return k.RemoveRule(ctx, c.Network, c.At)
}
