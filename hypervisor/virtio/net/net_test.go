package virtionet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
	"github.com/lodgehv/lodge/internal/framing"
)

const timeout = 10 * time.Second

var testMAC = [6]byte{0x52, 0x54, 0, 1, 2, 3}

// pair returns the ends of a stream socket: the first for a Stream, the second for the test, with a deadline.
func pair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
	}
	_ = ends[1].SetDeadline(time.Now().Add(timeout))
	return ends[0], ends[1]
}

// newStream returns a running device on one end of a socket, and the other end.
func newStream(t testing.TB, without uint64) (*virtiotest.Rig, net.Conn) {
	t.Helper()
	near, far := pair(t)
	return virtiotest.New(t, New(Config{MAC: testMAC, MTU: 1500, Backend: NewStream(near, nil, nil)}), without), far
}

// frame returns a frame of n bytes that no other seed gives.
func frame(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) + byte(i>>8) + seed
	}
	return b
}

func framed(frames ...[]byte) (b []byte) {
	for _, f := range frames {
		b = append(framing.AppendPrefix(b, len(f)), f...)
	}
	return b
}

func readFrame(t testing.TB, c net.Conn) []byte {
	t.Helper()
	var prefix [framing.PrefixSize]byte
	if _, err := io.ReadFull(c, prefix[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint32(prefix[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, func(t testing.TB) virtio.Device {
		near, far := pair(t)
		go io.Copy(io.Discard, far)
		return New(Config{MAC: testMAC, MTU: 9000, Backend: NewStream(near, nil, nil)})
	})
}

func TestConfig(t *testing.T) {
	near, _ := pair(t)
	d := New(Config{MAC: testMAC, MTU: 1400, Backend: NewStream(near, nil, nil)})
	if got, want := d.Features(), uint64(FeatureMAC|FeatureMTU|FeatureStatus|FeatureMrgRxBuf); got != want {
		t.Errorf("features %#x, want %#x", got, want)
	}
	got := make([]byte, 14)
	d.ReadConfig(0, got)
	want := []byte{0x52, 0x54, 0, 1, 2, 3, 1, 0, 1, 0, 0x78, 5, 0, 0}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestSetLink(t *testing.T) {
	r, far := newStream(t, 0)
	d := r.Device.(*Device)
	status := func() byte {
		var b [1]byte
		d.ReadConfig(6, b[:])
		return b[0]
	}
	d.SetLink(true)
	select {
	case <-r.Changed:
		t.Error("configuration change without a change")
	default:
	}
	d.SetLink(false)
	<-r.Changed
	if status() != 0 {
		t.Error("link is up after SetLink(false)")
	}
	r.Queues[txQueue].Do(r.Out(append(make([]byte, HeaderSize), frame(60, 1)...))) // dropped
	d.SetLink(true)
	<-r.Changed
	if status() != 1 {
		t.Error("link is down after SetLink(true)")
	}
	r.Queues[txQueue].Do(r.Out(append(make([]byte, HeaderSize), frame(60, 2)...)))
	if diff := cmp.Diff(frame(60, 2), readFrame(t, far)); diff != "" {
		t.Errorf("first frame with the cable in (-want +got):\n%s", diff)
	}
}

func TestTransmit(t *testing.T) {
	r, far := newStream(t, 0)
	q := r.Queues[txQueue]
	for i, n := range []int{14, 60, 1514, 9014, MaxFrame} {
		f := frame(n, byte(i))
		b := append(make([]byte, HeaderSize), f...)
		// The header ends inside the first descriptor, at its end, and after it: §2.7.4 leaves the framing to the driver.
		for _, cut := range []int{5, HeaderSize, HeaderSize + 3} {
			q.Do(r.Out(b[:cut]), r.Out(b[cut:]))
			if diff := cmp.Diff(f, readFrame(t, far)); diff != "" {
				t.Fatalf("frame of %d bytes cut at %d (-want +got):\n%s", n, cut, diff)
			}
		}
	}
}

func TestTransmitDropsWhatIsNoFrame(t *testing.T) {
	r, far := newStream(t, 0)
	q := r.Queues[txQueue]
	q.Do(r.Out(make([]byte, HeaderSize)))
	q.Do(r.Out(make([]byte, HeaderSize+minFrame-1)))
	q.Do(r.Out(make([]byte, HeaderSize+MaxFrame+1)))
	csum := make([]byte, HeaderSize+60)
	csum[hdrFlags] = flagNeedsCSUM // not negotiated
	q.Do(r.Out(csum))
	q.Do(r.Out(append(make([]byte, HeaderSize), frame(77, 9)...)))
	if diff := cmp.Diff(frame(77, 9), readFrame(t, far)); diff != "" {
		t.Errorf("the first frame that comes through (-want +got):\n%s", diff)
	}
}

func TestTransmitWithoutHeaderBreaks(t *testing.T) {
	r, _ := newStream(t, 0)
	r.Queues[txQueue].Send(r.Out(make([]byte, HeaderSize-1)))
	select {
	case err := <-r.Broken:
		if !virtio.IsProtocol(err) {
			t.Errorf("%v does not blame the driver", err)
		}
	case <-time.After(timeout):
		t.Error("device is not broken")
	}
}

func TestReceive(t *testing.T) {
	for _, tc := range []struct {
		name    string
		without uint64
		bufs    [][]int // sizes of the descriptors of each chain
		frame   int
		used    []int // bytes written to each chain that comes back
	}{
		{"one buffer", 0, [][]int{{2000}}, 60, []int{72}},
		{"header in its own descriptor", 0, [][]int{{12, 1600}}, 1514, []int{1526}},
		{"split header", 0, [][]int{{5, 3, 9, 1600}}, 1514, []int{1526}},
		{"exactly full", 0, [][]int{{1526}}, 1514, []int{1526}},
		{"two buffers", 0, [][]int{{1000}, {1000}}, 1514, []int{1000, 526}},
		{"second is untouched", 0, [][]int{{100}, {100}}, 60, []int{72}},
		{"three exactly", 0, [][]int{{100}, {100}, {100}}, 288, []int{100, 100, 100}},
		{"many small ones", 0, [][]int{{12}, {20, 20}, {17}, {64}, {64}}, 150, []int{12, 40, 17, 64, 29}},
		{"not mergeable", FeatureMrgRxBuf, [][]int{{1526}}, 1514, []int{1526}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, far := newStream(t, tc.without)
			q := r.Queues[rxQueue]
			var chains [][]virtiotest.Desc
			for _, sizes := range tc.bufs {
				var chain []virtiotest.Desc
				for _, n := range sizes {
					chain = append(chain, r.In(n))
				}
				chains = append(chains, chain)
				q.Send(chain...)
			}
			f := frame(tc.frame, 3)
			if _, err := far.Write(framed(f)); err != nil {
				t.Fatal(err)
			}
			var got []byte
			for i, want := range tc.used {
				_, n := q.Wait()
				if int(n) != want {
					t.Errorf("chain %d: %d bytes written, want %d", i, n, want)
				}
				for _, d := range chains[i] {
					k := min(n, d.Len)
					got = append(got, r.Bytes(d.Addr, int(k))...)
					n -= k
				}
			}
			want := append([]byte{10: byte(len(tc.used)), 11: 0}, f...)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
		})
	}
}

// A long packet finds one small buffer at first: it waits for the rest of them.
func TestReceiveWaitsForBuffers(t *testing.T) {
	r, far := newStream(t, 0)
	q := r.Queues[rxQueue]
	d := []virtiotest.Desc{r.In(4096)}
	q.Send(d[0])
	f := frame(MaxFrame, 5)
	if _, err := far.Write(framed(f)); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for range MaxFrame / 4096 {
		d = append(d, r.In(4096))
		q.Send(d[len(d)-1])
	}
	for i := range d {
		_, n := q.Wait()
		got = append(got, r.Bytes(d[i].Addr, int(n))...)
	}
	if n := binary.LittleEndian.Uint16(got[hdrNumBuffers:]); int(n) != len(d) {
		t.Errorf("num_buffers is %d, want %d", n, len(d))
	}
	if !bytes.Equal(got[HeaderSize:], f) {
		t.Error("packet is damaged")
	}
}

// Packets of all lengths through small buffers that come back in turn.
func TestReceiveManyLengths(t *testing.T) {
	r, far := newStream(t, 0)
	q := r.Queues[rxQueue]
	bufs := make(map[uint16]virtiotest.Desc)
	for range 64 {
		d := r.In(300)
		bufs[q.Send(d)] = d
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var sizes []int
	for range 500 {
		sizes = append(sizes, minFrame+rnd.IntN(40)+rnd.IntN(2)*rnd.IntN(4000))
	}
	go func() {
		for i, n := range sizes {
			_, _ = far.Write(framed(frame(n, byte(i))))
		}
	}()
	for i, n := range sizes {
		var got []byte
		for left := 1; left > 0; left-- {
			head, n := q.Wait()
			d := bufs[head]
			if got = append(got, r.Bytes(d.Addr, int(n))...); len(got) == int(n) {
				left = int(binary.LittleEndian.Uint16(got[hdrNumBuffers:]))
			}
			delete(bufs, head)
			bufs[q.Send(d)] = d
		}
		if !bytes.Equal(got[HeaderSize:], frame(n, byte(i))) {
			t.Fatalf("packet %d of %d bytes is damaged or out of order: %d bytes", i, n, len(got)-HeaderSize)
		}
	}
}

// A packet that is longer than all buffers that the queue can hold would wait for ever: it is dropped.
func TestReceiveDropsWhatNeverFits(t *testing.T) {
	r, far := newStream(t, 0)
	q, d := r.Queues[rxQueue], r.In(100)
	for range queueSize {
		q.Send(d)
	}
	if _, err := far.Write(framed(frame(100*queueSize, 1), frame(60, 2))); err != nil {
		t.Fatal(err)
	}
	if _, n := q.Wait(); int(n) != HeaderSize+60 {
		t.Errorf("%d bytes, want %d", n, HeaderSize+60)
	}
}

// A driver that offers a descriptor again that it did not get back breaks the device: a packet that waits for room would
// else take buffers for ever.
func TestReceiveHoldsNoMoreThanTheQueue(t *testing.T) {
	near, far := pair(t)
	r := virtiotest.New(t, sized{New(Config{MAC: testMAC, Backend: NewStream(near, nil, nil)}), 4}, 0)
	q, d := r.Queues[rxQueue], r.In(100)
	long := framed(frame(5000, 1))
	if _, err := far.Write(long); err != nil {
		t.Fatal(err)
	}
	for i := range uint16(4) {
		for deadline := time.Now().Add(timeout); q.AvailEvent() != i; { // it has the one before and waits
			if time.Now().After(deadline) {
				t.Fatalf("buffer %d is not taken", i)
			}
			time.Sleep(20 * time.Microsecond)
		}
		q.Send(d)
	}
	q.Send(d)
	if _, err := far.Write(long); err != nil { // the first one was dropped: four buffers are too short
		t.Fatal(err)
	}
	select {
	case err := <-r.Broken:
		if !virtio.IsProtocol(err) {
			t.Error(err)
		}
	case <-time.After(timeout):
		t.Error("five chains of four descriptors were taken")
	}
}

func TestDeframerBounds(t *testing.T) {
	for n, ok := range map[int]bool{0: false, 1: true, MaxFrame: true, MaxFrame + 1: false} {
		d := framing.Deframer{Buf: make([]byte, framing.BufferSize)}
		d.Filled(copy(d.Free(), framed(make([]byte, n))))
		got, err := d.Next()
		if (err == nil) != ok || ok && len(got) != n {
			t.Errorf("frame of %d bytes: got %d, %v", n, len(got), err)
		}
	}
}

// Without mergeable buffers a packet that is too long for its buffer is dropped, and the buffer is used for the next.
func TestReceiveDropsTooLong(t *testing.T) {
	r, far := newStream(t, FeatureMrgRxBuf)
	q, d := r.Queues[rxQueue], r.In(200)
	q.Send(d)
	if _, err := far.Write(framed(frame(189, 1), frame(13, 1), frame(188, 2))); err != nil {
		t.Fatal(err)
	}
	_, n := q.Wait()
	want := append([]byte{10: 1, 11: 0}, frame(188, 2)...)
	if diff := cmp.Diff(want, r.Bytes(d.Addr, int(n))); diff != "" {
		t.Errorf("packet (-want +got):\n%s", diff)
	}
}

// A pause gives unfilled buffers back, and neither packets nor buffers are lost by it.
func TestPauseKeepsPackets(t *testing.T) {
	r, far := newStream(t, 0)
	rx, tx := r.Queues[rxQueue], r.Queues[txQueue]
	var d []virtiotest.Desc
	for range 100 {
		d = append(d, r.In(256))
		rx.Send(d[len(d)-1])
	}
	for i := range d {
		r.Stop()
		if _, err := far.Write(framed(frame(60, byte(i)))); err != nil {
			t.Fatal(err)
		}
		r.Start()
		_, n := rx.Wait()
		if !bytes.Equal(r.Bytes(d[i].Addr, int(n))[HeaderSize:], frame(60, byte(i))) {
			t.Fatalf("packet %d is damaged or out of order", i)
		}
		tx.Do(r.Out(append(make([]byte, HeaderSize), frame(60, byte(i))...)))
		if !bytes.Equal(readFrame(t, far), frame(60, byte(i))) {
			t.Fatalf("packet %d to the network is damaged or out of order", i)
		}
	}
}

// A peer that does not read stops the transmit queue, not the device; the framing survives a pause in the middle.
func TestPauseInTheMiddleOfAWrite(t *testing.T) {
	r, far := newStream(t, 0)
	q := r.Queues[txQueue]
	buf := r.Out(append(make([]byte, HeaderSize), frame(9000, 1)...))
	sent := 0
	for ; sent < 200; sent++ {
		q.Send(buf)
	}
	for { // until the socket is full
		if _, _, ok := q.TryWait(50 * time.Millisecond); !ok {
			break
		}
	}
	for range 3 {
		r.Stop()
		r.Start()
	}
	for i := range sent {
		if !bytes.Equal(readFrame(t, far), frame(9000, 1)) {
			t.Fatalf("frame %d is damaged", i)
		}
	}
}

func TestReconnect(t *testing.T) {
	peers := make(chan net.Conn, 8)
	refuse := 2
	s := NewStream(nil, func(ctx context.Context) (net.Conn, error) {
		if refuse--; refuse >= 0 {
			return nil, errors.New("nobody listens")
		}
		near, far := pair(t)
		peers <- far
		return near, nil
	}, nil)
	r := virtiotest.New(t, New(Config{MAC: testMAC, Backend: s}), 0)
	rx, tx := r.Queues[rxQueue], r.Queues[txQueue]
	tx.Do(r.Out(append(make([]byte, HeaderSize), frame(60, 0)...))) // nobody gets it
	d := r.In(256)
	rx.Send(d)
	for i := range 4 {
		<-r.Changed
		if !s.Link() {
			t.Fatal("link is not up")
		}
		far := <-peers
		tx.Do(r.Out(append(make([]byte, HeaderSize), frame(60, byte(i+1))...)))
		if !bytes.Equal(readFrame(t, far), frame(60, byte(i+1))) {
			t.Fatalf("peer %d: wrong frame", i)
		}
		if i == 2 { // nonsense: the connection is given up
			if _, err := far.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
				t.Fatal(err)
			}
			if _, err := far.Read(make([]byte, 1)); err == nil {
				t.Fatal("peer that sends nonsense is not cut off")
			}
		} else {
			if _, err := far.Write(framed(frame(64, byte(i)))[:20+i]); err != nil { // a part: must not reach the guest
				t.Fatal(err)
			}
			far.Close()
		}
		<-r.Changed
	}
	<-r.Changed
	far := <-peers
	if _, err := far.Write(framed(frame(64, 9))); err != nil {
		t.Fatal(err)
	}
	_, n := rx.Wait()
	if !bytes.Equal(r.Bytes(d.Addr, int(n))[HeaderSize:], frame(64, 9)) {
		t.Error("frame after all the reconnecting is damaged")
	}
}

func TestStateRefusesAnotherMAC(t *testing.T) {
	make := func(last byte) *Device {
		near, _ := pair(t)
		return New(Config{MAC: [6]byte{2, 0, 0, 0, 0, last}, Backend: NewStream(near, nil, nil)})
	}
	e := snap.NewEncoder(1)
	make(1).State(e)
	d := snap.NewDecoder(e.Data(), 1)
	make(2).State(d)
	if d.Err() == nil {
		t.Error("the state of a device with another address was accepted")
	}
}

func TestHeaderClean(t *testing.T) {
	all := offloads{flags: flagNeedsCSUM, tso4: true, tso6: true, ecn: true}
	for _, tc := range []struct {
		name  string
		hdr   header
		n     int
		allow offloads
		ok    bool
		want  header
	}{
		{"plain", header{}, 60, offloads{}, true, header{}},
		{"noise", header{0xfe, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 60, all, true, header{}},
		{"checksum", header{1, 0, 0, 0, 0, 0, 34, 0, 16}, 60, all, true, header{1, 0, 0, 0, 0, 0, 34, 0, 16}},
		{"checksum at the very end", header{1, 0, 0, 0, 0, 0, 34, 0, 24}, 60, all, true, header{1, 0, 0, 0, 0, 0, 34, 0, 24}},
		{"checksum beyond the end", header{1, 0, 0, 0, 0, 0, 34, 0, 25}, 60, all, false, header{}},
		{"checksum far beyond", header{1, 0, 0, 0, 0, 0, 255, 255, 255, 255}, 60, all, false, header{}},
		{"checksum not negotiated", header{1}, 60, offloads{}, false, header{}},
		{"tso4", header{1, 1, 54, 0, 180, 5, 34, 0, 16}, 9000, all, true, header{1, 1, 54, 0, 180, 5, 34, 0, 16}},
		{"tso6 with ecn", header{1, 0x84, 74, 0, 160, 5, 54, 0, 16}, 9000, all, true, header{1, 0x84, 74, 0, 160, 5, 54, 0, 16}},
		{"header longer than the frame", header{1, 1, 255, 255, 180, 5, 34, 0, 16}, 60, all, true, header{1, 1, 60, 0, 180, 5, 34, 0, 16}},
		{"tso4 not negotiated", header{1, 1, 54, 0, 180, 5, 34, 0, 16}, 9000, offloads{flags: 1, tso6: true}, false, header{}},
		{"tso6 not negotiated", header{1, 4, 54, 0, 180, 5, 34, 0, 16}, 9000, offloads{flags: 1, tso4: true}, false, header{}},
		{"ecn not negotiated", header{1, 0x81, 54, 0, 180, 5, 34, 0, 16}, 9000, offloads{flags: 1, tso4: true}, false, header{}},
		{"tso without checksum", header{0, 1, 54, 0, 180, 5}, 9000, all, false, header{}},
		{"segments of no bytes", header{1, 1, 54, 0, 0, 0, 34, 0, 16}, 9000, all, false, header{}},
		{"udp fragmentation", header{1, 3, 54, 0, 180, 5, 34, 0, 16}, 9000, all, false, header{}},
		{"only ecn", header{1, 0x80, 54, 0, 180, 5, 34, 0, 16}, 9000, all, false, header{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := tc.hdr
			if ok := h.clean(tc.n, tc.allow); ok != tc.ok {
				t.Fatalf("clean returned %v", ok)
			} else if diff := cmp.Diff(tc.want, h); ok && diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
		})
	}
}
