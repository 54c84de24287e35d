package usermode

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/containers/gvisor-tap-vsock/pkg/tap"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
)

// maxGuests is how many guests a network can have.
const maxGuests = 64

// Net is a running network.
type Net struct {
	def      network.Network // but for the rules and forwards
	resolve  atomic.Pointer[[]netip.AddrPort]
	log      *slog.Logger
	rules    atomic.Pointer[[]network.Rule]
	ports    atomic.Pointer[table]
	link     *tap.LinkEndpoint
	stack    *stack.Stack // nil if the host's kernel carries the network
	host     hostAddresses
	services []io.Closer
	dial     func(ctx context.Context, protocol, address string) (net.Conn, error) // net.Dialer's, but for tests

	ctx      context.Context
	cancel   context.CancelFunc
	mu       sync.Mutex // for changes of ports, and for forwards and closed
	forwards map[forwardKey]io.Closer
	closed   bool
	wg       sync.WaitGroup

	stackMu   sync.RWMutex // held for reading while a packet is given to the stack
	stackDown bool
}

// table finds guests. It is replaced as a whole: whoever carries a frame takes no lock.
type table struct {
	byName    map[string]*port
	byMAC     map[network.MAC]*port
	byAddress map[[4]byte]*port
}

// New starts a network. It must be closed.
func New(c netctl.Config, log *slog.Logger) (*Net, error) {
	if err := c.Network.Validate(); err != nil {
		return nil, err
	}
	if c.Network.Kind == network.Bridged {
		return nil, fmt.Errorf("network %q: kind %s has its servers outside", c.Network.Name, c.Network.Kind)
	}
	n := &Net{def: c.Network, log: log, dial: new(net.Dialer).DialContext, forwards: make(map[forwardKey]io.Closer)}
	n.SetResolvers(c.Resolvers)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.rules.Store(&c.Network.Rules)
	n.ports.Store(&table{})
	var err error
	if c.Network.Kind.Helper() {
		err = n.startStack()
		if err == nil {
			err = n.startDNS()
		}
	}
	for _, g := range c.Guests {
		if err == nil {
			err = n.SetGuest(g)
		}
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close ends all connections of guests and returns when nothing of n runs any more.
func (n *Net) Close() {
	n.mu.Lock()
	n.closed = true
	for _, p := range n.ports.Load().byName {
		p.remove()
	}
	n.ports.Store(&table{})
	services := n.services
	n.mu.Unlock()
	n.cancel()
	for _, s := range services {
		_ = s.Close()
	}
	if n.stack != nil {
		n.stackMu.Lock()
		n.stackDown = true
		n.stackMu.Unlock()
		n.stack.Close()
		n.stack.Wait()
	}
	n.wg.Wait()
}

// run runs f in a goroutine that Close waits for, unless n is closed.
func (n *Net) run(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.wg.Go(f)
	return true
}

// SetGuest makes g known, in place of a guest of the same name. What that had open stays, if g has its addresses.
func (n *Net) SetGuest(g network.Guest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return net.ErrClosed
	}
	old := n.ports.Load()
	if p := old.byName[g.Name]; p != nil && p.guest == g {
		return nil
	}
	guests := []network.Guest{g}
	for _, p := range old.byName {
		if p.guest.Name != g.Name {
			guests = append(guests, p.guest)
		}
	}
	if len(guests) > maxGuests {
		return fmt.Errorf("network %q: %d guests: at most %d are possible", n.def.Name, len(guests), maxGuests)
	}
	if err := n.def.CheckGuests(guests); err != nil {
		return err
	}
	n.drop(g.Name)
	p := newPort(n, g)
	if err := n.addNeighbour(g); err != nil {
		return err
	}
	t := n.copyTable()
	t.byName[g.Name], t.byMAC[g.MAC], t.byAddress[g.Address.As4()] = p, p, p
	n.ports.Store(t)
	return nil
}

// RemoveGuest forgets a guest and ends all that it had open.
func (n *Net) RemoveGuest(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports.Load().byName[name] == nil {
		return fmt.Errorf("network %q: no guest %q is on it", n.def.Name, name)
	}
	n.drop(name)
	return nil
}

// drop takes a guest, if there is one of this name, from the table. n.mu is held.
func (n *Net) drop(name string) {
	p := n.ports.Load().byName[name]
	if p == nil {
		return
	}
	t := n.copyTable()
	delete(t.byName, name)
	delete(t.byMAC, p.guest.MAC)
	delete(t.byAddress, p.guest.Address.As4())
	n.ports.Store(t)
	p.remove()
	n.removeNeighbour(p.guest)
}

func (n *Net) copyTable() *table {
	old := n.ports.Load()
	t := &table{map[string]*port{}, map[network.MAC]*port{}, map[[4]byte]*port{}}
	maps.Copy(t.byName, old.byName)
	maps.Copy(t.byMAC, old.byMAC)
	maps.Copy(t.byAddress, old.byAddress)
	return t
}

// SetRules replaces the firewall's rules. They hold for the next packet from a guest to the outside; between guests, what was
// allowed to begin goes on.
func (n *Net) SetRules(rules []network.Rule) error {
	def := n.def
	def.Rules = rules
	if err := def.Validate(); err != nil {
		return err
	}
	n.rules.Store(&rules)
	return nil
}

// SetResolvers says where questions to DNS go from now on, unless the network names its own resolvers. Those of guests on an
// isolated network go nowhere.
func (n *Net) SetResolvers(resolvers []netip.AddrPort) {
	var to []netip.AddrPort
	switch {
	case n.def.Kind == network.Isolated:
	case len(n.def.DNS) > 0:
		for _, a := range n.def.DNS {
			to = append(to, netip.AddrPortFrom(a, 53))
		}
	default:
		to = resolvers
	}
	n.resolve.Store(&to)
}

// allows asks the firewall.
func (n *Net) allows(p *port, d network.Direction, proto network.Protocol, other netip.Addr, portNumber uint16) bool {
	return network.Allows(*n.rules.Load(), p.guest.Name, d, proto, other, portNumber)
}

// sorted returns the ports by name.
func (n *Net) sorted() []*port {
	t := n.ports.Load()
	var ports []*port
	for _, name := range slices.Sorted(maps.Keys(t.byName)) {
		ports = append(ports, t.byName[name])
	}
	return ports
}

// Status returns what n is doing.
func (n *Net) Status() netctl.Status {
	s := netctl.Status{Network: n.def.Name, Kind: n.def.Kind, Gateway: n.def.Gateway(), Guests: []netctl.GuestStatus{}}
	for _, p := range n.sorted() {
		s.Guests = append(s.Guests, p.status())
	}
	return s
}

// Leases returns the addresses of all guests.
func (n *Net) Leases() []netctl.Lease {
	leases := []netctl.Lease{}
	for _, p := range n.sorted() {
		leases = append(leases, netctl.Lease{Guest: p.guest.Name, MAC: p.guest.MAC, Address: p.guest.Address, Given: p.given.Load()})
	}
	return leases
}
