package mem

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// Progress is told how far a long operation is, in bytes of guest memory. It is called about once per MiB, from the
// goroutine that runs the operation; nil is allowed.
type Progress func(done, total uint64)

// SaveFile writes the memory to path, replacing what is there only once the new file is whole and on disk. It may replace
// the file that the memory was restored from: the old one stays mapped. See Save.
func (m *Memory) SaveFile(ctx context.Context, path string, id [16]byte, progress Progress) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("save guest memory: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = m.Save(ctx, f, id, progress)
	if e := f.Close(); err == nil && e != nil {
		err = fmt.Errorf("save guest memory: %w", e)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("save guest memory: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("save guest memory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("save guest memory: %w", err)
	}
	return nil
}

// Save writes the memory to f, which must be empty, as the RAM of snapshot id, and syncs it to disk. Pages of zeros
// become holes. Nothing may write to the memory meanwhile: the guest is paused. A lazily restored memory is filled
// first. On error, f holds nothing of use.
func (m *Memory) Save(ctx context.Context, f *os.File, id [16]byte, progress Progress) error {
	if err := m.WaitFilled(ctx); err != nil {
		return fmt.Errorf("save guest memory: %w", err)
	}
	h := &header{id: id, size: m.Size()}
	for _, r := range m.regions {
		h.ranges = append(h.ranges, Range{Base: r.Base, Size: uint64(len(r.Bytes))})
	}
	if _, err := check(h.ranges); err != nil {
		return fmt.Errorf("save guest memory: %w", err)
	}
	// Its full size first, so that what is not written is a hole.
	if err := f.Truncate(h.fileSize()); err != nil {
		return fmt.Errorf("save guest memory: %w", err)
	}
	w := &imageWriter{f: f, total: h.size, table: make([]byte, 0, 4*h.chunks()), progress: progress}
	for i := range m.regions {
		if err := w.region(ctx, m.backing, &m.regions[i]); err != nil {
			return fmt.Errorf("save guest memory to %s: %w", f.Name(), err)
		}
	}
	w.endChunk()
	h.table = crc32.Checksum(w.table, castagnoli())
	_, err := f.WriteAt(w.table, h.tableOff())
	if err == nil {
		_, err = f.WriteAt(h.encode(), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("save guest memory: %w", err)
	}
	return nil
}

// imageWriter writes an image from its first byte to its last.
type imageWriter struct {
	f        *os.File
	done     uint64 // bytes of the image so far
	total    uint64
	sum      uint32 // of the chunk that done lies in
	table    []byte // of the chunks before it
	progress Progress
	zeros    zeros
}

func (w *imageWriter) region(ctx context.Context, b backing, r *Region) error {
	for off, size := int64(0), int64(len(r.Bytes)); off < size; {
		start, end, err := b.data(r, off)
		if err != nil {
			return err
		}
		if err := w.hole(ctx, uint64(start-off)); err != nil {
			return err
		}
		// Files hold data in blocks of their own; what matters here are pages.
		if err := w.data(ctx, r.Bytes[start:end]); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// hole passes n bytes of zeros.
func (w *imageWriter) hole(ctx context.Context, n uint64) error {
	for n > 0 {
		k := min(n, w.left())
		w.sum = w.zeros.update(w.sum, k)
		if err := w.advance(ctx, k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// data writes p, leaving out its pages of zeros.
func (w *imageWriter) data(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		chunk := p[:min(uint64(len(p)), w.left())]
		w.sum = crc32.Update(w.sum, castagnoli(), chunk)
		if err := w.pages(chunk); err != nil {
			return err
		}
		if err := w.advance(ctx, uint64(len(chunk))); err != nil {
			return err
		}
		p = p[len(chunk):]
	}
	return nil
}

// pages writes the runs of pages in p that are not zero, each at once.
func (w *imageWriter) pages(p []byte) error {
	run := -1 // where the current run began
	for i := 0; i <= len(p); i += PageSize {
		if i < len(p) && !w.zeros.is(p[i:i+PageSize]) {
			if run < 0 {
				run = i
			}
		} else if run >= 0 {
			if _, err := w.f.WriteAt(p[run:i], PageSize+int64(w.done)+int64(run)); err != nil {
				return err
			}
			run = -1
		}
	}
	return nil
}

// left returns how many bytes the current chunk still lacks.
func (w *imageWriter) left() uint64 { return chunkSize - w.done%chunkSize }

func (w *imageWriter) advance(ctx context.Context, n uint64) error {
	w.done += n
	if w.done%chunkSize == 0 {
		w.endChunk()
	}
	return ctx.Err()
}

func (w *imageWriter) endChunk() {
	if len(w.table) == cap(w.table) {
		return
	}
	w.table = binary.LittleEndian.AppendUint32(w.table, w.sum)
	w.sum = 0
	if w.progress != nil {
		w.progress(w.done, w.total)
	}
}

// zeros knows pages of zeros and their checksums.
type zeros struct {
	page  [PageSize]byte // stays zero
	chunk uint32         // checksum of a whole chunk, once known
	known bool
}

func (z *zeros) is(page []byte) bool { return page[0] == 0 && bytes.Equal(page, z.page[:]) }

// update is crc32.Update with n zeros, a multiple of PageSize and at most chunkSize.
func (z *zeros) update(sum uint32, n uint64) uint32 {
	whole := sum == 0 && n == chunkSize
	if whole && z.known {
		return z.chunk
	}
	for ; n > 0; n -= PageSize {
		sum = crc32.Update(sum, castagnoli(), z.page[:])
	}
	if whole {
		z.chunk, z.known = sum, true
	}
	return sum
}

// VerifyFile reads all of the RAM file at path, which must be of snapshot id, and compares it with its checksums. The error
// is ErrForeign, ErrNewer, ErrTruncated, ErrDamaged (it names the first guest-physical address that may be wrong), or the
// context's.
func VerifyFile(ctx context.Context, path string, id [16]byte, progress Progress) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("RAM file: %w", err)
	}
	defer f.Close()
	h, err := readHeader(f)
	if err != nil {
		return err
	}
	if err := h.isOf(f, id); err != nil {
		return err
	}
	table := make([]byte, 4*h.chunks())
	if _, err := f.ReadAt(table, h.tableOff()); err != nil {
		return fmt.Errorf("RAM file %s: checksums: %w (%w)", path, ErrDamaged, err)
	}
	if crc32.Checksum(table, castagnoli()) != h.table {
		return fmt.Errorf("RAM file %s: checksums: %w", path, ErrDamaged)
	}
	buf := make([]byte, chunkSize)
	var z zeros
	for i := range h.chunks() {
		at := i * chunkSize
		n := min(chunkSize, int64(h.size)-at)
		start, _, err := nextData(f, PageSize+at, PageSize+at+n)
		if err != nil {
			return fmt.Errorf("RAM file %s: %w", path, err)
		}
		var sum uint32
		if start == PageSize+at+n {
			sum = z.update(0, uint64(n))
		} else if _, err := f.ReadAt(buf[:n], PageSize+at); err != nil {
			return fmt.Errorf("RAM file %s: memory at %#x: %w (%w)", path, h.gpa(at), ErrDamaged, err)
		} else {
			sum = crc32.Checksum(buf[:n], castagnoli())
		}
		if sum != binary.LittleEndian.Uint32(table[4*i:]) {
			return fmt.Errorf("RAM file %s: memory at %#x to %#x: %w", path, h.gpa(at), h.gpa(at+n-1), ErrDamaged)
		}
		if progress != nil {
			progress(uint64(at+n), h.size)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// gpa returns the guest-physical address of offset off in the image.
func (h *header) gpa(off int64) GPA {
	for _, r := range h.ranges {
		if uint64(off) < r.Size {
			return r.Base + GPA(off)
		}
		off -= int64(r.Size)
	}
	return 0
}
