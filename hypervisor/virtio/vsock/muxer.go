package vsock

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hypervisor/virtio"
)

const (
	// maxConns is how many connections one guest may have, with those that are not open yet.
	maxConns = 256
	// maxResets is how many opRST wait for the guest to take them. More are dropped: only a guest that provokes them
	// faster than it reads them comes there, and it harms itself.
	maxResets = 2 * maxConns
	// openTimeout bounds each step of opening a connection.
	openTimeout = 5 * time.Second
	// The host's ports that connections from the host come from.
	firstPort, endPort = 1 << 30, 1 << 31
)

// muxer has all connections of a device. Its methods are called with mu held unless they say otherwise.
type muxer struct {
	cid      uint64
	dial     func(ctx context.Context, port uint32) (net.Conn, error) // nil: the guest can connect to nothing
	listener Listener                                                 // nil: nobody can connect to the guest
	timeout  time.Duration

	mu       sync.Mutex
	running  bool
	ctx      context.Context // ends at stop
	cancel   context.CancelFunc
	wg       sync.WaitGroup // all goroutines of ours
	conns    map[key]*conn
	greeting map[net.Conn]struct{} // accepted, and not told yet what port they want
	port     uint32                // the next one to try for a connection from the host

	work        sync.Cond // the receive worker waits for something to send
	first, last *conn     // connections that may have something to send
	resets      []packet
	hdr         [headerSize]byte // for toGuest
}

func newMuxer(c Config) *muxer {
	m := &muxer{cid: c.CID, dial: c.Dial, listener: c.Listener, timeout: openTimeout, port: firstPort,
		conns: make(map[key]*conn), greeting: make(map[net.Conn]struct{})}
	m.work.L = &m.mu
	return m
}

// spawn runs f in a goroutine that stop waits for. It does nothing while the device is stopped: start begins everything
// anew.
func (m *muxer) spawn(f func()) {
	if m.running {
		m.wg.Go(f)
	}
}

// start lets connections move. The lock is not held.
func (m *muxer) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = true
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if m.listener != nil {
		_ = m.listener.SetDeadline(time.Time{})
		m.spawn(m.accept)
	}
	for _, c := range m.conns {
		if c.sock != nil {
			_ = c.sock.SetDeadline(time.Time{})
		}
		if c.timer != nil {
			c.timer.Reset(m.timeout)
		}
		c.pump()
	}
}

// stop ends all goroutines and makes toGuest return; connections stay. The lock is not held.
func (m *muxer) stop() {
	m.mu.Lock()
	if m.running {
		m.running = false
		m.cancel()
		past := time.Unix(1, 0) // whoever waits for a socket returns
		if m.listener != nil {
			_ = m.listener.SetDeadline(past)
		}
		for sock := range m.greeting {
			_ = sock.SetDeadline(past)
		}
		for _, c := range m.conns {
			if c.sock != nil {
				_ = c.sock.SetDeadline(past)
			}
			if c.timer != nil {
				c.timer.Stop() // the guest cannot answer
			}
			c.inMoved.Broadcast()
			c.outMoved.Broadcast()
		}
		m.work.Broadcast()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// reset closes all connections without a word to the guest. The lock is not held; the muxer is stopped.
func (m *muxer) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		m.drop(c)
	}
	m.resets, m.first, m.last = nil, nil, nil
}

// full reports whether there is no place for another connection.
func (m *muxer) full() bool { return len(m.conns)+len(m.greeting) >= maxConns }

// add makes a connection.
func (m *muxer) add(k key, s state) *conn {
	c := &conn{m: m, key: k, state: s}
	c.inMoved.L, c.outMoved.L = &m.mu, &m.mu
	m.conns[k] = c
	return c
}

// drop forgets c and closes its socket.
func (m *muxer) drop(c *conn) {
	delete(m.conns, c.key)
	c.dead = true
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.sock != nil {
		_ = c.sock.Close()
	}
	c.inMoved.Broadcast()
	c.outMoved.Broadcast()
}

// abort drops c and tells the guest.
func (m *muxer) abort(c *conn) {
	m.drop(c)
	m.refuse(packet{srcCID: hostCID, dstCID: m.cid, srcPort: c.key.host, dstPort: c.key.guest, kind: typeStream, op: opRST})
}

// refuse queues an opRST.
func (m *muxer) refuse(p packet) {
	if len(m.resets) < maxResets {
		m.resets = append(m.resets, p)
		m.work.Signal()
	}
}

// settle ends c when neither side has anything more to say. It is the guest that has to know: it waits for our opRST.
func (m *muxer) settle(c *conn) {
	fromGuest := c.guestShut&shutSend != 0 && (c.drained || c.hostDeaf)
	toGuest := c.guestShut&shutReceive != 0 || c.said&shutSend != 0
	if !c.dead && fromGuest && toGuest {
		m.abort(c)
	}
}

// ready puts c on the list of those that have something to send, if it has.
func (m *muxer) ready(c *conn) {
	if c.queued || c.next() == opInvalid {
		return
	}
	c.queued = true
	if m.last == nil {
		m.first = c
	} else {
		m.last.link = c
	}
	m.last = c
	m.work.Signal()
}

// pop takes the first connection from the list.
func (m *muxer) pop() *conn {
	c := m.first
	if c != nil {
		if m.first = c.link; m.first == nil {
			m.last = nil
		}
		c.queued, c.link = false, nil
	}
	return c
}

// toGuest waits until there is a packet for the guest and puts it into chain, which has room for a header and at least one
// byte. It flushes q before it waits, and returns false if the device is to stop. The lock is not held.
func (m *muxer) toGuest(chain *virtio.Chain, q *virtio.Queue) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for flushed := false; m.running; {
		if len(m.resets) > 0 { // first of all: the ports may be in use again
			m.resets[0].encode(&m.hdr)
			_, _ = chain.Write(m.hdr[:])
			m.resets = m.resets[:copy(m.resets, m.resets[1:])]
			return true
		}
		if c := m.pop(); c != nil {
			op := c.next()
			if op == opInvalid {
				continue
			}
			m.emit(c, op, chain)
			m.ready(c)
			return true
		}
		if !flushed {
			m.mu.Unlock()
			q.Flush()
			m.mu.Lock()
			flushed = true
			continue
		}
		m.work.Wait()
	}
	return false
}

// emit writes the packet for op to chain.
func (m *muxer) emit(c *conn, op uint16, chain *virtio.Chain) {
	p := packet{srcCID: hostCID, dstCID: m.cid, srcPort: c.key.host, dstPort: c.key.guest, kind: typeStream, op: op,
		bufAlloc: ringSize, fwdCnt: c.out.taken}
	c.fwdSent = c.out.taken
	c.owes &^= oweCredit
	switch op {
	case opRequest:
		c.owes &^= oweRequest
	case opResponse:
		c.owes &^= oweResponse
	case opCreditRequest:
		c.asked = true
	case opShutdown:
		p.flags = c.shut()
		c.said = p.flags
	case opRW:
		p.length = uint32(min(c.in.len(), c.credit(), chain.Writable()-headerSize))
	}
	p.encode(&m.hdr)
	_, _ = chain.Write(m.hdr[:]) // it fits, as do the data
	for left := int(p.length); left > 0; {
		b := c.in.data()
		b = b[:min(left, len(b))]
		_, _ = chain.Write(b)
		c.in.taken += uint32(len(b))
		left -= len(b)
	}
	if op == opRW {
		c.asked = false
		c.inMoved.Signal()
	}
	if op == opShutdown {
		m.settle(c)
	}
}

// fromGuest handles the packet p, whose payload is the next p.length bytes of chain, which are there. The lock is not held.
func (m *muxer) fromGuest(p *packet, chain *virtio.Chain) {
	if p.srcCID != m.cid {
		return // not the guest's to send (§5.10.6.2)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.conns[key{host: p.dstPort, guest: p.srcPort}]
	switch {
	case p.op == opRST:
		if c != nil && p.dstCID == hostCID && p.kind == typeStream {
			m.drop(c)
		}
		return
	case p.dstCID != hostCID || p.kind != typeStream:
		m.refuse(p.refusal())
		return
	case p.op == opRequest && c == nil:
		if m.dial == nil || m.full() {
			m.refuse(p.refusal())
			return
		}
		c = m.add(key{host: p.dstPort, guest: p.srcPort}, dialling)
		c.peerAlloc, c.peerFwd = p.bufAlloc, p.fwdCnt
		c.pump()
		return
	case c == nil:
		m.refuse(p.refusal())
		return
	}

	c.peerAlloc, c.peerFwd = p.bufAlloc, p.fwdCnt
	switch {
	case p.op == opResponse && c.state == requested && c.owes&oweRequest == 0:
		c.opened()
	case c.state != open:
		m.abort(c)
	case p.op == opRW && c.guestShut&shutSend == 0 && int64(p.length) <= int64(c.out.room()):
		c.receive(chain, int(p.length))
	case p.op == opShutdown:
		c.guestShut |= p.flags & shutBoth
		if c.guestShut&shutReceive != 0 {
			if half, ok := c.sock.(interface{ CloseRead() error }); ok {
				_ = half.CloseRead()
			}
		}
		c.inMoved.Signal()
		c.outMoved.Signal()
		m.settle(c)
	case p.op == opCreditUpdate:
	case p.op == opCreditRequest:
		c.owes |= oweCredit
	default: // unknown, out of turn, or more than it was given credit for
		m.abort(c)
	}
	m.ready(c)
}

// receive moves n bytes from chain to the ring out, where they fit.
func (c *conn) receive(chain *virtio.Chain, n int) {
	for left := n; left > 0; {
		b := c.out.space()
		b = b[:min(left, len(b))]
		_, _ = chain.Read(b) // they are there
		c.out.put += uint32(len(b))
		left -= len(b)
	}
	if c.hostDeaf {
		c.took(n)
		return
	}
	c.outMoved.Signal()
}
