package virtionet

import (
	"bytes"
	"context"
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
	"github.com/lodgehv/lodge/internal/framing"
)

// recorder is a Backend with all offloads that checks what it is to send.
type recorder struct {
	t    testing.TB
	ctx  context.Context // ends at Stop
	stop context.CancelFunc
}

func (r *recorder) Features() uint64 { return Offloads }
func (r *recorder) Link() bool       { return true }
func (r *recorder) Stop()            { r.stop() }
func (r *recorder) Flush() error     { return nil }
func (r *recorder) Start(uint64, func()) error {
	r.ctx, r.stop = context.WithCancel(context.Background())
	return nil
}
func (r *recorder) Send(p []unix.Iovec) error {
	h, n := header(bytesOf(p[0])), length(p[1:])
	switch {
	case n < minFrame || n > MaxFrame || len(p) > maxVector:
		r.t.Errorf("frame of %d bytes in %d pieces", n, len(p))
	case h[hdrFlags]&^flagNeedsCSUM != 0 || h.get(hdrNumBuffers) != 0 || h.get(hdrLen) > n:
		r.t.Errorf("header %x of %d bytes", h, n)
	case h[hdrFlags] != 0 && h.get(hdrCSUMStart)+h.get(hdrCSUMOffset)+2 > n:
		r.t.Errorf("header %x: checksum outside %d bytes", h, n)
	case h[hdrGSOType] != 0 && (h[hdrFlags] == 0 || h.get(hdrGSOSize) == 0):
		r.t.Errorf("header %x: segmentation without a checksum or a size", h)
	}
	return nil
}

func (r *recorder) Receive([]unix.Iovec, func()) (int, error) {
	<-r.ctx.Done()
	return 0, ErrStopped
}

// FuzzTX sends a packet cut into descriptors: the backend gets nothing that it could choke on.
func FuzzTX(f *testing.F) {
	f.Add(append([]byte{1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 0, 0}, frame(100, 0)...), uint8(12))
	f.Add(append([]byte{1, 0x84, 255, 255, 0, 0, 255, 255, 255, 255, 1, 1}, frame(14, 0)...), uint8(1))
	f.Add([]byte{0}, uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		if len(b) == 0 || piece == 0 || len(b)/int(piece) > 200 {
			return
		}
		r := virtiotest.New(t, New(Config{MAC: testMAC, Backend: &recorder{t: t}}), 0)
		var chain []virtiotest.Desc
		for len(b) > 0 {
			n := min(len(b), int(piece))
			chain = append(chain, r.Out(b[:n]))
			b = b[n:]
		}
		r.Queues[txQueue].Send(chain...)
		for {
			if _, _, ok := r.Queues[txQueue].TryWait(0); ok || len(r.Broken) > 0 {
				return
			}
		}
	})
}

// feeder is a recorder from which frames come.
type feeder struct {
	recorder
	frames chan []byte
}

func (f *feeder) Receive(packet []unix.Iovec, idle func()) (int, error) {
	idle()
	select {
	case b := <-f.frames:
		if room := length(packet[1:]); room < MaxFrame || len(packet) > maxVector {
			f.t.Errorf("%d bytes of room in %d pieces", room, len(packet))
		}
		return fill(packet, b), nil
	case <-f.ctx.Done():
		return 0, ErrStopped
	}
}

// sized is a device with queues of another size.
type sized struct {
	*Device
	size uint16
}

func (s sized) QueueSizes() []uint16 { return []uint16{s.size, s.size} }

// FuzzRX has frames arrive while the guest offers receive buffers of all shapes. data is a sequence of steps: a byte that
// says which, and its arguments. The device holds no more buffers than the queue has; what a guest that keeps to the rules
// gets are frames that were sent, in their order and whole.
func FuzzRX(f *testing.F) {
	const offer, arrive, pause, again = 0, 1, 2, 3
	f.Add([]byte{offer, 1, 100, arrive, 0, 60, offer, 2, 5, 100, arrive, 0, 70}, uint8(8), true)
	f.Add([]byte{arrive, 2, 0, offer, 1, 200, offer, 1, 200, pause, offer, 3, 0, 100, 100}, uint8(4), true)
	f.Add([]byte{offer, 1, 200, arrive, 10, 0, offer, 1, 60, arrive, 10, 0, offer, 1, 60, offer, 1, 60}, uint8(2), true)
	f.Add([]byte{offer, 1, 80, arrive, 0, 69, arrive, 0, 68, offer, 1, 11}, uint8(3), false)
	f.Add([]byte{offer, 0, again, arrive, 255, 255}, uint8(2), true)
	f.Fuzz(func(t *testing.T, data []byte, logSize uint8, merge bool) {
		without := uint64(0)
		if !merge {
			without = FeatureMrgRxBuf
		}
		size := uint16(1) << (logSize % 9)
		back := &feeder{recorder: recorder{t: t}, frames: make(chan []byte, 256)}
		r := virtiotest.New(t, sized{New(Config{MAC: testMAC, Backend: back}), size}, without)
		q := r.Queues[rxQueue]
		next := func() (b byte) {
			if len(data) > 0 {
				b, data = data[0], data[1:]
			}
			return b
		}
		var (
			chains = make(map[uint16][]virtiotest.Desc)
			frames [][]byte
			last   uint16
			free   = int(size) // descriptors that were not used yet
			fair   = true
		)
		for len(data) > 0 && len(frames) < cap(back.frames) {
			switch next() % 4 {
			case offer:
				var chain []virtiotest.Desc
				for range min(max(int(next()), 1), free) {
					chain = append(chain, r.In(int(next())))
				}
				if free -= len(chain); len(chain) > 0 {
					last = q.Send(chain...)
					chains[last] = chain
				}
			case arrive:
				n := int(next())<<8 | int(next())
				frames = append(frames, frame(max(n, minFrame), byte(len(frames))))
				back.frames <- frames[len(frames)-1]
			case pause:
				r.Stop()
				r.Start()
			case again: // which no driver may do
				fair = false
				q.Offer(last)
			}
		}
		for end := time.Now().Add(2 * time.Millisecond); len(back.frames) > 0 && len(r.Broken) == 0 && time.Now().Before(end); {
			runtime.Gosched()
		}
		if taken := int(q.AvailEvent()) - q.Used(); taken > int(size) {
			t.Errorf("the device holds %d chains of a queue of %d", taken, size)
		}
		r.Stop()
		if !fair {
			return
		}
		for q.Used() > 0 {
			var got []byte
			for left := 1; left > 0; left-- {
				head, n := q.Wait()
				part := gather(r, chains[head])[:n]
				if got = append(got, part...); len(got) == len(part) {
					left = int(binary.LittleEndian.Uint16(got[hdrNumBuffers:]))
				}
			}
			for len(frames) > 0 && !bytes.Equal(frames[0], got[HeaderSize:]) {
				frames = frames[1:] // it was dropped
			}
			if len(frames) == 0 {
				t.Fatalf("a packet of %d bytes that was not sent", len(got))
			}
			frames = frames[1:]
		}
	})
}

// gather returns what is in the buffers of chain.
func gather(r *virtiotest.Rig, chain []virtiotest.Desc) (b []byte) {
	for _, d := range chain {
		b = append(b, r.Bytes(d.Addr, int(d.Len))...)
	}
	return b
}

// FuzzStreamFraming feeds a stream in pieces: the frames do not depend on where it was cut, and are what the stream says.
func FuzzStreamFraming(f *testing.F) {
	f.Add(framed(frame(60, 1), frame(1514, 2), frame(1, 3)), uint16(7))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1}, uint16(1))
	f.Add([]byte{0, 0, 0, 0}, uint16(4))
	buf := make([]byte, framing.BufferSize)
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		if piece == 0 {
			return
		}
		d := framing.Deframer{Buf: buf}
		var got []byte
		for rest := b; ; {
			frame, err := d.Next()
			if err != nil {
				break
			}
			if frame != nil {
				got = append(framing.AppendPrefix(got, len(frame)), frame...)
				continue
			}
			if len(rest) == 0 {
				break
			}
			free := d.Free()
			if len(free) == 0 {
				t.Fatal("no room for more although no frame is complete")
			}
			n := copy(free[:min(len(free), int(piece))], rest)
			rest = rest[n:]
			d.Filled(n)
		}
		if !bytes.HasPrefix(b, got) {
			t.Error("the frames are not what the stream holds")
		}
		if left := b[len(got):]; len(left) >= framing.PrefixSize && left[0] == 0 && left[1] == 0 {
			if n := int(left[2])<<8 | int(left[3]); n > 0 && len(left)-framing.PrefixSize >= n {
				t.Errorf("a complete frame of %d bytes was not found", n)
			}
		}
	})
}
