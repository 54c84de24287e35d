package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// ErrNetworkUsed says that guests need a network.
var ErrNetworkUsed = errors.New("guests are on it")

// networks are all networks of a host: what is defined, and those that are up.
type networks struct {
	m      *Manager
	log    *slog.Logger
	store  *network.Store
	leases *network.Leases

	mu     sync.Mutex
	byName map[string]*carrier // also of networks that are down

	watch sync.Once // of the host's resolvers
}

// Network is a network as it was at one moment.
type Network struct {
	network.Network // as it is up, or else as it is defined; only Name counts if there is neither

	Fault  string // what is wrong with its definition
	Up     bool   // guests are on it
	Stale  bool   // it is up as an older definition says: of a newer one, rules and forwards hold at once
	Note   string // for people: what does not work
	PID    int    // of its lodge-net; 0 is none
	Guests []network.Guest
}

// openNetworks reads the definitions, and finds what the manager before has left.
func (m *Manager) openNetworks() (err error) {
	n := &m.networks
	n.m, n.log, n.byName = m, m.log, make(map[string]*carrier)
	if n.store, err = network.OpenStore(filepath.Join(m.cfg.ConfigDir, "networks")); err != nil {
		return err
	}
	if n.leases, err = network.OpenLeases(filepath.Join(m.cfg.StateDir, "leases.json")); err != nil {
		return err
	}
	if err := os.MkdirAll(n.runDir(""), 0o700); err != nil {
		return err
	}
	dirs, err := os.ReadDir(n.runDir(""))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		n.carrier(d.Name()).find()
	}
	for _, name := range n.store.Names() {
		if _, err := n.store.Get(name); err != nil {
			n.log.Warn("network cannot be used", "network", name, "err", err)
		}
		c := n.carrier(name)
		c.mu.Lock() // its lodge-net, found running, may end
		c.publish()
		c.mu.Unlock()
	}
	return nil
}

func (n *networks) runDir(network string) string {
	return filepath.Join(n.m.cfg.RunDir, "networks", network)
}
func (n *networks) stateDir(network string) string {
	return filepath.Join(n.m.cfg.StateDir, "networks", network)
}

// carrier returns what carries the network of that name, which may be down.
func (n *networks) carrier(name string) *carrier {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.byName[name]
	if c == nil {
		c = &carrier{n: n, name: name, log: n.log.With("network", name)}
		n.byName[name] = c
	}
	return c
}

// carriers returns all, in the order of their names.
func (n *networks) carriers() []*carrier {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []*carrier
	for _, c := range n.byName {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *carrier) int { return strings.Compare(a.name, b.name) })
	return list
}

// settle is called when it is known which guests run: the others are on no network any more, whatever the records say, and what a
// crash has left of other networks goes.
func (n *networks) settle() {
	var keep []string
	for _, c := range n.carriers() {
		c.settle(func(guest string) bool {
			g, err := n.m.find(guest)
			return err == nil && g.info.Load().PID != 0
		})
		if c.info.Load() != nil && c.info.Load().Up {
			keep = append(keep, c.name)
		}
	}
	if b := n.m.cfg.Bridge; b != nil {
		if err := b.Clean(keep); err != nil {
			n.log.Warn("left over of networks", "err", err)
		}
	}
}

// attach connects the cards of a guest that is to be started to their networks, and returns the cards with what its VMM finds them
// by. Whatever is the error, release follows.
func (n *networks) attach(ctx context.Context, guest string, nics []definition.NIC) ([]definition.NIC, error) {
	nics = slices.Clone(nics)
	for i := range nics {
		if c := &nics[i]; c.Network != "" {
			if err := n.carrier(c.Network).attach(ctx, guest, c); err != nil {
				return nil, fmt.Errorf("nic %q: network %q: %w", c.Name, c.Network, err)
			}
			c.Network = ""
		}
	}
	return nics, nil
}

// release takes the cards of a guest, which has ended, from their networks.
func (n *networks) release(guest string) {
	for _, c := range n.carriers() {
		c.release(guest)
	}
}

// close lets go of all networks, which stay up.
func (n *networks) close() {
	for _, c := range n.carriers() {
		c.close()
	}
}

// address returns the address of a card.
func (n *networks) address(def *network.Network, mac network.MAC) (netip.Addr, error) {
	if def.Kind == network.Bridged {
		return netip.Addr{}, nil
	}
	return n.leases.Get(def, mac, func(other network.MAC) bool {
		return slices.ContainsFunc(n.m.store.List(), func(g *store.Guest) bool {
			return slices.ContainsFunc(g.NICs, func(c definition.NIC) bool { return c.MAC == other.String() })
		})
	})
}

// usable reports whether guests can have cards on a network.
func (n *networks) usable(name string) bool {
	_, err := n.store.Get(name)
	return err == nil
}

// users returns the guests that have a card on a network by their definitions.
func (n *networks) users(name string) (guests []string) {
	for _, g := range n.m.store.List() {
		if slices.ContainsFunc(g.NICs, func(c definition.NIC) bool { return c.Network == name }) {
			guests = append(guests, g.Name)
		}
	}
	return guests
}

// ListNetworks returns all networks, by name. It waits for nothing.
func (m *Manager) ListNetworks() []Network {
	list := []Network{}
	for _, c := range m.networks.carriers() {
		if p := c.info.Load(); p != nil {
			list = append(list, *p)
		}
	}
	return list
}

// GetNetwork returns one network. It waits for nothing.
func (m *Manager) GetNetwork(name string) (Network, error) {
	for _, c := range m.networks.carriers() {
		if p := c.info.Load(); p != nil && c.name == name {
			return *p, nil
		}
	}
	_, _, err := m.networks.store.Text(name) // says what is wrong with the name
	if err == nil {
		err = fmt.Errorf("%w: %s", network.ErrNotFound, name)
	}
	return Network{}, err
}

// CheckNetwork validates a definition and saves nothing.
func (m *Manager) CheckNetwork(text []byte) error { return m.networks.store.Check(text) }

// NetworkDefinition returns a network's definition as text, and its tag for EditNetwork.
func (m *Manager) NetworkDefinition(name string) (text []byte, tag string, err error) {
	return m.networks.store.Text(name)
}

// DefineNetwork adds a network and returns its name.
func (m *Manager) DefineNetwork(text []byte) (string, error) {
	m.defining.Lock()
	defer m.defining.Unlock()
	def, err := m.networks.store.Define(text)
	if err != nil {
		return "", err
	}
	m.log.Info("network defined", "network", def.Name)
	err = m.networks.carrier(def.Name).redefine()
	m.refresh() // guests may have waited for it
	return def.Name, err
}

// EditNetwork replaces the definition of a network, if it is still the one that tag belongs to; "" replaces any. Rules and forwards
// hold at once, the rest when the network comes up the next time.
func (m *Manager) EditNetwork(name string, text []byte, tag string) error {
	m.defining.Lock()
	defer m.defining.Unlock()
	if _, err := m.networks.store.Edit(name, text, tag); err != nil {
		return err
	}
	m.log.Info("network changed", "network", name)
	err := m.networks.carrier(name).redefine()
	m.refresh()
	return err
}

// AddForward adds a forward to the definition of a network.
func (m *Manager) AddForward(name string, f network.Forward) error {
	return m.editNetwork(name, func(text []byte) ([]byte, error) { return network.AddForward(text, f) })
}

// RemoveForward removes the forward that listens as f does.
func (m *Manager) RemoveForward(name string, f network.Forward) error {
	return m.editNetwork(name, func(text []byte) ([]byte, error) { return network.RemoveForward(text, f) })
}

// AddRule adds a rule to the definition of a network, before the one that is at a position, which counts from 0; or behind the last.
func (m *Manager) AddRule(name string, at int, r network.Rule) error {
	return m.editNetwork(name, func(text []byte) ([]byte, error) { return network.AddRule(text, at, r) })
}

// RemoveRule removes the rule at a position.
func (m *Manager) RemoveRule(name string, at int) error {
	return m.editNetwork(name, func(text []byte) ([]byte, error) { return network.RemoveRule(text, at) })
}

func (m *Manager) editNetwork(name string, edit func(text []byte) ([]byte, error)) error {
	text, tag, err := m.networks.store.Text(name)
	if err == nil {
		text, err = edit(text)
	}
	if err != nil {
		return err
	}
	return m.EditNetwork(name, text, tag)
}

// DeleteNetwork removes a network that no guest has a card on.
func (m *Manager) DeleteNetwork(name string) error {
	m.defining.Lock()
	defer m.defining.Unlock()
	if users := m.networks.users(name); len(users) > 0 && name != network.Default {
		return fmt.Errorf("network %s: %w: %s: edit that guest first", name, ErrNetworkUsed, users[0])
	}
	if p, err := m.GetNetwork(name); err == nil && len(p.Guests) > 0 && name != network.Default {
		return fmt.Errorf("network %s: %w: %s: stop that guest first", name, ErrNetworkUsed, p.Guests[0].Name)
	}
	if err := m.networks.store.Delete(name); err != nil {
		return err
	}
	m.log.Info("network deleted", "network", name)
	err := m.networks.carrier(name).redefine()
	if name != network.Default {
		err = errors.Join(err, m.networks.leases.Forget(name), os.RemoveAll(m.networks.stateDir(name)))
	}
	m.refresh()
	return err
}

// reload takes definitions into use that people may have edited by hand.
func (n *networks) reload() error {
	err := n.store.Reload()
	for _, name := range n.store.Names() {
		n.carrier(name)
	}
	for _, c := range n.carriers() {
		err = errors.Join(err, c.redefine())
	}
	return err
}

// NetworkTraffic returns what has gone over a network since each of its guests has come. Of a network that the host's kernel
// carries, it is counted by the card, and Overflow has all that was dropped there.
func (m *Manager) NetworkTraffic(ctx context.Context, name string) ([]netctl.GuestStatus, error) {
	p, err := m.GetNetwork(name)
	if err != nil || !p.Up {
		return nil, err
	}
	if p.Kind.Helper() {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		c, err := control.Dial(ctx, m.networks.carrier(name).path("control.sock"))
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", name, err)
		}
		defer c.Close()
		var s netctl.Status
		if err := c.Call(ctx, "status", nil, &s, nil); err != nil {
			return nil, fmt.Errorf("network %s: %w", name, err)
		}
		return s.Guests, nil
	}
	var list []netctl.GuestStatus
	for _, g := range p.Guests {
		s := netctl.GuestStatus{Name: g.Name, MAC: g.MAC, Address: g.Address, Connected: true}
		if s.Sent, s.SentBytes, s.Received, s.ReceivedBytes, s.Overflow, err = m.cfg.Bridge.Traffic(&p.Network, g.MAC); err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// same reports whether two networks are described by the same words.
func same(a, b *network.Network) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}
