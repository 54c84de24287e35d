package qdisplay

import (
	"bytes"
	"fmt"
	"image"
	"math"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// fakeVMM is a server that gives the listeners which are registered to the test.
func fakeVMM(t testing.TB) (*Client, <-chan *peer.Conn) {
	t.Helper()
	listeners := make(chan *peer.Conn, 10)
	a, b := socketpair(t)
	go func() {
		var conn *peer.Conn
		conn, err := peer.Accept(a, peer.Config{Handler: func(m *peer.Message) {
			d, err := m.Args("h")
			if err != nil {
				conn.Fail(m, peer.ErrInvalidArgs, err.Error())
				return
			}
			f, err := m.File(d.Uint32())
			if err != nil {
				t.Error(err)
				return
			}
			sock, err := unixConn(f)
			if err != nil {
				t.Error(err)
				return
			}
			conn.Reply(m, "", nil)
			go func() {
				l, err := peer.Accept(sock, peer.Config{})
				if err != nil {
					t.Error(err)
					return
				}
				listeners <- l
			}()
		}})
		if err != nil {
			t.Error(err)
			return
		}
		conn.Serve()
	}()
	c, err := NewClient(b, ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, listeners
}

// hostileVMM returns a receiver, what it shows, and the server's end of its connection.
func hostileVMM(t testing.TB, cfg ReceiverConfig, change ...func(*Receiver)) (*shown, *Receiver, *peer.Conn) {
	t.Helper()
	c, listeners := fakeVMM(t)
	s := &shown{}
	r := newReceiver(c, 0, s, cfg)
	for _, f := range change {
		f(r)
	}
	sock, err := c.register(t.Context(), 0)
	if err == nil {
		err = r.connect(sock)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	conn := receive(t, listeners)
	serve(t, conn)
	return s, r, conn
}

// What a server tells a receiver that cannot be, and what comes of it: an error, and the picture stays.
func TestReceiverRefuses(t *testing.T) {
	const xrgb = 0x20020888
	scanout := func(w, h, stride, format uint32, data int) func(*peer.Encoder) {
		return func(e *peer.Encoder) {
			e.Uint32(w)
			e.Uint32(h)
			e.Uint32(stride)
			e.Uint32(format)
			clear(e.Blob(data))
		}
	}
	update := func(x, y, w, h int32, stride, format uint32, data int) func(*peer.Encoder) {
		return func(e *peer.Encoder) {
			e.Int32(x)
			e.Int32(y)
			e.Int32(w)
			e.Int32(h)
			e.Uint32(stride)
			e.Uint32(format)
			clear(e.Blob(data))
		}
	}
	cursor := func(w, h int32, data int) func(*peer.Encoder) {
		return func(e *peer.Encoder) { e.Int32(w); e.Int32(h); e.Int32(0); e.Int32(0); clear(e.Blob(data)) }
	}
	maps := func(offset, w, h, stride, format uint32) func(*peer.Encoder) {
		return func(e *peer.Encoder) {
			for _, v := range []uint32{0, offset, w, h, stride, format} {
				e.Uint32(v)
			}
		}
	}
	rect := func(x, y, w, h int32) func(*peer.Encoder) {
		return func(e *peer.Encoder) { e.Int32(x); e.Int32(y); e.Int32(w); e.Int32(h) }
	}
	mem, _ := newMemfd(t, 1<<20, true)
	pipe, _, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	disk, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	disk.Truncate(1 << 20)
	writeOnly, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", mem.Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writeOnly.Close()

	const pathElsewhere = "/org/qemu/Display1/Elsewhere"
	tests := []struct {
		name               string
		iface, member, sig string
		args               func(*peer.Encoder)
		file               *os.File
		want               string
	}{
		{"no width", ifaceListener, "Scanout", "uuuuay", scanout(0, 1, 4, xrgb, 4), nil, errInvalid},
		{"no height", ifaceListener, "Scanout", "uuuuay", scanout(1, 0, 4, xrgb, 4), nil, errInvalid},
		{"wide", ifaceListener, "Scanout", "uuuuay", scanout(16385, 1, 65540, xrgb, 65540), nil, errInvalid},
		{"absurd", ifaceListener, "Scanout", "uuuuay", scanout(1<<30, 1<<30, 1<<30, xrgb, 4), nil, errInvalid},
		{"narrow stride", ifaceListener, "Scanout", "uuuuay", scanout(2, 1, 7, xrgb, 8), nil, errInvalid},
		{"overflowing stride", ifaceListener, "Scanout", "uuuuay", scanout(1, 16384, math.MaxUint32, xrgb, 8), nil, peer.ErrLimitsExceeded},
		{"large", ifaceListener, "Scanout", "uuuuay", scanout(16384, 16384, 65536, xrgb, 8), nil, peer.ErrLimitsExceeded},
		{"little data", ifaceListener, "Scanout", "uuuuay", scanout(10, 10, 40, xrgb, 399), nil, peer.ErrInvalidArgs},
		{"format", ifaceListener, "Scanout", "uuuuay", scanout(10, 10, 40, 0x10020565, 400), nil, errUnsupported},
		{"types", ifaceListener, "Scanout", "u", func(e *peer.Encoder) { e.Uint32(1) }, nil, peer.ErrInvalidArgs},
		{"no values", ifaceListener, "Scanout", "uuuuay", nil, nil, peer.ErrInvalidArgs},

		{"left", ifaceListener, "Update", "iiiiuuay", update(-10, 0, 10, 10, 40, xrgb, 400), nil, errInvalid},
		{"right", ifaceListener, "Update", "iiiiuuay", update(32, 0, 10, 10, 40, xrgb, 400), nil, errInvalid},
		{"empty", ifaceListener, "Update", "iiiiuuay", update(0, 0, 0, 10, 40, xrgb, 400), nil, errInvalid},
		{"negative", ifaceListener, "Update", "iiiiuuay", update(5, 5, -3, -3, 40, xrgb, 400), nil, errInvalid},
		{"overflowing", ifaceListener, "Update", "iiiiuuay", update(math.MaxInt32, math.MaxInt32, math.MaxInt32, math.MaxInt32, 40, xrgb, 400), nil, errInvalid},
		{"more than comes", ifaceListener, "Update", "iiiiuuay", update(math.MinInt32, 0, math.MaxInt32, 1, 40, xrgb, 400), nil, errInvalid},
		{"huge", ifaceListener, "Update", "iiiiuuay", update(0, 0, 16384, 16384, 65536, xrgb, 400), nil, peer.ErrInvalidArgs},
		{"little data", ifaceListener, "Update", "iiiiuuay", update(0, 0, 10, 10, 40, xrgb, 399), nil, peer.ErrInvalidArgs},
		{"narrow stride", ifaceListener, "Update", "iiiiuuay", update(0, 0, 10, 10, 39, xrgb, 400), nil, peer.ErrInvalidArgs},
		{"format", ifaceListener, "Update", "iiiiuuay", update(0, 0, 10, 10, 40, 0x20028888, 400), nil, errUnsupported},
		{"update of a map", ifaceMap, "UpdateMap", "iiii", rect(0, 0, 1, 1), nil, errInvalid},

		{"no pointer", ifaceListener, "CursorDefine", "iiiiay", cursor(0, 0, 0), nil, errInvalid},
		{"large pointer", ifaceListener, "CursorDefine", "iiiiay", cursor(257, 1, 257*4), nil, errInvalid},
		{"absurd pointer", ifaceListener, "CursorDefine", "iiiiay", cursor(1<<16, 1<<16, 0), nil, errInvalid},
		{"negative pointer", ifaceListener, "CursorDefine", "iiiiay", cursor(-1, -1, 4), nil, errInvalid},
		{"pointer's data", ifaceListener, "CursorDefine", "iiiiay", cursor(2, 2, 15), nil, errInvalid},

		{"no file", ifaceMap, "ScanoutMap", "huuuuu", maps(0, 10, 10, 40, xrgb), nil, peer.ErrInvalidArgs},
		{"a pipe", ifaceMap, "ScanoutMap", "huuuuu", maps(0, 10, 10, 40, xrgb), pipe, errInvalid},
		{"a file on disk", ifaceMap, "ScanoutMap", "huuuuu", maps(0, 10, 10, 40, xrgb), disk, errInvalid},
		{"cannot be read", ifaceMap, "ScanoutMap", "huuuuu", maps(0, 10, 10, 40, xrgb), writeOnly, errInvalid},
		{"beyond the end", ifaceMap, "ScanoutMap", "huuuuu", maps(1<<20-399, 10, 10, 40, xrgb), mem, errInvalid},
		{"far beyond", ifaceMap, "ScanoutMap", "huuuuu", maps(math.MaxUint32, 10, 10, 40, xrgb), mem, errInvalid},
		{"overflowing stride", ifaceMap, "ScanoutMap", "huuuuu", maps(0, 1, 16384, math.MaxUint32, xrgb), mem, peer.ErrLimitsExceeded},
		{"large map", ifaceMap, "ScanoutMap", "huuuuu", maps(0, 16384, 16384, 65536, xrgb), mem, peer.ErrLimitsExceeded},
		{"format of a map", ifaceMap, "ScanoutMap", "huuuuu", maps(0, 10, 10, 40, 0), mem, errUnsupported},

		{"update of a DMABUF", ifaceListener, "UpdateDMABUF", "iiii", rect(0, 0, 1, 1), nil, errInvalid},
		{"unknown method", ifaceListener, "Explode", "", nil, nil, peer.ErrUnknownMethod},
	}
	s, r, vmm := hostileVMM(t, ReceiverConfig{})
	if got := refusal(call(t, vmm, pathListener, ifaceListener, "Update", "iiiiuuay", update(0, 0, 1, 1, 4, xrgb, 4))); got != errInvalid {
		t.Errorf("an update before the first scanout: %s", got)
	}
	if err := call(t, vmm, pathListener, ifaceListener, "Scanout", "uuuuay", scanout(32, 32, 128, xrgb, 4096)); err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	for _, tt := range tests {
		var fds []int
		if tt.file != nil {
			fds = []int{int(tt.file.Fd())}
		}
		if got := refusal(call(t, vmm, pathListener, tt.iface, tt.member, tt.sig, tt.args, fds...)); got != tt.want {
			t.Errorf("%s of %s: got %s, want %s", tt.name, tt.member, got, tt.want)
		}
	}
	if got := refusal(call(t, vmm, pathElsewhere, ifaceListener, "Disable", "", nil)); got != peer.ErrUnknownObject {
		t.Errorf("another object: %s", got)
	}
	eventually(t, "all descriptors closed", func() bool { return openFDs(t) <= before })
	if n, updates, cursor := s.seen(); n != 1 || len(updates) > 0 || cursor != nil {
		t.Errorf("the sink has seen %d scanouts, the updates %v and the pointer %v", n, updates, cursor)
	}
	// It still works, and parts outside are cut off.
	for _, err := range []error{
		call(t, vmm, pathListener, ifaceListener, "Update", "iiiiuuay", update(30, 31, 5, 5, 20, xrgb, 100)),
		call(t, vmm, pathListener, ifaceListener, "Update", "iiiiuuay", update(-2, -1, 5, 5, 20, xrgb, 100)),
		call(t, vmm, pathListener, ifaceListener, "Disable", "", nil),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	_, updates, _ := s.seen()
	if diff := cmp.Diff([]image.Rectangle{image.Rect(30, 31, 32, 32), image.Rect(0, 0, 3, 4)}, updates); diff != "" {
		t.Error(diff)
	}
	r.Close()
	if r.Err() != nil {
		t.Error(r.Err())
	}
}

// Memory that is not sealed may be cut off under our eyes: that is seen as black, and kills nobody.
func TestMapTruncated(t *testing.T) {
	s, _, vmm := hostileVMM(t, ReceiverConfig{})
	f, mem := newMemfd(t, 64*64*4, false)
	for i := range mem {
		mem[i] = 0x77
	}
	err := call(t, vmm, pathListener, ifaceMap, "ScanoutMap", "huuuuu", func(e *peer.Encoder) {
		for _, v := range []uint32{0, 0, 64, 64, 256, 0x20020888} {
			e.Uint32(v)
		}
	}, int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if s.pixel(63, 63) != 0x77777777 {
		t.Errorf("the picture is %#x", s.pixel(63, 63))
	}
	f.Truncate(4096) // 16 rows
	all := func(e *peer.Encoder) { e.Int32(0); e.Int32(0); e.Int32(64); e.Int32(64) }
	if err := call(t, vmm, pathListener, ifaceMap, "UpdateMap", "iiii", all); err != nil {
		t.Fatal(err)
	}
	if s.pixel(63, 15) != 0x77777777 || s.pixel(0, 16) != 0 || s.pixel(63, 63) != 0 {
		t.Errorf("rows 15 and 16 are %#x and %#x", s.pixel(63, 15), s.pixel(0, 16))
	}
	f.Truncate(64 * 64 * 4)
	part := func(e *peer.Encoder) { e.Int32(1); e.Int32(30); e.Int32(2); e.Int32(2) }
	if err := call(t, vmm, pathListener, ifaceMap, "UpdateMap", "iiii", part); err != nil {
		t.Fatal(err)
	}
}

// Memory that is cut off while we look at it, and sealed only then, is not mapped: reading it would kill us.
func TestSealedTooLate(t *testing.T) {
	f, _ := newMemfd(t, 64*64*4, false)
	s := &display.Surface{Width: 64, Height: 64, Stride: 256, Format: display.XRGB8888}
	key, sealed, err := identify(f, 0, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	m, err := newMapping(duplicate(f), key, sealed, s)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if m.mem != nil {
		t.Error("it is mapped")
	}
}

// A large picture is taken in bands: whoever draws the screen gets at it meanwhile, and does not wait for all of it.
func TestLargePictureIsNotLocked(t *testing.T) {
	const size = 2048
	from := &display.Surface{Width: size, Height: size, Stride: 4 * size, Pixels: bytes.Repeat([]byte{1}, 4*size*size)}
	to := &display.Surface{Width: size, Height: size, Stride: 4 * size, Pixels: make([]byte, 4*size*size)}
	f, mem := newMemfd(t, len(from.Pixels), false)
	copy(mem, from.Pixels)
	m := &mapping{surface: to, file: f}
	for name, fill := range map[string]func(){
		"blit": func() { blit(to, to.Bounds(), from) },
		"copy": func() {
			if err := m.copy(to.Bounds()); err != nil {
				t.Error(err)
			}
		},
	} {
		between := 0 // looks at a picture of which a part is there
		// On a busy machine all may have been filled before we look for the first time.
		for end := time.Now().Add(deadline); between == 0 && time.Now().Before(end); {
			clear(to.Pixels)
			done := make(chan struct{})
			go func() {
				defer close(done)
				fill()
			}()
			for last := byte(0); last == 0; {
				to.Mu.RLock()
				last = to.Pixels[len(to.Pixels)-1]
				if to.Pixels[0] != last {
					between++
				}
				to.Mu.RUnlock()
			}
			<-done
		}
		if between == 0 {
			t.Errorf("%s has kept the picture locked", name)
		}
	}
}

// A server that sends what is no message ends its receiver, and nothing else.
func TestReceiverGarbage(t *testing.T) {
	c, listeners := fakeVMM(t)
	s := &shown{}
	r, err := c.Listen(t.Context(), 0, s, ReceiverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	conn := receive(t, listeners)
	conn.Send(&peer.Header{Type: peer.MethodCall, Path: pathListener, Member: "M", Signature: "ay"}, make([]byte, maxBlob+2048))
	receive(t, r.Done())
	if r.Err() == nil {
		t.Error("a message of more than 64 MiB is taken")
	}
	select {
	case <-c.Done():
		t.Error("the client has ended with its receiver")
	default:
	}
}

// A batch while the connection ends does no harm.
func TestSenderAfterEnd(t *testing.T) {
	g := newGuest(t)
	c := g.client(t, ClientConfig{})
	in := c.Sender(0)
	g.server.Close()
	for range 3 * maxActions {
		in.Send([]hid.Event{{Type: hid.EVKey, Code: 30, Value: 1}, {Type: hid.EVKey, Code: 30, Value: 0}})
	}
	receive(t, c.Done())
	c.Close()
	c.Sender(0).Send([]hid.Event{{Type: hid.EVKey, Code: 30, Value: 1}})
	if _, err := c.VM(t.Context()); err == nil {
		t.Error("a closed client answers")
	}
	if err := c.SetMonitor(t.Context(), 0, display.Monitor{}); err == nil {
		t.Error("a closed client sets a monitor")
	}
	if _, err := c.Listen(t.Context(), 0, &shown{}, ReceiverConfig{}); err == nil {
		t.Error("a closed client listens")
	}
}
