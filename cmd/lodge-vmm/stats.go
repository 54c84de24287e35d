package main

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	virtionet "github.com/lodgehv/lodge/hypervisor/virtio/net"
)

// guestStats is the result of the method "stats": what only this process can count, since it began to run the guest.
type guestStats struct {
	Exits       uint64 `json:"exits"`        // of all vCPUs, to devices of this process
	NetReceived uint64 `json:"net_received"` // bytes of all cards' frames, as the guest sees it
	NetSent     uint64 `json:"net_sent"`
}

func (g *guest) stats() guestStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := guestStats{Exits: g.exits, NetReceived: g.res.traffic.received.Load(), NetSent: g.res.traffic.sent.Load()}
	if g.machine != nil {
		s.Exits += g.machine.Exits()
	}
	return s
}

// traffic is how much went over the guest's network cards, in bytes.
type traffic struct{ received, sent atomic.Uint64 }

// countedBackend counts what goes over a network backend.
type countedBackend struct {
	virtionet.Backend
	to *traffic
}

// Receive implements virtionet.Backend.
func (c *countedBackend) Receive(packet []unix.Iovec, idle func()) (int, error) {
	n, err := c.Backend.Receive(packet, idle)
	if err == nil {
		c.to.received.Add(uint64(max(n-virtionet.HeaderSize, 0)))
	}
	return n, err
}

// Send implements virtionet.Backend.
func (c *countedBackend) Send(packet []unix.Iovec) error {
	err := c.Backend.Send(packet)
	if err == nil && len(packet) > 0 {
		for _, v := range packet[1:] { // the first is the header
			c.to.sent.Add(v.Len)
		}
	}
	return err
}
