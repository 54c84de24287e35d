package virtionet

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
	"github.com/lodgehv/lodge/internal/framing"
)

func TestTransmitAllocatesNothing(t *testing.T) {
	r, far := newStream(t, 0)
	q, d := r.Queues[txQueue], r.Out(append(make([]byte, HeaderSize), frame(1514, 1)...))
	buf := make([]byte, 1518)
	if n := testing.AllocsPerRun(200, func() {
		q.Do(d)
		if _, err := io.ReadFull(far, buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func TestReceiveAllocatesNothing(t *testing.T) {
	r, far := newStream(t, 0)
	q, d, f := r.Queues[rxQueue], r.In(2048), framed(frame(1514, 1))
	if n := testing.AllocsPerRun(200, func() {
		if _, err := far.Write(f); err != nil {
			t.Fatal(err)
		}
		q.Do(d)
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func TestTapAllocatesNothing(t *testing.T) {
	tap, sock := newTapPair(t, false)
	r := virtiotest.New(t, New(Config{MAC: testMAC, Backend: tap}), 0)
	rx, tx := r.Queues[rxQueue], r.Queues[txQueue]
	in, out, f := r.In(2048), r.Out(append(make([]byte, HeaderSize), testFrame(1514, 1)...)), testFrame(1514, 2)
	if n := testing.AllocsPerRun(200, func() {
		tx.Do(out)
		if _, err := sock.Write(f); err != nil {
			t.Fatal(err)
		}
		rx.Do(in)
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

// send measures the transmit queue, kept full with packets of n bytes.
func send(b *testing.B, r *virtiotest.Rig, packet []byte) {
	const inFlight = queueSize / 2
	q, d := r.Queues[txQueue], r.Out(packet)
	q.NoKick = true
	b.SetBytes(int64(len(packet) - HeaderSize))
	b.ReportAllocs()
	sent, done := 0, 0
	for b.Loop() {
		q.Send(d)
		if sent++; sent%16 == 0 {
			q.Kick()
		}
		for ; sent-done >= inFlight; done++ {
			q.Wait()
		}
	}
	q.Kick()
	for ; done < sent; done++ {
		q.Wait()
	}
	b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "packets/s")
}

func BenchmarkStreamTransmit(b *testing.B) {
	for name, n := range map[string]int{"64": 64, "1514": 1514} {
		b.Run(name, func(b *testing.B) {
			r, far := newStream(b, 0)
			go drain(far)
			send(b, r, append(make([]byte, HeaderSize), frame(n, 1)...))
			r.Stop()
		})
	}
}

// drain reads all there is, as a peer with a large buffer does.
func drain(c net.Conn) {
	buf := make([]byte, framing.BufferSize)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

func BenchmarkStreamReceive(b *testing.B) {
	for name, n := range map[string]int{"64": 64, "1514": 1514} {
		b.Run(name, func(b *testing.B) {
			r, far := newStream(b, 0)
			q, d := r.Queues[rxQueue], r.In(2048)
			var burst []byte
			for range 32 {
				burst = append(burst, framed(frame(n, 1))...)
			}
			go func() {
				for {
					if _, err := far.Write(burst); err != nil {
						return
					}
				}
			}()
			take(b, q, d, n, 1)
			far.Close()
			r.Stop()
		})
	}
}

// take measures the receive queue, kept full with d; each packet has n bytes and takes the given number of chains.
func take(b *testing.B, q *virtiotest.Queue, d virtiotest.Desc, n, chains int) {
	for range queueSize - 1 {
		q.Send(d)
	}
	q.NoKick = true
	b.SetBytes(int64(n))
	b.ReportAllocs()
	packets, taken := 0, 0
	for b.Loop() {
		for range chains {
			q.Wait()
			q.Send(d)
			if taken++; taken%16 == 0 {
				q.Kick()
			}
		}
		packets++
	}
	b.ReportMetric(float64(packets)/b.Elapsed().Seconds(), "packets/s")
}

func BenchmarkTapTransmit(b *testing.B) {
	for name, packet := range map[string][]byte{
		"64":        append(make([]byte, HeaderSize), testFrame(64, 1)...),
		"1514":      append(make([]byte, HeaderSize), testFrame(1514, 1)...),
		"64KiB-GSO": append([]byte{1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 0, 0}, tcpFrame(64000)...),
	} {
		b.Run(name, func(b *testing.B) {
			tap, _ := newTapPair(b, false)
			send(b, virtiotest.New(b, New(Config{MAC: testMAC, Backend: tap}), 0), packet)
		})
	}
}

// BenchmarkTapReceive measures the path from the host's stack, whose sender has a processor of its own.
func BenchmarkTapReceive(b *testing.B) {
	for name, packet := range map[string][]byte{
		"64":        append(make([]byte, 10), testFrame(64, 1)...),
		"1514":      append(make([]byte, 10), testFrame(1514, 1)...),
		"64KiB-GSO": append([]byte{1, 1, 54, 0, 180, 5, 34, 0, 16, 0}, tcpFrame(64000)...),
	} {
		b.Run(name, func(b *testing.B) {
			tap, sock := newTapPair(b, true)
			_ = sock.SetDeadline(time.Time{})
			rebind(b, sock, tap, unix.ETH_P_IP)
			r := virtiotest.New(b, New(Config{MAC: testMAC, Backend: tap}), 0)
			q, d := r.Queues[rxQueue], r.In(4096)
			go func() {
				for {
					// When the tap is full the host drops; the benchmark counts what arrives.
					if _, err := sock.Write(packet); errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
						return
					}
				}
			}()
			take(b, q, d, len(packet)-10, (len(packet)+2+4095)/4096)
			_ = sock.SetDeadline(time.Unix(1, 0))
		})
	}
}
