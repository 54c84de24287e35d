package snap

import (
	"encoding/binary"
	"math"
)

// next returns the next n bytes to read, or nil after failing.
func (c *Codec) next(n int) []byte {
	if c.err != nil {
		return nil
	}
	if n > len(c.buf) {
		c.Fail("ends %d bytes too early", n-len(c.buf))
		return nil
	}
	b := c.buf[:n]
	c.buf = c.buf[n:]
	return b
}

// U8 carries one byte.
func (c *Codec) U8(v *uint8) {
	if !c.loading {
		c.buf = append(c.buf, *v)
	} else if b := c.next(1); b != nil {
		*v = b[0]
	}
}

// U16 carries a 16-bit integer.
func (c *Codec) U16(v *uint16) {
	if !c.loading {
		c.buf = binary.LittleEndian.AppendUint16(c.buf, *v)
	} else if b := c.next(2); b != nil {
		*v = binary.LittleEndian.Uint16(b)
	}
}

// U32 carries a 32-bit integer.
func (c *Codec) U32(v *uint32) {
	if !c.loading {
		c.buf = binary.LittleEndian.AppendUint32(c.buf, *v)
	} else if b := c.next(4); b != nil {
		*v = binary.LittleEndian.Uint32(b)
	}
}

// U64 carries a 64-bit integer.
func (c *Codec) U64(v *uint64) {
	if !c.loading {
		c.buf = binary.LittleEndian.AppendUint64(c.buf, *v)
	} else if b := c.next(8); b != nil {
		*v = binary.LittleEndian.Uint64(b)
	}
}

// I64 carries a signed 64-bit integer, such as a time in nanoseconds.
func (c *Codec) I64(v *int64) {
	u := uint64(*v)
	c.U64(&u)
	*v = int64(u)
}

// Int carries an int as 64 bits.
func (c *Codec) Int(v *int) {
	i := int64(*v)
	c.I64(&i)
	*v = int(i)
}

// Bool carries a truth value as one byte, which must be 0 or 1.
func (c *Codec) Bool(v *bool) {
	var u uint8
	if *v {
		u = 1
	}
	c.U8(&u)
	if u > 1 {
		c.Fail("truth value %d", u)
		return
	}
	*v = u == 1
}

// Fixed carries len(p) bytes: the length is not stored.
func (c *Codec) Fixed(p []byte) {
	if !c.loading {
		c.buf = append(c.buf, p...)
	} else if b := c.next(len(p)); b != nil {
		copy(p, b)
	}
}

// Bytes carries a byte slice of at most limit bytes with its length. Decoding makes a new slice.
func (c *Codec) Bytes(p *[]byte, limit int) {
	n := c.Len(len(*p), limit)
	if !c.loading {
		c.buf = append(c.buf, *p...)
	} else if b := c.next(n); b != nil {
		*p = append([]byte(nil), b...)
	}
}

// String carries a string of at most limit bytes with its length.
func (c *Codec) String(s *string, limit int) {
	n := c.Len(len(*s), limit)
	if !c.loading {
		c.buf = append(c.buf, *s...)
	} else if b := c.next(n); b != nil {
		*s = string(b)
	}
}

// Len carries the length of a list whose elements the caller then carries one by one. Encoding, it writes n; decoding,
// it returns what was written, or 0 after failing. Either way more than limit is an error.
func (c *Codec) Len(n, limit int) int {
	u := uint32(min(n, math.MaxUint32))
	c.U32(&u)
	if int64(u) > int64(limit) {
		c.Fail("%d elements where at most %d fit", u, limit)
	}
	if c.err != nil {
		return 0
	}
	return int(u)
}

// Match carries a value that both sides must agree on, such as the number of a device's queues: decoding, a different
// value is an error that names what.
func (c *Codec) Match(what string, v uint64) {
	u := v
	c.U64(&u)
	if c.err == nil && u != v {
		c.Fail("%s is %d in the saved state and %d here", what, u, v)
	}
}
