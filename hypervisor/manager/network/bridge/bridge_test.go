package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/networktest"
)

const timeout = 10 * time.Second

// soon is how long a test waits for what must not come.
const soon = 300 * time.Millisecond

var (
	alice = network.Guest{Name: "alice", MAC: network.MAC{0x52, 0x54, 0, 0, 0, 1}, Address: netip.MustParseAddr("10.77.0.10")}
	bob   = network.Guest{Name: "bob", MAC: network.MAC{0x52, 0x54, 0, 0, 0, 2}, Address: netip.MustParseAddr("10.77.0.11")}
)

// enter moves the test, with its thread, into a network namespace of its own. The thread ends with the test.
func enter(t *testing.T) *Host {
	t.Helper()
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and /dev/net/tun")
	} else {
		f.Close()
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs root and /dev/net/tun: %v", err)
	}
	return &Host{State: filepath.Join(t.TempDir(), "ip_forward")}
}

// outside makes a namespace that is connected to the current one, as 203.0.113.2 behind 203.0.113.1, runs f in it and returns.
func outside(t *testing.T, f func()) {
	t.Helper()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(unix.Unshare(unix.CLONE_NEWNET))
	a := netlink.NewLinkAttrs()
	a.Name = "out0"
	check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "up0"}))
	peer, err := netlink.LinkByName("up0")
	check(err)
	check(netlink.LinkSetNsFd(peer, int(here.Fd())))
	address := func(name, cidr string) {
		t.Helper()
		l, err := netlink.LinkByName(name)
		check(err)
		addr, err := netlink.ParseAddr(cidr)
		check(err)
		check(netlink.AddrAdd(l, addr))
		check(netlink.LinkSetUp(l))
	}
	address("out0", "203.0.113.2/24")
	// Somebody outside who tries to reach guests directly.
	_, subnet, _ := net.ParseCIDR("10.77.0.0/24")
	out, err := netlink.LinkByName("out0")
	check(err)
	f()
	there, err := os.Open("/proc/thread-self/ns/net")
	check(err)
	defer there.Close()
	check(unix.Setns(int(here.Fd()), unix.CLONE_NEWNET))
	address("up0", "203.0.113.1/24")
	check(unix.Setns(int(there.Fd()), unix.CLONE_NEWNET))
	check(netlink.RouteAdd(&netlink.Route{LinkIndex: out.Attrs().Index, Dst: subnet, Gw: net.IPv4(203, 0, 113, 1)}))
	check(unix.Setns(int(here.Fd()), unix.CLONE_NEWNET))
}

// tap is a guest's side of a tap.
type tap struct {
	t    *testing.T
	self network.Guest
	f    *os.File
}

// vnet is the size of the header before each frame.
const vnet = 10

func openTap(t *testing.T, name string, self network.Guest) *tap {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return &tap{t, self, f}
}

func (p *tap) send(frame []byte) {
	p.t.Helper()
	if _, err := p.f.Write(append(make([]byte, vnet), frame...)); err != nil {
		p.t.Fatal(err)
	}
}

// await returns the first frame that contains text, or nil if none comes in time.
func (p *tap) await(text string, limit time.Duration) []byte {
	p.f.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 4096)
	for {
		k, err := p.f.Read(buf)
		if err != nil {
			return nil
		}
		if strings.Contains(string(buf[vnet:k]), text) {
			return buf[vnet:k]
		}
	}
}

// resolve asks for the gateway, and so tells it where the guest is. The switch may take a moment to forward.
func (p *tap) resolve() {
	p.t.Helper()
	gateway := []byte{10, 77, 0, 1}
	ask := fmt.Sprintf("\xff\xff\xff\xff\xff\xff%s\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01%s%s\x00\x00\x00\x00\x00\x00%s",
		p.self.MAC[:], p.self.MAC[:], p.self.Address.AsSlice(), gateway)
	for end := time.Now().Add(timeout); time.Now().Before(end); {
		p.send([]byte(ask))
		if p.await("\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02", soon) != nil {
			return
		}
	}
	p.t.Fatal("the gateway does not answer")
}

func nat() *network.Network {
	return &network.Network{Name: "test", Kind: network.NAT, Subnet: netip.MustParsePrefix("10.77.0.0/24")}
}

// up makes a network with alice's and bob's taps.
func up(t *testing.T, h *Host, n *network.Network) (a, b *tap) {
	t.Helper()
	guests := []network.Guest{alice, bob}
	for range 2 { // the second time changes nothing
		if err := h.Up(n, guests); err != nil {
			t.Fatal(err)
		}
		for _, g := range guests {
			if _, err := h.AddTap(n, g, 1234); err != nil {
				t.Fatal(err)
			}
		}
	}
	a, b = openTap(t, TapName(alice.MAC), alice), openTap(t, TapName(bob.MAC), bob)
	if n.Kind == network.NAT {
		a.resolve()
		b.resolve()
	}
	return a, b
}

func forwarding(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(sysctl)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// receive returns what comes to c, or "" if nothing does.
func receive(c net.PacketConn, limit time.Duration) (string, net.Addr) {
	c.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 100)
	k, from, err := c.ReadFrom(buf)
	if err != nil {
		return "", nil
	}
	return string(buf[:k]), from
}

func TestNAT(t *testing.T) {
	h := enter(t)
	var server net.PacketConn
	outside(t, func() {
		c, err := net.ListenPacket("udp4", "203.0.113.2:9000")
		if err != nil {
			t.Fatal(err)
		}
		server = c
	})
	defer server.Close()
	if forwarding(t) != "0" {
		t.Fatal("a new namespace forwards")
	}
	n := nat()
	n.Forwards = []network.Forward{{Protocol: network.UDP, Listen: netip.MustParseAddrPort("0.0.0.0:8080"), Guest: "alice", Port: 80},
		{Protocol: network.UDP, Listen: netip.MustParseAddrPort("203.0.113.1:8081"), Guest: "alice", Port: 81}}
	n.Rules = []network.Rule{
		{Guest: "bob", Direction: network.Out, Action: network.Deny, Protocol: network.UDP, Ports: network.Ports{First: 9000, Last: 9010}, CIDR: netip.MustParsePrefix("203.0.113.0/24")},
		{Guest: "alice", Direction: network.In, Action: network.Deny, Protocol: network.UDP, Ports: network.Ports{First: 81, Last: 81}},
		{Direction: network.In, Action: network.Allow},
	}
	a, b := up(t, h, n)
	if forwarding(t) != "1" {
		t.Error("IPv4 is not forwarded")
	}
	at := func(g network.Guest) netip.AddrPort { return netip.AddrPortFrom(g.Address, 5000) }
	to := netip.MustParseAddrPort("203.0.113.2:9000")

	a.send(networktest.UDP(network.GatewayMAC, alice.MAC, at(alice), to, "from alice"))
	text, from := receive(server, timeout)
	if text != "from alice" || from.(*net.UDPAddr).IP.String() != "203.0.113.1" {
		t.Fatalf("outside: %q from %v, want it from the host", text, from)
	}
	if _, err := server.WriteTo([]byte("an answer"), from); err != nil {
		t.Fatal(err)
	}
	if a.await("an answer", timeout) == nil {
		t.Error("alice gets no answer")
	}

	// What is denied, or somebody else's, does not come out.
	b.send(networktest.UDP(network.GatewayMAC, bob.MAC, at(bob), to, "denied"))
	a.send(networktest.UDP(network.GatewayMAC, alice.MAC, at(bob), to, "from bob's address"))
	a.send(networktest.UDP(network.GatewayMAC, bob.MAC, at(alice), to, "from bob's MAC"))
	a.send(networktest.UDP(network.GatewayMAC, alice.MAC, netip.MustParseAddrPort("203.0.113.9:5000"), to, "from outside"))
	if text, _ := receive(server, soon); text != "" {
		t.Errorf("outside: %q", text)
	}

	// From outside: the forward, and neither what rules deny nor the guest itself.
	for addr, text := range map[string]string{"203.0.113.1:8081": "denied in", "10.77.0.10:80": "directly", "203.0.113.1:8080": "forwarded"} {
		u := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))
		if _, err := server.WriteTo([]byte(text), u); err != nil {
			t.Fatal(err)
		}
		limit := soon
		if text == "forwarded" {
			limit = timeout
		}
		frame := a.await(text, limit)
		if (frame != nil) != (text == "forwarded") {
			t.Errorf("%s: arrived: %v", text, frame != nil)
		}
		if frame != nil && binary.BigEndian.Uint16(frame[36:]) != 80 {
			t.Errorf("forwarded to port %d", binary.BigEndian.Uint16(frame[36:]))
		}
	}

	// Not peers; the host itself is not to be reached.
	a.send(networktest.UDP(network.MAC{255, 255, 255, 255, 255, 255}, alice.MAC, at(alice), netip.MustParseAddrPort("10.77.0.255:5000"), "to all"))
	if b.await("to all", soon) != nil {
		t.Error("bob hears alice, without peers")
	}
	a.send(networktest.UDP(network.GatewayMAC, alice.MAC, at(alice), at(bob), "by the gateway"))
	if b.await("by the gateway", soon) != nil {
		t.Error("the gateway passes on to bob, without peers")
	}
	host, err := net.ListenPacket("udp4", "0.0.0.0:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	a.send(networktest.UDP(network.GatewayMAC, alice.MAC, at(alice), netip.MustParseAddrPort("10.77.0.1:5353"), "host"))
	a.send(networktest.UDP(network.GatewayMAC, alice.MAC, at(alice), netip.MustParseAddrPort("203.0.113.1:5353"), "host"))
	if text, from := receive(host, soon); text != "" {
		t.Errorf("the host got %q from %v", text, from)
	}
	n.Peers, n.Host = true, true
	a.f.Close()
	b.f.Close()
	a, b = up(t, h, n)
	a.send(networktest.UDP(network.MAC{255, 255, 255, 255, 255, 255}, alice.MAC, at(alice), netip.MustParseAddrPort("10.77.0.255:5000"), "to all"))
	if b.await("to all", timeout) == nil {
		t.Error("bob does not hear alice, with peers")
	}
	a.send(networktest.UDP(network.GatewayMAC, alice.MAC, at(alice), netip.MustParseAddrPort("10.77.0.1:5353"), "host"))
	if text, _ := receive(host, timeout); text != "host" {
		t.Errorf("the host got %q", text)
	}

	if err := h.Down("test"); err != nil {
		t.Fatal(err)
	}
	if forwarding(t) != "0" {
		t.Error("IPv4 is still forwarded")
	}
	if left := ours(t); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// ours returns the interfaces and tables that look like ours.
func ours(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if n := l.Attrs().Name; strings.HasPrefix(n, prefix) || strings.HasPrefix(n, "lt") {
			names = append(names, n)
		}
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, tb := range tables {
		names = append(names, "table "+tb.Name)
	}
	return names
}

// After a crash, Clean removes what nobody claims and leaves alone what is not ours.
func TestClean(t *testing.T) {
	h := enter(t)
	n, other := nat(), nat()
	other.Name, other.Subnet = "other", netip.MustParsePrefix("10.78.0.0/24")
	up(t, h, n)
	if err := h.Up(other, nil); err != nil {
		t.Fatal(err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "theirs"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lodge-mine", "lt525400000009"} {
		a := netlink.NewLinkAttrs()
		a.Name = name
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
			t.Fatal(err)
		}
	}
	mine := nat()
	mine.Name, mine.Subnet = "mine", netip.MustParsePrefix("10.79.0.0/24")
	if err := h.Up(mine, nil); !errors.Is(err, ErrNotOurs) {
		t.Errorf("takes somebody else's bridge: %v", err)
	}
	if _, err := h.AddTap(n, network.Guest{Name: "eve", MAC: network.MAC{0x52, 0x54, 0, 0, 0, 9}}, 0); err == nil {
		t.Error("a tap that the firewall does not know")
	}
	again := &Host{State: h.State} // another process
	if err := again.Clean([]string{"other"}); err != nil {
		t.Fatal(err)
	}
	if forwarding(t) != "1" {
		t.Error("the network that is left is not forwarded")
	}
	got := fmt.Sprint(ours(t))
	if strings.Contains(got, "test") || strings.Contains(got, TapName(alice.MAC)) {
		t.Errorf("left over: %s", got)
	}
	for range 2 {
		if err := again.Clean(nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := fmt.Sprint(ours(t)), "[lodge-mine lt525400000009 table theirs]"; got != want {
		t.Errorf("%s is left, want %s", got, want)
	}
	if forwarding(t) != "0" {
		t.Error("IPv4 is still forwarded")
	}
}

// Forwarding that was on before is not ours to turn off.
func TestForwardingWasOn(t *testing.T) {
	h := enter(t)
	if err := os.WriteFile(sysctl, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Up(nat(), nil); err != nil {
		t.Fatal(err)
	}
	if err := h.Down("test"); err != nil {
		t.Fatal(err)
	}
	if forwarding(t) != "1" {
		t.Error("IPv4 is not forwarded any more")
	}
}

func TestBridged(t *testing.T) {
	h := enter(t)
	var server net.PacketConn
	outside(t, func() {
		c, err := net.ListenPacket("udp4", "203.0.113.2:9000")
		if err != nil {
			t.Fatal(err)
		}
		server = c
	})
	defer server.Close()
	n := &network.Network{Name: "lan", Kind: network.Bridged, Uplink: "up0"}
	if err := h.Up(n, nil); err == nil {
		t.Error("takes an uplink that the host uses")
	}
	up0, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("203.0.113.1/24")
	if err := netlink.AddrDel(up0, addr); err != nil {
		t.Fatal(err)
	}
	a, _ := up(t, h, n)
	broadcast := network.MAC{255, 255, 255, 255, 255, 255}
	at := netip.MustParseAddrPort("203.0.113.77:5000")
	text := ""
	for end := time.Now().Add(timeout); text == "" && time.Now().Before(end); { // the uplink's carrier takes a moment
		a.send(networktest.UDP(broadcast, alice.MAC, at, netip.MustParseAddrPort("203.0.113.2:9000"), "hello"))
		text, _ = receive(server, soon)
	}
	if text != "hello" {
		t.Errorf("outside: %q", text)
	}
	if forwarding(t) != "0" {
		t.Error("IPv4 is forwarded for a bridged network")
	}
	if err := h.RemoveTap(n, alice.MAC); err != nil {
		t.Fatal(err)
	}
	if err := h.Down("lan"); err != nil {
		t.Fatal(err)
	}
	if left := ours(t); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if up0, err = netlink.LinkByName("up0"); err != nil || up0.Attrs().MasterIndex != 0 {
		t.Errorf("uplink: %v, %v", up0, err)
	}
}
