// Package bridge has the host's kernel carry networks of guests: a bridge lodge-NAME for each, a persistent tap for each guest's
// card, and the nftables tables lodge-NAME. It needs CAP_NET_ADMIN in the network namespace that it works in.
//
// What it makes is in a group of its own (interfaces) or in tables of its own, and only that is ever changed or removed:
// an interface of the same name that somebody else has made is an error. All calls may be repeated, and after a crash Clean removes
// what no network claims.
package bridge

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// prefix begins the names of bridges and tables; aliasPrefix the aliases of taps, before the network's name.
const (
	prefix      = "lodge-"
	aliasPrefix = "lodge network "
)

// mark is the group of our interfaces (ip link show group NUMBER), which the kernel sets while it makes one.
const mark = 0x4c6f6467

// ErrNotOurs is the error about an interface that has the name of one of ours and is not.
var ErrNotOurs = errors.New("somebody else has made it: remove it, or choose another name")

// Host is the machine whose kernel carries networks.
type Host struct {
	// State is a file that does not survive a reboot of the host, such as one in /run. It keeps what IPv4 forwarding was before
	// the first network needed it.
	State string
}

// Name returns the name of a network's bridge and tables.
func Name(n *network.Network) string { return prefix + n.Name }

// TapName returns the name of the tap of a card: the same always, and 14 bytes long.
func TapName(mac network.MAC) string { return fmt.Sprintf("lt%x", mac[:]) }

// Up makes the network, or makes it what n and guests say: a nat network's firewall and forwards are replaced in one step. Guests'
// taps are made by AddTap.
func (h *Host) Up(n *network.Network, guests []network.Guest) error {
	if err := n.Validate(); err != nil {
		return err
	}
	if n.Kind.Helper() {
		return fmt.Errorf("network %q: kind %s is not carried by the host's kernel", n.Name, n.Kind)
	}
	if err := n.CheckGuests(guests); err != nil {
		return err
	}
	b, err := makeBridge(n)
	if err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	switch n.Kind {
	case network.Bridged:
		err = joinUplink(n, b)
	case network.NAT:
		// The firewall first: at no time are packets forwarded without it.
		err = setTables(n, guests)
		if err == nil {
			err = setAddress(n, b)
		}
		if err == nil {
			err = setNeighbours(b, guests)
		}
		if err == nil {
			err = h.forwardIPv4()
		}
	}
	if err == nil {
		err = netlink.LinkSetUp(b)
	}
	if err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	return nil
}

// owner returns the network that an interface of ours belongs to.
func owner(l netlink.Link) (name string, ours bool) {
	a := l.Attrs()
	switch {
	case a.Group != mark:
		return "", false
	case l.Type() == "bridge":
		return strings.CutPrefix(a.Name, prefix)
	}
	return strings.CutPrefix(a.Alias, aliasPrefix)
}

// find returns the interface called name if it is the network's, nil if there is none.
func find(name, network string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	if by, ours := owner(l); !ours || by != network {
		return nil, fmt.Errorf("interface %s: %w", name, ErrNotOurs)
	}
	return l, nil
}

func makeBridge(n *network.Network) (netlink.Link, error) {
	name := Name(n)
	l, err := find(name, n.Name)
	if l != nil || err != nil {
		return l, err
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.Group = name, mark // one message: there is no time at which it is there without its mark
	if n.Kind == network.NAT {
		a.HardwareAddr = network.GatewayMAC[:] // else it is the least of the taps', and changes
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	return find(name, n.Name)
}

// setAddress gives a nat network's bridge the gateway's address, and takes others away.
func setAddress(n *network.Network, b netlink.Link) error {
	want := &net.IPNet{IP: n.Gateway().AsSlice(), Mask: net.CIDRMask(n.Subnet.Bits(), 32)}
	have, err := netlink.AddrList(b, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", b.Attrs().Name, err)
	}
	for _, a := range have {
		if a.IPNet.String() != want.String() {
			if err := netlink.AddrDel(b, &a); err != nil {
				return fmt.Errorf("remove address %v of %s: %w", a.IPNet, b.Attrs().Name, err)
			}
		}
	}
	if err := netlink.AddrReplace(b, &netlink.Addr{IPNet: want}); err != nil {
		return fmt.Errorf("address %v of %s: %w", want, b.Attrs().Name, err)
	}
	return nil
}

// setNeighbours tells the kernel which card has which address: it asks nobody then, nor believes anybody.
func setNeighbours(b netlink.Link, guests []network.Guest) error {
	have, err := netlink.NeighList(b.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("neighbours of %s: %w", b.Attrs().Name, err)
	}
	for _, k := range have {
		if !slices.ContainsFunc(guests, func(g network.Guest) bool { return k.IP.Equal(g.Address.AsSlice()) }) {
			if err := netlink.NeighDel(&k); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove neighbour %v of %s: %w", k.IP, b.Attrs().Name, err)
			}
		}
	}
	for _, g := range guests {
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: b.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
			IP: g.Address.AsSlice(), HardwareAddr: g.MAC[:]}); err != nil {
			return fmt.Errorf("neighbour %v of %s: %w", g.Address, b.Attrs().Name, err)
		}
	}
	return nil
}

// joinUplink puts the uplink into the bridge. Its addresses are left to whoever configures the host: an interface in a bridge gets
// nothing of the network for itself, so one that has addresses is refused.
func joinUplink(n *network.Network, b netlink.Link) error {
	up, err := netlink.LinkByName(n.Uplink)
	if err != nil {
		return fmt.Errorf("uplink %s: %w", n.Uplink, err)
	}
	switch up.Attrs().MasterIndex {
	case b.Attrs().Index:
		return nil
	case 0:
	default:
		return fmt.Errorf("uplink %s: it is in another bridge or bond: take it out", n.Uplink)
	}
	addrs, err := netlink.AddrList(up, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("uplink %s: %w", n.Uplink, err)
	}
	if len(addrs) > 0 {
		return fmt.Errorf("uplink %s: the host has address %v on it and would lose its network: choose another interface", n.Uplink, addrs[0].IPNet)
	}
	if err := netlink.LinkSetMaster(up, b); err != nil {
		return fmt.Errorf("uplink %s: put it into %s: %w", n.Uplink, b.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(up); err != nil {
		return fmt.Errorf("uplink %s: %w", n.Uplink, err)
	}
	return nil
}

// AddTap makes the tap of a guest's card, which only the user uid may open, and puts it into the network's bridge. It returns its
// name. A tap that is there is kept, if it belongs to this network, and given to uid unless it is in use. On a nat network, Up has to
// have been told of the guest.
func (h *Host) AddTap(n *network.Network, g network.Guest, uid uint32) (string, error) {
	name := TapName(g.MAC)
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("network %q: tap %s of guest %q: %w", n.Name, name, g.Name, err)
	}
	b, err := find(Name(n), n.Name)
	if err == nil && b == nil {
		err = fmt.Errorf("%s is not there: the network is down", Name(n))
	}
	if err != nil {
		return fail(err)
	}
	if n.Kind == network.NAT {
		if ok, err := checks(n, g.MAC); err != nil {
			return fail(err)
		} else if !ok {
			return fail(errors.New("the firewall does not know it: call Up with this guest first"))
		}
	}
	if _, err := find(name, n.Name); err != nil {
		return fail(err)
	}
	if err := makeTap(name, n.Name, uid); err != nil {
		return fail(err)
	}
	l, err := find(name, n.Name)
	if err != nil {
		return fail(err)
	}
	err = netlink.LinkSetMaster(l, b)
	if err == nil && n.Kind == network.NAT {
		// A port that is isolated reaches the bridge and ports that are not.
		err = netlink.LinkSetIsolated(l, !n.Peers)
	}
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fail(err)
	}
	return name, nil
}

// makeTap makes a tap or opens the one that is there. It is made persistent only when it has its mark: until then it goes with the
// process.
func makeTap(name, networkName string, uid uint32) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err {
	case nil:
	case unix.EBUSY: // a VMM has it open, and so it is complete
		return nil
	default:
		return fmt.Errorf("attach: %w", err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetGroup(l, mark), netlink.LinkSetAlias(l, aliasPrefix+networkName)); err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(uid)); err != nil {
		return fmt.Errorf("give it to user %d: %w", uid, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make it persistent: %w", err)
	}
	return nil
}

// RemoveTap removes the tap of a guest's card, if it is there.
func (h *Host) RemoveTap(n *network.Network, mac network.MAC) error {
	l, err := find(TapName(mac), n.Name)
	if err == nil && l != nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("network %q: tap %s: %w", n.Name, TapName(mac), err)
	}
	return nil
}

// Traffic returns what has gone over the tap of a card, as its guest sees it.
func (h *Host) Traffic(n *network.Network, mac network.MAC) (sent, sentBytes, received, receivedBytes, dropped uint64, err error) {
	l, err := find(TapName(mac), n.Name)
	if err != nil {
		return 0, 0, 0, 0, 0, err
	}
	if l == nil || l.Attrs().Statistics == nil {
		return 0, 0, 0, 0, 0, nil
	}
	s := l.Attrs().Statistics
	return s.RxPackets, s.RxBytes, s.TxPackets, s.TxBytes, s.RxDropped + s.TxDropped, nil
}

// Down removes all of the network: its taps, bridge and tables. An uplink is let go. When no nat network is left, IPv4 forwarding
// is what it was before.
func (h *Host) Down(name string) error { return h.remove(func(n string) bool { return n == name }) }

// Clean removes what an earlier process has left of networks that are not among keep.
func (h *Host) Clean(keep []string) error {
	return h.remove(func(n string) bool { return !slices.Contains(keep, n) })
}

// remove removes all of the networks whose names go satisfies.
func (h *Host) remove(goes func(name string) bool) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		name, ours := owner(l)
		if !ours || !goes(name) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil {
			errs = append(errs, fmt.Errorf("remove interface %s: %w", l.Attrs().Name, err))
		}
	}
	left, err := removeTables(goes)
	errs = append(errs, err)
	if err == nil && !left {
		errs = append(errs, h.restoreIPv4())
	}
	return errors.Join(errs...)
}
