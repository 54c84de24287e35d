package uplink

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

// The tests run in a network namespace of their own, each of whose threads is in it.
func TestMain(m *testing.M) {
	const inside = "LODGE_TEST_NAMESPACE"
	if os.Getenv(inside) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// server grants addresses on the other end of a cable.
type server struct {
	mu       sync.Mutex
	address  net.IP // that it grants
	asked    int    // how often it granted one
	lease    time.Duration
	refusing bool // it does not extend
}

func (s *server) grant(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := map[dhcpv4.MessageType]dhcpv4.MessageType{dhcpv4.MessageTypeDiscover: dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeRequest: dhcpv4.MessageTypeAck}[m.MessageType()]
	if s.refusing && kind == dhcpv4.MessageTypeAck && !m.ClientIPAddr.IsUnspecified() {
		kind = dhcpv4.MessageTypeNak
	}
	reply, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(s.address), dhcpv4.WithServerIP(net.IP{10, 9, 0, 1}),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 9, 0, 1})), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IP{10, 9, 0, 254}),
		dhcpv4.WithDNS(net.IP{10, 9, 0, 53}, net.IP{127, 0, 0, 1}), dhcpv4.WithLeaseTime(uint32(s.lease.Seconds())))
	if err != nil {
		return
	}
	if kind == dhcpv4.MessageTypeAck {
		s.asked++
	}
	_, _ = conn.WriteTo(reply.ToBytes(), peer)
}

func (s *server) set(f func(s *server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// cable connects link card0, by a cable that can be pulled, to a server.
func cable(t *testing.T) *server {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for network cards")
	}
	a := netlink.NewLinkAttrs()
	a.Name = "card0"
	veth := &netlink.Veth{LinkAttrs: a, PeerName: "far0"}
	check(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { check(t, netlink.LinkDel(veth)) })
	far, err := netlink.LinkByName("far0")
	check(t, err)
	addr, err := netlink.ParseAddr("10.9.0.1/24")
	check(t, err)
	check(t, netlink.AddrAdd(far, addr))
	plug(t, true)
	s := &server{address: net.IP{10, 9, 0, 7}, lease: time.Hour}
	d, err := server4.NewServer("far0", &net.UDPAddr{Port: dhcpv4.ServerPort}, s.grant)
	check(t, err)
	go d.Serve() //nolint:errcheck // it ends with Close
	t.Cleanup(func() { d.Close() })
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// plug plugs the cable in, or pulls it.
func plug(t *testing.T, in bool) {
	t.Helper()
	far, err := netlink.LinkByName("far0")
	check(t, err)
	if in {
		check(t, netlink.LinkSetUp(far))
	} else {
		check(t, netlink.LinkSetDown(far))
	}
}

// state is what a machine has: its address, its default route, its resolvers.
func state(t *testing.T, resolvers string) string {
	t.Helper()
	l, err := netlink.LinkByName("card0")
	check(t, err)
	var s []string
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	check(t, err)
	for _, a := range addrs {
		s = append(s, a.IPNet.String())
	}
	routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
	check(t, err)
	for _, r := range routes {
		if r.Gw != nil {
			s = append(s, "via "+r.Gw.String())
		}
	}
	b, _ := os.ReadFile(resolvers)
	return strings.TrimSpace(strings.Join(append(s, strings.Fields(string(b))...), " "))
}

// run connects card0, and returns a function that waits until the machine's state is so.
func run(t *testing.T) (until func(want string)) {
	t.Helper()
	resolvers := filepath.Join(t.TempDir(), "resolv.conf")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Resolvers: resolvers, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Wanted: func(name string) bool { return name == "card0" }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return func(want string) {
		t.Helper()
		got := ""
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if got = state(t, resolvers); got == want {
				return
			}
		}
		t.Fatalf("%q, want %q", got, want)
	}
}

const connected = "10.9.0.7/24 via 10.9.0.254 nameserver 10.9.0.53"

// A card gets an address, loses it with its cable, and gets another one when it is plugged in again.
func TestCable(t *testing.T) {
	s := cable(t)
	until := run(t)
	until(connected)
	plug(t, false)
	until("")
	s.set(func(s *server) { s.address = net.IP{10, 9, 0, 8} })
	plug(t, true)
	until("10.9.0.8/24 via 10.9.0.254 nameserver 10.9.0.53")
}

// A lease is extended in time, and dropped when the server does not extend it; then there is another.
func TestRenew(t *testing.T) {
	s := cable(t)
	s.set(func(s *server) { s.lease = time.Second }) // taken for leaseMin
	until := run(t)
	until(connected)
	end := time.Now().Add(patience)
	for asked := 0; asked < 2; time.Sleep(50 * time.Millisecond) {
		if s.set(func(s *server) { asked = s.asked }); time.Now().After(end) {
			t.Fatal("the lease is not extended")
		}
	}
	until(connected)
	s.set(func(s *server) { s.refusing, s.address = true, net.IP{10, 9, 0, 8} })
	until("10.9.0.8/24 via 10.9.0.254 nameserver 10.9.0.53")
}

// What no machine can have is refused.
func TestTerms(t *testing.T) {
	for _, tc := range []struct {
		address, mask, router string
		want                  string
	}{
		{"10.9.0.7", "255.255.255.0", "10.9.0.1", "10.9.0.7/24 10.9.0.1"},
		{"10.9.0.7", "", "10.9.0.7", "10.9.0.7/8 invalid IP"},
		{"192.0.2.1", "255.255.255.255", "198.51.100.1", "192.0.2.1/32 198.51.100.1"},
		{"0.0.0.0", "255.255.255.0", "10.9.0.1", "error"},
		{"127.0.0.1", "255.0.0.0", "10.9.0.1", "error"},
		{"224.0.0.1", "255.0.0.0", "10.9.0.1", "error"},
		{"255.255.255.255", "255.0.0.0", "10.9.0.1", "error"},
		{"10.9.0.7", "0.0.0.0", "10.9.0.1", "error"},
		{"10.9.0.7", "255.0.255.0", "10.9.0.1", "error"},
	} {
		with := []dhcpv4.Modifier{dhcpv4.WithYourIP(net.ParseIP(tc.address)), dhcpv4.WithRouter(net.ParseIP(tc.router))}
		if tc.mask != "" {
			with = append(with, dhcpv4.WithNetmask(net.IPMask(net.ParseIP(tc.mask).To4())))
		}
		ack, err := dhcpv4.New(with...)
		check(t, err)
		got := "error"
		if terms, err := termsOf(ack); err == nil {
			got = fmt.Sprint(terms.address, terms.router)
		}
		if got != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
}
