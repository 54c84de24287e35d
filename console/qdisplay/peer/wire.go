package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// maxDepth is how many containers may lie within each other (D-Bus specification, "Valid Signatures").
const maxDepth = 64

// Encoder appends values in the wire format, little-endian. The zero value is empty; Reset keeps its memory. Values are
// aligned from the start of the encoder, which fits a body: the header before it ends at a multiple of 8.
type Encoder struct{ buf []byte }

// Reset empties the encoder.
func (e *Encoder) Reset() { e.buf = e.buf[:0] }

// Bytes returns what was encoded, until the next call of a method.
func (e *Encoder) Bytes() []byte { return e.buf }

// Align appends zeros up to a multiple of n, at most 8.
func (e *Encoder) Align(n int) {
	var zeros [8]byte
	e.buf = append(e.buf, zeros[:-len(e.buf)&(n-1)]...)
}

// Byte appends a y.
func (e *Encoder) Byte(v byte) { e.buf = append(e.buf, v) }

// Bool appends a b.
func (e *Encoder) Bool(v bool) {
	var n uint32
	if v {
		n = 1
	}
	e.Uint32(n)
}

// Uint16 appends a q.
func (e *Encoder) Uint16(v uint16) {
	e.Align(2)
	e.buf = binary.LittleEndian.AppendUint16(e.buf, v)
}

// Int32 appends an i.
func (e *Encoder) Int32(v int32) { e.Uint32(uint32(v)) }

// Uint32 appends a u, or an h: the index of a file descriptor among those of the message.
func (e *Encoder) Uint32(v uint32) {
	e.Align(4)
	e.buf = binary.LittleEndian.AppendUint32(e.buf, v)
}

// Uint64 appends a t.
func (e *Encoder) Uint64(v uint64) {
	e.Align(8)
	e.buf = binary.LittleEndian.AppendUint64(e.buf, v)
}

// Double appends a d.
func (e *Encoder) Double(v float64) { e.Uint64(math.Float64bits(v)) }

// Str appends an s or an o. What is not UTF-8, or has zeros in it, is replaced: the other side would drop the connection.
func (e *Encoder) Str(s string) {
	if !validString(s) {
		s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	}
	e.Uint32(uint32(len(s)))
	e.buf = append(append(e.buf, s...), 0)
}

// Sig appends a g. It is also what goes before the value of a variant.
func (e *Encoder) Sig(s string) {
	e.buf = append(append(append(e.buf, byte(len(s))), s...), 0)
}

// Array begins an array whose elements are aligned to align bytes. EndArray ends it, with the value returned.
func (e *Encoder) Array(align int) (mark int) {
	e.Uint32(0)
	mark = len(e.buf)
	e.Align(align)
	return mark
}

// EndArray ends the array that Array has begun with the same alignment.
func (e *Encoder) EndArray(mark, align int) {
	first := (mark + align - 1) &^ (align - 1)
	binary.LittleEndian.PutUint32(e.buf[mark-4:], uint32(len(e.buf)-first))
}

// Blob appends an ay of n bytes, for the caller to fill before it calls another method.
func (e *Encoder) Blob(n int) []byte {
	e.Uint32(uint32(n))
	at := len(e.buf)
	if cap(e.buf)-at >= n {
		e.buf = e.buf[:at+n]
	} else {
		e.buf = append(e.buf, make([]byte, n)...)
	}
	return e.buf[at:]
}

// Strs appends an as.
func (e *Encoder) Strs(v []string) {
	m := e.Array(4)
	for _, s := range v {
		e.Str(s)
	}
	e.EndArray(m, 4)
}

// errShort is the error of a value that goes beyond its message.
var errShort = errors.New("a value goes beyond the end of the message")

// Decoder takes values of the wire format from a message. After the first error all values are zero: it is enough to look
// at Err or End once.
type Decoder struct {
	buf   []byte
	pos   int
	order binary.ByteOrder
	err   error
}

// Err returns the first error.
func (d *Decoder) Err() error { return d.err }

// End returns the first error, or one if bytes are left.
func (d *Decoder) End() error {
	if d.err == nil && d.pos != len(d.buf) {
		d.err = fmt.Errorf("%d bytes follow the last value", len(d.buf)-d.pos)
	}
	return d.err
}

// take returns the next n bytes after aligning, nil if there are not as many.
func (d *Decoder) take(align int, n uint64) []byte {
	if d.err != nil {
		return nil
	}
	at := (d.pos + align - 1) &^ (align - 1)
	if at > len(d.buf) || uint64(len(d.buf)-at) < n {
		d.err = errShort
		return nil
	}
	d.pos = at + int(n)
	return d.buf[at:d.pos:d.pos]
}

// Align skips to a multiple of n, at most 8: where a struct or an entry of a dictionary begins.
func (d *Decoder) Align(n int) { d.take(n, 0) }

// Byte takes a y.
func (d *Decoder) Byte() byte {
	if b := d.take(1, 1); b != nil {
		return b[0]
	}
	return 0
}

// Bool takes a b.
func (d *Decoder) Bool() bool {
	v := d.Uint32()
	if v > 1 && d.err == nil {
		d.err = fmt.Errorf("a boolean of %d", v)
	}
	return v == 1
}

// Uint16 takes a q.
func (d *Decoder) Uint16() uint16 {
	if b := d.take(2, 2); b != nil {
		return d.order.Uint16(b)
	}
	return 0
}

// Int32 takes an i.
func (d *Decoder) Int32() int32 { return int32(d.Uint32()) }

// Uint32 takes a u or an h.
func (d *Decoder) Uint32() uint32 {
	if b := d.take(4, 4); b != nil {
		return d.order.Uint32(b)
	}
	return 0
}

// Uint64 takes a t.
func (d *Decoder) Uint64() uint64 {
	if b := d.take(8, 8); b != nil {
		return d.order.Uint64(b)
	}
	return 0
}

// Double takes a d.
func (d *Decoder) Double() float64 { return math.Float64frombits(d.Uint64()) }

// Str takes an s or an o.
func (d *Decoder) Str() string { return string(d.str()) }

func (d *Decoder) str() []byte {
	n := d.Uint32()
	return d.text(d.take(1, uint64(n)+1))
}

// Sig takes a g.
func (d *Decoder) Sig() string { return string(d.sig()) }

func (d *Decoder) sig() []byte {
	n := d.Byte()
	return d.text(d.take(1, uint64(n)+1))
}

// text checks a string with its terminating zero, and cuts that off.
func (d *Decoder) text(b []byte) []byte {
	if b == nil {
		return nil
	}
	n := len(b) - 1
	if b[n] != 0 || !validBytes(b[:n]) {
		d.err = errors.New("a string is not UTF-8 with one zero at its end")
		return nil
	}
	return b[:n]
}

func validString(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

func validBytes(b []byte) bool {
	for _, c := range b {
		if c == 0 || c >= utf8.RuneSelf {
			return c != 0 && validString(string(b))
		}
	}
	return true
}

// Blob takes an ay. The bytes are the message's.
func (d *Decoder) Blob() []byte { return d.take(1, uint64(d.Uint32())) }

// Array takes the head of an array and returns a decoder of its elements, which are aligned to align bytes. It takes the
// elements from d, whether or not they are looked at. More says whether there is another element.
func (d *Decoder) Array(align int) Decoder {
	n := d.Uint32()
	d.take(align, 0) // also of an empty array
	if d.take(1, uint64(n)) == nil {
		return Decoder{order: d.order, err: d.err}
	}
	return Decoder{buf: d.buf[:d.pos], pos: d.pos - int(n), order: d.order}
}

// More says whether there is something left, and no error.
func (d *Decoder) More() bool { return d.err == nil && d.pos < len(d.buf) }

// Strs takes an as.
func (d *Decoder) Strs() []string {
	var v []string
	a := d.Array(4)
	for a.More() {
		v = append(v, a.Str())
	}
	d.fail(a.err)
	return v
}

// Variant takes the head of a variant and says whether its value is of the type; if it is not, it has skipped the value.
func (d *Decoder) Variant(sig string) bool {
	have := d.sig()
	if d.err != nil {
		return false
	}
	if string(have) == sig {
		return true
	}
	d.skip(have, 1)
	return false
}

// SkipVariant takes a variant of any type.
func (d *Decoder) SkipVariant() { d.skip([]byte("v"), 0) }

func (d *Decoder) fail(err error) {
	if d.err == nil && err != nil {
		d.err = err
	}
}

// skip takes one value of the type sig.
func (d *Decoder) skip(sig []byte, depth int) {
	if n := typeLen(sig, depth); n == 0 || n != len(sig) {
		d.fail(fmt.Errorf("%q is not the signature of one value", sig))
	}
	if d.err == nil {
		d.skipType(sig, depth)
	}
}

// skipType takes a value of the first type in sig, which is valid, and returns what follows that type.
func (d *Decoder) skipType(sig []byte, depth int) (rest []byte) {
	switch letter := sig[0]; letter {
	case 's', 'o':
		d.str()
	case 'g':
		d.sig()
	case 'v':
		d.skip(d.sig(), depth+1)
	case '(', '{':
		d.take(8, 0)
		for sig = sig[1:]; sig[0] != ')' && sig[0] != '}'; {
			sig = d.skipType(sig, depth+1)
		}
	case 'a':
		a := d.Array(alignment(sig[1]))
		for a.More() {
			a.skipType(sig[1:], depth+1)
		}
		d.fail(a.err)
		return sig[1+typeLen(sig[1:], depth+1):]
	default:
		n := alignment(letter) // the fixed types are aligned to their size
		d.take(n, uint64(n))
	}
	return sig[1:]
}

// alignment returns that of a type which begins with the letter.
func alignment(letter byte) int {
	switch letter {
	case 'n', 'q':
		return 2
	case 'b', 'i', 'u', 'h', 's', 'o', 'a':
		return 4
	case 'x', 't', 'd', '(', '{':
		return 8
	}
	return 1
}

// typeLen returns the length of the first complete type in sig, 0 if there is none.
func typeLen(sig []byte, depth int) int {
	if len(sig) == 0 || depth > maxDepth {
		return 0
	}
	switch sig[0] {
	case 'y', 'b', 'n', 'q', 'i', 'u', 'x', 't', 'd', 's', 'o', 'g', 'h', 'v':
		return 1
	case 'a':
		if n := typeLen(sig[1:], depth+1); n > 0 {
			return 1 + n
		}
	case '(', '{':
		end := sig[0] + 1 // ')' follows '('
		if sig[0] == '{' {
			end = '}'
		}
		for at := 1; at < len(sig); {
			if sig[at] == end {
				if at == 1 {
					return 0
				}
				return at + 1
			}
			n := typeLen(sig[at:], depth+1)
			if n == 0 {
				return 0
			}
			at += n
		}
	}
	return 0
}
