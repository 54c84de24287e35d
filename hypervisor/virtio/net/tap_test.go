package virtionet

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// etherTest is an EtherType for experiments: the host's stack takes no interest in it.
const etherTest = 0x88b5

// newTapPair returns a tap in a network namespace of its own, and a packet socket that is the host's side of it. With
// vnet the socket has a virtio_net_hdr of 10 bytes before every packet.
func newTapPair(t testing.TB, vnet bool) (*Tap, *os.File) {
	t.Helper()
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and /dev/net/tun")
	} else {
		f.Close()
	}
	var tap *Tap
	var sock *os.File
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine, the namespace with the descriptors
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		tap, sock, err = tapInNamespace(vnet)
	}()
	<-done
	if err == unix.EPERM {
		t.Skip("needs root and /dev/net/tun")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close(); sock.Close() })
	_ = sock.SetDeadline(time.Now().Add(timeout))
	return tap, sock
}

func tapInNamespace(vnet bool) (*Tap, *os.File, error) {
	tap, err := OpenTap("lodge0")
	if err != nil {
		return nil, nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	req, err := unix.NewIfreq(tap.Name())
	if err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return nil, nil, err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP | unix.IFF_NOARP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return nil, nil, err
	}
	if vnet {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return nil, nil, err
		}
	}
	proto := uint16(etherTest>>8 | etherTest&0xff<<8)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: int(req.Uint32())}); err != nil {
		return nil, nil, err
	}
	return tap, os.NewFile(uintptr(fd), "packet socket"), nil
}

// testFrame returns a broadcast frame of n bytes of the test's own type.
func testFrame(n int, seed byte) []byte {
	b := frame(n, seed)
	copy(b, []byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(b[12:], etherTest)
	return b
}

// receive waits for a packet of the test's own type: the host's stack sends a few of others.
func receive(t testing.TB, r *virtiotest.Rig, bufs []virtiotest.Desc) []byte {
	t.Helper()
	for i := 0; ; {
		_, n := r.Queues[rxQueue].Wait()
		b := bytes.Clone(r.Bytes(bufs[i].Addr, int(n)))
		i++
		for range binary.LittleEndian.Uint16(b[hdrNumBuffers:]) - 1 {
			_, n := r.Queues[rxQueue].Wait()
			b = append(b, r.Bytes(bufs[i].Addr, int(n))...)
			i++
		}
		if len(b) >= HeaderSize+minFrame && binary.BigEndian.Uint16(b[HeaderSize+12:]) == etherTest {
			return b
		}
	}
}

func TestTap(t *testing.T) {
	for _, without := range []uint64{0, FeatureMrgRxBuf, Offloads} {
		tap, sock := newTapPair(t, false)
		r := virtiotest.New(t, New(Config{MAC: testMAC, Backend: tap}), without)
		var bufs []virtiotest.Desc
		for range 40 {
			bufs = append(bufs, r.In(1600))
			r.Queues[rxQueue].Send(bufs[len(bufs)-1])
		}
		if _, err := sock.Write(testFrame(1514, 1)); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, r, bufs); !bytes.Equal(got[HeaderSize:], testFrame(1514, 1)) {
			t.Errorf("without %#x: the frame to the guest is damaged: %x", without, got)
		}
		r.Queues[txQueue].Do(r.Out(append(make([]byte, HeaderSize), testFrame(1514, 2)...)))
		got := make([]byte, 2000)
		n, err := sock.Read(got)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:n], testFrame(1514, 2)) {
			t.Errorf("without %#x: the frame from the guest is damaged: %x", without, got[:n])
		}
		r.Stop()
		r.Device.Reset()
	}
}

// tcpFrame returns an Ethernet frame with an IPv4 TCP segment of payload bytes.
func tcpFrame(payload int) []byte {
	b := testFrame(14+20+20+payload, 3)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[14:]
	copy(ip, []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[10:], ^fold(ip[:20], 0))
	tcp := ip[20:]
	copy(tcp, []byte{0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 255, 255, 0, 0, 0, 0})
	pseudo := 6 + uint32(len(tcp))
	binary.BigEndian.PutUint16(tcp[16:], fold(ip[12:20], pseudo)) // the partial checksum
	return b
}

// fold returns the Internet checksum's sum of b and start.
func fold(b []byte, start uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

// A segment of 60,000 bytes reaches the guest in one piece if it can take that, in many buffers, with a header that says
// how to cut it.
func TestTapReceivesGSO(t *testing.T) {
	tap, sock := newTapPair(t, true)
	rebind(t, sock, tap, unix.ETH_P_IP)
	r := virtiotest.New(t, New(Config{MAC: testMAC, Backend: tap}), 0)
	var bufs []virtiotest.Desc
	for range 250 {
		bufs = append(bufs, r.In(1526))
		r.Queues[rxQueue].Send(bufs[len(bufs)-1])
	}
	f := tcpFrame(60000)
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	hdr := []byte{1, 1, 54, 0, 180, 5, 34, 0, 16, 0}
	seen := 0
	for round := range 3 { // the first goes through the spill, those after it straight into the guest's memory
		if _, err := sock.Write(append(hdr, f...)); err != nil {
			t.Fatal(err)
		}
		for { // skip the packets of the host's own stack
			_, n := r.Queues[rxQueue].Wait()
			got := bytes.Clone(r.Bytes(bufs[seen].Addr, int(n)))
			seen++
			for range binary.LittleEndian.Uint16(got[hdrNumBuffers:]) - 1 {
				_, n := r.Queues[rxQueue].Wait()
				got = append(got, r.Bytes(bufs[seen].Addr, int(n))...)
				seen++
			}
			if binary.BigEndian.Uint16(got[HeaderSize+12:]) != 0x0800 {
				continue
			}
			if got[hdrGSOType] != gsoTCPv4 || got[hdrFlags]&flagNeedsCSUM == 0 || binary.LittleEndian.Uint16(got[hdrGSOSize:]) != 1460 {
				t.Errorf("round %d: header %x", round, got[:HeaderSize])
			}
			if !bytes.Equal(got[HeaderSize:], f) {
				t.Errorf("round %d: %d bytes, damaged; want %d", round, len(got)-HeaderSize, len(f))
			}
			break
		}
	}
}

// Without offloads the host cuts and sums itself: the guest gets whole frames that fit.
func TestTapCutsForAGuestWithoutOffloads(t *testing.T) {
	tap, sock := newTapPair(t, true)
	rebind(t, sock, tap, unix.ETH_P_IP)
	r := virtiotest.New(t, New(Config{MAC: testMAC, Backend: tap}), FeatureGuestCSUM|FeatureGuestTSO4)
	var bufs []virtiotest.Desc
	for range 32 {
		bufs = append(bufs, r.In(1600))
		r.Queues[rxQueue].Send(bufs[len(bufs)-1])
	}
	if _, err := sock.Write(append([]byte{1, 1, 54, 0, 180, 5, 34, 0, 16, 0}, tcpFrame(1460*4)...)); err != nil {
		t.Fatal(err)
	}
	for i, segments := 0, 0; segments < 4; i++ {
		_, n := r.Queues[rxQueue].Wait()
		got := r.Bytes(bufs[i].Addr, int(n))
		if binary.BigEndian.Uint16(got[HeaderSize+12:]) != 0x0800 {
			continue
		}
		segments++
		ip := got[HeaderSize+14:]
		if !bytes.Equal(got[:HeaderSize], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}) || len(ip) != 1500 {
			t.Errorf("segment %d: header %x, %d bytes of IP", segments, got[:HeaderSize], len(ip))
		} else if sum := fold(ip[20:], uint32(fold(ip[12:20], 6+1480))); sum != 0xffff {
			t.Errorf("segment %d: wrong checksum %#x", segments, sum)
		}
	}
}

// The guest leaves cutting and summing to the host.
func TestTapTransmitsGSO(t *testing.T) {
	tap, sock := newTapPair(t, true)
	rebind(t, sock, tap, unix.ETH_P_IP)
	r := virtiotest.New(t, New(Config{MAC: testMAC, Backend: tap}), 0)
	f := tcpFrame(60000)
	r.Queues[txQueue].Do(r.Out(append([]byte{1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 0, 0}, f...)))
	got := make([]byte, 70000)
	n, err := sock.Read(got)
	if err != nil {
		t.Fatal(err)
	}
	if got[hdrGSOType] != gsoTCPv4 || !bytes.Equal(got[10:n], f) {
		t.Errorf("header %x and %d bytes; want TSO and %d", got[:10], n-10, len(f))
	}
}

// rebind makes sock send and see packets of another EtherType: the host cuts segments only of packets that it knows to be IP.
func rebind(t testing.TB, sock *os.File, tap *Tap, proto uint16) {
	t.Helper()
	raw, err := sock.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err2 := raw.Control(func(fd uintptr) {
		req, _ := unix.NewIfreq(tap.Name())
		if err = unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, req); err == nil {
			err = unix.Bind(int(fd), &unix.SockaddrLinklayer{Protocol: proto>>8 | proto<<8, Ifindex: int(req.Uint32())})
		}
	})
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
}

func TestTapSuite(t *testing.T) {
	newTapPair(t, false) // or skip here
	virtiotest.Suite(t, func(t testing.TB) virtio.Device {
		tap, _ := newTapPair(t, false)
		return New(Config{MAC: testMAC, Backend: tap})
	})
}

// A tap that cannot start can be stopped all the same.
func TestTapDoesNotStart(t *testing.T) {
	tap, _ := newTapPair(t, false)
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tap.Start(0, func() {}); err == nil {
		t.Error("a closed tap starts")
	}
	tap.Stop()
}

func TestNewTap(t *testing.T) {
	tap, _ := newTapPair(t, false)
	fd, err := unix.FcntlInt(tap.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	inherited, err := NewTap(os.NewFile(uintptr(fd), "inherited"))
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	if inherited.Name() != tap.Name() {
		t.Errorf("name %q, want %q", inherited.Name(), tap.Name())
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewTap(null); err == nil {
		t.Error("/dev/null was taken for a tap")
	}
}
