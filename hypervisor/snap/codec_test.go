package snap

import (
	"bytes"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// every has a field of each kind that a Codec carries.
type every struct {
	A     uint8
	B     uint16
	C     uint32
	D     uint64
	E     int64
	F     int
	G     bool
	Fixed [5]byte
	Bytes []byte
	Str   string
	List  []uint16
}

func (e *every) state(c *Codec) {
	c.U8(&e.A)
	c.U16(&e.B)
	c.U32(&e.C)
	c.U64(&e.D)
	c.I64(&e.E)
	c.Int(&e.F)
	c.Bool(&e.G)
	c.Fixed(e.Fixed[:])
	c.Bytes(&e.Bytes, 100)
	c.String(&e.Str, 100)
	n := c.Len(len(e.List), 100)
	if c.Loading() {
		e.List = make([]uint16, n)
	}
	for i := range e.List {
		c.U16(&e.List[i])
	}
	c.Match("number of queues", 3)
}

func TestCodecRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.Custom(func(t *rapid.T) every {
			return every{
				A: rapid.Byte().Draw(t, "a"), B: rapid.Uint16().Draw(t, "b"), C: rapid.Uint32().Draw(t, "c"),
				D: rapid.Uint64().Draw(t, "d"), E: rapid.Int64().Draw(t, "e"), F: rapid.Int().Draw(t, "f"), G: rapid.Bool().Draw(t, "g"),
				Fixed: [5]byte(rapid.SliceOfN(rapid.Byte(), 5, 5).Draw(t, "fixed")),
				Bytes: rapid.SliceOfN(rapid.Byte(), 1, 100).Draw(t, "bytes"),
				Str:   rapid.StringN(0, 20, 100).Draw(t, "str"),
				List:  rapid.SliceOfN(rapid.Uint16(), 0, 100).Draw(t, "list"),
			}
		}).Draw(t, "state")
		enc := NewEncoder(7)
		in.state(enc)
		if err := enc.Err(); err != nil {
			t.Fatal(err)
		}
		out := every{Bytes: []byte("old"), Str: "old", List: []uint16{1}}
		dec := NewDecoder(enc.Data(), 7)
		out.state(dec)
		if dec.Done(); dec.Err() != nil {
			t.Fatal(dec.Err())
		}
		if d := cmp.Diff(in, out); d != "" {
			t.Fatal(d)
		}
		// Cut anywhere, it fails, and keeps what it had.
		cut := NewDecoder(enc.Data()[:rapid.IntRange(0, len(enc.Data())-1).Draw(t, "cut")], 7)
		if out.state(cut); cut.Err() == nil {
			t.Fatal("decoded what was cut")
		}
	})
}

func TestCodecRefuses(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 11)
	for name, run := range map[string]func() *Codec{
		"bytes too long to write":  func() *Codec { c := NewEncoder(1); c.Bytes(&long, 10); return c },
		"negative length":          func() *Codec { c := NewEncoder(1); c.Len(-1, 10); return c },
		"absurd length":            func() *Codec { c := NewEncoder(1); c.Len(math.MaxInt, 10); return c },
		"length beyond limit":      func() *Codec { c := NewDecoder([]byte{11, 0, 0, 0}, 1); c.Len(0, 10); return c },
		"length beyond data":       func() *Codec { c := NewDecoder([]byte{9, 0, 0, 0}, 1); c.Bytes(new([]byte), 10); return c },
		"truth value 2":            func() *Codec { c := NewDecoder([]byte{2}, 1); c.Bool(new(bool)); return c },
		"other number":             func() *Codec { c := NewDecoder(make([]byte, 8), 1); c.Match("number of queues", 3); return c },
		"part of version 0":        func() *Codec { c := NewDecoder(make([]byte, 2), 1); c.Part("", 1, func(*Codec) {}); return c },
		"bytes left":               func() *Codec { c := NewDecoder([]byte{2}, 1); c.Done(); return c },
		"the first error persists": func() *Codec { c := NewDecoder([]byte{1, 2}, 1); c.U32(new(uint32)); c.U8(new(uint8)); return c },
	} {
		if err := run().Err(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzCodec(f *testing.F) {
	enc := NewEncoder(1)
	(&every{Bytes: []byte("b"), Str: "s", List: []uint16{1, 2}}).state(enc)
	f.Add(enc.Data())
	f.Fuzz(func(t *testing.T, b []byte) {
		var e every
		dec := NewDecoder(b, 1)
		e.state(dec)
		if dec.Done(); dec.Err() != nil {
			return
		}
		enc := NewEncoder(1)
		if e.state(enc); enc.Err() != nil || !bytes.Equal(enc.Data(), b) {
			t.Fatalf("decoded %x, encoded %x, %v", b, enc.Data(), enc.Err())
		}
	})
}
