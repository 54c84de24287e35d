package usermode

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/internal/framing"
)

// outboxSize is how many bytes of frames wait for a guest that does not read. It is more than what TCP sends at once.
const outboxSize = 1 << 20

// port is where a guest is plugged in.
type port struct {
	net    *Net
	guest  network.Guest
	given  atomic.Pointer[time.Time] // the last lease
	ctx    context.Context           // ends when the guest is removed
	remove context.CancelFunc
	peers  flows // that the guest began, to other guests

	sent, sentBytes, received, receivedBytes atomic.Uint64
	malformed, spoofed, refused, overflow    atomic.Uint64
	tcp, udp, dialling, asking               atomic.Int64 // connections and flows to the outside, those being made, DNS questions

	mu   sync.Mutex // for conn, out and listener
	conn net.Conn   // nil while the guest is not connected
	out  []byte     // frames for it, with their prefixes
	wake chan struct{}

	listener net.Listener // where it connects; nil if it was connected by others
}

func newPort(n *Net, g network.Guest) *port {
	p := &port{net: n, guest: g, wake: make(chan struct{}, 1)}
	p.ctx, p.remove = context.WithCancel(n.ctx)
	return p
}

// accept serves the connections that l accepts, the newest of them. It returns when l is closed or the guest is removed.
func (p *port) accept(l net.Listener) {
	stop := context.AfterFunc(p.ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := control.Accept(p.ctx, l)
		if err != nil {
			return
		}
		if !p.net.run(func() { p.serve(conn) }) {
			conn.Close()
		}
	}
}

// serve carries frames until conn fails, the guest is removed or another connection takes over.
func (p *port) serve(conn net.Conn) {
	stop := context.AfterFunc(p.ctx, func() { conn.Close() })
	defer stop()
	p.mu.Lock()
	if p.conn != nil {
		p.conn.Close()
	}
	p.conn, p.out = conn, nil
	p.mu.Unlock()
	p.net.log.Info("guest is connected", "guest", p.guest.Name)
	ctx, cancel := context.WithCancel(p.ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.write(ctx, conn) })
	err := p.read(conn)
	cancel()
	conn.Close()
	wg.Wait()
	p.mu.Lock()
	if p.conn == conn {
		p.conn, p.out = nil, nil
	}
	p.mu.Unlock()
	p.net.log.Info("guest is gone", "guest", p.guest.Name, "reason", err)
}

// read takes frames from conn until it fails.
func (p *port) read(conn net.Conn) error {
	in := framing.Deframer{Buf: make([]byte, framing.BufferSize)}
	for {
		frame, err := in.Next()
		if err != nil {
			return err
		}
		if frame != nil {
			p.sent.Add(1)
			p.sentBytes.Add(uint64(len(frame)))
			p.input(frame)
			continue
		}
		n, err := conn.Read(in.Free())
		in.Filled(n)
		if n == 0 && err != nil {
			return err
		}
	}
}

// write writes what is in the outbox to conn, until ctx ends.
func (p *port) write(ctx context.Context, conn net.Conn) {
	var out []byte // swapped with the outbox: one write carries all that has come meanwhile
	for {
		p.mu.Lock()
		if p.conn == conn {
			out, p.out = p.out, out[:0]
		} else {
			out = nil
		}
		p.mu.Unlock()
		if len(out) > 0 {
			if _, err := conn.Write(out); err != nil {
				conn.Close() // read ends too
				return
			}
			continue
		}
		if cap(out) > framing.BufferSize {
			out = nil // the rush is over
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return
		}
	}
}

// output puts a frame, which is made of parts, into the guest's outbox, or drops it if that is full.
func (p *port) output(parts ...[]byte) {
	size := 0
	for _, b := range parts {
		size += len(b)
	}
	p.mu.Lock()
	switch {
	case p.conn == nil:
		p.mu.Unlock()
		return
	case len(p.out)+framing.PrefixSize+size > outboxSize:
		p.mu.Unlock()
		p.overflow.Add(1)
		return
	}
	p.out = framing.AppendPrefix(p.out, size)
	for _, b := range parts {
		p.out = append(p.out, b...)
	}
	p.mu.Unlock()
	p.received.Add(1)
	p.receivedBytes.Add(uint64(size))
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *port) status() netctl.GuestStatus {
	p.mu.Lock()
	connected := p.conn != nil
	p.mu.Unlock()
	return netctl.GuestStatus{
		Name: p.guest.Name, MAC: p.guest.MAC, Address: p.guest.Address, Connected: connected,
		Sent: p.sent.Load(), SentBytes: p.sentBytes.Load(), Received: p.received.Load(), ReceivedBytes: p.receivedBytes.Load(),
		Malformed: p.malformed.Load(), Spoofed: p.spoofed.Load(), Refused: p.refused.Load(), Overflow: p.overflow.Load(),
		TCP: p.tcp.Load(), UDP: p.udp.Load(),
	}
}

// take counts one more, if that is not more than limit. Give it back by Add(-1).
func take(count *atomic.Int64, limit int64) bool {
	if count.Add(1) <= limit {
		return true
	}
	count.Add(-1)
	return false
}
