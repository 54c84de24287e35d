package usermode

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/internal/framing"
)

const timeout = 20 * time.Second

// The guests of most tests, and somebody outside: a documentation address, which the tests' dialler leads to the loopback.
var (
	alice   = network.Guest{Name: "alice", MAC: network.MAC{0x52, 0x54, 0, 0, 0, 1}, Address: netip.MustParseAddr("10.77.0.10")}
	bob     = network.Guest{Name: "bob", MAC: network.MAC{0x52, 0x54, 0, 0, 0, 2}, Address: netip.MustParseAddr("10.77.0.11")}
	gateway = netip.MustParseAddr("10.77.0.1")
	outside = netip.MustParseAddr("198.51.100.7")
)

// config returns a network with alice and bob.
func config(kind network.Kind) netctl.Config {
	return netctl.Config{
		Network: network.Network{Name: "test", Kind: kind, Subnet: netip.MustParsePrefix("10.77.0.0/24")},
		Guests:  []network.Guest{alice, bob},
	}
}

// start starts a network whose outside is this machine's loopback, whatever address is asked for.
func start(t testing.TB, c netctl.Config) *Net {
	t.Helper()
	n, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	n.host.list = func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}, nil
	}
	n.dial = func(ctx context.Context, protocol, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, protocol, net.JoinHostPort("127.0.0.1", port))
	}
	return n
}

// guest is the other end of a port: raw frames, and TCP/IP if it was asked for.
type guest struct {
	t      testing.TB
	self   network.Guest
	conn   net.Conn
	in     framing.Deframer
	mu     sync.Mutex // for writes
	stack  *stack.Stack
	ep     *channel.Endpoint
	others map[netip.Addr]network.MAC // that are reached directly
}

// plug connects a guest by a stream socket, as a VMM does.
func plug(t testing.TB, n *Net, self network.Guest) *guest {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Plug(self.Name, os.NewFile(uintptr(fds[0]), "port")); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "guest")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	eventually(t, "the guest is connected", func() bool { return statusOf(n, self.Name).Connected })
	return &guest{t: t, self: self, conn: conn, in: framing.Deframer{Buf: make([]byte, framing.BufferSize)},
		others: map[netip.Addr]network.MAC{alice.Address: alice.MAC, bob.Address: bob.MAC}}
}

func statusOf(n *Net, name string) netctl.GuestStatus {
	for _, g := range n.Status().Guests {
		if g.Name == name {
			return g
		}
	}
	return netctl.GuestStatus{}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(timeout); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", timeout, what)
		}
	}
}

// send sends a frame.
func (g *guest) send(frame []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.conn.Write(append(framing.AppendPrefix(nil, len(frame)), frame...)); err != nil && g.stack == nil {
		g.t.Fatal(err)
	}
}

// next returns the next frame, or nil if none comes before the deadline.
func (g *guest) next(deadline time.Time) []byte {
	_ = g.conn.SetReadDeadline(deadline)
	for {
		frame, err := g.in.Next()
		if err != nil {
			g.t.Fatal(err)
		}
		if frame != nil {
			return bytes.Clone(frame)
		}
		k, err := g.conn.Read(g.in.Free())
		g.in.Filled(k)
		if k == 0 && err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				g.t.Error(err)
			}
			return nil
		}
	}
}

// up gives the guest TCP/IP of its own.
func (g *guest) up() {
	g.ep = channel.New(1024, mtu, "")
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := g.stack.CreateNIC(nic, g.ep); err != nil {
		g.t.Fatal(err)
	}
	if err := g.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFrom4(g.self.Address.As4()).WithPrefix()}, stack.AddressProperties{}); err != nil {
		g.t.Fatal(err)
	}
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			pkt := g.ep.ReadContext(ctx)
			if pkt == nil {
				return
			}
			ip := pkt.ToView().AsSlice()
			pkt.DecRef()
			dst, ok := g.others[netip.AddrFrom4(header.IPv4(ip).DestinationAddress().As4())]
			if !ok {
				dst = network.GatewayMAC
			}
			g.send(ethernet(dst, g.self.MAC, header.IPv4ProtocolNumber, ip))
		}
	})
	wg.Go(func() {
		for {
			frame := g.next(time.Time{})
			if frame == nil {
				return
			}
			if header.Ethernet(frame).Type() == header.IPv4ProtocolNumber {
				pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[header.EthernetMinimumSize:])})
				g.ep.InjectInbound(ipv4.ProtocolNumber, pkt)
				pkt.DecRef()
			}
		}
	})
	g.t.Cleanup(func() {
		cancel()
		g.conn.Close()
		g.ep.Close()
		g.stack.Close()
		wg.Wait()
	})
}

// dial connects to somebody.
func (g *guest) dial(protocol string, to netip.AddrPort, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if protocol == "udp" {
		a := fullAddress(to.Addr(), to.Port())
		return gonet.DialUDP(g.stack, nil, &a, ipv4.ProtocolNumber)
	}
	return gonet.DialContextTCP(ctx, g.stack, fullAddress(to.Addr(), to.Port()), ipv4.ProtocolNumber)
}

// ethernet returns a frame.
func ethernet(dst, src network.MAC, kind tcpip.NetworkProtocolNumber, payload []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(payload))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(src[:]), DstAddr: tcpip.LinkAddress(dst[:]), Type: kind})
	return append(b, payload...)
}

// datagram returns a frame with UDP from a guest.
func datagram(dst, src network.MAC, from, to netip.AddrPort, data string) []byte {
	b := udpFrame(dst, from, to, []byte(data))
	copy(b[6:12], src[:])
	return b
}
