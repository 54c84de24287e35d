package manager

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/bridge"
	"github.com/lodgehv/lodge/hypervisor/manager/network/networktest"
	"github.com/lodgehv/lodge/internal/framing"
)

// lodgeNet builds lodge-net once. TestMain removes it.
var lodgeNet = sync.OnceValues(func() (string, error) {
	if file := os.Getenv("MANAGER_TEST_NET"); file != "" {
		return file, nil
	}
	dir, err := os.MkdirTemp("", "lodge-net")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "lodge-net")
	cmd := exec.Command("go", "build", "-o", file, "github.com/lodgehv/lodge/cmd/lodge-net")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return file, os.Setenv("MANAGER_TEST_NET", file) // for managers that are killed
})

// netRig is a rig whose guests can have networks.
func netRig(t *testing.T, b *bridge.Host) *rig {
	t.Helper()
	file, err := lodgeNet()
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.cfg.LodgeNet, r.cfg.Bridge = file, b
	r.reopen()
	t.Cleanup(func() {
		for _, n := range r.ListNetworks() {
			if n.PID != 0 {
				if p, err := openProcess(n.PID, 0); err == nil {
					_ = p.kill(unix.SIGKILL)
					p.close()
				}
			}
		}
		if t.Failed() {
			for _, log := range glob(r.dir, "var/networks/*/*.log") {
				b, _ := os.ReadFile(log)
				t.Logf("%s:\n%s", log, b)
			}
		}
	})
	return r
}

func (r *rig) defineNetwork(lines ...string) {
	r.t.Helper()
	if _, err := r.DefineNetwork([]byte(strings.Join(lines, "\n"))); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) network(name string, what string, ok func(Network) bool) Network {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		n, err := r.GetNetwork(name)
		if err == nil && ok(n) {
			return n
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("network %s is not %s: %+v, %v", name, what, n, err)
		}
	}
}

// start starts a guest with a card on each network, and returns the first one's card as its VMM sees it.
func (r *rig) startOn(name string, networks ...string) *card {
	r.t.Helper()
	var lines []string
	for _, n := range networks {
		lines = append(lines, "[[nic]]", fmt.Sprintf("name = %q", n), fmt.Sprintf("network = %q", n))
	}
	r.define(name, "", lines...)
	r.must(r.Start(name))
	return r.card(name)
}

func (r *rig) card(name string) *card {
	r.t.Helper()
	def, err := definition.Load(filepath.Join(r.dir, "var/guests", name, "vmm.toml"))
	if err != nil {
		r.t.Fatal(err)
	}
	c := &card{t: r.t, nic: def.NICs[0], in: framing.Deframer{Buf: make([]byte, framing.BufferSize)}}
	if c.mac, err = network.ParseMAC(c.nic.MAC); err != nil {
		r.t.Fatal(err)
	}
	for _, n := range r.ListNetworks() {
		for _, g := range n.Guests {
			if g.MAC == c.mac {
				c.address = g.Address
			}
		}
	}
	return c
}

// card is the VMM's end of a network card.
type card struct {
	t       testing.TB
	nic     definition.NIC
	mac     network.MAC
	address netip.Addr
	conn    net.Conn
	in      framing.Deframer
}

// connect connects to the network, as a VMM does again and again.
func (c *card) connect() {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", c.nic.Socket)
		if err == nil {
			c.conn = conn
			c.in.Reset()
			c.t.Cleanup(func() { conn.Close() })
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatal(err)
		}
	}
}

func (c *card) send(frame []byte) error {
	_, err := c.conn.Write(append(framing.AppendPrefix(nil, len(frame)), frame...))
	return err
}

// sendUDP sends a datagram to a peer, or by the gateway to the outside.
func (c *card) sendUDP(to netip.AddrPort, via network.MAC, text string) {
	c.t.Helper()
	if err := c.send(networktest.UDP(via, c.mac, netip.AddrPortFrom(c.address, 5000), to, text)); err != nil {
		c.t.Fatal(err)
	}
}

// await returns the first frame that contains text, or an error if none comes in time.
func (c *card) await(text string, limit time.Duration) ([]byte, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(limit))
	for {
		frame, err := c.in.Next()
		if err != nil {
			return nil, err
		}
		if frame == nil {
			k, err := c.conn.Read(c.in.Free())
			if err != nil {
				return nil, err
			}
			c.in.Filled(k)
		} else if strings.Contains(string(frame), text) {
			return frame, nil
		}
	}
}

// reaches sends datagrams until the other guest has one: lodge-net may not have served its connection yet.
func (c *card) reaches(other *card, text string) {
	c.t.Helper()
	for range 100 {
		c.sendUDP(netip.AddrPortFrom(other.address, 7), other.mac, text)
		if _, err := other.await(text, patience/100); err == nil {
			return
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.t.Fatal(err)
		}
	}
	c.t.Fatalf("%v does not reach %v", c.address, other.address)
}

// soon is how long a test waits for what must not come.
const soon = 200 * time.Millisecond

const lab = `name = "lab"
kind = "isolated"
subnet = "10.99.0.0/24"
peers = true
`

// Guests on an isolated network reach each other and nobody else, whatever is killed meanwhile.
func TestIsolatedNetwork(t *testing.T) {
	r := netRig(t, nil)
	r.defineNetwork(lab)
	a, b := r.startOn("a", "lab"), r.startOn("b", "lab", "default")
	if n := r.network("lab", "up", func(n Network) bool { return n.Up && n.PID != 0 }); len(n.Guests) != 2 || n.Stale || n.Note != "" {
		t.Errorf("%+v", n)
	}
	a.connect()
	b.connect()
	a.reaches(b, "first")

	// Not the outside: neither an address of the host's nor one behind it.
	server, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	port := server.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	for _, to := range append(hostAddresses(t), netip.MustParseAddr("203.0.113.1")) {
		a.sendUDP(netip.AddrPortFrom(to, port), network.GatewayMAC, "outside")
	}
	_ = server.SetReadDeadline(time.Now().Add(soon))
	if k, from, err := server.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("the host got %d bytes from %v", k, from)
	}
	traffic, err := r.NetworkTraffic(t.Context(), "lab")
	if err != nil || len(traffic) != 2 || traffic[0].Refused == 0 || !traffic[0].Connected || traffic[1].Received == 0 {
		t.Errorf("%+v, %v", traffic, err)
	}

	// Its lodge-net is killed: another one takes its place, and the guests connect again.
	before := r.network("lab", "up", func(n Network) bool { return n.PID != 0 })
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := a.await("nothing", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("lodge-net was killed: %v", err)
	}
	r.network("lab", "up again", func(n Network) bool { return n.PID != 0 && n.PID != before.PID && n.Note == "" })
	a.connect()
	b.connect()
	a.reaches(b, "second")

	// The manager ends, and another one finds everything as it was: connections go on.
	before = r.network("lab", "up", func(n Network) bool { return n.PID != 0 })
	r.reopen()
	if n, err := r.GetNetwork("lab"); err != nil || n.PID != before.PID || len(n.Guests) != 2 || n.Note != "" {
		t.Errorf("%+v, %v, want process %d", n, err, before.PID)
	}
	a.reaches(b, "third")
	r.startOn("c", "lab") // the new one can tell it, too
	if n, _ := r.GetNetwork("lab"); n.PID != before.PID {
		t.Errorf("process %d, was %d", n.PID, before.PID)
	}

	// lodge-net dies while there is no manager.
	r.Close()
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.network("lab", "up again", func(n Network) bool { return n.PID != 0 && n.PID != before.PID })
	a.connect()
	b.connect()
	a.reaches(b, "fourth")

	// With the last guest it goes down.
	pid := r.network("lab", "up", func(n Network) bool { return n.PID != 0 }).PID
	for _, g := range []string{"a", "c"} {
		r.must(r.Kill(g))
	}
	if n := r.network("lab", "up", func(n Network) bool { return n.Up }); len(n.Guests) != 1 {
		t.Errorf("%+v", n.Guests)
	}
	r.must(r.Kill("b"))
	r.network("lab", "down", func(n Network) bool { return !n.Up && n.PID == 0 })
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("lodge-net is still there: %v", err)
	}
	if left := glob(r.dir, "run/networks/*"); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func hostAddresses(t *testing.T) (list []netip.Addr) {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			list = append(list, p.Addr())
		}
	}
	return list
}

// A manager that is killed leaves networks to the next one; what it was doing is done or undone.
func TestNetworkManagerKilled(t *testing.T) {
	r := netRig(t, nil)
	r.defineNetwork(lab)
	for _, g := range []string{"a", "b"} {
		r.define(g, "", "[[nic]]", `name = "lan"`, `network = "lab"`)
	}
	for i := range 5 {
		r.Close()
		v := startVictim(t, r.dir)
		for _, g := range []string{"a", "b"} {
			if got := v.do(g, "start"); got != "done <nil>" {
				t.Fatal(got)
			}
		}
		if i == 0 {
			awaitRecord(t, r.dir, "a", life.Running)
			awaitRecord(t, r.dir, "b", life.Running)
		} else { // somewhere on the way
			time.Sleep(time.Duration(i*i) * 10 * time.Millisecond)
		}
		v.kill()
		r.open()
		r.state("a", life.Running)
		r.state("b", life.Running)
		r.network("lab", "up", func(n Network) bool { return n.Up && n.PID != 0 && len(n.Guests) == 2 })
		a, b := r.card("a"), r.card("b")
		a.connect()
		b.connect()
		a.reaches(b, "hello")
		r.must(r.Kill("a"))
		r.must(r.Kill("b"))
		r.network("lab", "down", func(n Network) bool { return !n.Up })
	}
}

// Forwards and rules of a network that is up change at once; the rest waits.
func TestNetworkEdit(t *testing.T) {
	r := netRig(t, nil)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()
	base := "name = \"out\"\nkind = \"user\"\nsubnet = \"10.98.0.0/24\"\n"
	forward := func(protocol, listen string) string {
		return fmt.Sprintf("[[forward]]\nprotocol = %q\nlisten = %q\nguest = \"a\"\nport = 80\n", protocol, listen)
	}
	r.defineNetwork(base, forward("tcp", taken.Addr().String()))
	a := r.startOn("a", "out")
	// A port that somebody else has keeps no guest from starting.
	r.network("out", "up with a note", func(n Network) bool { return n.Up && strings.Contains(n.Note, "address already in use") })
	a.connect()
	edit := func(text string) {
		t.Helper()
		_, tag, err := r.NetworkDefinition("out")
		if err == nil {
			err = r.EditNetwork("out", []byte(text), tag)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	client, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	arrives := func() bool {
		t.Helper()
		for range 20 {
			_, _ = client.Write([]byte("ping"))
			if _, err := a.await("ping", soon/4); err == nil {
				return true
			}
		}
		return false
	}
	edit(base + forward("udp", fmt.Sprintf("127.0.0.1:%d", port)))
	if !arrives() {
		t.Error("nothing comes over the new forward")
	}
	if n, _ := r.GetNetwork("out"); n.Note != "" || n.Stale {
		t.Errorf("%+v", n)
	}
	deny := "[[rule]]\ndirection = \"in\"\naction = \"deny\"\n"
	edit(base + forward("udp", fmt.Sprintf("127.0.0.1:%d", port)) + deny)
	time.Sleep(soon)
	if arrives() {
		t.Error("what the new rule denies comes in")
	}
	edit(base)
	if n, _ := r.GetNetwork("out"); n.Stale {
		t.Error("stale, but for rules and forwards only")
	}
	edit(strings.Replace(base, "10.98", "10.97", 1))
	if n, _ := r.GetNetwork("out"); !n.Stale || n.Subnet.String() != "10.98.0.0/24" {
		t.Errorf("%+v", n)
	}
	address := a.address
	r.must(r.Kill("a"))
	r.must(r.Start("a"))
	if n, _ := r.GetNetwork("out"); n.Stale || n.Subnet.String() != "10.97.0.0/24" || !n.Subnet.Contains(n.Guests[0].Address) {
		t.Errorf("%+v, had %v", n, address)
	}
}

// What guests need is there, and stays.
func TestNetworkDefinitions(t *testing.T) {
	r := netRig(t, nil)
	nic := []string{"[[nic]]", `name = "lan"`, `network = "lab"`}
	kernel := filepath.Join(r.dir, "vmlinux")
	if _, err := r.Define(fmt.Appendf(nil, "name = \"a\"\nmemory = \"64M\"\nboot.kernel = %q\n%s", kernel, strings.Join(nic, "\n"))); err == nil ||
		!strings.Contains(err.Error(), `a.toml:6: nic "lan": there is no network "lab"`) {
		t.Error(err)
	}
	r.defineNetwork(lab)
	r.define("a", "", nic...)
	if err := r.DeleteNetwork("lab"); !errors.Is(err, ErrNetworkUsed) {
		t.Error(err)
	}
	if err := r.DeleteNetwork("none"); !errors.Is(err, network.ErrNotFound) {
		t.Error(err)
	}
	// Somebody breaks it by hand: the guest cannot be started until that is mended.
	file := filepath.Join(r.dir, "etc/networks/lab.toml")
	if err := os.WriteFile(file, []byte("name = "), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if n, err := r.GetNetwork("lab"); err != nil || !strings.Contains(n.Fault, "lab.toml:1") {
		t.Errorf("%+v, %v", n, err)
	}
	if g, _ := r.Get("a"); !strings.Contains(g.Fault, `there is no network "lab"`) {
		t.Errorf("%+v", g)
	}
	if err := os.WriteFile(file, []byte(lab), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if g, _ := r.Get("a"); g.Fault != "" {
		t.Errorf("%+v", g)
	}
	// A card's address is its own, also after the manager's end and others' coming.
	r.must(r.Start("a"))
	address := r.card("a").address
	r.must(r.Kill("a"))
	r.reopen()
	r.startOn("b", "lab")
	r.must(r.Start("a"))
	if now := r.card("a").address; now != address {
		t.Errorf("%v, was %v", now, address)
	}
	r.must(r.Kill("a"))
	r.must(r.Kill("b"))
	if err := errors.Join(r.Delete("a"), r.Delete("b"), r.DeleteNetwork("lab")); err != nil {
		t.Error(err)
	}
	if list := r.ListNetworks(); len(list) != 1 || list[0].Name != network.Default {
		t.Errorf("%+v", list)
	}
	// The kernel's kinds need who may change the host.
	r.defineNetwork("name = \"nat\"", "kind = \"nat\"", `subnet = "10.96.0.0/24"`)
	r.define("n", "", "[[nic]]", `name = "lan"`, `network = "nat"`)
	if err := r.run(r.Start("n")); err == nil || !strings.Contains(err.Error(), "runs as root") {
		t.Error(err)
	}
}

// A nat network, in a network namespace that this test's process is started again in.
func TestNATNetwork(t *testing.T) {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and /dev/net/tun")
	} else {
		f.Close()
	}
	if os.Getenv("MANAGER_TEST_NAT") == "" {
		if _, err := lodgeNet(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestNATNetwork$", "-test.v="+fmt.Sprint(testing.Verbose()))
		cmd.Env = append(os.Environ(), "MANAGER_TEST_NAT=1")
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	r := netRig(t, &bridge.Host{State: filepath.Join(t.TempDir(), "ip_forward")})
	r.defineNetwork("name = \"nat\"", "kind = \"nat\"", `subnet = "10.96.0.0/24"`)
	a := r.startOn("a", "nat")
	r.startOn("b", "nat")
	if n := r.network("nat", "up", func(n Network) bool { return n.Up && n.PID != 0 }); len(n.Guests) != 2 {
		t.Errorf("%+v", n)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := unix.NewIfreq(a.nic.Tap)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	tap := os.NewFile(uintptr(fd), "tap")
	defer tap.Close()
	leased := func() bool {
		t.Helper()
		ask, err := dhcpv4.NewDiscovery(net.HardwareAddr(a.mac[:]))
		if err != nil {
			t.Fatal(err)
		}
		frame := networktest.UDP(network.MAC{255, 255, 255, 255, 255, 255}, a.mac, netip.MustParseAddrPort("0.0.0.0:68"),
			netip.MustParseAddrPort("255.255.255.255:67"), string(ask.ToBytes()))
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			if _, err := tap.Write(frame); err != nil {
				t.Fatal(err)
			}
			_ = tap.SetReadDeadline(time.Now().Add(soon))
			buf := make([]byte, 4096)
			for {
				k, err := tap.Read(buf)
				if err != nil {
					break
				}
				if k > 42 && string(buf[:6]) == string(a.mac[:]) && strings.Contains(string(buf[:k]), "nat.internal") {
					reply, err := dhcpv4.FromBytes(buf[42:k])
					return err == nil && reply.YourIPAddr.String() == a.address.String()
				}
			}
		}
		return false
	}
	if !leased() {
		t.Error("no lease")
	}
	traffic, err := r.NetworkTraffic(t.Context(), "nat")
	if err != nil || len(traffic) != 2 || traffic[0].Sent == 0 {
		t.Errorf("%+v, %v", traffic, err)
	}
	before := r.network("nat", "up", func(n Network) bool { return n.PID != 0 })
	r.reopen()
	if n, err := r.GetNetwork("nat"); err != nil || n.PID != before.PID || n.Note != "" {
		t.Errorf("%+v, %v, want process %d", n, err, before.PID)
	}
	r.must(r.Kill("b"))
	if !leased() {
		t.Error("no lease after the other guest's end")
	}
	// The guest dies while there is no manager: the next one removes what is left.
	r.Close()
	killAll(r.dir)
	r.open()
	r.network("nat", "down", func(n Network) bool { return !n.Up })
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "lodge-") || l.Name == a.nic.Tap {
			t.Errorf("left over: %s", l.Name)
		}
	}
}
