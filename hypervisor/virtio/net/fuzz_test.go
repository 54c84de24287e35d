package virtionet

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// recorder is a Backend with all offloads that checks what it is to send.
type recorder struct {
	t    testing.TB
	stop chan struct{}
}

func (r *recorder) Features() uint64           { return Offloads }
func (r *recorder) Link() bool                 { return true }
func (r *recorder) Start(uint64, func()) error { r.stop = make(chan struct{}); return nil }
func (r *recorder) Stop()                      { close(r.stop) }
func (r *recorder) Flush() error               { return nil }
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
	<-r.stop
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

// FuzzStreamFraming feeds a stream in pieces: the frames do not depend on where it was cut, and are what the stream says.
func FuzzStreamFraming(f *testing.F) {
	f.Add(framed(frame(60, 1), frame(1514, 2), frame(1, 3)), uint16(7))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1}, uint16(1))
	f.Add([]byte{0, 0, 0, 0}, uint16(4))
	buf := make([]byte, streamBuffer)
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		if piece == 0 {
			return
		}
		d := deframer{buf: buf}
		var got []byte
		for rest := b; ; {
			frame, err := d.next()
			if err != nil {
				break
			}
			if frame != nil {
				got = append(appendPrefix(got, len(frame)), frame...)
				continue
			}
			if len(rest) == 0 {
				break
			}
			free := d.free()
			if len(free) == 0 {
				t.Fatal("no room for more although no frame is complete")
			}
			n := copy(free[:min(len(free), int(piece))], rest)
			rest = rest[n:]
			d.filled(n)
		}
		if !bytes.HasPrefix(b, got) {
			t.Error("the frames are not what the stream holds")
		}
		if left := b[len(got):]; len(left) >= prefixSize && left[0] == 0 && left[1] == 0 {
			if n := int(left[2])<<8 | int(left[3]); n > 0 && len(left)-prefixSize >= n {
				t.Errorf("a complete frame of %d bytes was not found", n)
			}
		}
	})
}
