package qdisplay

import (
	"bufio"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// wire returns a call as it is sent.
func wire(f *testing.F, path, iface, member, sig string, args func(*peer.Encoder)) []byte {
	f.Helper()
	a, b := socketpair(f)
	defer a.Close()
	defer b.Close()
	sent := make(chan []byte)
	go func() {
		in := bufio.NewReader(a)
		for {
			line, err := in.ReadString('\n')
			switch {
			case err != nil || line == "BEGIN\r\n":
				rest, _ := io.ReadAll(in)
				sent <- rest
				return
			case line == "NEGOTIATE_UNIX_FD\r\n":
				a.Write([]byte("AGREE_UNIX_FD\r\n"))
			default:
				a.Write([]byte("OK 00\r\n"))
			}
		}
	}()
	c, err := peer.Connect(b, peer.Config{})
	if err != nil {
		f.Fatal(err)
	}
	var e peer.Encoder
	if args != nil {
		args(&e)
	}
	var fds []int
	if sig[:min(1, len(sig))] == "h" {
		fds = []int{int(os.Stdin.Fd())} // of which only the number is in the message
	}
	if err := c.Send(&peer.Header{Type: peer.MethodCall, Path: path, Interface: iface, Member: member, Signature: sig}, e.Bytes(), fds...); err != nil {
		f.Fatal(err)
	}
	c.Close()
	return <-sent
}

// FuzzServerMessage sends anything to a server after the handshake.
func FuzzServerMessage(f *testing.F) {
	u := func(v ...uint32) func(*peer.Encoder) {
		return func(e *peer.Encoder) {
			for _, n := range v {
				e.Uint32(n)
			}
		}
	}
	console := consolePath(0)
	f.Add(wire(f, console, ifaceKeyboard, "Press", "u", u(30)), false)
	f.Add(wire(f, console, ifaceMouse, "Press", "u", u(0)), false)
	f.Add(wire(f, console, ifaceMouse, "SetAbsPosition", "uu", u(3, 4)), false)
	f.Add(wire(f, console, ifaceMouse, "RelMotion", "ii", u(3, 4)), false)
	f.Add(wire(f, console, ifaceMultiTouch, "SendEvent", "utdd", func(e *peer.Encoder) { e.Uint32(0); e.Uint64(1); e.Double(2); e.Double(3) }), false)
	f.Add(wire(f, console, ifaceConsole, "RegisterListener", "h", u(0)), true)
	f.Add(wire(f, console, ifaceConsole, "SetUIInfo", "qqiiuu", func(e *peer.Encoder) {
		e.Uint16(1)
		e.Uint16(2)
		u(3, 4, 5, 6)(e)
	}), false)
	f.Add(wire(f, pathVM, ifaceProperties, "GetAll", "s", func(e *peer.Encoder) { e.Str(ifaceVM) }), false)
	f.Add(wire(f, pathVM, ifaceProperties, "Get", "ss", func(e *peer.Encoder) { e.Str(ifaceVM); e.Str("Name") }), false)
	f.Add(wire(f, pathRoot, ifaceObjectManager, "GetManagedObjects", "", nil), false)
	f.Add(wire(f, "/", ifaceIntrospectable, "Introspect", "", nil), false)
	f.Fuzz(func(t *testing.T, in []byte, file bool) {
		screen := display.NewScreen(display.Monitor{})
		screen.Scanout(&display.Surface{Width: 8, Height: 8, Stride: 32, Format: display.XRGB8888, Pixels: make([]byte, 256)})
		held := &heldKeys{}
		server := NewServer(Config{Name: "x", Screens: []*display.Screen{screen}, Input: held, Timeout: time.Minute})
		a, b := socketpair(t)
		go func() {
			b.Write([]byte("\x00AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"))
			if file { // a socket, for a listener
				c, d := socketpair(t)
				f, _ := c.File()
				b.WriteMsgUnix(in, unix.UnixRights(int(f.Fd())), nil)
				f.Close()
				c.Close()
				d.Close()
			} else {
				b.Write(in)
			}
			b.CloseWrite()
			io.Copy(io.Discard, b)
		}()
		server.ServeConn(a)
		server.Close()
		if n := held.n; n != 0 {
			t.Errorf("%d keys are held after the client has gone", n)
		}
	})
}

// heldKeys is an input that counts the keys and fingers which are held.
type heldKeys struct{ n int }

func (h *heldKeys) Send(batch []hid.Event) {
	for _, e := range batch {
		switch {
		case e.Type == hid.EVKey && e.Value == 1:
			h.n++
		case e.Type == hid.EVKey && e.Value == 0:
			h.n--
		}
	}
}

// FuzzListenerMessage sends anything to a receiver after the handshake. What it gives to its sink is right.
func FuzzListenerMessage(f *testing.F) {
	n := func(v ...uint32) func(*peer.Encoder) {
		return func(e *peer.Encoder) {
			for _, k := range v {
				e.Uint32(k)
			}
		}
	}
	data := func(size int, v ...uint32) func(*peer.Encoder) {
		return func(e *peer.Encoder) { n(v...)(e); clear(e.Blob(size)) }
	}
	scanout := wire(f, pathListener, ifaceListener, "Scanout", "uuuuay", data(64, 4, 4, 16, 0x20020888))
	f.Add(scanout, false)
	f.Add(append(scanout, wire(f, pathListener, ifaceListener, "Update", "iiiiuuay", data(16, 1, 1, 2, 2, 8, 0x20020888))...), false)
	f.Add(wire(f, pathListener, ifaceListener, "CursorDefine", "iiiiay", data(16, 2, 2, 1, 1)), false)
	f.Add(wire(f, pathListener, ifaceListener, "MouseSet", "iii", n(1, 2, 1)), false)
	f.Add(wire(f, pathListener, ifaceListener, "Disable", "", nil), false)
	f.Add(wire(f, pathListener, ifaceMap, "ScanoutMap", "huuuuu", n(0, 0, 4, 4, 16, 0x20020888)), true)
	f.Add(wire(f, pathListener, ifaceMap, "UpdateMap", "iiii", n(0, 0, 4, 4)), false)
	f.Add(wire(f, pathListener, ifaceProperties, "Get", "ss", func(e *peer.Encoder) { e.Str(ifaceListener); e.Str("Interfaces") }), false)
	buf := wire(f, pathListener, ifaceListener, "ScanoutDMABUF", "huuuutb", func(e *peer.Encoder) {
		n(0, 4, 4, 16, uint32(display.XRGB8888))(e)
		e.Uint64(modifierLinear)
		e.Bool(true)
	})
	f.Add(append(buf, wire(f, pathListener, ifaceListener, "UpdateDMABUF", "iiii", n(0, 0, 4, 4))...), true)
	mem, _ := newMemfd(f, 4096, true)
	f.Fuzz(func(t *testing.T, in []byte, file bool) {
		a, b := socketpair(t)
		go func() {
			buf := make([]byte, 4096)
			a.Read(buf)
			a.Write([]byte("OK 00\r\nAGREE_UNIX_FD\r\n"))
			if file {
				a.WriteMsgUnix(in, unix.UnixRights(int(mem.Fd())), nil)
			} else {
				a.Write(in)
			}
			a.CloseWrite()
			io.Copy(io.Discard, a)
		}()
		r := newReceiver(&Client{sizes: make(map[uint32]size)}, 0, &shown{}, ReceiverConfig{MaxBytes: 1 << 20})
		r.bufSize = anyFile
		if err := r.connect(b); err != nil {
			t.Fatal(err)
		}
		<-r.done
	})
}

// FuzzClientMessage sends anything to a client after the handshake.
func FuzzClientMessage(f *testing.F) {
	f.Add(wire(f, consolePath(0), ifaceProperties, "PropertiesChanged", "sa{sv}as", func(e *peer.Encoder) {
		e.Str(ifaceKeyboard)
		m := e.Array(8)
		e.Align(8)
		e.Str("Modifiers")
		e.Sig("u")
		e.Uint32(3)
		e.EndArray(m, 8)
		e.Strs(nil)
	}))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1 && in[1] == byte(peer.MethodCall) {
			in[1] = byte(peer.Signal) // what the seed is made of
		}
		a, b := socketpair(t)
		go func() {
			buf := make([]byte, 4096)
			a.Read(buf)
			a.Write([]byte("OK 00\r\nAGREE_UNIX_FD\r\n"))
			a.Write(in)
			a.CloseWrite()
			io.Copy(io.Discard, a)
		}()
		c, err := NewClient(b, ClientConfig{OnLEDs: func(uint32, hid.LEDs) {}, OnAbsolute: func(uint32, bool) {}})
		if err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		c.Close()
	})
}

// FuzzSender takes any events: what goes to the server leaves nothing pressed that is not.
func FuzzSender(f *testing.F) {
	f.Add([]byte{1, 30, 0, 1, 1, 30, 0, 0, 3, 0x2f, 0, 1, 3, 0x39, 0, 5})
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &Client{done: make(chan struct{}), sizes: make(map[uint32]size), closing: true}
		s := c.Sender(0)
		down := hid.Keys{}
		var fingers [maxSlots]bool
		check := func() {
			for queued(s) {
				for _, a := range s.out {
					switch a.kind {
					case keyPress, buttonPress:
						down.Set(code(a), true)
					case keyRelease, buttonRelease:
						if c := code(a); c != 0 && !down.Has(c) {
							t.Fatalf("key %d is released and was not pressed", c)
						}
						down.Set(code(a), false)
					case fingerDown, fingerUp:
						if on := a.kind == fingerDown; fingers[a.slot] == on {
							t.Fatalf("finger %d touches: %v, again", a.slot, on)
						}
						fingers[a.slot] = a.kind == fingerDown
					}
				}
			}
		}
		var held hid.Keys
		for ; len(in) >= 4; in = in[4:] {
			e := hid.Event{Type: uint16(in[0]), Code: uint16(in[1]) | uint16(in[2]&3)<<8, Value: int32(int8(in[3]))}
			s.Send([]hid.Event{e})
			if _, ok := press(e.Code); ok && e.Type == hid.EVKey {
				switch e.Value {
				case 0:
					held.Set(e.Code, false)
				case 1:
					held.Set(e.Code, true)
				}
			}
			if in[2]&0x80 != 0 {
				check()
			}
		}
		check()
		for code := range uint16(hid.KeyMax + 1) {
			if down.Has(code) && !held.Has(code) && code != 0 {
				t.Errorf("key %d stays pressed", code)
			}
		}
	})
}
