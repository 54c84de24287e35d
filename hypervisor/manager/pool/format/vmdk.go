package format

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zlib"
)

// What a sparse extent consists of: VMware's "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and
// "Stream-Optimized Compressed Sparse Extents". Positions and most sizes are in sectors.
const (
	vmdkMagic = "KDMV"

	vmdkNewlines   = 1 << 0 // flags
	vmdkZeroGrains = 1 << 2
	vmdkCompressed = 1 << 16
	vmdkMarkers    = 1 << 17

	vmdkHeaderSize    = sector
	vmdkDeflate       = 1
	vmdkAtEnd         = 1<<64 - 1 // of gdOffset: see the footer
	vmdkTableEntries  = 512       // that everybody writes
	vmdkGrainMax      = 2048      // sectors; everybody writes 128
	vmdkDescriptorMax = 1 << 20   // bytes
	vmdkDirectoryMax  = 64 << 20  // bytes: a disk of half a petabyte

	vmdkRunMax = 1 << 20 // bytes that are copied at once

	vmdkMarkerSize   = 12 // of one with data behind it
	vmdkMarkerEOS    = 0
	vmdkMarkerFooter = 3
)

type vmdkHeader struct {
	version, flags   uint32
	capacity         uint64
	grain            uint64
	descriptor       uint64
	descriptorSize   uint64
	tableEntries     uint32
	directory        uint64
	overhead         uint64
	compression      uint16
	newlineDetection [4]byte
}

func parseVMDKHeader(b []byte) (h vmdkHeader, err error) {
	le := binary.LittleEndian
	h = vmdkHeader{
		version: le.Uint32(b[4:]), flags: le.Uint32(b[8:]), capacity: le.Uint64(b[12:]), grain: le.Uint64(b[20:]),
		descriptor: le.Uint64(b[28:]), descriptorSize: le.Uint64(b[36:]), tableEntries: le.Uint32(b[44:]),
		directory: le.Uint64(b[56:]), overhead: le.Uint64(b[64:]), compression: le.Uint16(b[77:]),
		newlineDetection: [4]byte(b[73:77]),
	}
	switch {
	case string(b[:4]) != vmdkMagic:
		return h, fmt.Errorf("%w: not a sparse VMDK", ErrDamaged)
	case h.version < 1 || h.version > 3:
		return h, fmt.Errorf("%w: VMDK version %d", ErrUnsupported, h.version)
	case h.flags&vmdkNewlines != 0 && h.newlineDetection != [4]byte{'\n', ' ', '\r', '\n'}:
		return h, fmt.Errorf("%w: it was sent as text at some time: fetch it again in binary", ErrDamaged)
	case h.grain < 8 || h.grain > vmdkGrainMax || h.grain&(h.grain-1) != 0:
		return h, fmt.Errorf("%w: grains of %d sectors", ErrDamaged, h.grain)
	case h.capacity > 1<<53:
		return h, fmt.Errorf("%w: a disk of %d sectors", ErrDamaged, h.capacity)
	case h.descriptorSize > vmdkDescriptorMax/sector:
		return h, fmt.Errorf("%w: a description of %d sectors", ErrDamaged, h.descriptorSize)
	}
	return h, nil
}

// size returns the disk's size in bytes.
func (h *vmdkHeader) size() int64 { return int64(h.capacity) * sector }

// checkVMDKDescriptor refuses a VMDK that needs another file.
func checkVMDKDescriptor(b []byte) error {
	text, _, _ := bytes.Cut(b, []byte{0})
	extents := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, isPair := strings.Cut(line, "=")
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.Trim(strings.TrimSpace(value), `"`)
		switch {
		case isPair && key == "parentcid" && strings.ToLower(value) != "ffffffff":
			return fmt.Errorf("%w: the VMDK holds what changed since a snapshot only: convert it with qemu-img convert -O qcow2, "+
				"beside the file it builds on", ErrUnsupported)
		case isPair && key == "createtype" && value != "monolithicSparse" && value != "streamOptimized":
			return fmt.Errorf("%w: a VMDK of type %q: convert it with qemu-img convert -O qcow2", ErrUnsupported, value)
		case strings.HasPrefix(line, "RW ") || strings.HasPrefix(line, "RDONLY ") || strings.HasPrefix(line, "NOACCESS "):
			extents++
		}
	}
	if extents > 1 {
		return fmt.Errorf("%w: the VMDK is in %d files: convert it with qemu-img convert -O qcow2", ErrUnsupported, extents)
	}
	return nil
}

// VMDKReader reads a VMDK that has its tables at the begin: monolithicSparse, or compressed as QEMU does it.
type VMDKReader struct {
	r    io.ReaderAt
	file int64 // bytes
	h    vmdkHeader
	buf  []byte
}

// OpenVMDK reads the header of a sparse VMDK that is size bytes long.
func OpenVMDK(r io.ReaderAt, size int64) (*VMDKReader, error) {
	b := make([]byte, vmdkHeaderSize)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, noEOF(err)
	}
	h, err := parseVMDKHeader(b)
	if err != nil {
		return nil, err
	}
	switch {
	case h.flags&vmdkCompressed != 0 && (h.flags&vmdkMarkers == 0 || h.compression != vmdkDeflate):
		return nil, fmt.Errorf("%w: a VMDK with the flags %#x and compression %d: convert it with qemu-img convert -O qcow2",
			ErrUnsupported, h.flags, h.compression)
	case h.tableEntries != vmdkTableEntries:
		return nil, fmt.Errorf("%w: tables of %d grains", ErrDamaged, h.tableEntries)
	}
	v := &VMDKReader{r: r, file: size, h: h}
	if h.descriptor > 0 && h.descriptorSize > 0 {
		d := make([]byte, h.descriptorSize*sector)
		if err := v.readAt(d, h.descriptor, 1); err != nil {
			return nil, fmt.Errorf("description: %w", err)
		}
		if err := checkVMDKDescriptor(d); err != nil {
			return nil, err
		}
	}
	n := v.tables() * 4
	if n > vmdkDirectoryMax || n > size {
		return nil, fmt.Errorf("%w: %d tables in a file of %d bytes", ErrDamaged, v.tables(), size)
	}
	return v, nil
}

// readAt fills b from a sector of the file, as the function readAt does.
func (v *VMDKReader) readAt(b []byte, at uint64, unit int64) error {
	if at > uint64(v.file)/sector {
		return fmt.Errorf("%w: data in sector %d of a file of %d bytes: is it incomplete?", ErrDamaged, at, v.file)
	}
	return readAt(v.r, v.file, b, int64(at)*sector, unit)
}

func (v *VMDKReader) tables() int64 {
	return divUp(v.h.size(), int64(v.h.grain)*sector*vmdkTableEntries)
}

// Size returns the disk's size in bytes.
func (v *VMDKReader) Size() int64 { return v.h.size() }

// CopyTo copies the disk.
func (v *VMDKReader) CopyTo(ctx context.Context, t Target, progress Progress) error {
	size := v.Size()
	if err := t.Resize(size); err != nil {
		return err
	}
	err := spread(ctx, func() func(grain) error { return grainWorker(&v.h, t) }, func(ctx context.Context, give func(grain) error) error {
		copyGrains := func(off int64, at uint64, n int64) error { return v.copyPlain(t, off, at, n) }
		if v.h.flags&vmdkCompressed != 0 {
			copyGrains = func(off int64, at uint64, _ int64) error { return v.givePacked(give, off, at) }
		}
		return v.walk(ctx, copyGrains, progress)
	})
	if err == nil {
		progress(size, size)
	}
	return err
}

// walk calls copyGrains for what the tables have: n adjacent grains at the sector at, for the disk's part at off.
func (v *VMDKReader) walk(ctx context.Context, copyGrains func(off int64, at uint64, n int64) error, progress Progress) error {
	size, le := v.Size(), binary.LittleEndian
	directory := make([]byte, v.tables()*4)
	if len(directory) > 0 {
		if err := v.readAt(directory, v.h.directory, 1); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
	}
	table := make([]byte, vmdkTableEntries*4)
	grain := int64(v.h.grain) * sector
	off := int64(0)
	for ; len(directory) > 0; directory = directory[4:] {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := le.Uint32(directory)
		if at == 0 {
			off += grain * vmdkTableEntries
			continue
		}
		if err := v.readAt(table, uint64(at), 1); err != nil {
			return fmt.Errorf("table of the disk's part at %d: %w", off, err)
		}
		for i := 0; i < vmdkTableEntries && off < size; {
			at := le.Uint32(table[4*i:])
			if at == 0 || at == 1 && v.h.flags&vmdkZeroGrains != 0 {
				i, off = i+1, off+grain
				continue
			}
			n := 1
			for v.h.flags&vmdkCompressed == 0 && i+n < vmdkTableEntries && int64(n+1)*grain <= vmdkRunMax &&
				uint64(le.Uint32(table[4*(i+n):])) == uint64(at)+uint64(n)*v.h.grain {
				n++
			}
			if err := copyGrains(off, uint64(at), int64(n)); err != nil {
				return err
			}
			i, off = i+n, off+int64(n)*grain
			progress(min(off, size), size)
		}
	}
	return nil
}

// copyPlain copies n grains that are not compressed.
func (v *VMDKReader) copyPlain(t Target, off int64, at uint64, n int64) error {
	grain := int64(v.h.grain) * sector
	if v.buf == nil {
		v.buf = make([]byte, max(vmdkRunMax, grain))
	}
	b := v.buf[:min(n*grain, v.Size()-off)]
	if err := v.readAt(b, at, grain); err != nil {
		return err
	}
	_, err := t.WriteAt(b, off)
	return err
}

// givePacked reads a compressed grain, which has a marker before it.
func (v *VMDKReader) givePacked(give func(grain) error, off int64, at uint64) error {
	m := make([]byte, vmdkMarkerSize)
	if err := v.readAt(m, at, 1); err != nil {
		return err
	}
	place, n, err := v.h.grainMarker(m)
	if err != nil {
		return err
	}
	if place != off {
		return fmt.Errorf("%w: the table's grain for the disk's part at %d is the one for %d", ErrDamaged, off, place)
	}
	packed := make([]byte, n)
	if err := readAt(v.r, v.file, packed, int64(at)*sector+vmdkMarkerSize, 1); err != nil {
		return err
	}
	return give(grain{at: off, packed: packed})
}

// grainMarker returns where in the disk the grain behind a marker belongs, and how many bytes it has.
func (h *vmdkHeader) grainMarker(m []byte) (off, n int64, err error) {
	// What does not shrink grows by a little.
	limit := int64(h.grain)*sector*2 + sector
	at, n := binary.LittleEndian.Uint64(m), int64(binary.LittleEndian.Uint32(m[8:]))
	if n == 0 || n > limit || at >= h.capacity || at%h.grain != 0 {
		return 0, 0, fmt.Errorf("%w: a grain of %d bytes for sector %d of %d", ErrDamaged, n, at, h.capacity)
	}
	return int64(at) * sector, n, nil
}

// grain is a compressed grain of a stream.
type grain struct {
	at     int64 // in the disk, bytes
	packed []byte
}

// CopyVMDKStream copies the disk of a streamOptimized VMDK, which is read up to the marker of its end, and returns the
// disk's size in bytes.
func CopyVMDKStream(ctx context.Context, r io.Reader, t Target) (int64, error) {
	b := make([]byte, vmdkHeaderSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, noEOF(err)
	}
	h, err := parseVMDKHeader(b)
	if err != nil {
		return 0, err
	}
	if h.flags&(vmdkCompressed|vmdkMarkers) != vmdkCompressed|vmdkMarkers || h.compression != vmdkDeflate || h.directory != vmdkAtEnd {
		return 0, fmt.Errorf("%w: a VMDK with the flags %#x and compression %d is no stream", ErrUnsupported, h.flags, h.compression)
	}
	if err := skipToGrains(r, &h); err != nil {
		return 0, err
	}
	if err := t.Resize(h.size()); err != nil {
		return 0, err
	}
	err = spread(ctx, func() func(grain) error { return grainWorker(&h, t) }, func(_ context.Context, give func(grain) error) error {
		return readGrains(r, &h, give)
	})
	return h.size(), err
}

// skipToGrains reads what comes between the header and the first marker, with the description.
func skipToGrains(r io.Reader, h *vmdkHeader) error {
	overhead := max(h.overhead, 1) - 1 // sectors that are left of it
	if h.descriptor == 0 || h.descriptorSize == 0 {
		return skip(r, overhead)
	}
	before := h.descriptor - 1
	if before > overhead || h.descriptorSize > overhead-before {
		return fmt.Errorf("%w: a description of %d sectors at %d, behind the header's %d", ErrDamaged, h.descriptorSize, h.descriptor, h.overhead)
	}
	if err := skip(r, before); err != nil {
		return err
	}
	d := make([]byte, h.descriptorSize*sector)
	if _, err := io.ReadFull(r, d); err != nil {
		return noEOF(err)
	}
	if err := checkVMDKDescriptor(d); err != nil {
		return err
	}
	return skip(r, overhead-before-h.descriptorSize)
}

// skip reads n sectors and forgets them.
func skip(r io.Reader, n uint64) error {
	if n > 1<<53 {
		return fmt.Errorf("%w: %d sectors of metadata", ErrDamaged, n)
	}
	_, err := io.CopyN(io.Discard, r, int64(n)*sector)
	return noEOF(err)
}

// readGrains gives the compressed grains of a stream.
func readGrains(r io.Reader, h *vmdkHeader, give func(grain) error) error {
	marker := make([]byte, sector)
	for {
		if _, err := io.ReadFull(r, marker); err != nil {
			return noEOF(err)
		}
		if binary.LittleEndian.Uint32(marker[8:]) == 0 {
			kind := binary.LittleEndian.Uint32(marker[12:])
			switch {
			case kind == vmdkMarkerEOS:
				return nil
			case kind > vmdkMarkerFooter:
				return fmt.Errorf("%w: a marker of type %d", ErrDamaged, kind)
			}
			// The tables of grains and the footer: a stream needs none of them.
			if err := skip(r, binary.LittleEndian.Uint64(marker)); err != nil {
				return err
			}
			continue
		}
		off, n, err := h.grainMarker(marker)
		if err != nil {
			return err
		}
		packed := make([]byte, divUp(vmdkMarkerSize+n, sector)*sector-vmdkMarkerSize)
		k := copy(packed, marker[vmdkMarkerSize:])
		if _, err := io.ReadFull(r, packed[k:]); err != nil {
			return noEOF(err)
		}
		if err := give(grain{at: off, packed: packed[:n]}); err != nil {
			return err
		}
	}
}

// grainWorker returns a function that unpacks and writes grains, with buffers of its own.
func grainWorker(h *vmdkHeader, t Target) func(grain) error {
	var src bytes.Reader
	var z io.ReadCloser
	var b []byte
	return func(g grain) error {
		if b == nil {
			b = make([]byte, h.grain*sector)
		}
		src.Reset(g.packed)
		var err error
		if z == nil {
			z, err = zlib.NewReader(&src)
		} else {
			err = z.(zlib.Resetter).Reset(&src, nil)
		}
		p := b[:min(int64(len(b)), h.size()-g.at)]
		if err == nil {
			_, err = io.ReadFull(z, p)
		}
		if err != nil {
			return fmt.Errorf("%w: the grain at %d: %w", ErrDamaged, g.at, noEOF(err))
		}
		_, err = t.WriteAt(p, g.at)
		return err
	}
}
