package vsock

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

func TestPacketsAllocateNothing(t *testing.T) {
	g := newGuest(t, 1)
	c := g.connect(g.listen(80), 1, 80)
	data := make([]byte, 1000)
	rx, tx := g.Queues[rxQueue], g.Queues[txQueue]
	// The guest takes and grants by the same counter: every round moves as much in either direction.
	p := packet{srcCID: guestCID, dstCID: hostCID, srcPort: 1, dstPort: 80, kind: typeStream, op: opRW, bufAlloc: 1 << 20, length: 1000}
	head := (*[headerSize]byte)(g.Bytes(g.outHead.Addr, headerSize))
	out, in := g.out, virtiotest.Desc{}
	for _, in = range g.bufs { // there is one
	}
	out.Len = 1000
	if n := testing.AllocsPerRun(200, func() {
		p.encode(head)
		tx.Do(g.outHead, out)
		if _, err := io.ReadFull(c, data); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		for { // credit updates come between
			_, n := rx.Wait()
			rx.Send(in)
			if n == headerSize+1000 {
				break
			}
		}
		p.fwdCnt += 1000
	}); n != 0 {
		t.Errorf("%v allocations per packet in both directions", n)
	}
}

// BenchmarkFromGuest measures packets of 4 KiB and 32 KiB to a program that reads them.
func BenchmarkFromGuest(b *testing.B) {
	for name, n := range map[string]uint32{"4KiB": 4 << 10, "32KiB": 32 << 10} {
		b.Run(name, func(b *testing.B) {
			g := newGuest(b, 64)
			c := g.connect(g.listen(80), 1, 80)
			_ = c.SetDeadline(time.Time{})
			go io.Copy(io.Discard, struct{ net.Conn }{c})
			p := packet{srcCID: guestCID, dstCID: hostCID, srcPort: 1, dstPort: 80, kind: typeStream, op: opRW, bufAlloc: 1 << 20, length: n}
			p.encode((*[headerSize]byte)(g.Bytes(g.outHead.Addr, headerSize)))
			out := g.out
			out.Len = n
			b.SetBytes(int64(n))
			b.ReportAllocs()
			var sent, fwd uint32
			tx, inFlight := g.Queues[txQueue], 0
			for b.Loop() {
				for ringSize-(sent-fwd) < n {
					fwd = g.expect(opCreditUpdate).fwdCnt
				}
				if inFlight == 16 {
					tx.Wait()
					inFlight--
				}
				tx.Send(g.outHead, out)
				inFlight++
				sent += n
			}
		})
	}
}

// BenchmarkToGuest measures a program that writes as fast as the guest takes it, in buffers of 4 KiB.
func BenchmarkToGuest(b *testing.B) {
	g := newGuest(b, 128)
	c := g.connect(g.listen(80), 1, 80)
	_ = c.SetDeadline(time.Time{})
	go func() {
		buf := make([]byte, 256<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	credit := packet{srcCID: guestCID, dstCID: hostCID, srcPort: 1, dstPort: 80, kind: typeStream, op: opCreditUpdate, bufAlloc: 1 << 20}
	head := (*[headerSize]byte)(g.Bytes(g.outHead.Addr, headerSize))
	rx := g.Queues[rxQueue]
	b.SetBytes(rxSize - headerSize)
	b.ReportAllocs()
	unsaid := uint32(0)
	for b.Loop() {
		id, n := rx.Wait()
		rx.Send(g.bufs[id])
		g.bufs[(id+128)%256] = g.bufs[id]
		if unsaid += n - headerSize; unsaid > 1<<19 {
			credit.fwdCnt += unsaid
			unsaid = 0
			credit.encode(head)
			g.Queues[txQueue].Do(g.outHead)
		}
	}
}
