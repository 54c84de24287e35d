package usermode

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
)

// sunk is a connection that takes everything.
type sunk struct{ net.Conn }

func (sunk) Write(b []byte) (int, error)     { return len(b), nil }
func (sunk) Read([]byte) (int, error)        { return 0, io.EOF }
func (sunk) Close() error                    { return nil }
func (sunk) SetDeadline(time.Time) error     { return nil }
func (sunk) LocalAddr() net.Addr             { return nil }
func (sunk) RemoteAddr() net.Addr            { return nil }
func (sunk) SetReadDeadline(time.Time) error { return nil }

// A guest's frames neither bring the network down nor get past the port from another's address: what reaches bob comes from
// alice, and nothing else than what she may send leaves.
func FuzzInput(f *testing.F) {
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	all := network.MAC{255, 255, 255, 255, 255, 255}
	f.Add(datagram(bob.MAC, alice.MAC, at(alice.Address, 9), at(bob.Address, 9), "peer"))
	f.Add(datagram(network.GatewayMAC, alice.MAC, at(alice.Address, 9), at(outside, 9), "outside"))
	f.Add(datagram(bob.MAC, bob.MAC, at(bob.Address, 9), at(bob.Address, 9), "spoofed"))
	question, err := new(dns.Msg).SetQuestion("bob.test.internal.", dns.TypeA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(datagram(network.GatewayMAC, alice.MAC, at(alice.Address, 9), at(gateway, 53), string(question)))
	discover, err := dhcpv4.NewDiscovery(net.HardwareAddr(alice.MAC[:]))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(datagram(all, alice.MAC, at(netip.IPv4Unspecified(), 68), at(netip.AddrFrom4([4]byte{255, 255, 255, 255}), 67), string(discover.ToBytes())))
	f.Add(ethernet(all, alice.MAC, 0x0806, []byte("\x00\x01\x08\x00\x06\x04\x00\x01"+string(alice.MAC[:])+string(alice.Address.AsSlice())+
		strings.Repeat("\x00", 6)+string(gateway.AsSlice()))))

	c := config(network.User)
	c.Network.Peers = true
	n, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	defer n.Close()
	// Nothing is dialled: a fuzzer must not speak to whoever it finds.
	n.rules.Store(&[]network.Rule{{Direction: network.Out, Action: network.Allow, CIDR: netip.MustParsePrefix("10.77.0.0/24")},
		{Direction: network.Out, Action: network.Deny}})
	a, b := n.ports.Load().byName["alice"], n.ports.Load().byName["bob"]
	a.conn, b.conn = sunk{}, sunk{}
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := b.received.Load()
		b.mu.Lock()
		b.out = nil
		b.mu.Unlock()
		a.mu.Lock()
		a.out = nil
		a.mu.Unlock()
		a.input(frame)
		if b.received.Load() == before {
			return
		}
		b.mu.Lock()
		got := b.out[4:]
		b.mu.Unlock()
		if network.MAC(got[6:12]) != alice.MAC {
			t.Fatalf("bob got a frame from %v", network.MAC(got[6:12]))
		}
		if k, ok := parseIPv4(got); ok && k.src != alice.Address.As4() {
			t.Fatalf("bob got a packet from %v", k.src)
		}
	})
}

// What a manager may be made to send is refused or carried out, never a crash.
func FuzzChange(f *testing.F) {
	for _, s := range []string{`{}`, `{"Remove":"alice"}`, `{"Rules":[{"Direction":"out","Action":"deny","Ports":"1-2"}]}`,
		`{"Guest":{"Name":"alice","MAC":"52:54:00:00:00:01","Address":"10.77.0.10"}}`} {
		f.Add([]byte(s))
	}
	n, err := New(config(network.Isolated), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	defer n.Close()
	f.Fuzz(func(t *testing.T, message []byte) {
		var c netctl.Change
		if json.Unmarshal(message, &c) == nil && c.Guest != nil {
			_ = n.SetGuest(*c.Guest)
		} else {
			_ = n.change(message, nil)
		}
		var guests []network.Guest
		for _, p := range n.sorted() {
			guests = append(guests, p.guest)
		}
		if err := n.def.CheckGuests(guests); err != nil {
			t.Fatal(err)
		}
		def := n.def
		def.Rules = *n.rules.Load()
		if err := def.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}
