package qdisplay

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"image"
	"math"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// call makes a call of arguments that the test encodes.
func call(t testing.TB, c *peer.Conn, path, iface, member, sig string, args func(*peer.Encoder), fds ...int) error {
	t.Helper()
	var e peer.Encoder
	if args != nil {
		args(&e)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	h := &peer.Header{Type: peer.MethodCall, Path: path, Interface: iface, Member: member, Signature: sig}
	return c.Call(ctx, h, e.Bytes(), fds...).Err
}

// refusal returns the name of the error that a call was refused with.
func refusal(err error) string {
	var e *peer.CallError
	if errors.As(err, &e) {
		return e.Name
	}
	return fmt.Sprint(err)
}

// raw returns a connection to the guest's display, to say anything.
func (g *guest) raw(t testing.TB) *peer.Conn {
	t.Helper()
	c, err := peer.Connect(g.sock(t), peer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, c)
	return c
}

// serve runs a connection until the test ends.
func serve(t testing.TB, c *peer.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { c.Serve() })
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
}

// rawListener registers a listener that answers as handler likes.
func (g *guest) rawListener(t testing.TB, handler func(*peer.Conn, *peer.Message)) *peer.Conn {
	t.Helper()
	sock, err := g.client(t, ClientConfig{}).register(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var conn *peer.Conn
	conn, err = peer.Connect(sock, peer.Config{MaxBody: maxBlob + 1024, Handler: func(m *peer.Message) { handler(conn, m) }})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, conn)
	return conn
}

// Each method of the server, with arguments of a wrong type and with too few of them.
func TestServerWrongArguments(t *testing.T) {
	g := newGuest(t)
	c := g.raw(t)
	for _, path := range []string{pathVM, consolePath(0)} {
		var node struct {
			Interfaces []struct {
				Name    string `xml:"name,attr"`
				Methods []struct {
					Name string `xml:"name,attr"`
					Args []struct {
						Type      string `xml:"type,attr"`
						Direction string `xml:"direction,attr"`
					} `xml:"arg"`
				} `xml:"method"`
			} `xml:"interface"`
		}
		if err := xml.Unmarshal([]byte(introspection(t, c, path)), &node); err != nil {
			t.Fatal(err)
		}
		for _, i := range node.Interfaces {
			for _, m := range i.Methods {
				sig := ""
				for _, a := range m.Args {
					if a.Direction == "in" {
						sig += a.Type
					}
				}
				if sig == "" {
					continue
				}
				for _, have := range []string{"", "ay", sig} { // the last one without the values
					err := call(t, c, path, i.Name, m.Name, have, nil)
					if name := refusal(err); name != peer.ErrInvalidArgs && m.Name != "Set" {
						t.Errorf("%s.%s with arguments %q: %v", i.Name, m.Name, have, err)
					}
				}
			}
		}
	}
	if len(g.input.taken()) > 0 {
		t.Error("it had an effect")
	}
}

func introspection(t testing.TB, c *peer.Conn, path string) string {
	t.Helper()
	r := c.Call(t.Context(), &peer.Header{Type: peer.MethodCall, Path: path, Interface: ifaceIntrospectable, Member: "Introspect"}, nil)
	d, err := r.Message.Args("s")
	if err = errors.Join(r.Err, err); err != nil {
		t.Fatal(err)
	}
	return d.Str()
}

// What a client asks for and does not get.
func TestServerRefuses(t *testing.T) {
	u := func(v ...uint32) func(*peer.Encoder) {
		return func(e *peer.Encoder) {
			for _, n := range v {
				e.Uint32(n)
			}
		}
	}
	touch := func(kind uint32, slot uint64, x, y float64) func(*peer.Encoder) {
		return func(e *peer.Encoder) { e.Uint32(kind); e.Uint64(slot); e.Double(x); e.Double(y) }
	}
	strs := func(v ...string) func(*peer.Encoder) {
		return func(e *peer.Encoder) {
			for _, s := range v {
				e.Str(s)
			}
		}
	}
	console := consolePath(0)
	tests := []struct {
		name                     string
		path, iface, member, sig string
		args                     func(*peer.Encoder)
		want                     string
	}{
		{"no object", "/nowhere", ifaceVM, "M", "", nil, peer.ErrUnknownObject},
		{"no console", consolePath(1), ifaceKeyboard, "Press", "u", u(1), peer.ErrUnknownObject},
		{"no interface", pathVM, ifaceKeyboard, "Press", "u", u(1), peer.ErrUnknownInterface},
		{"interface left out", console, "", "Press", "u", u(1), peer.ErrUnknownInterface},
		{"no method", console, ifaceKeyboard, "Type", "u", u(1), peer.ErrUnknownMethod},
		{"no property", pathVM, ifaceProperties, "Get", "ss", strs(ifaceVM, "Age"), peer.ErrUnknownProperty},
		{"properties of no interface", pathVM, ifaceProperties, "GetAll", "s", strs("a.b"), peer.ErrUnknownInterface},
		{"a property is set", pathVM, ifaceProperties, "Set", "ssv", func(e *peer.Encoder) { strs(ifaceVM, "Name")(e); e.Sig("s"); e.Str("x") }, peer.ErrPropertyReadOnly},
		{"nothing to introspect", "/org/nobody", ifaceIntrospectable, "Introspect", "", nil, peer.ErrUnknownObject},
		{"objects elsewhere", pathVM, ifaceObjectManager, "GetManagedObjects", "", nil, peer.ErrUnknownInterface},
		{"no key", console, ifaceKeyboard, "Press", "u", u(0), errInvalid},
		{"large key", console, ifaceKeyboard, "Release", "u", u(math.MaxUint32), errInvalid},
		{"no button", console, ifaceMouse, "Press", "u", u(9), errInvalid},
		{"outside", console, ifaceMouse, "SetAbsPosition", "uu", u(64, 0), errInvalid},
		{"far outside", console, ifaceMouse, "SetAbsPosition", "uu", u(0, math.MaxUint32), errInvalid},
		{"relative", console, ifaceMouse, "RelMotion", "ii", u(1, 1), errInvalid},
		{"no slot", console, ifaceMultiTouch, "SendEvent", "utdd", touch(touchBegin, 10, 1, 1), errInvalid},
		{"no kind", console, ifaceMultiTouch, "SendEvent", "utdd", touch(4, 0, 1, 1), errInvalid},
		{"no number", console, ifaceMultiTouch, "SendEvent", "utdd", touch(touchBegin, 0, math.NaN(), 1), errInvalid},
		{"infinity", console, ifaceMultiTouch, "SendEvent", "utdd", touch(touchBegin, 0, 1, math.Inf(1)), errInvalid},
		{"no finger", console, ifaceMultiTouch, "SendEvent", "utdd", touch(touchUpdate, 0, 1, 1), errInvalid},
	}
	g := newGuest(t)
	g.screen.Scanout(newSurface(t, 64, 64, false))
	c := g.raw(t)
	for _, tt := range tests {
		if got := refusal(call(t, c, tt.path, tt.iface, tt.member, tt.sig, tt.args)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	// A signal is no call.
	var e peer.Encoder
	e.Uint32(30)
	if err := c.Send(&peer.Header{Type: peer.Signal, Path: console, Interface: ifaceKeyboard, Member: "Press", Signature: "u"}, e.Bytes()); err != nil {
		t.Error(err)
	}
	introspection(t, c, pathVM)
	if n := len(g.input.taken()); n > 0 {
		t.Errorf("the guest's input got %d batches", n)
	}
}

// What is given as a listener's socket and is none; no descriptor stays open.
func TestServerBadListeners(t *testing.T) {
	g := newGuest(t)
	c := g.raw(t)
	register := func(fds ...int) string {
		return refusal(call(t, c, consolePath(0), ifaceConsole, "RegisterListener", "h", func(e *peer.Encoder) { e.Uint32(0) }, fds...))
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	dgram, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dgram[0])
	defer unix.Close(dgram[1])
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	raw, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	inet, err := raw.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer inet.Close()

	before := openFDs(t)
	for range 20 {
		for name, fds := range map[string][]int{
			"no descriptor": nil,
			"a pipe":        {int(r.Fd())},
			"datagrams":     {dgram[0]},
			"the network":   {int(inet.Fd())},
			"many pipes":    {int(r.Fd()), int(r.Fd()), int(r.Fd())},
		} {
			if got := register(fds...); got != peer.ErrInvalidArgs {
				t.Errorf("%s: %s", name, got)
			}
		}
		// A call that wants no descriptor and has some.
		if got := refusal(call(t, c, pathVM, ifaceProperties, "GetAll", "s", func(e *peer.Encoder) { e.Str(ifaceVM) }, int(r.Fd()))); got != "<nil>" {
			t.Errorf("a call with a pipe: %s", got)
		}
	}
	eventually(t, "all descriptors closed", func() bool { return openFDs(t) <= before })
}

// More connections than a server takes are refused; when they go there is room again.
func TestServerFull(t *testing.T) {
	g := newGuest(t)
	var socks []*net.UnixConn
	for range 2 * maxConns {
		socks = append(socks, g.sock(t)) // say nothing
	}
	eventually(t, "many connections", func() bool {
		g.server.mu.Lock()
		defer g.server.mu.Unlock()
		return len(g.server.conns) == maxConns
	})
	if _, err := NewClient(g.sock(t), ClientConfig{}); err == nil {
		t.Error("there is room for one more")
	}
	for _, s := range socks {
		s.Close()
	}
	eventually(t, "room", func() bool {
		g.server.mu.Lock()
		defer g.server.mu.Unlock()
		return len(g.server.conns) == 0
	})
	if _, err := g.client(t, ClientConfig{}).VM(t.Context()); err != nil {
		t.Error(err)
	}
}

// A listener that is slow gets what has changed, in fewer and larger pieces, and the device never waits for it.
func TestListenerSlow(t *testing.T) {
	g := newGuest(t)
	surface := newSurface(t, 640, 480, false)
	g.screen.Scanout(surface)
	var mu sync.Mutex
	updates, covered := 0, image.Rectangle{}
	gate, ready := make(chan struct{}), make(chan struct{}, 1)
	g.rawListener(t, func(c *peer.Conn, m *peer.Message) {
		switch m.Member {
		case "Scanout":
			ready <- struct{}{}
		case "Update":
			<-gate
			d, _ := m.Args("iiiiuuay")
			x, y, w, h := int(d.Int32()), int(d.Int32()), int(d.Int32()), int(d.Int32())
			mu.Lock()
			updates++
			covered = covered.Union(image.Rect(x, y, x+w, y+h))
			mu.Unlock()
		}
		c.Reply(m, "", nil)
	})
	receive(t, ready)
	const n = 4800
	for i := range n {
		x, y := i%80*8, i/80*8
		g.screen.Update(image.Rect(x, y, x+8, y+8))
	}
	close(gate)
	eventually(t, "all damage", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return covered == surface.Bounds()
	})
	mu.Lock()
	defer mu.Unlock()
	if updates > n/4 {
		t.Errorf("%d updates became %d", n, updates)
	}
}

// One that does not answer, or does not read, is dropped; others see all the same.
func TestListenerHangs(t *testing.T) {
	g := newGuest(t)
	g.server.cfg.Timeout = time.Second
	surface := newSurface(t, 1920, 1080, true) // the good one maps it
	g.screen.Scanout(surface)
	s, _ := g.listen(t, ReceiverConfig{})

	silent := g.rawListener(t, func(c *peer.Conn, m *peer.Message) {
		if m.Interface == ifaceProperties {
			c.Fail(m, peer.ErrUnknownInterface, "old")
		}
	})
	sock, err := g.client(t, ClientConfig{}).register(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	deaf, err := peer.Connect(sock, peer.Config{}) // reads nothing
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	mute, err := g.client(t, ClientConfig{}).register(t.Context(), 0) // not even the handshake
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	eventually(t, "the silent one dropped", func() bool {
		return silent.Send(&peer.Header{Type: peer.Signal, Path: "/x", Interface: "a.b", Member: "M"}, nil) != nil
	})
	eventually(t, "all of them dropped", func() bool {
		g.server.mu.Lock()
		defer g.server.mu.Unlock()
		return len(g.server.conns) == len(g.server.sessions)+1
	})
	paint(surface, surface.Bounds(), 0xff)
	g.screen.Update(surface.Bounds())
	eventually(t, "the good one's picture", func() bool { return s.pixel(1919, 1079) == 0xff })
}

// One that maps nothing although it says so gets bytes.
func TestListenerRefusesMap(t *testing.T) {
	g := newGuest(t)
	surface := newSurface(t, 64, 64, true)
	g.screen.Scanout(surface)
	got := make(chan string, 10)
	g.rawListener(t, func(c *peer.Conn, m *peer.Message) {
		switch {
		case m.Interface == ifaceProperties:
			var e peer.Encoder
			e.Sig("as")
			e.Strs([]string{"x", ifaceMap})
			c.Reply(m, "v", e.Bytes())
		case m.Interface == ifaceMap:
			got <- m.Member
			c.Fail(m, peer.ErrFailed, "no")
		default:
			if m.Member != "MouseSet" {
				got <- m.Member
			}
			c.Reply(m, "", nil)
		}
	})
	for _, want := range []string{"ScanoutMap", "Scanout"} {
		if m := receive(t, got); m != want {
			t.Errorf("%s was called, want %s", m, want)
		}
	}
	g.screen.Update(image.Rect(0, 0, 1, 1))
	if m := receive(t, got); m != "Update" {
		t.Errorf("%s was called, want Update", m)
	}
}

// A device that holds its surface's lock while it changes the scanout waits for nobody.
func TestScanoutLocked(t *testing.T) {
	g := newGuest(t)
	s, _ := g.listen(t, ReceiverConfig{})
	for i := range 50 {
		surface := newSurface(t, 512, 512, false)
		paint(surface, surface.Bounds(), uint32(i+1))
		g.screen.Scanout(surface)
		surface.Mu.Lock()
		g.screen.Scanout(nil)
		surface.Mu.Unlock()
	}
	eventually(t, "the screen off", s.off)
}

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
func hostileVMM(t testing.TB, cfg ReceiverConfig) (*shown, *Receiver, *peer.Conn) {
	t.Helper()
	c, listeners := fakeVMM(t)
	s := &shown{}
	r, err := c.Listen(t.Context(), 0, s, cfg)
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

		{"a DMABUF", ifaceListener, "ScanoutDMABUF", "huuuutb", func(e *peer.Encoder) {
			e.Uint32(0)
			scanoutArgs := []uint32{10, 10, 40, xrgb}
			for _, v := range scanoutArgs {
				e.Uint32(v)
			}
			e.Uint64(0)
			e.Bool(true)
		}, mem, peer.ErrNotSupported},
		{"update of a DMABUF", ifaceListener, "UpdateDMABUF", "iiii", rect(0, 0, 1, 1), nil, peer.ErrNotSupported},
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
