package boot

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// ExtractVMLinux returns the uncompressed ELF image inside a bzImage: what Load prefers to start. Unpacking takes from
// tenths of a second (lz4, zstd) to seconds (xz), and twice the result's size in memory at most; a caller who starts a
// kernel often keeps the result in a file. The image must be of boot protocol 2.10 or later.
func ExtractVMLinux(img Image) ([]byte, error) {
	head, err := img.head(headSize)
	if err != nil {
		return nil, err
	}
	if !isBzImage(head) {
		return nil, img.errorf("not a bzImage")
	}
	k, err := parseBzImage(img, head)
	if err != nil {
		return nil, err
	}
	return k.extract(img)
}

// compressions are those of Linux, scripts/Makefile.lib, by their magic numbers. unpack returns at most limit bytes; what
// follows the ELF image in the stream, Linux's relocation table, is part of the result.
var compressions = [...]struct {
	name, magic string
	unpack      func(p []byte, limit int) ([]byte, error)
}{
	{"gzip", "\x1f\x8b", unpackGzip},
	{"xz", xzMagic, unpackXZ},
	{"zstd", "\x28\xb5\x2f\xfd", unpackZstd},
	{"lz4", lz4LegacyMagic, unpackLZ4},
	{"bzip2", "BZh", unpackBzip2},
	{"lzma", "\x5d\x00\x00", unpackLZMA}, // lc=3 lp=0 pb=2, and a dictionary of whole 64 KiB
}

// maxShrink is how many times larger than its payload we believe a kernel to be. Real ones reach 10; the bound makes what
// the libraries allocate, dictionaries say, proportional to the file.
const maxShrink = 64

// errTooLarge reports output beyond the bound.
var errTooLarge = errors.New("unpacks to more bytes than it says")

// extract unpacks k's payload. The error is errNotSupported if k has none that we can unpack.
func (k *bzImage) extract(img Image) ([]byte, error) {
	if k.payloadSize < 8 {
		return nil, img.errorf("%w: the bzImage has no payload that can be unpacked", errNotSupported)
	}
	p := make([]byte, k.payloadSize) // bounded by the file's size
	if err := img.read(p, k.payload); err != nil {
		return nil, err
	}
	for _, c := range compressions {
		if !bytes.HasPrefix(p, []byte(c.magic)) {
			continue
		}
		// The last four bytes are the uncompressed size. Linux appends it, save for gzip, whose trailer it is.
		size := binary.LittleEndian.Uint32(p[len(p)-4:])
		if most := min(maxVMLinux, maxShrink*k.payloadSize+1<<20); uint64(size) > most {
			return nil, img.errorf("payload: says that its %d bytes unpack to %d, at most %d are credible: the file is damaged", k.payloadSize, size, most)
		}
		if c.name != "gzip" {
			p = p[:len(p)-4]
		}
		b, err := c.unpack(p, int(size))
		if err != nil {
			return nil, img.errorf("payload: unpack %s: %w", c.name, err)
		}
		if len(b) != int(size) {
			return nil, img.errorf("payload: unpack %s: %d bytes, it says %d: the file is damaged", c.name, len(b), size)
		}
		if !isELF(b) {
			return nil, img.errorf("payload: unpack %s: the result is no ELF image", c.name)
		}
		return b, nil
	}
	return nil, img.errorf("%w: payload of unknown compression (begins with % x)", errNotSupported, p[:8])
}

// readBounded reads r to its end, which comes after at most limit bytes.
func readBounded(r io.Reader, limit int) ([]byte, error) {
	b := make([]byte, limit)
	n, err := io.ReadFull(r, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF { // short or cut: the caller compares the size
		return b[:n], nil
	}
	if err != nil {
		return nil, err
	}
	var more [1]byte
	if n, err := io.ReadFull(r, more[:]); n > 0 {
		return nil, errTooLarge
	} else if err != io.EOF {
		return nil, err
	}
	return b, nil
}

func unpackGzip(p []byte, limit int) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(p))
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	return readBounded(r, limit)
}

func unpackBzip2(p []byte, limit int) ([]byte, error) {
	return readBounded(bzip2.NewReader(bytes.NewReader(p)), limit)
}

func unpackZstd(p []byte, limit int) ([]byte, error) {
	// Decoding in one go into a slice of the right capacity needs no window, which for a kernel's is 128 MiB.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	b, err := d.DecodeAll(p, make([]byte, 0, limit))
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return nil, errTooLarge
	}
	return b, err
}

// The LZ4 legacy frame: lz4_Frame_format.md, "Legacy frame". Blocks of up to 8 MiB, each behind its compressed size,
// to the end of the input. Every block but the last unpacks to exactly 8 MiB.
const (
	lz4LegacyMagic = "\x02\x21\x4c\x18"
	lz4LegacyBlock = 8 << 20
)

func unpackLZ4(p []byte, limit int) ([]byte, error) {
	p = p[len(lz4LegacyMagic):]
	b := make([]byte, 0, limit)
	for len(p) >= 4 {
		n := uint64(binary.LittleEndian.Uint32(p))
		p = p[4:]
		if n > uint64(len(p)) {
			return nil, io.ErrUnexpectedEOF
		}
		got, err := lz4.UncompressBlock(p[:n], b[len(b):min(len(b)+lz4LegacyBlock, limit)])
		if err != nil {
			return nil, err
		}
		b, p = b[:len(b)+got], p[n:]
	}
	return b, nil
}

func unpackLZMA(p []byte, limit int) ([]byte, error) {
	const headerSize = 13 // properties, dictionary size, uncompressed size
	if len(p) < headerSize {
		return nil, io.ErrUnexpectedEOF
	}
	// No match reaches back further than the output does, so a dictionary of its size serves whatever the file asks for.
	header := bytes.Clone(p[:headerSize])
	dict := binary.LittleEndian.Uint32(header[1:])
	binary.LittleEndian.PutUint32(header[1:], min(dict, dictCap(limit)))
	r, err := lzma.NewReader(io.MultiReader(bytes.NewReader(header), bytes.NewReader(p[headerSize:])))
	if err != nil {
		return nil, err
	}
	return readBounded(r, limit)
}

// dictCap returns a dictionary size, in bytes, that serves an output of n bytes.
func dictCap(n int) uint32 { return uint32(max(n, lzma.MinDictCap)) }
