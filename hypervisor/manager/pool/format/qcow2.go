package format

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// What a qcow2 header and its tables consist of: docs/interop/qcow2.rst of QEMU.
const (
	qcow2Magic = "QFI\xfb"

	qcow2Dirty       = 1 << 0 // incompatible features: refcounts may be wrong, which only a writer minds
	qcow2Corrupt     = 1 << 1
	qcow2DataFile    = 1 << 2
	qcow2Compression = 1 << 3
	qcow2ExtendedL2  = 1 << 4

	qcow2Zlib = 0 // compression types: this one is deflate without a header
	qcow2Zstd = 1

	qcow2OffsetMask    = 0x00ff_ffff_ffff_fe00 // of entries of L1 and L2
	qcow2Copied        = 1 << 63
	qcow2IsCompressed  = 1 << 62
	qcow2IsZero        = 1 << 0
	qcow2ClusterMin    = 9
	qcow2ClusterMax    = 21
	qcow2L1Max         = 32 << 20 // bytes: QEMU's limit too
	qcow2RunMax        = 1 << 20  // bytes that are copied at once
	qcow2HeaderSizeV2  = 72
	qcow2HeaderSizeV3  = 104
	qcow2HeaderSizeMax = 112 // of what we know
)

// QCOW2Reader reads a qcow2 image: its present state, of those that it may hold.
type QCOW2Reader struct {
	r           io.ReaderAt
	file        int64 // bytes
	version     uint32
	clusterBits uint32
	size        int64
	l1          []uint64
	compression byte
}

// OpenQCOW2 reads the header of an image that is size bytes long. An image that needs another file, or a key, is refused.
func OpenQCOW2(r io.ReaderAt, size int64) (*QCOW2Reader, error) {
	var h [qcow2HeaderSizeMax]byte
	if n, err := r.ReadAt(h[:], 0); n < qcow2HeaderSizeV2 {
		return nil, noEOF(err)
	}
	be := binary.BigEndian
	q := &QCOW2Reader{r: r, file: size, version: be.Uint32(h[4:]), clusterBits: be.Uint32(h[20:])}
	if string(h[:4]) != qcow2Magic {
		return nil, fmt.Errorf("%w: not a qcow2 image", ErrDamaged)
	}
	switch q.version {
	case 2:
	case 3:
		headerSize := be.Uint32(h[100:])
		if headerSize < qcow2HeaderSizeV3 {
			return nil, fmt.Errorf("%w: a header of %d bytes", ErrDamaged, headerSize)
		}
		if headerSize > qcow2HeaderSizeV3 {
			q.compression = h[104]
		}
		if err := qcow2Features(be.Uint64(h[72:]), q.compression); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: qcow2 version %d", ErrUnsupported, q.version)
	}
	switch {
	case be.Uint64(h[8:]) != 0:
		return nil, fmt.Errorf("%w: the image has a backing file: flatten it with qemu-img convert -O qcow2, beside that file", ErrUnsupported)
	case be.Uint32(h[32:]) != 0:
		return nil, fmt.Errorf("%w: the image is encrypted: decrypt it with qemu-img convert", ErrUnsupported)
	case q.clusterBits < qcow2ClusterMin || q.clusterBits > qcow2ClusterMax:
		return nil, fmt.Errorf("%w: clusters of 2^%d bytes", ErrDamaged, q.clusterBits)
	}
	virtual := be.Uint64(h[24:])
	entries := uint64(be.Uint32(h[36:]))
	covers := uint64(1) << (2*q.clusterBits - 3) // bytes of the disk in one entry of L1
	needed := virtual/covers + min(1, virtual%covers)
	if virtual > 1<<62 || needed*8 > qcow2L1Max || entries < needed {
		return nil, fmt.Errorf("%w: a disk of %d bytes in %d tables", ErrDamaged, virtual, entries)
	}
	q.size = int64(virtual)
	at := be.Uint64(h[40:])
	if at%sector != 0 || at > uint64(size) || needed*8 > uint64(size)-at {
		return nil, fmt.Errorf("%w: %d tables listed at %d of a file of %d bytes: is it incomplete?", ErrDamaged, needed, at, size)
	}
	table := make([]byte, needed*8)
	if n, err := r.ReadAt(table, int64(at)); n < len(table) {
		return nil, noEOF(err)
	}
	q.l1 = make([]uint64, needed)
	for i := range q.l1 {
		q.l1[i] = be.Uint64(table[8*i:])
	}
	return q, nil
}

func qcow2Features(incompatible uint64, compression byte) error {
	const known = qcow2Dirty | qcow2Corrupt | qcow2DataFile | qcow2Compression | qcow2ExtendedL2
	const convert = "convert it with qemu-img convert -O qcow2"
	switch {
	case incompatible&qcow2Corrupt != 0:
		return fmt.Errorf("%w: the image is marked as corrupt: repair it with qemu-img check -r all", ErrDamaged)
	case incompatible&qcow2DataFile != 0:
		return fmt.Errorf("%w: the image has its data in another file: %s, beside that file", ErrUnsupported, convert)
	case incompatible&qcow2ExtendedL2 != 0:
		return fmt.Errorf("%w: the image has subclusters: %s", ErrUnsupported, convert)
	case incompatible&^known != 0:
		return fmt.Errorf("%w: qcow2 features %#x: %s", ErrUnsupported, incompatible&^known, convert)
	case compression > qcow2Zstd, (incompatible&qcow2Compression != 0) != (compression != qcow2Zlib):
		return fmt.Errorf("%w: qcow2 compression %d", ErrUnsupported, compression)
	}
	return nil
}

// Size returns the disk's size in bytes.
func (q *QCOW2Reader) Size() int64 { return q.size }

// cluster is a piece of work: adjacent clusters, or a compressed one.
type cluster struct {
	at         int64 // in the disk
	host       int64 // in the file
	n          int   // bytes in the disk
	compressed int   // bytes in the file at most, if it is
}

// CopyTo copies the disk.
func (q *QCOW2Reader) CopyTo(ctx context.Context, t Target, progress Progress) error {
	if err := t.Resize(q.size); err != nil {
		return err
	}
	return spread(ctx, func() func(cluster) error { return q.worker(t) }, func(ctx context.Context, give func(cluster) error) error {
		clusterSize := int64(1) << q.clusterBits
		covers := clusterSize / 8 * clusterSize
		table := make([]byte, clusterSize)
		var run cluster
		flush := func() error {
			c := run
			run = cluster{}
			if c.n == 0 {
				return nil
			}
			return give(c)
		}
		for i, entry := range q.l1 {
			if err := ctx.Err(); err != nil {
				return err
			}
			begin := int64(i) * covers
			progress(begin, q.size)
			if entry&^(qcow2Copied|qcow2OffsetMask) != 0 || entry&qcow2OffsetMask%uint64(clusterSize) != 0 {
				return fmt.Errorf("%w: entry %d of its list of tables is %#x", ErrDamaged, i, entry)
			}
			if entry&qcow2OffsetMask == 0 {
				continue
			}
			if err := readAt(q.r, q.file, table, int64(entry&qcow2OffsetMask), 1); err != nil {
				return err
			}
			for at, left := begin, table; len(left) > 0 && at < q.size; at, left = at+clusterSize, left[8:] {
				c, err := q.entry(binary.BigEndian.Uint64(left), at)
				if err != nil {
					return err
				}
				c.n = min(c.n, int(q.size-at))
				if run.n > 0 && c.n > 0 && c.compressed == 0 && run.compressed == 0 && run.n < qcow2RunMax &&
					c.host == run.host+int64(run.n) && c.at == run.at+int64(run.n) {
					run.n += c.n
					continue
				}
				if err := flush(); err != nil {
					return err
				}
				run = c
			}
			if err := flush(); err != nil {
				return err
			}
		}
		progress(q.size, q.size)
		return nil
	})
}

// entry says where the cluster of an L2 entry is. n is 0 if it holds zeros.
func (q *QCOW2Reader) entry(e uint64, at int64) (cluster, error) {
	size := int64(1) << q.clusterBits
	c := cluster{at: at, n: int(size)}
	if e&qcow2IsCompressed != 0 {
		e &^= qcow2Copied | qcow2IsCompressed
		split := 62 - (q.clusterBits - 8)
		c.host = int64(e & (1<<split - 1))
		c.compressed = int(e>>split+1)*sector - int(c.host%sector)
		return c, nil
	}
	zero := uint64(qcow2IsZero)
	if q.version < 3 {
		zero = 0
	}
	if e&^(qcow2Copied|qcow2OffsetMask|zero) != 0 || e&qcow2OffsetMask%uint64(size) != 0 {
		return c, fmt.Errorf("%w: the table's entry for the cluster at %d is %#x", ErrDamaged, at, e)
	}
	c.host = int64(e & qcow2OffsetMask)
	if c.host == 0 || e&zero != 0 {
		return cluster{}, nil
	}
	return c, nil
}

// worker returns a function that copies clusters, with buffers of its own.
func (q *QCOW2Reader) worker(t Target) func(cluster) error {
	var packed []byte
	var buf []byte
	var unpack unpacker
	return func(c cluster) error {
		if buf == nil {
			buf = make([]byte, max(qcow2RunMax, 1<<q.clusterBits)+1<<q.clusterBits)
		}
		b := buf[:c.n]
		if c.compressed > 0 {
			if packed == nil {
				packed = make([]byte, 2<<q.clusterBits+sector)
				if q.compression == qcow2Zstd {
					unpack = &zstdUnpacker{}
				} else {
					unpack = &flateUnpacker{}
				}
			}
			p := packed[:c.compressed]
			if err := readAt(q.r, q.file, p, c.host, sector); err != nil {
				return err
			}
			b = buf[:1<<q.clusterBits]
			if err := unpack.unpack(b, p); err != nil {
				return fmt.Errorf("%w: the compressed cluster at %d: %w", ErrDamaged, c.at, noEOF(err))
			}
			b = b[:c.n]
		} else if err := readAt(q.r, q.file, b, c.host, 1<<q.clusterBits); err != nil {
			return err
		}
		_, err := t.WriteAt(b, c.at)
		return err
	}
}

// unpacker fills dst from the begin of src, behind which there may be anything.
type unpacker interface{ unpack(dst, src []byte) error }

type flateUnpacker struct {
	src bytes.Reader
	r   io.ReadCloser
}

func (u *flateUnpacker) unpack(dst, src []byte) error {
	u.src.Reset(src)
	if u.r == nil {
		u.r = flate.NewReader(&u.src)
	} else if err := u.r.(flate.Resetter).Reset(&u.src, nil); err != nil {
		return err
	}
	_, err := io.ReadFull(u.r, dst)
	return err
}

type zstdUnpacker struct {
	src bytes.Reader
	r   *zstd.Decoder
}

func (u *zstdUnpacker) unpack(dst, src []byte) error {
	u.src.Reset(src)
	if u.r == nil {
		r, err := zstd.NewReader(&u.src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return err
		}
		u.r = r
	} else if err := u.r.Reset(&u.src); err != nil {
		return err
	}
	_, err := io.ReadFull(u.r, dst)
	if errors.Is(err, zstd.ErrMagicMismatch) {
		return fmt.Errorf("not zstd")
	}
	return err
}
