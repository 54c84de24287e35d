package usermode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// ReadConfig reads a Config as WriteConfig writes it.
func ReadConfig(r io.Reader) (Config, error) {
	var c Config
	d := json.NewDecoder(io.LimitReader(r, maxMessage))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// WriteConfig writes c, for the process that the network is to run in.
func WriteConfig(w io.Writer, c Config) error { return json.NewEncoder(w).Encode(c) }

// maxMessage is more than a configuration with all that it can have, in bytes.
const maxMessage = 128 << 10

// Plug gives the guest called name its socket: a stream socket that is connected to its VMM, or one that listens for it, in place
// of an earlier one. It takes f over.
func (n *Net) Plug(name string, f *os.File) error {
	defer f.Close()
	p := n.ports.Load().byName[name]
	if p == nil {
		return fmt.Errorf("network %q: no guest %q is on it", n.def.Name, name)
	}
	listens, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("network %q, guest %q: not a socket: %w", n.def.Name, name, err)
	}
	if listens == 0 {
		conn, err := net.FileConn(f)
		if err != nil {
			return fmt.Errorf("network %q, guest %q: %w", n.def.Name, name, err)
		}
		if !n.run(func() { p.serve(conn) }) {
			conn.Close()
		}
		return nil
	}
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("network %q, guest %q: %w", n.def.Name, name, err)
	}
	p.mu.Lock()
	old := p.listener
	p.listener = l
	p.mu.Unlock()
	if old != nil {
		old.Close()
	}
	if !n.run(func() { p.accept(l) }) {
		l.Close()
	}
	return nil
}

// Change is what a manager tells a running network: exactly one of its fields is set.
type Change struct {
	Guest  *network.Guest  `json:",omitempty"` // is there from now on; comes with a socket for Plug
	Remove string          `json:",omitempty"` // the name of a guest that is not there any more
	Rules  *[]network.Rule `json:",omitempty"` // in place of those that held
}

// changed answers a Change.
type changed struct {
	Error string `json:",omitempty"`
}

// maxManagers is how many connections ServeChanges keeps: an old manager's may still be there when a new one comes.
const maxManagers = 4

// ServeChanges carries out what comes over l, of type SOCK_SEQPACKET: each message is a Change, and is answered. Who may connect
// may change everything. It returns when ctx ends or l is closed.
func (n *Net) ServeChanges(ctx context.Context, l *net.UnixListener) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	end := context.AfterFunc(n.ctx, func() { l.Close() })
	defer end()
	slots := make(chan struct{}, maxManagers)
	for {
		conn, err := control.Accept(ctx, l)
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		u, ok := conn.(*net.UnixConn)
		if !ok || !n.run(func() { defer func() { <-slots }(); n.converse(ctx, u) }) {
			conn.Close()
		}
	}
}

func (n *Net) converse(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	end := context.AfterFunc(n.ctx, func() { conn.Close() })
	defer end()
	for {
		message, file, err := receive(conn)
		if err != nil {
			return
		}
		var a changed
		if err := n.change(message, file); err != nil {
			a.Error = err.Error()
		}
		b, err := json.Marshal(a)
		if err != nil {
			return
		}
		if _, err := conn.Write(b); err != nil {
			return
		}
	}
}

// receive returns a message and the descriptor that came with it, if one did.
func receive(conn *net.UnixConn) (message []byte, file *os.File, err error) {
	message, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	k, m, flags, _, err := conn.ReadMsgUnix(message, oob)
	if err != nil {
		return nil, nil, err
	}
	if k == 0 {
		return nil, nil, io.EOF
	}
	var fds []int
	if cmsgs, err := unix.ParseSocketControlMessage(oob[:m]); err == nil {
		for _, c := range cmsgs {
			if more, err := unix.ParseUnixRights(&c); err == nil {
				fds = append(fds, more...)
			}
		}
	}
	for i, fd := range fds {
		if i == 0 {
			unix.CloseOnExec(fd)
			file = os.NewFile(uintptr(fd), "socket of a guest")
		} else {
			_ = unix.Close(fd)
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		if file != nil {
			file.Close()
		}
		return nil, nil, errors.New("a message that is too long")
	}
	return message[:k], file, nil
}

// change carries out one message. It takes file, which may be nil, over.
func (n *Net) change(message []byte, file *os.File) error {
	var c Change
	d := json.NewDecoder(strings.NewReader(string(message)))
	d.DisallowUnknownFields()
	err := d.Decode(&c)
	if err == nil && (c.Guest != nil) != (file != nil) {
		err = errors.New("a guest comes with a socket, and nothing else does")
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return err
	}
	switch {
	case c.Guest != nil:
		if err := n.SetGuest(*c.Guest); err != nil {
			return errors.Join(err, file.Close())
		}
		return n.Plug(c.Guest.Name, file)
	case c.Remove != "":
		return n.RemoveGuest(c.Remove)
	case c.Rules != nil:
		return n.SetRules(*c.Rules)
	}
	return errors.New("nothing to change")
}

// Manager is a connection to a network's ServeChanges.
type Manager struct{ conn *net.UnixConn }

// DialManager connects to the socket at path. Close closes the connection.
func DialManager(path string) (*Manager, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("network helper: %w: is it running?", err)
	}
	return &Manager{conn}, nil
}

// Close closes the connection.
func (m *Manager) Close() error { return m.conn.Close() }

// Do has the network carry out c. file is a guest's socket, of which the network gets a copy, or nil.
func (m *Manager) Do(ctx context.Context, c Change, file *os.File) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { m.conn.Close() })
	defer stop()
	var oob []byte
	if file != nil {
		oob = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := m.conn.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("network helper: %w", err)
	}
	answer := make([]byte, maxMessage)
	k, err := m.conn.Read(answer)
	if err != nil {
		return fmt.Errorf("network helper: %w", err)
	}
	var a changed
	if err := json.Unmarshal(answer[:k], &a); err != nil {
		return fmt.Errorf("network helper: answer %q: %w", answer[:k], err)
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
}

// Methods are what may be asked about the network over a control socket.
func (n *Net) Methods() map[string]control.Handler {
	return map[string]control.Handler{
		"status": func(context.Context, *control.Call) (any, error) { return n.Status(), nil },
		"leases": func(context.Context, *control.Call) (any, error) {
			return struct {
				Leases []Lease `json:"leases"`
			}{n.Leases()}, nil
		},
	}
}
