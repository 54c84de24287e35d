package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/bridge"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/hypervisor/manager/network/networktest"
)

// On a nat network, a client that is not ours gets its address and asks for names. It is behind a cable in the place of the tap, in a
// network namespace of its own.
func TestNAT(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	program := build(t)
	runtime.LockOSThread() // for good: the thread ends with the test, the namespaces with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs root: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	check(t, err)
	check(t, netlink.LinkSetUp(lo))
	n := network.Network{Name: "test", Kind: network.NAT, Subnet: netip.MustParsePrefix("10.77.0.0/24"), Peers: true}
	bob := network.Guest{Name: "bob", MAC: network.MAC{0x52, 0x54, 0, 0, 0, 2}, Address: netip.MustParseAddr("10.77.0.11")}
	h := &bridge.Host{State: filepath.Join(t.TempDir(), "ip_forward")}
	check(t, h.Up(&n, []network.Guest{alice, bob}))

	resolver, err := net.ListenPacket("udp4", "127.0.0.1:0")
	check(t, err)
	server := &dns.Server{PacketConn: resolver, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(203, 0, 113, 7)}}
		_ = w.WriteMsg(a)
	})}
	go server.ActivateAndServe() //nolint:errcheck // ends with the test
	defer server.Shutdown()      //nolint:errcheck // the same

	dhcp, dnsPackets, dnsListener, err := h.Sockets(t.Context(), &n)
	check(t, err)
	c := netctl.Config{Network: n, Guests: []network.Guest{alice, bob}, Resolvers: []netip.AddrPort{netip.MustParseAddrPort(resolver.LocalAddr().String())}}
	at := filepath.Join(t.TempDir(), "control")
	_, stderr := start(t, program, []string{"config", "control", "dhcp", "dns.udp", "dns.tcp"},
		[]*os.File{configFile(t, c), unixFile(t, "unix", at), dhcp, dnsPackets, dnsListener})

	here, err := os.Open("/proc/thread-self/ns/net")
	check(t, err)
	defer here.Close()
	check(t, unix.Unshare(unix.CLONE_NEWNET))
	cable := netlink.NewLinkAttrs()
	cable.Name, cable.HardwareAddr = "eth0", alice.MAC[:]
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: cable, PeerName: bridge.TapName(alice.MAC), PeerNamespace: netlink.NsFd(here.Fd())}))
	guest, err := os.Open("/proc/thread-self/ns/net")
	check(t, err)
	defer guest.Close()
	check(t, unix.Setns(int(here.Fd()), unix.CLONE_NEWNET))
	tap, err := netlink.LinkByName(bridge.TapName(alice.MAC))
	check(t, err)
	master, err := netlink.LinkByName(bridge.Name(&n))
	check(t, err)
	check(t, netlink.LinkSetMaster(tap, master))
	check(t, netlink.LinkSetUp(tap))
	check(t, unix.Setns(int(guest.Fd()), unix.CLONE_NEWNET))

	busybox := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("busybox", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("busybox %v: %v\n%s%s", args, err, out, stderr)
		}
		return string(out)
	}
	got := filepath.Join(t.TempDir(), "got")
	script := filepath.Join(t.TempDir(), "script")
	check(t, os.WriteFile(script, fmt.Appendf(nil, `#!/bin/sh
case $1 in
deconfig) busybox ip link set "$interface" up;;
bound)
	busybox ip addr replace "$ip/$mask" dev "$interface" && busybox ip route replace default via "$router" &&
	echo "$ip/$mask $router $dns $domain $hostname $lease" > %s;;
esac
`, got), 0o700))
	busybox("udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "20", "-T", "1", "-s", script)
	b, err := os.ReadFile(got)
	check(t, err)
	if want := "10.77.0.10/24 10.77.0.1 10.77.0.1 test.internal alice 3600\n"; string(b) != want {
		t.Errorf("udhcpc got %q, want %q", b, want)
	}
	for name, want := range map[string]string{"bob.test.internal": "10.77.0.11", "www.example.com": "203.0.113.7"} {
		if out := busybox("nslookup", "-type=a", name, "10.77.0.1"); !strings.Contains(out, want) {
			t.Errorf("%s: %s, want %s", name, out, want)
		}
	}
	tcp := dns.Client{Net: "tcp", Dialer: &net.Dialer{Timeout: timeout}}
	if a, _, err := tcp.Exchange(new(dns.Msg).SetQuestion("gateway.test.internal.", dns.TypeA), "10.77.0.1:53"); err != nil || len(a.Answer) != 1 {
		t.Errorf("over TCP: %v, %v", a, err)
	}
	// What alice asks for in bob's name does not get in.
	ask, err := dhcpv4.NewDiscovery(net.HardwareAddr(bob.MAC[:]))
	check(t, err)
	ask.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
	ask.UpdateOption(dhcpv4.OptRequestedIPAddress(bob.Address.AsSlice()))
	link, err := net.InterfaceByName("eth0")
	check(t, err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	for _, to := range []string{"255.255.255.255:67", "10.77.0.1:67"} {
		from := netip.AddrPortFrom(alice.Address, 68)
		if to == "255.255.255.255:67" {
			from = netip.MustParseAddrPort("0.0.0.0:68")
		}
		frame := networktest.UDP(network.MAC{255, 255, 255, 255, 255, 255}, alice.MAC, from, netip.MustParseAddrPort(to), string(ask.ToBytes()))
		check(t, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index}))
	}
	busybox("udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "20", "-T", "1", "-s", script) // is answered after it

	control, err := control.Dial(t.Context(), at)
	check(t, err)
	defer control.Close()
	var leases struct{ Leases []netctl.Lease }
	check(t, control.Call(t.Context(), "leases", nil, &leases, nil))
	if l := leases.Leases; len(l) != 2 || l[0].Given == nil || l[1].Given != nil {
		t.Errorf("leases: %+v", l)
	}
}
