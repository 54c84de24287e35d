package qdisplay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// maxConsoles is how many consoles of a guest a client knows of.
const maxConsoles = 16

// VM is a guest as its server describes it, which is not to be trusted.
type VM struct {
	Name, UUID string
	ConsoleIDs []uint32
	Interfaces []string
}

// ConsoleInfo is a console as its server describes it.
type ConsoleInfo struct {
	Label, Type, DeviceAddress string
	Head                       uint32
	Width, Height              uint32 // pixels
	Interfaces                 []string
	LEDs                       hid.LEDs
	IsAbsolute                 bool // the pointer takes absolute positions, else relative movements
	MaxSlots                   int  // fingers on the screen
}

// ClientConfig is what a Client is made with. The functions are called one at a time, and do not block.
type ClientConfig struct {
	// OnLEDs tells that the lights of a console's keyboard have changed.
	OnLEDs func(console uint32, leds hid.LEDs)
	// OnAbsolute tells that the pointer of a console takes the other of absolute and relative.
	OnAbsolute func(console uint32, absolute bool)
}

// Client is a connection to a guest's display.
type Client struct {
	cfg  ClientConfig
	conn *peer.Conn
	done chan struct{}
	err  error // once done is closed
	wg   sync.WaitGroup

	mu      sync.Mutex
	sizes   map[uint32]size // of consoles
	closing bool            // no more senders
}

// Dial connects to the display socket of a guest.
func Dial(path string, cfg ClientConfig) (*Client, error) {
	sock, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("display: %w", err)
	}
	return NewClient(sock, cfg)
}

// NewClient makes a client of a socket that is connected to a guest's display. It takes the socket over.
func NewClient(sock *net.UnixConn, cfg ClientConfig) (*Client, error) {
	c := &Client{cfg: cfg, done: make(chan struct{}), sizes: make(map[uint32]size)}
	conn, err := peer.Connect(sock, peer.Config{Handler: c.handle})
	if err != nil {
		return nil, fmt.Errorf("display: %w", err)
	}
	c.conn = conn
	c.wg.Go(func() {
		defer close(c.done)
		if err := conn.Serve(); err != nil {
			c.err = fmt.Errorf("display: %w", err)
		}
	})
	return c, nil
}

// Close ends the connection and returns when nothing of the client and its senders runs any more. Receivers stay.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.conn.Close()
	c.wg.Wait()
	return nil
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns, once Done is closed, what the server did wrong, or nil if it or Close has closed the connection.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// VM asks for what the guest is.
func (c *Client) VM(ctx context.Context) (VM, error) {
	var vm VM
	err := c.properties(ctx, pathVM, ifaceVM, func(name string, d *peer.Decoder) {
		switch {
		case name == "Name" && d.Variant("s"):
			vm.Name = d.Str()
		case name == "UUID" && d.Variant("s"):
			vm.UUID = d.Str()
		case name == "ConsoleIDs" && d.Variant("au"):
			ids := d.Array(4)
			for ids.More() {
				if id := ids.Uint32(); len(vm.ConsoleIDs) < maxConsoles {
					vm.ConsoleIDs = append(vm.ConsoleIDs, id)
				}
			}
		case name == "Interfaces" && d.Variant("as"):
			vm.Interfaces = d.Strs()
		}
	})
	return vm, err
}

// Console asks for what a console is.
func (c *Client) Console(ctx context.Context, id uint32) (ConsoleInfo, error) {
	var info ConsoleInfo
	path := consolePath(id)
	err := c.properties(ctx, path, ifaceConsole, func(name string, d *peer.Decoder) {
		switch {
		case name == "Label" && d.Variant("s"):
			info.Label = d.Str()
		case name == "Type" && d.Variant("s"):
			info.Type = d.Str()
		case name == "DeviceAddress" && d.Variant("s"):
			info.DeviceAddress = d.Str()
		case name == "Head" && d.Variant("u"):
			info.Head = d.Uint32()
		case name == "Width" && d.Variant("u"):
			info.Width = d.Uint32()
		case name == "Height" && d.Variant("u"):
			info.Height = d.Uint32()
		case name == "Interfaces" && d.Variant("as"):
			info.Interfaces = d.Strs()
		}
	})
	if err != nil {
		return info, err
	}
	c.resize(id, size{info.Width, info.Height})
	// A server may have none of these.
	err = errors.Join(
		optional(c.properties(ctx, path, ifaceKeyboard, func(name string, d *peer.Decoder) {
			if name == "Modifiers" && d.Variant("u") {
				info.LEDs = lights(d.Uint32())
			}
		})),
		optional(c.properties(ctx, path, ifaceMouse, func(name string, d *peer.Decoder) {
			if name == "IsAbsolute" && d.Variant("b") {
				info.IsAbsolute = d.Bool()
			}
		})),
		optional(c.properties(ctx, path, ifaceMultiTouch, func(name string, d *peer.Decoder) {
			if name == "MaxSlots" && d.Variant("i") {
				info.MaxSlots = int(min(max(d.Int32(), 0), maxSlots))
			}
		})))
	return info, err
}

// optional ignores that a server refuses.
func optional(err error) error {
	var refused *peer.CallError
	if errors.As(err, &refused) {
		return nil
	}
	return err
}

// properties asks for all properties of an interface. each takes the variant of one, or leaves it.
func (c *Client) properties(ctx context.Context, path, iface string, each func(name string, value *peer.Decoder)) error {
	var e peer.Encoder
	e.Str(iface)
	r := c.conn.Call(ctx, &peer.Header{
		Type: peer.MethodCall, Path: path, Interface: ifaceProperties, Member: "GetAll", Signature: "s",
	}, e.Bytes())
	err := r.Err
	if err == nil {
		var d peer.Decoder
		if d, err = r.Message.Args("a{sv}"); err == nil {
			err = dict(&d, each)
		}
	}
	if err != nil {
		return fmt.Errorf("display: properties of %s: %w", path, err)
	}
	return nil
}

// dict takes an a{sv}.
func dict(d *peer.Decoder, each func(name string, value *peer.Decoder)) error {
	a := d.Array(8)
	for a.More() {
		a.Align(8)
		name := a.Str()
		value := a // each may take it or not, and either is right
		a.SkipVariant()
		if a.Err() == nil {
			each(name, &value)
		}
	}
	return errors.Join(a.Err(), d.Err())
}

// handle takes the signals of the server.
func (c *Client) handle(m *peer.Message) {
	if m.Type != peer.Signal {
		c.conn.Fail(m, peer.ErrUnknownObject, "there are no objects here")
		return
	}
	if m.Interface != ifaceProperties || m.Member != "PropertiesChanged" {
		return
	}
	id, ok := consoleID(m.Path)
	d, err := m.Args("sa{sv}as")
	if !ok || err != nil {
		return
	}
	iface := d.Str()
	now := c.size(id)
	_ = dict(&d, func(name string, d *peer.Decoder) { // what cannot be understood is not there
		switch iface + "." + name {
		case ifaceKeyboard + ".Modifiers":
			if d.Variant("u") && c.cfg.OnLEDs != nil {
				c.cfg.OnLEDs(id, lights(d.Uint32()))
			}
		case ifaceMouse + ".IsAbsolute":
			if d.Variant("b") && c.cfg.OnAbsolute != nil {
				c.cfg.OnAbsolute(id, d.Bool())
			}
		case ifaceConsole + ".Width":
			if d.Variant("u") {
				now.width = d.Uint32()
			}
		case ifaceConsole + ".Height":
			if d.Variant("u") {
				now.height = d.Uint32()
			}
		}
	})
	if iface == ifaceConsole {
		c.resize(id, now)
	}
}

// consoleID returns the number of the console at a path.
func consoleID(path string) (uint32, bool) {
	digits, ok := strings.CutPrefix(path, pathRoot+"/Console_")
	id, err := strconv.ParseUint(digits, 10, 32)
	return uint32(id), ok && err == nil
}

// size returns the size of what a console shows, as far as is known.
func (c *Client) size(id uint32) size {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sizes[id]
}

func (c *Client) resize(id uint32, s size) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.sizes[id]; ok || len(c.sizes) < maxConsoles {
		c.sizes[id] = s
	}
}

// SetMonitor tells the guest what monitor a console is shown on. Its name, serial number and rate cannot be told. A guest of
// which the console cannot be resized refuses that.
func (c *Client) SetMonitor(ctx context.Context, id uint32, m display.Monitor) error {
	if !m.Connected {
		m = display.Monitor{}
	}
	var e peer.Encoder
	e.Uint16(clip16(m.WidthMM))
	e.Uint16(clip16(m.HeightMM))
	e.Int32(int32(m.X))
	e.Int32(int32(m.Y))
	e.Uint32(uint32(m.Width))
	e.Uint32(uint32(m.Height))
	r := c.conn.Call(ctx, &peer.Header{
		Type: peer.MethodCall, Path: consolePath(id), Interface: ifaceConsole, Member: "SetUIInfo", Signature: "qqiiuu",
	}, e.Bytes())
	if r.Err != nil {
		return fmt.Errorf("display: monitor of console %d: %w", id, r.Err)
	}
	return nil
}

func clip16(n int) uint16 { return uint16(min(max(n, 0), 1<<16-1)) }

// register makes a socket and gives one end of it to the console, as a listener.
func (c *Client) register(ctx context.Context, id uint32) (*net.UnixConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "listener")
	defer theirs.Close()
	ours, err := unixConn(os.NewFile(uintptr(fds[0]), "listener"))
	if err != nil {
		return nil, err
	}
	var e peer.Encoder
	e.Uint32(0) // the first descriptor
	r := c.conn.Call(ctx, &peer.Header{
		Type: peer.MethodCall, Path: consolePath(id), Interface: ifaceConsole, Member: "RegisterListener", Signature: "h",
	}, e.Bytes(), fds[1])
	if r.Err != nil {
		ours.Close()
		return nil, r.Err
	}
	return ours, nil
}
