package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"io"
	"math/bits"

	"github.com/ulikunitz/xz/lzma"
)

// The .xz file format 1.2.0. Linux compresses its x86 kernels with the x86 filter before LZMA2, which the xz library
// refuses; so the container is taken apart here and only LZMA2 is left to the library.
const (
	xzMagic = "\xfd7zXZ\x00"

	xzStreamHeaderSize = 12

	xzCheckNone  = 0
	xzCheckCRC32 = 1
	xzCheckCRC64 = 4

	xzFilterX86   = 0x04
	xzFilterLZMA2 = 0x21

	xzHasPackedSize   = 1 << 6 // block flags
	xzHasUnpackedSize = 1 << 7

	// Each block costs a dictionary; a packer with several threads makes one of 96 MiB or so.
	xzMaxBlocks = 16
)

var errXZ = errors.New("damaged xz data")

// unpackXZ unpacks the first stream in p.
func unpackXZ(p []byte, limit int) ([]byte, error) {
	if len(p) < xzStreamHeaderSize {
		return nil, io.ErrUnexpectedEOF
	}
	check, err := xzCheck(p[7] & 0xf)
	if err != nil {
		return nil, err
	}
	r := bytes.NewReader(p[xzStreamHeaderSize:])
	var out []byte
	blocks := 0
	for {
		size, err := r.ReadByte()
		if err != nil {
			return nil, io.ErrUnexpectedEOF
		}
		if size == 0 { // the index: no more blocks
			return out, nil
		}
		if blocks++; blocks > xzMaxBlocks {
			return nil, fmt.Errorf("xz stream of more than %d blocks", xzMaxBlocks)
		}
		header := make([]byte, (int(size)+1)*4-1)
		if _, err := io.ReadFull(r, header); err != nil {
			return nil, io.ErrUnexpectedEOF
		}
		dict, x86, err := parseXZBlock(header[:len(header)-4])
		if err != nil {
			return nil, err
		}
		begin := r.Len()
		lr, err := lzma.Reader2Config{DictCap: int(min(dict, dictCap(limit-len(out))))}.NewReader2(r)
		if err != nil {
			return nil, err
		}
		b, err := readBounded(lr, limit-len(out))
		if err != nil {
			return nil, err
		}
		if x86 {
			unfilterX86(b)
		}
		padding := -(begin - r.Len()) & 3
		sum := make([]byte, padding+check.size)
		if _, err := io.ReadFull(r, sum); err != nil {
			return nil, io.ErrUnexpectedEOF
		}
		if check.size > 0 && !bytes.Equal(sum[padding:], check.sum(b)) {
			return nil, fmt.Errorf("%w: checksum does not match", errXZ)
		}
		if out == nil {
			out = b // nearly always there is one block
		} else {
			out = append(out, b...)
		}
	}
}

// blockCheck is the checksum behind each block.
type blockCheck struct {
	size int
	sum  func(b []byte) []byte
}

func xzCheck(id byte) (blockCheck, error) {
	switch id {
	case xzCheckNone:
		return blockCheck{}, nil
	case xzCheckCRC32:
		return blockCheck{4, func(b []byte) []byte {
			return binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b))
		}}, nil
	case xzCheckCRC64:
		return blockCheck{8, func(b []byte) []byte {
			return binary.LittleEndian.AppendUint64(nil, crc64.Checksum(b, crc64.MakeTable(crc64.ECMA)))
		}}, nil
	}
	return blockCheck{}, fmt.Errorf("xz check type %d is not one that Linux kernels use", id)
}

// parseXZBlock reads a block header from its flags on, without its checksum: the filters are LZMA2 with a dictionary of
// dict bytes, and before it, if x86 is set, the filter for x86 code.
func parseXZBlock(h []byte) (dict uint32, x86 bool, err error) {
	if len(h) < 1 {
		return 0, false, errXZ
	}
	flags, h := h[0], h[1:]
	varint := func() uint64 { // a "multibyte integer" is a uvarint
		v, n := binary.Uvarint(h)
		if n <= 0 {
			err, h = errXZ, nil
			return 0
		}
		h = h[n:]
		return v
	}
	if flags&xzHasPackedSize != 0 {
		varint()
	}
	if flags&xzHasUnpackedSize != 0 {
		varint()
	}
	for range int(flags&3) + 1 {
		id, n := varint(), varint()
		if err != nil || n > uint64(len(h)) {
			return 0, false, errXZ
		}
		props := h[:n]
		h = h[n:]
		switch {
		case dict != 0:
			return 0, false, errXZ // LZMA2 is always the last
		case id == xzFilterX86 && n == 0 && !x86:
			x86 = true
		case id == xzFilterLZMA2 && n == 1:
			c, err := lzma.DecodeDictCap(props[0])
			if err != nil {
				return 0, false, err
			}
			dict = uint32(min(c, 1<<32-1))
		default:
			return 0, false, fmt.Errorf("xz filter %#x with %d bytes of properties is not one that x86 kernels use", id, n)
		}
	}
	if dict == 0 {
		return 0, false, errXZ
	}
	return dict, x86, nil
}

// unfilterX86 undoes the .xz format's x86 filter (§5.3.2): the packer turned the relative targets of CALL and JMP into
// absolute ones, which repeat and so pack better; b holds a whole block.
//
// The packer converts an operand only if its highest byte is 00 or ff, that is, if it looks like a near target. An
// opcode byte that it did not convert may itself lie within the operand of another, so what follows one within three
// bytes has rules of its own: refused opcodes is a window of three bits, in which bit k-1 is set if the byte k places
// back was an opcode left alone.
func unfilterX86(b []byte) {
	near := func(c byte) bool { return c == 0x00 || c == 0xff }
	refused := uint32(0)
	for i := 0; i+4 < len(b); i++ {
		if b[i]&0xfe != 0xe8 { // CALL e8, JMP e9
			refused = refused << 1 & 7
			continue
		}
		k := bits.Len32(refused)
		if bits.OnesCount32(refused) > 1 || k > 0 && near(b[i+4-k]) || !near(b[i+4]) {
			refused = (refused<<1 | 1) & 7
			continue
		}
		operand := b[i+1 : i+5]
		pos := uint32(i + 5)
		target := binary.LittleEndian.Uint32(operand) - pos
		if k > 0 {
			// The packer made sure that the operand byte which the refused opcode would take as its highest did not come
			// out as 00 or ff, flipping the bits up to it where it had. The flip undoes itself.
			if shift := 32 - 8*k; near(byte(target >> (shift - 8))) {
				target = (target ^ (1<<shift - 1)) - pos
			}
		}
		// 25 bits count; the rest is their sign.
		target = uint32(int32(target<<7) >> 7)
		binary.LittleEndian.PutUint32(operand, target)
		i += 4
		refused = 0
	}
}
