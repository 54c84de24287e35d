package api

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"github.com/godbus/dbus/v5"
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
// then told that its arguments are wrong. Being no *net.UnixConn, it also takes no descriptors, which would pile up.
type guard struct {
	net.Conn
	framed atomic.Bool // the authentication is over: messages follow
	frame  bytes.Reader
	buf    []byte
}

// Write implements io.Writer.
func (g *guard) Write(b []byte) (int, error) {
	if !g.framed.Load() && string(b) == "BEGIN\r\n" { // what is read from now on is the answer to what comes after it
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
	if _, err := io.ReadFull(g.Conn, g.buf); err != nil {
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
	if g.buf, err = readMore(g.Conn, g.buf, int(fields)); err != nil {
		return err
	}
	if body <= maxMessage {
		if g.buf, err = readMore(g.Conn, g.buf, int(body)); err != nil {
			return err
		}
	} else if _, err := io.CopyN(io.Discard, g.Conn, int64(body)); err != nil {
		return err
	}
	if body > maxMessage || !decodes(g.buf) {
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

// decodes reports whether the library can make sense of a message.
func decodes(b []byte) bool {
	_, err := dbus.DecodeMessage(bytes.NewReader(b))
	return err == nil
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
func dial(bus string, opts ...dbus.ConnOption) (*dbus.Conn, error) {
	address := bus
	switch bus {
	case "system":
		if address = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address == "" {
			address = "unix:path=/run/dbus/system_bus_socket"
		}
	case "session":
		if address = os.Getenv("DBUS_SESSION_BUS_ADDRESS"); address == "" {
			return nil, fmt.Errorf("no session bus: DBUS_SESSION_BUS_ADDRESS is not set")
		}
	}
	path, err := socketOf(address)
	if err != nil {
		return nil, err
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	return dbus.NewConn(&guard{Conn: c}, opts...)
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
