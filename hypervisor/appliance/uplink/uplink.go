// Package uplink connects a machine without another system to its networks: Ethernet, with an address by DHCP (RFC 2131).
//
// It is a process of its own with the capabilities for that and no others, since what it reads comes from whoever is on the network.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config says what is connected.
type Config struct {
	Resolvers string // the file of resolv.conf(5) that is written
	Log       *slog.Logger
	// Wanted reports whether a link is to be connected; nil is for all network cards.
	Wanted func(name string) bool
}

// How long is waited for.
const (
	backoffMin = time.Second
	backoffMax = 30 * time.Second
	leaseMin   = 20 * time.Second // of a server that wants to be asked all the time
	leaseMax   = 30 * 24 * time.Hour
	metric     = 100 // of the default route over the first link
)

// Run connects links as they come, get a carrier, lose it and go, until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Wanted == nil {
		cfg.Wanted = func(name string) bool {
			_, err := os.Stat(filepath.Join("/sys/class/net", name, "device"))
			return err == nil
		}
	}
	u := &uplink{Config: cfg, resolvers: make(map[int][]netip.Addr)}
	updates := make(chan netlink.LinkUpdate)
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ListExisting: true, ErrorCallback: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}})
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	connected := make(map[int]func())
	defer func() {
		for _, end := range connected {
			end()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("links: %w", err)
		case change, ok := <-updates:
			if !ok {
				return errors.New("links: the kernel tells no more")
			}
			index := int(change.Index)
			if carrier := change.Header.Type != unix.RTM_DELLINK && u.prepare(change.Link); carrier == (connected[index] != nil) {
				continue
			} else if carrier {
				connected[index] = u.connect(ctx, change.Link)
			} else {
				connected[index]()
				delete(connected, index)
			}
		}
	}
}

type uplink struct {
	Config

	mu        sync.Mutex
	resolvers map[int][]netip.Addr // by the link that they were told of on
}

// prepare brings a link up that is to be connected, and reports whether it has a carrier.
func (u *uplink) prepare(l netlink.Link) bool {
	a := l.Attrs()
	if a.EncapType != "ether" || !u.Wanted(a.Name) {
		return false
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(l); err != nil {
			u.Log.Warn("network card cannot be used", "link", a.Name, "err", err)
		}
		return false // we are told when it is
	}
	return a.RawFlags&unix.IFF_LOWER_UP != 0
}

// connect connects a link until the function that it returns is called.
func (u *uplink) connect(ctx context.Context, l netlink.Link) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		u.follow(ctx, l)
	}()
	return func() { cancel(); <-ended }
}

// follow has a lease on a link for as long as ctx lasts.
func (u *uplink) follow(ctx context.Context, l netlink.Link) {
	name, wait := l.Attrs().Name, backoffMin
	for ctx.Err() == nil {
		err := u.lease(ctx, l)
		if err == nil {
			wait = backoffMin
			continue
		}
		if ctx.Err() == nil {
			u.Log.Info("no address yet", "link", name, "err", err, "again in", wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, backoffMax)
	}
	u.drop(l)
	u.Log.Info("disconnected", "link", name)
}

// lease asks for an address and keeps it for as long as the server extends it. Without an error there was one.
func (u *uplink) lease(ctx context.Context, l netlink.Link) error {
	c, err := nclient4.New(l.Attrs().Name)
	if err != nil {
		return err
	}
	defer c.Close()
	held, err := c.Request(ctx)
	if err != nil {
		return err
	}
	t, err := termsOf(held.ACK)
	if err != nil {
		return err
	}
	if err := u.apply(l, t); err != nil {
		return err
	}
	u.Log.Info("connected", "link", l.Attrs().Name, "address", t.address, "router", t.router, "resolvers", t.resolvers, "for", t.time)
	expires := time.Now().Add(t.time)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(time.Until(expires)/2, leaseMin/4)): // RFC 2131, section 4.4.5: half of what is left
		}
		renewed, err := c.Renew(ctx, held)
		if err == nil {
			var now terms
			if now, err = termsOf(renewed.ACK); err == nil {
				if err := u.apply(l, now); err != nil {
					return err
				}
				held, expires = renewed, time.Now().Add(now.time)
				continue
			}
		}
		if nak := new(nclient4.ErrNak); errors.As(err, &nak) || time.Now().After(expires) {
			u.Log.Warn("the address is not ours any more", "link", l.Attrs().Name, "address", t.address, "err", err)
			u.drop(l)
			return nil
		}
	}
}

// terms are what a lease says.
type terms struct {
	address   netip.Prefix
	router    netip.Addr // zero if there is none
	resolvers []netip.Addr
	time      time.Duration
}

// termsOf returns what an answer of the server's grants. An error says that no machine can have such an address.
func termsOf(ack *dhcpv4.DHCPv4) (t terms, err error) {
	ip, _ := netip.AddrFromSlice(ack.YourIPAddr.To4())
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	ones, bits := mask.Size()
	if !ip.IsGlobalUnicast() || bits != 32 || ones == 0 {
		return t, fmt.Errorf("the server at %v offers the address %v with mask %v, which cannot be", ack.ServerIdentifier(), ack.YourIPAddr, mask)
	}
	t.address = netip.PrefixFrom(ip, ones)
	t.time = min(max(ack.IPAddressLeaseTime(leaseMax), leaseMin), leaseMax)
	for _, r := range ack.Router() {
		if a, ok := netip.AddrFromSlice(r.To4()); ok && a.IsGlobalUnicast() && a != ip {
			t.router = a
			break
		}
	}
	for _, r := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(r.To4()); ok && a.IsGlobalUnicast() && len(t.resolvers) < 3 { // MAXNS of resolv.conf(5)
			t.resolvers = append(t.resolvers, a)
		}
	}
	return t, nil
}

// apply gives a link an address, and takes away those that it had.
func (u *uplink) apply(l netlink.Link, t terms) error {
	a := &netlink.Addr{
		IPNet:    &net.IPNet{IP: t.address.Addr().AsSlice(), Mask: net.CIDRMask(t.address.Bits(), 32)},
		ValidLft: int(t.time.Seconds()), PreferedLft: int(t.time.Seconds()),
	}
	if err := netlink.AddrReplace(l, a); err != nil {
		return fmt.Errorf("address %v: %w", t.address, err)
	}
	if err := u.removeAddresses(l, a); err != nil {
		return err
	}
	if t.router.IsValid() {
		all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Gw: t.router.AsSlice(), Priority: metric + l.Attrs().Index, Flags: int(netlink.FLAG_ONLINK),
			Protocol: unix.RTPROT_DHCP}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("router %v: %w", t.router, err)
		}
	}
	return u.resolve(l.Attrs().Index, t.resolvers)
}

// removeAddresses removes a link's IPv4 addresses but one; nil is none. Their routes go with them.
func (u *uplink) removeAddresses(l netlink.Link, but *netlink.Addr) error {
	list, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range list {
		if but != nil && a.IPNet.String() == but.IPNet.String() {
			continue
		}
		if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("address %v: %w", a.IPNet, err)
		}
	}
	return nil
}

// drop takes back what apply gave to a link, which may have gone.
func (u *uplink) drop(l netlink.Link) {
	err := u.removeAddresses(l, nil)
	if errors.Is(err, unix.ENODEV) {
		err = nil
	}
	if err = errors.Join(err, u.resolve(l.Attrs().Index, nil)); err != nil {
		u.Log.Warn("disconnecting", "link", l.Attrs().Name, "err", err)
	}
}

// resolve notes the resolvers of a link, and writes those of all, in the links' order.
func (u *uplink) resolve(index int, list []netip.Addr) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.resolvers[index] = list; len(list) == 0 {
		delete(u.resolvers, index)
	}
	var text strings.Builder
	for _, i := range slices.Sorted(maps.Keys(u.resolvers)) {
		for _, a := range u.resolvers[i] {
			fmt.Fprintf(&text, "nameserver %v\n", a)
		}
	}
	if old, err := os.ReadFile(u.Resolvers); err == nil && string(old) == text.String() || errors.Is(err, fs.ErrNotExist) && text.Len() == 0 {
		return nil
	}
	temporary := u.Resolvers + ".new"
	if err := os.WriteFile(temporary, []byte(text.String()), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, u.Resolvers)
}
