package vsock

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// FuzzVsockPackets sends packets that are only half made up: mostly of one connection, in any order, with any counters. The
// device must not break as long as chains are well-formed, and what the guest gets must be within its credit.
func FuzzVsockPackets(f *testing.F) {
	f.Add([]byte{1, 0, 0, 9, 0, 0, 5, 100, 0, 9, 0, 0, 4, 0, 3, 9, 0, 0})
	f.Add([]byte{1, 0, 0, 1, 0, 0, 5, 255, 0, 0, 9, 9, 6, 0, 0, 255, 255, 255, 3, 0, 0, 0, 0, 0, 1, 0, 0, 9, 0, 0})
	f.Add([]byte{1, 0, 0, 9, 0, 0, 1, 0, 1, 9, 0, 0, 4, 0, 1, 9, 0, 0, 4, 0, 2, 9, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		d, err := New(Config{CID: guestCID, Dial: func(context.Context, uint32) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { io.Copy(far, far); far.Close() }()
			return near, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		r := virtiotest.New(t, d, 0)
		in := r.In(1000)
		for range 200 {
			r.Queues[rxQueue].Send(in)
		}
		for len(script) >= 6 {
			s := script[:6]
			script = script[6:]
			p := packet{srcCID: guestCID, dstCID: hostCID, srcPort: uint32(s[2] >> 6), dstPort: 80, kind: typeStream,
				op: uint16(s[0]), flags: uint32(s[2]), bufAlloc: uint32(s[3]) << 8, fwdCnt: uint32(s[4]) | uint32(s[5])<<24}
			if s[0]&0x80 != 0 { // another address or type
				p.op &= 0x7f
				p.srcCID, p.dstCID, p.kind = p.srcCID^uint64(s[3]&1), p.dstCID^uint64(s[4]), uint16(s[5])
			}
			payload := bytes.Repeat([]byte{s[1]}, int(s[1])*7)
			p.length = uint32(len(payload))
			b := make([]byte, headerSize, headerSize+len(payload))
			p.encode((*[headerSize]byte)(b))
			r.Queues[txQueue].Send(r.Out(append(b, payload...)))
			if _, _, ok := r.Queues[txQueue].TryWait(timeout); !ok {
				t.Fatal("packet is not taken")
			}
		}
		r.Stop()
		select {
		case err := <-r.Broken:
			t.Fatalf("device is broken: %v", err)
		default:
		}
		m := d.m
		if len(m.conns) > maxConns || len(m.resets) > maxResets {
			t.Errorf("%d connections, %d resets", len(m.conns), len(m.resets))
		}
		for k, c := range m.conns {
			if k != c.key || c.dead || c.in.len() > ringSize || c.out.len() > ringSize || c.hostDeaf && c.out.len() > 0 {
				t.Errorf("connection %+v: dead %v, %d and %d bytes", k, c.dead, c.in.len(), c.out.len())
			}
		}
		d.Reset()
	})
}

// FuzzConnectLine reads what a program of the host says first.
func FuzzConnectLine(f *testing.F) {
	for _, s := range []string{"CONNECT 1\n", "CONNECT 4294967295\nabc", "CONNECT 00000000000000000000000000000000000000000000000000000000001\n", "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		go func() { far.Write(b); far.Close() }()
		_, rest, err := readConnect(near)
		near.Close()
		if err == nil && !bytes.Contains(b, append([]byte("\n"), rest...)) {
			t.Errorf("%q after the line, which %q does not have", rest, b)
		}
	})
}
