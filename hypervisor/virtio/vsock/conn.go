package vsock

import (
	"net"
	"sync"
	"time"
)

// state is how far a connection has come.
type state uint8

const (
	dialling  state = iota // the guest asked for it; the host's socket is being connected
	requested              // the host asked for it; the guest has not answered yet
	open
)

// What a connection has to tell the guest beside data, as a set.
type debt uint8

const (
	oweRequest debt = 1 << iota
	oweResponse
	oweCredit // opCreditUpdate
)

// key names a connection. The CIDs of both sides are fixed.
type key struct{ host, guest uint32 } // ports

// conn is one connection. All fields are under the muxer's lock. Two goroutines move its bytes between the socket and the
// rings while the device runs; the workers of the queues move them between the rings and the guest.
type conn struct {
	m     *muxer
	key   key
	sock  net.Conn // nil while dialling
	state state
	dead  bool        // no longer in the muxer's table
	timer *time.Timer // ends it if the guest does not answer, running, in time; nil unless requested

	in, out   ring      // to the guest, from the guest
	inMoved   sync.Cond // the reader waits for room in in
	outMoved  sync.Cond // the writer waits for data in out
	hello     []byte    // what the writer sends before out
	eof       bool      // the host sends no more: in holds the rest
	hostDeaf  bool      // the host takes no more: what the guest still sends is thrown away
	guestShut uint32    // flags of the guest's opShutdown
	drained   bool      // all that the guest had to send is in the socket
	said      uint32    // flags of our last opShutdown
	owes      debt
	fwdSent   uint32 // fwd_cnt as the guest knows it
	peerAlloc uint32 // the guest's buf_alloc and fwd_cnt
	peerFwd   uint32
	asked     bool // we sent opCreditRequest, and no data since

	queued bool  // in the muxer's list of those that may have something to send
	link   *conn // the next one there
}

// credit returns how many bytes the guest is ready to take (§5.10.6.3). A guest that takes back what it granted has none.
func (c *conn) credit() int {
	if onTheWay := c.in.taken - c.peerFwd; onTheWay < c.peerAlloc {
		return int(c.peerAlloc - onTheWay)
	}
	return 0
}

// toSend returns how many bytes wait for the guest, which takes none after it has shut that direction.
func (c *conn) toSend() int {
	if c.guestShut&shutReceive != 0 {
		return 0
	}
	return c.in.len()
}

// shut returns the flags of the opShutdown that describes the host's side.
func (c *conn) shut() (flags uint32) {
	if c.eof && c.toSend() == 0 {
		flags |= shutSend
	}
	if c.hostDeaf {
		flags |= shutReceive
	}
	return flags
}

// next returns the operation that is to be sent to the guest now, or opInvalid.
func (c *conn) next() uint16 {
	switch {
	case c.dead, c.state == dialling:
		return opInvalid
	case c.owes&oweRequest != 0:
		return opRequest
	case c.owes&oweResponse != 0:
		return opResponse
	case c.state != open:
		return opInvalid
	case c.toSend() > 0 && c.credit() > 0:
		return opRW // which tells our credit too
	case c.owes&oweCredit != 0:
		return opCreditUpdate
	case c.shut() != c.said:
		return opShutdown
	case c.toSend() > 0 && !c.asked:
		return opCreditRequest
	}
	return opInvalid
}

// opened makes c an open connection: the pumps may run.
func (c *conn) opened() {
	c.state = open
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.out.buf = make([]byte, ringSize)
	if c.in.buf == nil {
		c.in.buf = make([]byte, ringSize)
	}
	c.pump()
	c.m.ready(c)
}

// pump starts the goroutines that c needs in its state, when the device runs: at once, and again after each pause.
func (c *conn) pump() {
	if c.state == dialling {
		c.m.spawn(func() { c.m.dialFor(c) })
	}
	if c.state != open {
		return
	}
	if !c.eof {
		c.m.spawn(c.read)
	}
	if !c.hostDeaf && !c.drained {
		c.m.spawn(c.write)
	}
}

// read moves bytes from the socket to the ring in.
func (c *conn) read() {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		for c.in.room() == 0 && m.running && !c.dead && c.guestShut&shutReceive == 0 {
			c.inMoved.Wait()
		}
		if !m.running || c.dead {
			return
		}
		if c.guestShut&shutReceive != 0 {
			c.eof = true
			m.settle(c)
			return
		}
		b := c.in.space()
		m.mu.Unlock()
		n, err := c.sock.Read(b)
		m.mu.Lock()
		c.in.put += uint32(n)
		if err != nil {
			if !m.running || c.dead {
				return // the deadline, most likely; any other error comes again after the pause
			}
			c.eof = true
		}
		m.ready(c)
		if c.eof {
			m.settle(c)
			return
		}
	}
}

// write moves bytes from the ring out to the socket.
func (c *conn) write() {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		for len(c.hello) == 0 && c.out.len() == 0 && m.running && !c.dead && c.guestShut&shutSend == 0 {
			c.outMoved.Wait()
		}
		if !m.running || c.dead {
			return
		}
		greeting := len(c.hello) > 0
		b := c.hello
		if !greeting {
			b = c.out.data()
		}
		if len(b) == 0 { // the guest has sent all it had
			c.drained = true
			if half, ok := c.sock.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
			m.settle(c)
			return
		}
		m.mu.Unlock()
		n, err := c.sock.Write(b)
		m.mu.Lock()
		if greeting {
			c.hello = c.hello[n:]
		} else {
			c.took(n)
		}
		if err != nil {
			if !m.running || c.dead {
				return
			}
			c.hostDeaf = true
			c.took(c.out.len())
			m.ready(c)
			m.settle(c)
			return
		}
	}
}

// took removes n bytes from the ring out, and tells the guest once it can send half a ring more than it knows.
func (c *conn) took(n int) {
	c.out.taken += uint32(n)
	if c.out.taken-c.fwdSent >= ringSize/2 {
		c.owes |= oweCredit
		c.m.ready(c)
	}
}
