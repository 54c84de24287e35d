package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// Type is the type of a message.
type Type byte

// The types of messages (D-Bus specification, "Message Format").
const (
	MethodCall Type = 1 + iota
	MethodReturn
	Error
	Signal
)

// Flags are those of a message.
type Flags byte

// NoReplyExpected says that the caller wants no reply.
const NoReplyExpected Flags = 0x1

// Fields of the header.
const (
	fieldPath = 1 + iota
	fieldInterface
	fieldMember
	fieldErrorName
	fieldReplySerial
	fieldDestination
	fieldSender
	fieldSignature
	fieldUnixFDs
)

// Names of errors.
const (
	ErrFailed           = "org.freedesktop.DBus.Error.Failed"
	ErrInvalidArgs      = "org.freedesktop.DBus.Error.InvalidArgs"
	ErrLimitsExceeded   = "org.freedesktop.DBus.Error.LimitsExceeded"
	ErrNotSupported     = "org.freedesktop.DBus.Error.NotSupported"
	ErrPropertyReadOnly = "org.freedesktop.DBus.Error.PropertyReadOnly"
	ErrUnknownInterface = "org.freedesktop.DBus.Error.UnknownInterface"
	ErrUnknownMethod    = "org.freedesktop.DBus.Error.UnknownMethod"
	ErrUnknownObject    = "org.freedesktop.DBus.Error.UnknownObject"
	ErrUnknownProperty  = "org.freedesktop.DBus.Error.UnknownProperty"
)

const (
	fixedHeader = 16       // bytes up to and including the length of the fields
	maxHeader   = 16 << 10 // bytes of fields that are taken; those of a call are about 200
	maxFDs      = 16       // descriptors of a message
)

// Header is what there is to say of a message that is sent.
type Header struct {
	Type                               Type
	Flags                              Flags
	Path, Interface, Member, ErrorName string
	Signature                          string // of the body
	ReplySerial                        uint32
}

// encode writes the header of a message to e, up to its body.
func (h *Header) encode(e *Encoder, serial uint32, body, fds int) {
	e.Reset()
	e.Byte('l')
	e.Byte(byte(h.Type))
	e.Byte(byte(h.Flags))
	e.Byte(1) // version of the protocol
	e.Uint32(uint32(body))
	e.Uint32(serial)
	m := e.Array(8)
	h.field(e, fieldPath, "o", h.Path)
	h.field(e, fieldInterface, "s", h.Interface)
	h.field(e, fieldMember, "s", h.Member)
	h.field(e, fieldErrorName, "s", h.ErrorName)
	number(e, fieldReplySerial, h.ReplySerial)
	h.field(e, fieldSignature, "g", h.Signature)
	number(e, fieldUnixFDs, uint32(fds))
	e.EndArray(m, 8)
	e.Align(8)
}

func (h *Header) field(e *Encoder, field byte, sig, value string) {
	if value == "" {
		return
	}
	e.Align(8)
	e.Byte(field)
	e.Sig(sig)
	if sig == "g" {
		e.Sig(value)
	} else {
		e.Str(value)
	}
}

func number(e *Encoder, field byte, value uint32) {
	if value == 0 {
		return
	}
	e.Align(8)
	e.Byte(field)
	e.Sig("u")
	e.Uint32(value)
}

// Message is one that has come. It and what is taken from it are valid until the handler returns.
type Message struct {
	Type                               Type
	Flags                              Flags
	Serial                             uint32
	Path, Interface, Member, ErrorName string
	Signature                          string
	ReplySerial                        uint32

	body  []byte
	order binary.ByteOrder
	fds   []int // -1 is one that was taken
}

// Args returns a decoder of the body, if its signature is sig.
func (m *Message) Args(sig string) (Decoder, error) {
	if m.Signature != sig {
		return Decoder{}, fmt.Errorf("arguments of type %q, want %q", m.Signature, sig)
	}
	return Decoder{buf: m.body, order: m.order}, nil
}

// File returns the file with the index that an h of the body has. It is the caller's then. Descriptors that nobody has
// taken are closed when the handler returns.
func (m *Message) File(index uint32) (*os.File, error) {
	if uint64(index) >= uint64(len(m.fds)) || m.fds[index] < 0 {
		return nil, fmt.Errorf("there is no file descriptor %d", index)
	}
	f := os.NewFile(uintptr(m.fds[index]), "peer")
	m.fds[index] = -1
	return f, nil
}

// kindOf returns the letter of a signature that is one, else 0.
func kindOf(sig []byte) byte {
	if len(sig) == 1 {
		return sig[0]
	}
	return 0
}

// sizes reads the fixed part of a header.
func sizes(b []byte, maxBody int) (order binary.ByteOrder, fields, body int, err error) {
	switch b[0] {
	case 'l':
		order = binary.LittleEndian
	case 'B':
		order = binary.BigEndian
	default:
		return nil, 0, 0, fmt.Errorf("message with a byte order of %#x", b[0])
	}
	if b[3] != 1 {
		return nil, 0, 0, fmt.Errorf("message of version %d of the protocol", b[3])
	}
	n, f := order.Uint32(b[4:]), order.Uint32(b[12:])
	if uint64(n) > uint64(maxBody) || f > maxHeader {
		return nil, 0, 0, fmt.Errorf("message with %d bytes of header and %d of body: %d and %d are the most", f, n, maxHeader, maxBody)
	}
	return order, int(f), int(n), nil
}

// decode fills m from a whole message, b, whose fixed header sizes has read. It returns how many descriptors belong to it.
func (m *Message) decode(b []byte, order binary.ByteOrder, body int, intern func([]byte) string) (fds uint32, err error) {
	*m = Message{
		Type:   Type(b[1]),
		Flags:  Flags(b[2]),
		Serial: order.Uint32(b[8:]),
		body:   b[len(b)-body:],
		order:  order,
	}
	if m.Type == 0 || m.Serial == 0 {
		return 0, errors.New("message without a type or a serial number")
	}
	d := Decoder{buf: b[:len(b)-body], pos: 12, order: order}
	a := d.Array(8)
	for a.More() {
		a.take(8, 0)
		code, sig := a.Byte(), a.sig()
		switch kind := kindOf(sig); {
		case code == fieldPath && kind == 'o':
			m.Path = intern(a.str())
		case code == fieldInterface && kind == 's':
			m.Interface = intern(a.str())
		case code == fieldMember && kind == 's':
			m.Member = intern(a.str())
		case code == fieldErrorName && kind == 's':
			m.ErrorName = intern(a.str())
		case code == fieldReplySerial && kind == 'u':
			m.ReplySerial = a.Uint32()
		case code == fieldSignature && kind == 'g':
			m.Signature = intern(a.sig())
		case code == fieldUnixFDs && kind == 'u':
			fds = a.Uint32()
		case code == 0 || code <= fieldUnixFDs && code != fieldDestination && code != fieldSender:
			a.fail(fmt.Errorf("header field %d of type %q", code, sig))
		default: // unknown fields are to be ignored; with nobody in between there is one sender and one destination
			a.skip(sig, 1)
		}
	}
	d.fail(a.err)
	if d.err != nil {
		return 0, fmt.Errorf("header of a message: %w", d.err)
	}
	missing := false
	switch m.Type {
	case MethodCall:
		missing = m.Path == "" || m.Member == ""
	case MethodReturn:
		missing = m.ReplySerial == 0
	case Error:
		missing = m.ErrorName == "" || m.ReplySerial == 0
	case Signal:
		missing = m.Path == "" || m.Interface == "" || m.Member == ""
	}
	if missing {
		return 0, fmt.Errorf("message of type %d lacks a header field", m.Type)
	}
	return fds, nil
}
