package format

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// Compression is how the clusters of a qcow2 image are compressed.
type Compression string

// The kinds of compression. QEMU reads Zstd since 5.1.
const (
	None    Compression = ""
	Deflate Compression = "deflate"
	ZstdC   Compression = "zstd"
)

const (
	writeClusterBits = 16
	writeCluster     = 1 << writeClusterBits
	// deflateWindow is what QEMU unpacks with. A larger one would refer back to what it does not keep.
	deflateWindow = 4096
)

// WriteQCOW2 writes a disk of size bytes as a qcow2 image of version 3 that holds only the clusters with data, and returns
// the file's size. The header comes last: until then the file is no image.
func WriteQCOW2(ctx context.Context, w io.WriterAt, src Source, size int64, c Compression, progress Progress) (int64, error) {
	q := &qcow2Writer{w: w, size: size, compression: c, next: writeCluster}
	if c != None && c != Deflate && c != ZstdC {
		return 0, fmt.Errorf("no compression %q: %q and %q are known", c, Deflate, ZstdC)
	}
	const covers = writeCluster / 8 * writeCluster
	q.l1 = make([]uint64, divUp(size, covers))
	if len(q.l1)*8 > qcow2L1Max {
		return 0, fmt.Errorf("%w: qcow2 holds no disk of %d bytes", ErrUnsupported, size)
	}
	if err := pieces(ctx, src, size, writeCluster, q.packer, q.put, progress); err != nil {
		return 0, err
	}
	if err := q.flushL2(); err != nil {
		return 0, err
	}
	return q.finish()
}

type qcow2Writer struct {
	w           io.WriterAt
	size        int64
	compression Compression

	next   int64    // where the next data goes
	counts []uint16 // references to each cluster of the file
	l1     []uint64
	l2     []byte // the table that is being filled, or nil
	l2Of   int    // its place in l1
}

// reserve takes n bytes at the next multiple of align and counts a reference to every cluster that they are in.
func (q *qcow2Writer) reserve(n, align int64) int64 {
	at := divUp(q.next, align) * align
	q.next = at + n
	q.count(at, n)
	return at
}

func (q *qcow2Writer) count(at, n int64) {
	first, last := at>>writeClusterBits, (at+n-1)>>writeClusterBits
	for int64(len(q.counts)) <= last {
		q.counts = append(q.counts, 0)
	}
	for i := first; i <= last; i++ {
		q.counts[i]++
	}
}

// packer returns a function that compresses a cluster, or returns nil if it does not shrink.
func (q *qcow2Writer) packer() (func([]byte) ([]byte, error), error) {
	var buf bytes.Buffer
	switch q.compression {
	case Deflate:
		z, err := flate.NewWriterWindow(io.Discard, deflateWindow)
		if err != nil {
			return nil, err
		}
		return func(b []byte) ([]byte, error) {
			buf.Reset()
			z.Reset(&buf)
			if _, err := z.Write(b); err != nil {
				return nil, err
			}
			if err := z.Close(); err != nil {
				return nil, err
			}
			return smaller(buf.Bytes(), len(b)), nil
		}, nil
	case ZstdC:
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(writeCluster))
		if err != nil {
			return nil, err
		}
		return func(b []byte) ([]byte, error) { return smaller(z.EncodeAll(b, nil), len(b)), nil }, nil
	}
	return func([]byte) ([]byte, error) { return nil, nil }, nil
}

// smaller returns a copy of packed if it is shorter than n by a sector at least.
func smaller(packed []byte, n int) []byte {
	if len(packed) > n-sector {
		return nil
	}
	return bytes.Clone(packed)
}

// put writes the cluster at off: packed, if it is not nil.
func (q *qcow2Writer) put(off int64, b, packed []byte) error {
	i := off >> writeClusterBits
	table, entry := int(i/(writeCluster/8)), i%(writeCluster/8)
	if q.l2 == nil || table != q.l2Of {
		if err := q.flushL2(); err != nil {
			return err
		}
		q.l2, q.l2Of = make([]byte, writeCluster), table
	}
	var at int64
	var e uint64
	if packed != nil {
		b = packed
		at = q.reserve(int64(len(b)), 1)
		sectors := uint64((at+int64(len(b))-1)/sector - at/sector)
		e = qcow2IsCompressed | sectors<<(62-(writeClusterBits-8)) | uint64(at)
	} else {
		at = q.reserve(writeCluster, writeCluster)
		e = qcow2Copied | uint64(at)
	}
	binary.BigEndian.PutUint64(q.l2[8*entry:], e)
	_, err := q.w.WriteAt(b, at)
	return err
}

func (q *qcow2Writer) flushL2() error {
	if q.l2 == nil {
		return nil
	}
	at := q.reserve(writeCluster, writeCluster)
	q.l1[q.l2Of] = qcow2Copied | uint64(at)
	_, err := q.w.WriteAt(q.l2, at)
	q.l2 = nil
	return err
}

// finish writes the list of tables, the references to the file's clusters, and the header.
func (q *qcow2Writer) finish() (int64, error) {
	l1 := make([]byte, divUp(max(int64(len(q.l1))*8, 1), writeCluster)*writeCluster)
	for i, e := range q.l1 {
		binary.BigEndian.PutUint64(l1[8*i:], e)
	}
	l1At := q.reserve(int64(len(l1)), writeCluster)
	if _, err := q.w.WriteAt(l1, l1At); err != nil {
		return 0, err
	}
	q.count(0, writeCluster) // the header
	// The blocks of counts count themselves and the table of them: as many as it takes.
	const perBlock = writeCluster / 2
	used := divUp(q.next, writeCluster)
	var blocks, tables int64
	for {
		total := used + blocks + tables
		b := divUp(total, perBlock)
		t := divUp(b*8, writeCluster)
		if b == blocks && t == tables {
			break
		}
		blocks, tables = b, t
	}
	tableAt := q.reserve(tables*writeCluster, writeCluster)
	blocksAt := q.reserve(blocks*writeCluster, writeCluster)
	table := make([]byte, tables*writeCluster)
	for i := range blocks {
		binary.BigEndian.PutUint64(table[8*i:], uint64(blocksAt+i*writeCluster))
	}
	if _, err := q.w.WriteAt(table, tableAt); err != nil {
		return 0, err
	}
	block := make([]byte, writeCluster)
	for i := range blocks {
		clear(block)
		for k, n := range q.counts[i*perBlock : min((i+1)*perBlock, int64(len(q.counts)))] {
			binary.BigEndian.PutUint16(block[2*k:], n)
		}
		if _, err := q.w.WriteAt(block, blocksAt+i*writeCluster); err != nil {
			return 0, err
		}
	}
	h := make([]byte, writeCluster)
	be := binary.BigEndian
	copy(h, qcow2Magic)
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], writeClusterBits)
	be.PutUint64(h[24:], uint64(q.size))
	be.PutUint32(h[36:], uint32(len(q.l1)))
	be.PutUint64(h[40:], uint64(l1At))
	be.PutUint64(h[48:], uint64(tableAt))
	be.PutUint32(h[56:], uint32(tables))
	be.PutUint32(h[96:], 4) // 2^4 bits in a count
	be.PutUint32(h[100:], qcow2HeaderSizeV3)
	if q.compression == ZstdC {
		be.PutUint64(h[72:], qcow2Compression)
		be.PutUint32(h[100:], qcow2HeaderSizeMax)
		h[104] = qcow2Zstd
	}
	if _, err := q.w.WriteAt(h, 0); err != nil { // an extension of type 0, the end of them, follows the header
		return 0, err
	}
	return q.next, nil
}

// pieces takes what of src is not zeros, in pieces of n bytes at multiples of n, the last one filled up with zeros; has
// them packed by all CPUs; and gives them to put in their order.
func pieces(
	ctx context.Context, src Source, size, n int64,
	packer func() (func([]byte) ([]byte, error), error),
	put func(off int64, b, packed []byte) error, progress Progress,
) error {
	const perWorker = 16
	type piece struct {
		off       int64
		b, packed []byte
	}
	workers := runtime.GOMAXPROCS(0)
	packers := make([]func([]byte) ([]byte, error), workers)
	for i := range packers {
		p, err := packer()
		if err != nil {
			return err
		}
		packers[i] = p
	}
	batch := make([]piece, workers*perWorker)
	buf := make([]byte, int64(len(batch))*n)
	for i := range batch {
		batch[i].b = buf[int64(i)*n:][:n]
	}
	var begin, end int64
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		progress(off, size)
		k := 0
		for k < len(batch) && off < size {
			if off >= end {
				var err error
				if begin, end, err = src.Data(off); err == io.EOF {
					off = size
					break
				} else if err != nil {
					return err
				}
				off = max(off, begin/n*n)
				continue
			}
			p := &batch[k]
			p.off = off
			m := min(n, size-off)
			if got, err := src.ReadAt(p.b[:m], off); int64(got) < m {
				return noEOF(err)
			}
			clear(p.b[m:])
			if !isZero(p.b) {
				k++
			}
			off += n
		}
		var g errgroup.Group
		for i, pack := range packers {
			g.Go(func() (err error) {
				for j := i; j < k && err == nil; j += workers {
					batch[j].packed, err = pack(batch[j].b)
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for _, p := range batch[:k] {
			if err := put(p.off, p.b, p.packed); err != nil {
				return err
			}
		}
	}
	progress(size, size)
	return nil
}
