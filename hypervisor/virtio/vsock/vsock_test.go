package vsock

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

const (
	timeout  = 10 * time.Second
	guestCID = 42
	rxSize   = 4096 // of the guest's buffers
)

// guest is a driver that speaks packets.
type guest struct {
	*virtiotest.Rig
	t       testing.TB
	path    string // of the device's Unix socket
	bufs    map[uint16]virtiotest.Desc
	out     virtiotest.Desc // for the packet being sent
	outHead virtiotest.Desc
}

// newGuest returns a guest with n receive buffers, on a device with sockets in a directory of the test.
func newGuest(t testing.TB, n int) *guest {
	t.Helper()
	path := filepath.Join(t.TempDir(), "v")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d, err := New(Config{CID: guestCID, Listener: l, Dial: DialPath(path)})
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{Rig: virtiotest.New(t, d, 0), t: t, path: path, bufs: make(map[uint16]virtiotest.Desc)}
	for range n {
		g.give(g.In(rxSize))
	}
	g.outHead, g.out = g.Out(make([]byte, headerSize)), g.Out(make([]byte, ringSize+1))
	return g
}

// give makes a receive buffer available.
func (g *guest) give(d virtiotest.Desc) { g.bufs[g.Queues[rxQueue].Send(d)] = d }

// send sends p with payload, the addresses and length filled in.
func (g *guest) send(p packet, payload []byte) {
	g.t.Helper()
	p.srcCID, p.dstCID, p.kind, p.length = guestCID, hostCID, typeStream, uint32(len(payload))
	g.sendRaw(p, payload)
}

func (g *guest) sendRaw(p packet, payload []byte) {
	g.t.Helper()
	p.encode((*[headerSize]byte)(g.Bytes(g.outHead.Addr, headerSize)))
	chain := []virtiotest.Desc{g.outHead}
	if len(payload) > 0 {
		copy(g.Bytes(g.out.Addr, len(payload)), payload)
		d := g.out
		d.Len = uint32(len(payload))
		chain = append(chain, d)
	}
	g.Queues[txQueue].Do(chain...)
}

// recv waits for a packet and gives its buffer back.
func (g *guest) recv() (p packet, payload []byte) {
	g.t.Helper()
	head, n := g.Queues[rxQueue].Wait()
	d := g.bufs[head]
	delete(g.bufs, head)
	b := bytes.Clone(g.Bytes(d.Addr, int(n)))
	p.decode((*[headerSize]byte)(b))
	if int(p.length) != len(b)-headerSize {
		g.t.Fatalf("packet with %d bytes of data says %d", len(b)-headerSize, p.length)
	}
	if p.srcCID != hostCID || p.dstCID != guestCID || p.kind != typeStream {
		g.t.Fatalf("packet %+v is not for this guest's streams", p)
	}
	g.give(d)
	return p, b[headerSize:]
}

// expect waits for a packet with op and returns it.
func (g *guest) expect(op uint16) packet {
	g.t.Helper()
	p, _ := g.recv()
	if p.op != op {
		g.t.Fatalf("got operation %d, want %d: %+v", p.op, op, p)
	}
	return p
}

// recvData waits for n bytes of data, and ignores credit.
func (g *guest) recvData(n int) (got []byte) {
	g.t.Helper()
	for len(got) < n {
		p, b := g.recv()
		switch p.op {
		case opRW:
			got = append(got, b...)
		case opCreditRequest, opCreditUpdate:
		default:
			g.t.Fatalf("got operation %d after %d bytes, want %d", p.op, len(got), n)
		}
	}
	return got
}

// quiet fails the test if a packet comes.
func (g *guest) quiet() {
	g.t.Helper()
	if _, _, ok := g.Queues[rxQueue].TryWait(20 * time.Millisecond); ok {
		g.t.Fatal("a packet came where none should")
	}
}

// reply returns what answers p, with credit for the host.
func reply(p packet, op uint16) packet {
	return packet{srcPort: p.dstPort, dstPort: p.srcPort, op: op, bufAlloc: 1 << 20}
}

// listen makes a program of the host listen at port.
func (g *guest) listen(port uint32) net.Listener {
	g.t.Helper()
	l, err := net.Listen("unix", fmt.Sprintf("%s_%d", g.path, port))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	return l
}

// connect makes the guest connect to port of the host, from port from, and returns the host's end.
func (g *guest) connect(l net.Listener, from, port uint32) net.Conn {
	g.t.Helper()
	g.send(packet{srcPort: from, dstPort: port, op: opRequest, bufAlloc: 1 << 20}, nil)
	p := g.expect(opResponse)
	if p.srcPort != port || p.dstPort != from || p.bufAlloc != ringSize || p.fwdCnt != 0 {
		g.t.Fatalf("response %+v", p)
	}
	c, err := l.Accept()
	if err != nil {
		g.t.Fatal(err)
	}
	return g.own(c)
}

func (g *guest) own(c net.Conn) net.Conn {
	_ = c.SetDeadline(time.Now().Add(timeout))
	g.t.Cleanup(func() { c.Close() })
	return c
}

// dial makes a program of the host connect to port of the guest, which answers with op.
func (g *guest) dial(port uint32, extra string, op uint16) (net.Conn, packet) {
	g.t.Helper()
	c, err := net.Dial("unix", g.path)
	if err != nil {
		g.t.Fatal(err)
	}
	g.own(c)
	if _, err := fmt.Fprintf(c, "CONNECT %d\n%s", port, extra); err != nil {
		g.t.Fatal(err)
	}
	p := g.expect(opRequest)
	if p.dstPort != port || p.bufAlloc != ringSize {
		g.t.Fatalf("request %+v", p)
	}
	g.send(reply(p, op), nil)
	return c, p
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) + byte(i>>8)
	}
	return b
}

func readN(t testing.TB, c net.Conn, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSuite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	virtiotest.Suite(t, func(t testing.TB) virtio.Device {
		d, err := New(Config{CID: guestCID, Listener: l, Dial: DialPath(path)})
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

func TestNewRefusesCID(t *testing.T) {
	for _, cid := range []uint64{0, 1, 2, 1<<32 - 1, 1 << 32} {
		if _, err := New(Config{CID: cid}); err == nil {
			t.Errorf("context identifier %d was accepted", cid)
		}
	}
}

func TestGuestConnects(t *testing.T) {
	g := newGuest(t, 8)
	c := g.connect(g.listen(80), 1025, 80)
	g.send(packet{srcPort: 1025, dstPort: 80, op: opRW, bufAlloc: 1 << 20}, []byte("hello"))
	if got := readN(t, c, 5); string(got) != "hello" {
		t.Errorf("host got %q", got)
	}
	if _, err := c.Write([]byte("good day")); err != nil {
		t.Fatal(err)
	}
	p, b := g.recv()
	if p.op != opRW || string(b) != "good day" || p.fwdCnt != 5 {
		t.Errorf("guest got %+v, %q", p, b)
	}
}

func TestHostConnects(t *testing.T) {
	g := newGuest(t, 8)
	c, p := g.dial(22, "early", opResponse)
	want := fmt.Sprintf("OK %d\n", p.srcPort)
	if got := readN(t, c, len(want)); string(got) != want {
		t.Fatalf("host got %q, want %q", got, want)
	}
	if got := g.recvData(5); string(got) != "early" {
		t.Errorf("guest got %q", got)
	}
	g.send(packet{srcPort: 22, dstPort: p.srcPort, op: opRW, bufAlloc: 1 << 20}, []byte("SSH"))
	if got := readN(t, c, 3); string(got) != "SSH" {
		t.Errorf("host got %q", got)
	}
	// A second connection to the same port has a port of its own.
	if _, q := g.dial(22, "", opResponse); q.srcPort == p.srcPort {
		t.Errorf("both connections come from port %d", q.srcPort)
	}
}

func TestHostConnectIsRefused(t *testing.T) {
	g := newGuest(t, 8)
	c, _ := g.dial(22, "", opRST)
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Errorf("host got %q, %v", b, err)
	}
	g.quiet()
}

func TestHostConnectTimesOut(t *testing.T) {
	g := newGuest(t, 8)
	m := g.Device.(*Device).m
	m.mu.Lock()
	m.timeout = 20 * time.Millisecond
	m.mu.Unlock()
	c, err := net.Dial("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	g.own(c)
	fmt.Fprintf(c, "CONNECT 1\n")
	g.expect(opRequest)
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Errorf("host got %q, %v", b, err)
	}
	g.expect(opRST)
	// The line itself has to come in time, too.
	if c, err = net.Dial("unix", g.path); err != nil {
		t.Fatal(err)
	}
	g.own(c)
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a program that says nothing: %v", err)
	}
}

// The guest's time for an answer does not run while it is paused.
func TestPauseBeforeAnswer(t *testing.T) {
	g := newGuest(t, 8)
	m := g.Device.(*Device).m
	const limit = 500 * time.Millisecond
	m.mu.Lock()
	m.timeout = limit
	m.mu.Unlock()
	c, err := net.Dial("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	g.own(c)
	fmt.Fprintf(c, "CONNECT 1\n")
	p := g.expect(opRequest)
	g.Stop()
	time.Sleep(limit + 100*time.Millisecond)
	g.Start()
	g.send(reply(p, opResponse), nil)
	want := fmt.Sprintf("OK %d\n", p.srcPort)
	if got := readN(t, c, len(want)); string(got) != want {
		t.Errorf("host got %q, want %q", got, want)
	}
	// What is not answered ends after a pause too.
	m.mu.Lock()
	m.timeout = 100 * time.Millisecond
	m.mu.Unlock()
	c, err = net.Dial("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	g.own(c)
	fmt.Fprintf(c, "CONNECT 1\n")
	g.expect(opRequest)
	g.Stop()
	g.Start()
	g.expect(opRST)
}

func TestHostSaysNonsense(t *testing.T) {
	g := newGuest(t, 8)
	for _, s := range []string{"\n", "CONNECT\n", "CONNECT \n", "CONNECT x\n", "CONNECT -1\n", "CONNECT 4294967296\n", "connect 1\n", strings.Repeat("C", 64)} {
		c, err := net.Dial("unix", g.path)
		if err != nil {
			t.Fatal(err)
		}
		g.own(c)
		if _, err := io.WriteString(c, s); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); len(b) != 0 && !errors.Is(err, io.EOF) {
			t.Errorf("%q is answered by %q, %v", s, b, err)
		}
	}
	g.quiet()
}

func TestReset(t *testing.T) {
	rst := func(p packet) packet {
		return packet{srcCID: hostCID, dstCID: guestCID, srcPort: p.dstPort, dstPort: p.srcPort, kind: typeStream, op: opRST}
	}
	g := newGuest(t, 8)
	l := g.listen(80)
	for name, p := range map[string]packet{
		"nobody listens":           {srcPort: 1, dstPort: 81, op: opRequest},
		"data without connection":  {srcPort: 2, dstPort: 80, op: opRW},
		"response to nothing":      {srcPort: 3, dstPort: 80, op: opResponse},
		"shutdown of nothing":      {srcPort: 4, dstPort: 80, op: opShutdown, flags: 3},
		"unknown operation":        {srcPort: 5, dstPort: 80, op: 99},
		"credit without a socket":  {srcPort: 6, dstPort: 80, op: opCreditRequest},
		"update without a socket":  {srcPort: 7, dstPort: 80, op: opCreditUpdate},
		"operation that is no one": {srcPort: 8, dstPort: 80, op: opInvalid},
	} {
		g.send(p, nil)
		got, _ := g.recv()
		if diff := cmp.Diff(rst(p), got, cmp.AllowUnexported(packet{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, p := range map[string]packet{
		"second request":    {op: opRequest},
		"second response":   {op: opResponse},
		"unknown operation": {op: 8},
		"invalid operation": {op: opInvalid},
	} {
		c := g.connect(l, 1025, 80)
		p.srcPort, p.dstPort = 1025, 80
		g.send(p, nil)
		if got := g.expect(opRST); got.srcPort != 80 || got.dstPort != 1025 {
			t.Errorf("%s: answered by %+v", name, got)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the host's end is still open", name)
		}
	}
	// A datagram, which is no stream.
	g.sendRaw(packet{srcCID: guestCID, dstCID: hostCID, srcPort: 9, dstPort: 80, kind: 3, op: opRW}, nil)
	g.expect(opRST)
	// Another guest's name, and an answer to a reset: no answer.
	g.sendRaw(packet{srcCID: 43, dstCID: hostCID, srcPort: 9, dstPort: 80, kind: typeStream, op: opRequest}, nil)
	g.quiet()
	g.send(packet{srcPort: 9, dstPort: 80, op: opRST}, nil)
	g.quiet()
}

// The guest's reset closes the host's socket, and is not answered.
func TestGuestResets(t *testing.T) {
	g := newGuest(t, 8)
	c := g.connect(g.listen(80), 1025, 80)
	g.send(packet{srcPort: 1025, dstPort: 80, op: opRST}, nil)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the host's end is still open")
	}
	g.quiet()
}

// Much data in both directions at once, with a guest whose buffer is small and whose counters wrap.
func TestEcho(t *testing.T) {
	const total, window = 3 << 20, 10000
	g := newGuest(t, 16)
	c := g.connect(g.listen(7), 1025, 7)
	go io.Copy(c, c)
	data := pattern(total)
	var got []byte
	var sent, fwd uint32 // bytes to the host, and what it has taken
	for len(got) < total {
		for n := min(uint32(rxSize*3), ringSize-(sent-fwd), total-sent); n > 0; n = min(uint32(rxSize*3), ringSize-(sent-fwd), total-sent) {
			g.send(packet{srcPort: 1025, dstPort: 7, op: opRW, bufAlloc: window, fwdCnt: uint32(len(got))}, data[sent:sent+n])
			sent += n
		}
		p, b := g.recv()
		got = append(got, b...)
		fwd = p.fwdCnt
		switch p.op {
		case opRW, opCreditUpdate:
		case opCreditRequest:
			g.send(packet{srcPort: 1025, dstPort: 7, op: opCreditUpdate, bufAlloc: window, fwdCnt: uint32(len(got))}, nil)
		default:
			t.Fatalf("got operation %d after %d bytes", p.op, len(got))
		}
	}
	if !bytes.Equal(got, data) {
		t.Error("the echo is not what was sent")
	}
}

// The host sends no more than the guest granted, asks once when there is no credit, and goes on when there is.
func TestCreditOfGuest(t *testing.T) {
	g := newGuest(t, 16)
	l := g.listen(80)
	g.send(packet{srcPort: 1, dstPort: 80, op: opRequest, bufAlloc: 1000}, nil)
	g.expect(opResponse)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	g.own(c)
	data := pattern(2500)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for step, grant := range []packet{
		{bufAlloc: 1000, fwdCnt: 1000},
		{bufAlloc: 500, fwdCnt: 2000},
		{},
	} {
		for len(got) < min(1000*(step+1), len(data)) {
			p, b := g.recv()
			if p.op != opRW {
				t.Fatalf("step %d: operation %d after %d bytes", step, p.op, len(got))
			}
			got = append(got, b...)
		}
		if len(got) == len(data) {
			break
		}
		g.expect(opCreditRequest)
		g.quiet()
		grant.srcPort, grant.dstPort, grant.op = 1, 80, opCreditUpdate
		g.send(grant, nil)
	}
	if !bytes.Equal(got, data) {
		t.Error("data is damaged")
	}
	// A guest that takes its grant back, or claims to have taken more than it got, has no credit.
	for _, p := range []packet{{bufAlloc: 0, fwdCnt: 2500}, {bufAlloc: 100, fwdCnt: 2501}} {
		p.srcPort, p.dstPort, p.op = 1, 80, opCreditUpdate
		g.send(p, nil)
	}
	if _, err := c.Write(data[:100]); err != nil {
		t.Fatal(err)
	}
	g.expect(opCreditRequest)
	g.quiet()
}

// The guest gets credit back as the host reads, and is cut off when it sends more than it has.
func TestCreditOfHost(t *testing.T) {
	g := newGuest(t, 16)
	c := g.connect(g.listen(80), 1, 80)
	rw := packet{srcPort: 1, dstPort: 80, op: opRW, bufAlloc: 1 << 20}
	var sent, fwd uint32
	full := func() {
		for sent-fwd < ringSize {
			n := min(ringSize-(sent-fwd), rxSize)
			g.send(rw, make([]byte, n))
			sent += n
			for {
				if head, _, ok := g.Queues[rxQueue].TryWait(0); ok {
					var p packet
					p.decode((*[headerSize]byte)(g.Bytes(g.bufs[head].Addr, headerSize)))
					if p.op != opCreditUpdate {
						t.Fatalf("operation %d", p.op)
					}
					fwd = p.fwdCnt
					g.give(g.bufs[head])
				} else {
					break
				}
			}
		}
	}
	// The socket takes some: fill until nothing moves any more.
	for full(); ; full() {
		head, _, ok := g.Queues[rxQueue].TryWait(50 * time.Millisecond)
		if !ok {
			break
		}
		var p packet
		p.decode((*[headerSize]byte)(g.Bytes(g.bufs[head].Addr, headerSize)))
		fwd = p.fwdCnt
		g.give(g.bufs[head])
	}
	g.send(packet{srcPort: 1, dstPort: 80, op: opCreditRequest, bufAlloc: 1 << 20}, nil)
	if p := g.expect(opCreditUpdate); p.bufAlloc != ringSize {
		t.Errorf("update %+v", p)
	}
	readN(t, c, int(sent))
	if p := g.expect(opCreditUpdate); p.fwdCnt-fwd < ringSize/2 {
		t.Errorf("update after %d bytes", p.fwdCnt-fwd)
	}
	// Past any doubt about what the socket has taken: one ring more than the ring's size at once.
	g.send(rw, make([]byte, ringSize+1))
	for {
		if p, _ := g.recv(); p.op == opRST {
			break
		} else if p.op != opCreditUpdate {
			t.Fatalf("operation %d", p.op)
		}
	}
}

func TestShutdown(t *testing.T) {
	t.Run("by the guest, both ways", func(t *testing.T) {
		g := newGuest(t, 8)
		c := g.connect(g.listen(80), 1, 80)
		g.send(packet{srcPort: 1, dstPort: 80, op: opRW}, []byte("last words"))
		g.send(packet{srcPort: 1, dstPort: 80, op: opShutdown, flags: shutBoth}, nil)
		if b, err := io.ReadAll(c); string(b) != "last words" || err != nil {
			t.Errorf("host got %q, %v", b, err)
		}
		for {
			if p, _ := g.recv(); p.op == opRST {
				break
			} else if p.op != opShutdown {
				t.Fatalf("operation %d", p.op)
			}
		}
	})
	t.Run("by the guest, then by the host", func(t *testing.T) {
		g := newGuest(t, 8)
		c := g.connect(g.listen(80), 1, 80)
		g.send(packet{srcPort: 1, dstPort: 80, op: opRW, bufAlloc: 1 << 20}, []byte("question"))
		g.send(packet{srcPort: 1, dstPort: 80, op: opShutdown, flags: shutSend, bufAlloc: 1 << 20}, nil)
		if b, err := io.ReadAll(c); string(b) != "question" || err != nil {
			t.Errorf("host got %q, %v", b, err)
		}
		if _, err := io.WriteString(c, "answer"); err != nil {
			t.Fatal(err)
		}
		if got := g.recvData(6); string(got) != "answer" {
			t.Errorf("guest got %q", got)
		}
		c.Close()
		if p := g.expect(opShutdown); p.flags != shutSend {
			t.Errorf("shutdown %+v", p)
		}
		g.expect(opRST)
	})
	t.Run("by the host, then by the guest", func(t *testing.T) {
		g := newGuest(t, 8)
		c := g.connect(g.listen(80), 1, 80)
		if _, err := io.WriteString(c, "question"); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got := g.recvData(8); string(got) != "question" {
			t.Errorf("guest got %q", got)
		}
		if p := g.expect(opShutdown); p.flags != shutSend {
			t.Errorf("shutdown %+v", p)
		}
		g.send(packet{srcPort: 1, dstPort: 80, op: opRW}, []byte("answer"))
		g.send(packet{srcPort: 1, dstPort: 80, op: opShutdown, flags: shutBoth}, nil)
		if b, err := io.ReadAll(c); string(b) != "answer" || err != nil {
			t.Errorf("host got %q, %v", b, err)
		}
		g.expect(opRST)
	})
	t.Run("host goes away while the guest sends", func(t *testing.T) {
		g := newGuest(t, 8)
		c := g.connect(g.listen(80), 1, 80)
		c.Close()
		if p := g.expect(opShutdown); p.flags != shutSend {
			t.Errorf("shutdown %+v", p)
		}
		g.send(packet{srcPort: 1, dstPort: 80, op: opRW}, []byte("anybody there?"))
		if p := g.expect(opShutdown); p.flags != shutBoth {
			t.Errorf("shutdown %+v", p)
		}
		g.send(packet{srcPort: 1, dstPort: 80, op: opShutdown, flags: shutBoth}, nil)
		g.expect(opRST)
	})
	t.Run("data after the end", func(t *testing.T) {
		g := newGuest(t, 8)
		g.connect(g.listen(80), 1, 80)
		g.send(packet{srcPort: 1, dstPort: 80, op: opShutdown, flags: shutSend}, nil)
		g.send(packet{srcPort: 1, dstPort: 80, op: opRW}, []byte("and another thing"))
		g.expect(opRST)
	})
}

func TestLimit(t *testing.T) {
	g := newGuest(t, 8)
	l := g.listen(80)
	before := runtime.NumGoroutine()
	for i := range uint32(maxConns) {
		g.connect(l, i, 80)
	}
	g.send(packet{srcPort: maxConns, dstPort: 80, op: opRequest}, nil)
	g.expect(opRST)
	c, err := net.Dial("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	g.own(c)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection above the limit was accepted")
	}
	g.Stop()
	g.Device.Reset()
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines after a reset, %d before", n, before)
	}
}

// Connections live through a pause, with what is on its way.
func TestPause(t *testing.T) {
	g := newGuest(t, 16)
	c := g.connect(g.listen(80), 1, 80)
	for range 64 { // far more than there are buffers: one that waits for a packet is given back
		g.send(packet{srcPort: 1, dstPort: 80, op: opCreditRequest, bufAlloc: 1 << 20}, nil)
		g.expect(opCreditUpdate)
		g.Stop()
		g.Start()
	}
	in, out := pattern(100000), pattern(30000)
	go c.Write(in)
	got := g.recvData(10)
	for i := range 20 {
		g.Stop()
		g.Start()
		g.send(packet{srcPort: 1, dstPort: 80, op: opRW, bufAlloc: 1 << 20}, out[1500*i:][:1500])
		if b := readN(t, c, 1500); !bytes.Equal(b, out[1500*i:][:1500]) {
			t.Fatalf("host got damaged data after pause %d", i)
		}
	}
	got = append(got, g.recvData(len(in)-len(got))...)
	if !bytes.Equal(got, in) {
		t.Error("guest got damaged data")
	}
}

// A pause while a connection is being made does not lose it.
func TestPauseWhileDialling(t *testing.T) {
	dialled := make(chan struct{}, 2)
	near, far := net.Pipe()
	defer far.Close()
	first := true
	d, err := New(Config{CID: guestCID, Dial: func(ctx context.Context, _ uint32) (net.Conn, error) {
		dialled <- struct{}{}
		if first {
			first = false
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return near, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	r := virtiotest.New(t, d, 0)
	b := make([]byte, headerSize)
	p := packet{srcCID: guestCID, dstCID: hostCID, srcPort: 1, dstPort: 2, kind: typeStream, op: opRequest}
	p.encode((*[headerSize]byte)(b))
	r.Queues[txQueue].Do(r.Out(b))
	<-dialled
	r.Stop()
	in := r.In(100)
	r.Queues[rxQueue].Send(in)
	r.Start()
	r.Queues[rxQueue].Wait()
	p.decode((*[headerSize]byte)(r.Bytes(in.Addr, headerSize)))
	if p.op != opResponse {
		t.Errorf("operation %d", p.op)
	}
}

func TestResetCloses(t *testing.T) {
	g := newGuest(t, 8)
	c := g.connect(g.listen(80), 1, 80)
	g.Stop()
	g.Device.Reset()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the host's end is still open")
	}
	g.Start()
	g.send(packet{srcPort: 1, dstPort: 80, op: opRW}, nil)
	g.expect(opRST)
}

func TestRestoreResetsTransport(t *testing.T) {
	d, err := New(Config{CID: guestCID})
	if err != nil {
		t.Fatal(err)
	}
	d.State(snap.NewDecoder(nil, 1))
	r := virtiotest.New(t, d, 0)
	q, in := r.Queues[eventQueue], r.In(4)
	binary.LittleEndian.PutUint32(r.Bytes(in.Addr, 4), 0xffffffff)
	if n := q.Do(in); n != 4 || binary.LittleEndian.Uint32(r.Bytes(in.Addr, 4)) != eventTransportReset {
		t.Errorf("event %x of %d bytes", r.Bytes(in.Addr, 4), n)
	}
	q.Send(in)
	if _, _, ok := q.TryWait(20 * time.Millisecond); ok {
		t.Error("a second event")
	}
}

func TestPacketRoundTrip(t *testing.T) {
	var b, again [headerSize]byte
	copy(b[:], pattern(headerSize))
	var p packet
	p.decode(&b)
	p.encode(&again)
	if diff := cmp.Diff(b, again); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLineIsReadOnce(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		for _, s := range []string{"CON", "NECT 5", "000\nab", "cd"} {
			io.WriteString(far, s)
		}
		far.Close()
	}()
	port, rest, err := readConnect(near)
	left, _ := io.ReadAll(bufio.NewReader(near))
	if port != 5000 || string(rest)+string(left) != "abcd" || err != nil {
		t.Errorf("port %d, then %q and %q, %v", port, rest, left, err)
	}
}
