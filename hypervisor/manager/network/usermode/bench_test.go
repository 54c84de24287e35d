package usermode

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// sinkServer discards what it gets, and reports how much that was at each end.
func sinkServer(b *testing.B) (port uint16, done chan int64) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	done = make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, c)
		c.Close()
		done <- n
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), done
}

// From a guest's TCP to a server outside. The guest's TCP/IP runs in the same process, so that its work counts too.
func BenchmarkUpload(b *testing.B) {
	g := plug(b, start(b, config(network.User)), alice)
	g.up()
	port, done := sinkServer(b)
	c, err := g.dial("tcp", netip.AddrPortFrom(outside, port), timeout)
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 64<<10)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	<-done
}

// From a server outside to a guest.
func BenchmarkDownload(b *testing.B) {
	g := plug(b, start(b, config(network.User)), alice)
	g.up()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		block := make([]byte, 64<<10)
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	}()
	c, err := g.dial("tcp", netip.AddrPortFrom(outside, l.Addr().(*net.TCPAddr).AddrPort().Port()), timeout)
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 64<<10)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		if _, err := io.ReadFull(c, block); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}

// From one guest to another: the port's checks and the outbox alone.
func BenchmarkPeer(b *testing.B) {
	c := config(network.Isolated)
	c.Network.Peers = true
	n := start(b, c)
	p, q := n.ports.Load().byName["alice"], n.ports.Load().byName["bob"]
	q.conn = sunk{}
	frame := datagram(bob.MAC, alice.MAC, netip.AddrPortFrom(alice.Address, 9), netip.AddrPortFrom(bob.Address, 9), strings.Repeat("x", 1400))
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		p.input(frame)
		q.mu.Lock()
		q.out = q.out[:0]
		q.mu.Unlock()
	}
}
