package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/internal/framing"
	"github.com/lodgehv/lodge/internal/seccomp/seccomptest"
)

// outside is an address of the namespace in which the program is traced, and all that there is outside of its network.
const outside = "198.51.100.1"

// elsewhere has who needs what the test does not see.
var elsewhere = map[seccomptest.Need]string{
	{Call: unix.SYS_MADVISE}: "chance", {Call: unix.SYS_TGKILL}: "chance", {Call: unix.SYS_RT_SIGRETURN}: "chance",
	{Call: unix.SYS_GETPID}: "chance", {Call: unix.SYS_GETTID}: "chance", {Call: unix.SYS_EXIT}: "chance",
	{Call: unix.SYS_CLONE}: "chance", {Call: unix.SYS_RT_SIGPROCMASK}: "chance", {Call: unix.SYS_SIGALTSTACK}: "chance",
	{Call: unix.SYS_SCHED_GETAFFINITY}: "a life of more than a second", {Call: unix.SYS_MMAP}: "chance",
	{Call: unix.SYS_EPOLL_CREATE1}: "chance", {Call: unix.SYS_EVENTFD2}: "chance", {Call: unix.SYS_RT_SIGACTION}: "a crash", {Call: unix.SYS_GETRANDOM}: "chance",
}

// TestSyscalls holds that the program makes no call that its list leaves out, and that the list has none that it does not make,
// with a way out and without.
func TestSyscalls(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if os.Getenv("LODGE_TEST_OUTSIDE") == "" { // all threads have to be in a network namespace
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestSyscalls$", "-test.v", "-test.count=1")
		cmd.Env = append(os.Environ(), "LODGE_TEST_OUTSIDE=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		check(t, err)
		return
	}
	lo, err := netlink.LinkByName("lo")
	check(t, err)
	check(t, netlink.LinkSetUp(lo))
	addr, err := netlink.ParseAddr(outside + "/32")
	check(t, err)
	check(t, netlink.AddrAdd(lo, addr))
	program := build(t)
	for _, kind := range []network.Kind{network.User, network.Isolated} {
		var tr seccomptest.Trace
		live(t, &tr, program, kind, false)
		if kind == network.User {
			live(t, &tr, program, kind, true)
		}
		seccomptest.Compare(t, "a network of kind "+string(kind), tr.Process, calls(kind == network.User), elsewhere, seccomptest.Runtime)
	}
}

// live traces the program as its network has a guest that does what guests do. host is whether it reaches the host, which is all
// that there is outside.
func live(t *testing.T, tr *seccomptest.Trace, program string, kind network.Kind, host bool) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, string(kind)+name) }
	c := netctl.Config{Network: network.Network{Name: "test", Kind: kind, Subnet: netip.MustParsePrefix("10.77.0.0/24"), Host: host}, Guests: []network.Guest{alice}}
	names := []string{"config", "control", "manage", "guest.alice"}
	files := []*os.File{nil, unixFile(t, "unix", at("control")), unixFile(t, "unixpacket", at("manage")), unixFile(t, "unix", at("alice"))}
	if host {
		c.Network.Forwards = []network.Forward{
			{Protocol: network.TCP, Listen: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: "alice", Port: 80},
			{Protocol: network.UDP, Listen: netip.MustParseAddrPort("127.0.0.1:8081"), Guest: "alice", Port: 81},
		}
		l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(c.Network.Forwards[0].Listen))
		check(t, err)
		defer l.Close()
		f, err := l.File()
		check(t, err)
		defer f.Close()
		p, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(c.Network.Forwards[1].Listen))
		check(t, err)
		defer p.Close()
		g, err := p.File()
		check(t, err)
		defer g.Close()
		names, files = append(names, "forward.0", "forward.1"), append(files, f, g)
		c.Network.DNS = []netip.Addr{netip.MustParseAddr(outside)}
	}
	files[0] = configFile(t, c)
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, program, logSyscalls)
	cmd.Env = []string{"LISTEN_FDS=" + strconv.Itoa(len(files)), "LISTEN_FDNAMES=" + strings.Join(names, ":"),
		"GODEBUG=containermaxprocs=0"} // in its cell there is no file of a control group for Go's runtime to read again and again
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	ended, err := tr.Start(cmd)
	check(t, err)
	g := plug(t, at("alice"))
	if host {
		g.goOut(t)
	} else if kind == network.User {
		g.refused(t)
	}
	g.resolve(t, host)
	conn, err := control.Dial(t.Context(), at("control"))
	check(t, err)
	var s netctl.Status
	check(t, conn.Call(t.Context(), "status", nil, &s, nil))
	if len(s.Guests) != 1 || !s.Guests[0].Connected {
		t.Errorf("status: %+v", s)
	}
	conn.Close()
	m, err := netctl.DialManager(at("manage"))
	check(t, err)
	check(t, m.Do(t.Context(), netctl.Change{Guest: &alice}, unixFile(t, "unix", at("again"))))
	if host {
		for i, f := range c.Network.Forwards {
			check(t, m.Do(t.Context(), netctl.Change{Unforward: &f}, nil))
			check(t, m.Do(t.Context(), netctl.Change{Forward: &f}, files[4+i]))
		}
	}
	check(t, m.Do(t.Context(), netctl.Change{Remove: "alice"}, nil))
	m.Close()
	check(t, cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-ended:
		check(t, err)
	case <-time.After(timeout):
		cmd.Process.Kill()
		t.Fatal("it does not end")
	}
}

// netGuest is a guest with TCP/IP of its own.
type netGuest struct{ stack *stack.Stack }

// plug connects a guest to the network's socket at path.
func plug(t *testing.T, path string) *netGuest {
	t.Helper()
	conn, err := net.Dial("unix", path)
	check(t, err)
	ep := channel.New(64, 1500, "")
	s := stack.New(stack.Options{NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol}})
	if err := s.CreateNIC(1, ep); err != nil {
		t.Fatal(err)
	}
	if err := s.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFrom4(alice.Address.As4()).WithPrefix()}, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); conn.Close(); s.Destroy() })
	go func() {
		for {
			p := ep.ReadContext(ctx)
			if p == nil {
				return
			}
			frame := make([]byte, header.EthernetMinimumSize)
			header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(alice.MAC[:]),
				DstAddr: tcpip.LinkAddress(network.GatewayMAC[:]), Type: ipv4.ProtocolNumber})
			frame = append(frame, p.ToView().AsSlice()...)
			p.DecRef()
			if _, err := conn.Write(append(framing.AppendPrefix(nil, len(frame)), frame...)); err != nil {
				return
			}
		}
	}()
	go func() {
		in := framing.Deframer{Buf: make([]byte, framing.BufferSize)}
		for {
			frame, err := in.Next()
			if err == nil && frame == nil {
				var n int
				n, err = conn.Read(in.Free())
				in.Filled(n)
			}
			if err != nil {
				return
			}
			if len(frame) > header.EthernetMinimumSize && header.Ethernet(frame).Type() == ipv4.ProtocolNumber {
				p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(append([]byte(nil), frame[header.EthernetMinimumSize:]...))})
				ep.InjectInbound(ipv4.ProtocolNumber, p)
				p.DecRef()
			}
		}
	}()
	return &netGuest{s}
}

func full(address string, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(netip.MustParseAddr(address).As4()), Port: port}
}

// goOut has the guest connect to the outside, and the outside to it, by TCP and UDP; and to where nobody is.
func (g *netGuest) goOut(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp4", outside+":9000")
	check(t, err)
	defer l.Close()
	go echo(l)
	p, err := net.ListenPacket("udp4", outside+":9000")
	check(t, err)
	defer p.Close()
	go echoPackets(p)
	inside, err := gonet.ListenTCP(g.stack, full(alice.Address.String(), 80), ipv4.ProtocolNumber)
	check(t, err)
	defer inside.Close()
	go echo(inside)
	at := full(alice.Address.String(), 81)
	packets, err := gonet.DialUDP(g.stack, &at, nil, ipv4.ProtocolNumber)
	check(t, err)
	defer packets.Close()
	go echoPackets(packets)

	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if _, err := gonet.DialContextTCP(ctx, g.stack, full(outside, 9001), ipv4.ProtocolNumber); err == nil {
		t.Error("somebody is at port 9001")
	}
	out, err := gonet.DialContextTCP(ctx, g.stack, full(outside, 9000), ipv4.ProtocolNumber)
	check(t, err)
	to := full(outside, 9000)
	datagrams, err := gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	check(t, err)
	in, err := net.Dial("tcp4", "127.0.0.1:8080")
	check(t, err)
	udpIn, err := net.Dial("udp4", "127.0.0.1:8081")
	check(t, err)
	for what, c := range map[string]net.Conn{"TCP out": out, "UDP out": datagrams, "TCP in": in, "UDP in": udpIn} {
		c.SetDeadline(time.Now().Add(timeout))
		fmt.Fprintf(c, "hello by %s", what)
		if half, ok := c.(interface{ CloseWrite() error }); ok && strings.HasPrefix(what, "TCP") {
			check(t, half.CloseWrite())
		}
		b := make([]byte, 100)
		if n, err := c.Read(b); err != nil || string(b[:n]) != "hello by "+what {
			t.Errorf("%s: %q, %v", what, b[:n], err)
		}
		c.Close()
	}
}

// refused has the guest try to connect to the host.
func (g *netGuest) refused(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := gonet.DialContextTCP(ctx, g.stack, full(outside, 9000), ipv4.ProtocolNumber); err == nil {
		t.Error("it reaches the host")
	}
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { io.Copy(c, c); c.Close() }()
	}
}

func echoPackets(p net.PacketConn) {
	b := make([]byte, 1500)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		p.WriteTo(b[:n], from)
	}
}

// resolve asks the network for a name outside, by UDP and TCP.
func (g *netGuest) resolve(t *testing.T, outsideAnswers bool) {
	t.Helper()
	if outsideAnswers {
		handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetReply(q)) })
		for _, protocol := range []string{"udp", "tcp"} {
			ready := make(chan struct{})
			s := &dns.Server{Net: protocol, Addr: outside + ":53", Handler: handler, NotifyStartedFunc: func() { close(ready) }}
			go s.ListenAndServe()
			<-ready
			defer s.Shutdown()
		}
	}
	to := full("10.77.0.1", 53)
	u, err := gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	s, err := gonet.DialContextTCP(ctx, g.stack, to, ipv4.ProtocolNumber)
	check(t, err)
	for what, c := range map[string]net.Conn{"UDP": u, "TCP": s} {
		c.SetDeadline(time.Now().Add(timeout))
		conn := &dns.Conn{Conn: c}
		check(t, conn.WriteMsg(new(dns.Msg).SetQuestion("example.com.", dns.TypeA)))
		answer, err := conn.ReadMsg()
		if err != nil || (answer.Rcode == dns.RcodeSuccess) != outsideAnswers {
			t.Errorf("%s: %v, %v", what, answer, err)
		}
		c.Close()
	}
}
