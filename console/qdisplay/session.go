package qdisplay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// session is a client's connection: the objects that it sees.
type session struct {
	server  *Server
	objects *objects
	input   input
	wake    chan struct{} // something of server may have changed
	told    state         // what the client has been told of it
}

// state is what clients are told the changes of.
type state struct {
	leds     hid.LEDs
	absolute bool
	sizes    []size
}

type size struct{ width, height uint32 }

func newSession(s *Server) *session {
	c := &session{server: s, wake: make(chan struct{}, 1)}
	c.input = input{server: s}
	c.told = s.state()
	list := []object{c.vm()}
	for _, con := range s.consoles {
		list = append(list, c.console(con))
	}
	c.objects = newObjects(list)
	return c
}

func (s *Server) state() state {
	st := state{leds: s.leds(), absolute: s.absolute()}
	for _, c := range s.consoles {
		w, h := c.dimensions()
		st.sizes = append(st.sizes, size{w, h})
	}
	return st
}

// serve serves the client until it goes.
func (c *session) serve(conn *peer.Conn) error {
	c.objects.conn = conn
	s := c.server
	s.mu.Lock()
	s.sessions[c] = struct{}{}
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.signal(ctx) })
	defer func() {
		cancel()
		wg.Wait()
		s.mu.Lock()
		delete(s.sessions, c)
		s.mu.Unlock()
	}()
	return conn.Serve()
}

// signal tells the client what changes, until ctx ends. Several changes at once become one.
func (c *session) signal(ctx context.Context) {
	var e peer.Encoder
	for {
		now := c.server.state()
		var err error
		for i, con := range c.server.consoles {
			path := consolePath(con.id)
			if now.leds != c.told.leds {
				err = errors.Join(err, changed(c.objects.conn, path, ifaceKeyboard, &e, number("Modifiers", modifiers(now.leds))))
			}
			if now.absolute != c.told.absolute {
				err = errors.Join(err, changed(c.objects.conn, path, ifaceMouse, &e, boolean("IsAbsolute", now.absolute)))
			}
			if now.sizes[i] != c.told.sizes[i] {
				err = errors.Join(err, changed(c.objects.conn, path, ifaceConsole, &e,
					number("Width", now.sizes[i].width), number("Height", now.sizes[i].height)))
			}
		}
		if err != nil { // Serve ends too
			return
		}
		c.told = now
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
	}
}

func text(name, value string) property {
	return property{name, "s", func(e *peer.Encoder) { e.Str(value) }}
}

func texts(name string, value ...string) property {
	return property{name, "as", func(e *peer.Encoder) { e.Strs(value) }}
}

func number(name string, value uint32) property {
	return property{name, "u", func(e *peer.Encoder) { e.Uint32(value) }}
}

func boolean(name string, value bool) property {
	return property{name, "b", func(e *peer.Encoder) { e.Bool(value) }}
}

func (c *session) vm() object {
	cfg := &c.server.cfg
	return object{pathVM, []iface{{
		name: ifaceVM,
		properties: []property{
			text("Name", cfg.Name),
			text("UUID", cfg.UUID),
			{"ConsoleIDs", "au", func(e *peer.Encoder) {
				m := e.Array(4)
				for i := range cfg.Screens {
					e.Uint32(uint32(i))
				}
				e.EndArray(m, 4)
			}},
			texts("Interfaces"),
		},
	}}}
}

func (c *session) console(con *console) object {
	s, in := c.server, &c.input
	return object{consolePath(con.id), []iface{
		{
			name: ifaceConsole,
			methods: []method{
				{name: "RegisterListener", args: []arg{{"listener", "h"}}, call: func(m *peer.Message, d *peer.Decoder) error {
					return c.registerListener(con, m, d)
				}},
				{name: "SetUIInfo", args: []arg{{"width_mm", "q"}, {"height_mm", "q"}, {"xoff", "i"}, {"yoff", "i"}, {"width", "u"}, {"height", "u"}},
					call: func(_ *peer.Message, d *peer.Decoder) error { return setUIInfo(con.screen, d) }},
			},
			properties: []property{
				text("Label", fmt.Sprintf("Screen %d", con.id+1)),
				number("Head", con.id),
				text("Type", "Graphic"),
				{"Width", "u", func(e *peer.Encoder) { w, _ := con.dimensions(); e.Uint32(w) }},
				{"Height", "u", func(e *peer.Encoder) { _, h := con.dimensions(); e.Uint32(h) }},
				text("DeviceAddress", s.cfg.DeviceAddress),
				texts("Interfaces", ifaceKeyboard, ifaceMouse, ifaceMultiTouch),
			},
		},
		{
			name: ifaceKeyboard,
			methods: []method{
				{name: "Press", args: []arg{{"keycode", "u"}}, call: func(_ *peer.Message, d *peer.Decoder) error { return in.key(d, true) }},
				{name: "Release", args: []arg{{"keycode", "u"}}, call: func(_ *peer.Message, d *peer.Decoder) error { return in.key(d, false) }},
			},
			properties: []property{{"Modifiers", "u", func(e *peer.Encoder) { e.Uint32(modifiers(s.leds())) }}},
		},
		{
			name: ifaceMouse,
			methods: []method{
				{name: "Press", args: []arg{{"button", "u"}}, call: func(_ *peer.Message, d *peer.Decoder) error { return in.button(d, true) }},
				{name: "Release", args: []arg{{"button", "u"}}, call: func(_ *peer.Message, d *peer.Decoder) error { return in.button(d, false) }},
				{name: "SetAbsPosition", args: []arg{{"x", "u"}, {"y", "u"}}, call: func(_ *peer.Message, d *peer.Decoder) error { return in.position(con, d) }},
				{name: "RelMotion", args: []arg{{"dx", "i"}, {"dy", "i"}}, call: func(_ *peer.Message, d *peer.Decoder) error { return in.motion(d) }},
			},
			properties: []property{{"IsAbsolute", "b", func(e *peer.Encoder) { e.Bool(s.absolute()) }}},
		},
		{
			name: ifaceMultiTouch,
			methods: []method{
				{name: "SendEvent", args: []arg{{"kind", "u"}, {"num_slot", "t"}, {"x", "d"}, {"y", "d"}},
					call: func(_ *peer.Message, d *peer.Decoder) error { return in.touch(con, d) }},
			},
			properties: []property{{"MaxSlots", "i", func(e *peer.Encoder) { e.Int32(maxSlots) }}},
		},
	}}
}

// registerListener takes the listener's socket.
func (c *session) registerListener(con *console, m *peer.Message, d *peer.Decoder) error {
	index := d.Uint32()
	if err := d.End(); err != nil {
		return err
	}
	f, err := m.File(index)
	if err != nil {
		return err
	}
	sock, err := unixConn(f)
	if err != nil {
		return failf(peer.ErrInvalidArgs, "listener: %v", err)
	}
	return c.server.listen(con.screen, sock)
}

// unixConn makes a connection of a file, which it closes.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	sock, ok := conn.(*net.UnixConn)
	if !ok || kind != unix.SOCK_STREAM {
		conn.Close()
		return nil, errors.New("it is no Unix stream socket")
	}
	return sock, nil
}

// setUIInfo changes the monitor. Its name, serial number and rate stay: there is no argument for them. A size of 0×0 is no
// monitor.
func setUIInfo(screen *display.Screen, d *peer.Decoder) error {
	widthMM, heightMM := d.Uint16(), d.Uint16()
	x, y := d.Int32(), d.Int32()
	width, height := d.Uint32(), d.Uint32()
	if err := d.End(); err != nil {
		return err
	}
	if width > display.MaxSize || height > display.MaxSize {
		return failf(errInvalid, "a monitor of %d×%d pixels: %d are the most", width, height, display.MaxSize)
	}
	m := screen.Monitor()
	m.Connected = width > 0 && height > 0
	if m.Connected {
		m.Width, m.Height = int(width), int(height)
		m.WidthMM, m.HeightMM = int(widthMM), int(heightMM)
		m.X, m.Y = int(x), int(y)
	}
	screen.SetMonitor(m)
	return nil
}
