package format

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zlib"
)

const (
	writeGrain       = 128 // sectors
	writeDescriptor  = 20  // sectors
	writeVMDKCovers  = writeGrain * sector * vmdkTableEntries
	vmdkMarkerTable  = 1
	vmdkMarkerTables = 2
)

// WriteVMDK writes a disk of size bytes as a streamOptimized VMDK. name is that of the file, for its description.
func WriteVMDK(ctx context.Context, w io.Writer, src Source, size int64, name string, progress Progress) error {
	if size%sector != 0 || size/sector > 1<<32-1 {
		return fmt.Errorf("%w: a VMDK holds no disk of %d bytes", ErrUnsupported, size)
	}
	v := &vmdkWriter{w: w, tables: make([]uint32, divUp(size, writeVMDKCovers)), tableOf: -1}
	h := vmdkWriteHeader(size, vmdkAtEnd)
	copy(h[sector:], vmdkDescriptor(size, name))
	if err := v.write(h); err != nil {
		return err
	}
	if err := pieces(ctx, src, size, writeGrain*sector, vmdkPacker, v.put, progress); err != nil {
		return err
	}
	return v.finish(size)
}

// vmdkWriteHeader returns the header, with room for what comes before the first grain.
func vmdkWriteHeader(size int64, directory uint64) []byte {
	b := make([]byte, writeGrain*sector)
	le := binary.LittleEndian
	copy(b, vmdkMagic)
	le.PutUint32(b[4:], 3)
	le.PutUint32(b[8:], vmdkNewlines|vmdkCompressed|vmdkMarkers)
	le.PutUint64(b[12:], uint64(size/sector))
	le.PutUint64(b[20:], writeGrain)
	le.PutUint64(b[28:], 1)
	le.PutUint64(b[36:], writeDescriptor)
	le.PutUint32(b[44:], vmdkTableEntries)
	le.PutUint64(b[56:], directory)
	le.PutUint64(b[64:], writeGrain)
	copy(b[73:], "\n \r\n")
	le.PutUint16(b[77:], vmdkDeflate)
	return b
}

func vmdkDescriptor(size int64, name string) string {
	var id [4]byte
	_, _ = rand.Read(id[:]) // it never fails
	const heads, sectors = 255, 63
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
`, id, size/sector, name, divUp(size/sector, heads*sectors), heads, sectors)
}

func vmdkPacker() (func([]byte) ([]byte, error), error) {
	var buf bytes.Buffer
	z := zlib.NewWriter(&buf)
	return func(b []byte) ([]byte, error) {
		buf.Reset()
		z.Reset(&buf)
		if _, err := z.Write(b); err != nil {
			return nil, err
		}
		err := z.Close()
		return bytes.Clone(buf.Bytes()), err
	}, nil
}

type vmdkWriter struct {
	w       io.Writer
	pos     uint64 // sectors written
	tables  []uint32
	table   [vmdkTableEntries]uint32
	tableOf int // place in tables of the one that is being filled, or -1
}

// write writes b and fills up its last sector.
func (v *vmdkWriter) write(b []byte) error {
	if _, err := v.w.Write(b); err != nil {
		return err
	}
	v.pos += uint64(divUp(int64(len(b)), sector))
	if rest := len(b) % sector; rest != 0 {
		_, err := v.w.Write(zeros[:sector-rest])
		return err
	}
	return nil
}

// marker returns a marker with room for the data of n bytes that follow it.
func marker(value uint64, size, kind uint32, n int) []byte {
	b := make([]byte, max(sector, vmdkMarkerSize+n))
	binary.LittleEndian.PutUint64(b, value)
	binary.LittleEndian.PutUint32(b[8:], size)
	if size == 0 {
		binary.LittleEndian.PutUint32(b[12:], kind)
	}
	return b
}

func (v *vmdkWriter) put(off int64, _, packed []byte) error {
	i := int(off / (writeGrain * sector))
	if t := i / vmdkTableEntries; t != v.tableOf {
		if err := v.flushTable(); err != nil {
			return err
		}
		v.tableOf = t
	}
	if v.pos > 1<<32-1 {
		return fmt.Errorf("%w: a VMDK stream ends at 2 TiB", ErrUnsupported)
	}
	v.table[i%vmdkTableEntries] = uint32(v.pos)
	m := marker(uint64(off/sector), uint32(len(packed)), 0, len(packed))
	copy(m[vmdkMarkerSize:], packed)
	return v.write(m[:vmdkMarkerSize+len(packed)])
}

func (v *vmdkWriter) flushTable() error {
	if v.tableOf < 0 {
		return nil
	}
	at, err := v.metadata(vmdkMarkerTable, v.table[:])
	v.tables[v.tableOf] = uint32(at)
	v.table, v.tableOf = [vmdkTableEntries]uint32{}, -1
	return err
}

// metadata writes a marker and a table, and returns the sector of the latter.
func (v *vmdkWriter) metadata(kind uint32, table []uint32) (uint64, error) {
	b, err := binary.Append(nil, binary.LittleEndian, table)
	if err != nil {
		return 0, err
	}
	if err := v.write(marker(uint64(divUp(int64(len(b)), sector)), 0, kind, 0)); err != nil {
		return 0, err
	}
	at := v.pos
	if at > 1<<32-1 {
		return 0, fmt.Errorf("%w: a VMDK stream ends at 2 TiB", ErrUnsupported)
	}
	return at, v.write(b)
}

func (v *vmdkWriter) finish(size int64) error {
	if err := v.flushTable(); err != nil {
		return err
	}
	directory, err := v.metadata(vmdkMarkerTables, v.tables)
	if err != nil {
		return err
	}
	for _, b := range [][]byte{
		marker(1, 0, vmdkMarkerFooter, 0), vmdkWriteHeader(size, directory)[:sector], marker(0, 0, vmdkMarkerEOS, 0),
	} {
		if err := v.write(b); err != nil {
			return err
		}
	}
	return nil
}
