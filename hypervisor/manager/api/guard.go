package api

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Frames of a message, D-Bus specification, "Message Format".
const (
	fixedHeader    = 16       // bytes, with the length of the fields
	maxFields      = 64 << 10 // bytes of header fields; the longest names and signature take less
	fieldSignature = 8
)

// maxMessage is the largest message that is looked at, in bytes. It has place for a definition.
const maxMessage = 2 << 20

// guard is a connection to a bus that a hostile caller can neither break nor fill: of a message that is too large, or that the
// D-Bus library could not decode, for which it would give up the connection, it delivers the header only. Whoever sent it is
// then told that its arguments are wrong. The library would leave open the descriptors that a caller sends along and nobody
// takes: so it does not see them, and take gives them to who carries out the call.
type guard struct {
	net.Conn
	framed atomic.Bool // the authentication is over: messages follow
	frame  bytes.Reader
	buf    []byte
	fds    []int // that came with the message that is being read

	mu   sync.Mutex
	kept map[callID][]*os.File
}

// callID is what a call is known by.
type callID struct {
	sender string
	serial uint32
}

const (
	maxFiles = 4   // descriptors of a message
	maxKept  = 256 // calls with descriptors that are not carried out yet
	oobSpace = 256 // bytes for descriptors of one read; what does not fit in is closed by the kernel
)

// take returns the descriptors of a call, which are the caller's from then on.
func (g *guard) take(id callID) []*os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	files := g.kept[id]
	delete(g.kept, id)
	return files
}

// settle keeps the descriptors of a message that is a call of ours, and closes all others. The library answers calls of
// org.freedesktop.DBus.Peer itself: nobody would take theirs.
func (g *guard) settle(msg *dbus.Message) {
	fds := g.fds
	g.fds = nil
	if len(fds) == 0 {
		return
	}
	if msg != nil && msg.Type == dbus.TypeMethodCall && len(fds) <= maxFiles {
		sender, _ := msg.Headers[dbus.FieldSender].Value().(string)
		iface, _ := msg.Headers[dbus.FieldInterface].Value().(string)
		id := callID{sender, msg.Serial()}
		g.mu.Lock()
		defer g.mu.Unlock()
		if iface != "org.freedesktop.DBus.Peer" && len(g.kept) < maxKept && g.kept[id] == nil {
			if g.kept == nil {
				g.kept = make(map[callID][]*os.File)
			}
			for _, fd := range fds {
				g.kept[id] = append(g.kept[id], os.NewFile(uintptr(fd), "descriptor"))
			}
			return
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// wire is the connection as it is read, with the descriptors that come along.
type wire struct{ g *guard }

// Read implements io.Reader. The kernel ends a read behind bytes that descriptors belong to, so that those of the next message
// do not come with this one.
func (w wire) Read(b []byte) (int, error) {
	c, ok := w.g.Conn.(*net.UnixConn)
	if !ok {
		return w.g.Conn.Read(b)
	}
	oob := make([]byte, oobSpace)
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if oobn == 0 {
		return n, err
	}
	messages, e := unix.ParseSocketControlMessage(oob[:oobn])
	for i := range messages {
		if fds, e := unix.ParseUnixRights(&messages[i]); e == nil {
			w.g.fds = append(w.g.fds, fds...)
		}
	}
	return n, errors.Join(err, e)
}

// negotiate tells the bus that descriptors may come; the library does not know of them. A bus that has none says so, and calls
// that need some fail.
func (g *guard) negotiate() error {
	if _, err := io.WriteString(g.Conn, "NEGOTIATE_UNIX_FD\r\n"); err != nil {
		return err
	}
	for b := make([]byte, 1); b[0] != '\n'; {
		if _, err := io.ReadFull(g.Conn, b); err != nil {
			return err
		}
	}
	return nil
}

// Write implements io.Writer.
func (g *guard) Write(b []byte) (int, error) {
	if !g.framed.Load() && string(b) == "BEGIN\r\n" { // what is read from now on is the answer to what comes after it
		if err := g.negotiate(); err != nil {
			return 0, err
		}
		g.framed.Store(true)
	}
	return g.Conn.Write(b)
}

// Read implements io.Reader.
func (g *guard) Read(b []byte) (int, error) {
	if !g.framed.Load() {
		return g.Conn.Read(b)
	}
	if g.frame.Len() == 0 {
		if err := g.next(); err != nil {
			return 0, err
		}
	}
	return g.frame.Read(b)
}

// next reads a message.
func (g *guard) next() error {
	if cap(g.buf) > maxFields {
		g.buf = nil // a large one is rare
	}
	g.buf = append(g.buf[:0], make([]byte, fixedHeader)...)
	in := wire{g}
	if _, err := io.ReadFull(in, g.buf); err != nil {
		return err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if g.buf[0] == 'B' {
		order = binary.BigEndian
	}
	body, fields := order.Uint32(g.buf[4:]), order.Uint32(g.buf[12:])
	if fields > maxFields {
		return fmt.Errorf("bus sends %d bytes of header fields", fields)
	}
	fields = (fields + 7) &^ 7
	head := fixedHeader + int(fields)
	var err error
	if g.buf, err = readMore(in, g.buf, int(fields)); err != nil {
		return err
	}
	if body <= maxMessage {
		if g.buf, err = readMore(in, g.buf, int(body)); err != nil {
			return err
		}
	} else if _, err := io.CopyN(io.Discard, in, int64(body)); err != nil {
		return err
	}
	var msg *dbus.Message // nil if the library can make no sense of it
	if body <= maxMessage {
		msg, _ = dbus.DecodeMessage(bytes.NewReader(g.buf))
	}
	g.settle(msg)
	if msg == nil {
		g.buf = g.buf[:head]
		order.PutUint32(g.buf[4:], 0)
		g.buf = cutSignature(g.buf, order)
	}
	g.frame.Reset(g.buf)
	return nil
}

func readMore(r io.Reader, b []byte, n int) ([]byte, error) {
	old := len(b)
	b = append(b, make([]byte, n)...)
	_, err := io.ReadFull(r, b[old:])
	return b, err
}

// cutSignature removes the field that describes the body from a header. Fields that are not well-formed are left to the library
// to refuse.
func cutSignature(head []byte, order binary.ByteOrder) []byte {
	end := fixedHeader + int(order.Uint32(head[12:]))
	last := fixedHeader // where the field before ended
	for start := fixedHeader; start+4 <= end; {
		if head[start+1] != 1 { // of header fields the type is one letter
			return head
		}
		at := start + 4 // the code, the type, its length and end
		switch head[start+2] {
		case 'g':
			if at >= end {
				return head
			}
			at += int(head[at]) + 2
		case 's', 'o':
			if at+4 > end {
				return head
			}
			at += int(min(order.Uint32(head[at:]), maxFields)) + 5
		case 'u':
			at += 4
		default:
			return head
		}
		if at > end {
			return head
		}
		next := (at + 7) &^ 7
		if head[start] == fieldSignature {
			if at == end {
				order.PutUint32(head[12:], uint32(last-fixedHeader))
				return append(head[:last], make([]byte, -last&7)...)
			}
			order.PutUint32(head[12:], uint32(end-fixedHeader-(next-start)))
			return append(head[:start], head[next:]...)
		}
		start, last = next, at
	}
	return head
}

// dial connects to a bus: "system", "session", or an address as in DBUS_SESSION_BUS_ADDRESS.
func dial(bus string, opts ...dbus.ConnOption) (*dbus.Conn, *guard, error) {
	address := bus
	switch bus {
	case "system":
		if address = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address == "" {
			address = "unix:path=/run/dbus/system_bus_socket"
		}
	case "session":
		if address = os.Getenv("DBUS_SESSION_BUS_ADDRESS"); address == "" {
			return nil, nil, fmt.Errorf("no session bus: DBUS_SESSION_BUS_ADDRESS is not set")
		}
	}
	path, err := socketOf(address)
	if err != nil {
		return nil, nil, err
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, nil, err
	}
	g := &guard{Conn: c}
	conn, err := dbus.NewConn(g, opts...)
	return conn, g, err
}

// socketOf returns the first Unix socket of a D-Bus address.
func socketOf(address string) (string, error) {
	for one := range strings.SplitSeq(address, ";") {
		rest, ok := strings.CutPrefix(one, "unix:")
		if !ok {
			continue
		}
		for pair := range strings.SplitSeq(rest, ",") {
			key, value, _ := strings.Cut(pair, "=")
			value, err := dbus.UnescapeBusAddressValue(value)
			if err != nil {
				return "", fmt.Errorf("bus address %q: %w", address, err)
			}
			switch key {
			case "path":
				return value, nil
			case "abstract":
				return "@" + value, nil
			}
		}
	}
	return "", fmt.Errorf("bus address %q: give system, session or unix:path=FILE", address)
}
