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

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
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
