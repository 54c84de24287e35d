// Package framing is Ethernet on a stream as QEMU has it (-netdev stream): each frame comes behind its length, a 32-bit
// big-endian integer.
package framing

import (
	"encoding/binary"
	"fmt"
)

// PrefixSize is the size in bytes of what comes before a frame.
const PrefixSize = 4

// BufferSize is the size in bytes of the buffers on either side of a stream: one read or write carries many frames, and the
// longest one fits.
const BufferSize = 128 << 10

// MaxFrame is the length in bytes of the longest frame that is carried: 64 KiB of IP that somebody else cuts into segments,
// and its Ethernet header.
const MaxFrame = 64<<10 + 64

// Deframer cuts a stream into frames. The peer's bytes are not trusted.
type Deframer struct {
	Buf        []byte // of BufferSize bytes
	start, end int    // Buf[start:end] is what is not consumed yet
}

// Next returns the next frame, which is valid until Free is called, or nil if it is not complete. After an error the stream
// cannot be read on.
func (d *Deframer) Next() ([]byte, error) {
	have := d.Buf[d.start:d.end]
	if len(have) < PrefixSize {
		return nil, nil
	}
	n := binary.BigEndian.Uint32(have)
	if n == 0 || n > MaxFrame {
		return nil, fmt.Errorf("a frame of %d bytes, where 1 to %d are possible", n, MaxFrame)
	}
	if uint32(len(have)-PrefixSize) < n {
		return nil, nil
	}
	d.start += PrefixSize + int(n)
	return have[PrefixSize : PrefixSize+n], nil
}

// Free returns the space for more of the stream, which is never empty when Next has returned nil: call Filled with what was
// put there.
func (d *Deframer) Free() []byte {
	// Moving what is there costs a copy; do it when the rest of a frame may not fit behind it.
	if d.start == d.end || len(d.Buf)-d.start < PrefixSize+MaxFrame {
		d.end = copy(d.Buf, d.Buf[d.start:d.end])
		d.start = 0
	}
	return d.Buf[d.end:]
}

// Filled says that n bytes were put into what Free has returned.
func (d *Deframer) Filled(n int) { d.end += n }

// Reset forgets what is left of an old stream.
func (d *Deframer) Reset() { d.start, d.end = 0, 0 }

// AppendPrefix appends the prefix of a frame of n bytes to b.
func AppendPrefix(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }
