package peer

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// FuzzSASL sends a handshake to a server, and what may follow.
func FuzzSASL(f *testing.F) {
	f.Add([]byte("\x00AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"))
	f.Add([]byte("\x00AUTH\r\nAUTH EXTERNAL\r\nDATA\r\nCANCEL\r\nERROR\r\nHELLO\r\nBEGIN\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := pair(t)
		go func() {
			b.Write(in)
			b.CloseWrite()
			io.Copy(io.Discard, b)
		}()
		c, err := Accept(a, Config{Timeout: time.Minute})
		if err == nil {
			c.Serve()
		}
		a.Close()
		b.Close()
	})
}

// FuzzSASLClient answers the handshake of a client.
func FuzzSASLClient(f *testing.F) {
	f.Add([]byte("OK 0123\r\nAGREE_UNIX_FD\r\n"))
	f.Add([]byte("OK\r\nERROR\r\n"))
	f.Add([]byte("REJECTED EXTERNAL\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := pair(t)
		go func() {
			a.Write(in)
			a.CloseWrite()
			io.Copy(io.Discard, a)
		}()
		c, err := Connect(b, Config{Timeout: time.Minute})
		if err == nil {
			c.Serve()
		}
		a.Close()
		b.Close()
	})
}

// FuzzMessage decodes a message, and all of its body by its signature.
func FuzzMessage(f *testing.F) {
	var e Encoder
	h := Header{Type: MethodCall, Path: "/x", Interface: "a.b", Member: "M", Signature: "sua{sv}"}
	var body Encoder
	body.Str("x")
	body.Uint32(1)
	m := body.Array(8)
	body.Align(8)
	body.Str("k")
	body.Sig("a(ix)")
	n := body.Array(8)
	body.Int32(1)
	body.Uint64(2)
	body.EndArray(n, 8)
	body.EndArray(m, 8)
	h.encode(&e, 1, len(body.Bytes()), 0)
	f.Add(append(append([]byte{}, e.Bytes()...), body.Bytes()...))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < fixedHeader {
			return
		}
		order, fields, n, err := sizes(in, 64<<10)
		if err != nil {
			return
		}
		size := (fixedHeader+fields+7)&^7 + n
		if len(in) < size {
			return
		}
		var m Message
		if _, err := m.decode(in[:size], order, n, func(b []byte) string { return string(b) }); err != nil {
			return
		}
		d := Decoder{buf: m.body, order: m.order}
		for sig := []byte(m.Signature); len(sig) > 0; {
			k := typeLen(sig, 0)
			if k == 0 {
				return
			}
			d.skip(sig[:k], 0)
			sig = sig[k:]
		}
		d.End()
	})
}

// FuzzAgainstGodbus encodes with one implementation and decodes with the other.
func FuzzAgainstGodbus(f *testing.F) {
	f.Add("text", uint32(7), 1.25, []byte("blob"), true)
	f.Fuzz(func(t *testing.T, s string, u uint32, x float64, blob []byte, b bool) {
		if !validString(s) || x != x {
			return
		}
		var head, body Encoder
		body.Bool(b)
		body.Str(s)
		body.Double(x)
		body.Uint32(u)
		copy(body.Blob(len(blob)), blob)
		body.Strs([]string{s, "x", s})
		(&Header{Type: Signal, Path: "/x", Interface: "a.b", Member: "M", Signature: "bsduayas"}).encode(&head, 9, len(body.Bytes()), 0)
		msg, err := dbus.DecodeMessage(bytes.NewReader(append(head.Bytes(), body.Bytes()...)))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := msg.EncodeTo(&out, binary.BigEndian); err != nil {
			t.Fatal(err)
		}
		order, _, n, err := sizes(out.Bytes(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		var m Message
		if _, err := m.decode(out.Bytes(), order, n, func(b []byte) string { return string(b) }); err != nil {
			t.Fatal(err)
		}
		d, err := m.Args("bsduayas")
		if err != nil {
			t.Fatal(err)
		}
		if d.Bool() != b || d.Str() != s || d.Double() != x || d.Uint32() != u || string(d.Blob()) != string(blob) {
			t.Error("a value has changed on its way")
		}
		if v := d.Strs(); len(v) != 3 || v[0] != s || v[1] != "x" || v[2] != s {
			t.Errorf("got %q", v)
		}
		if err := d.End(); err != nil {
			t.Error(err)
		}
	})
}
