package virtionet

import (
	"encoding/binary"
	"fmt"
)

// QEMU's framing of Ethernet on a stream: each frame comes behind its length, a 32-bit big-endian integer.
const prefixSize = 4

// streamBuffer is the size in bytes of the buffers on either side of a stream: one read or write carries many frames, and
// the longest one fits.
const streamBuffer = 128 << 10

// deframer cuts a stream into frames. The peer's bytes are not trusted.
type deframer struct {
	buf        []byte
	start, end int // buf[start:end] is what is not consumed yet
}

// next returns the next frame, which is valid until free is called, or nil if it is not complete. After an error the stream
// cannot be read on.
func (d *deframer) next() ([]byte, error) {
	have := d.buf[d.start:d.end]
	if len(have) < prefixSize {
		return nil, nil
	}
	n := binary.BigEndian.Uint32(have)
	if n == 0 || n > MaxFrame {
		return nil, fmt.Errorf("a frame of %d bytes, where 1 to %d are possible", n, MaxFrame)
	}
	if uint32(len(have)-prefixSize) < n {
		return nil, nil
	}
	d.start += prefixSize + int(n)
	return have[prefixSize : prefixSize+n], nil
}

// free returns the space for more of the stream, which is never empty when next has returned nil: call filled with what
// was put there.
func (d *deframer) free() []byte {
	// Moving what is there costs a copy; do it when the rest of a frame may not fit behind it.
	if d.start == d.end || len(d.buf)-d.start < prefixSize+MaxFrame {
		d.end = copy(d.buf, d.buf[d.start:d.end])
		d.start = 0
	}
	return d.buf[d.end:]
}

func (d *deframer) filled(n int) { d.end += n }

// reset forgets what is left of an old stream.
func (d *deframer) reset() { d.start, d.end = 0, 0 }

// appendPrefix appends the prefix of a frame of n bytes to b.
func appendPrefix(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }
