// Package powercut is a disk whose power is cut: a block device in memory, served over NBD, that keeps what was written and not
// flushed in a cache as real disks do, and loses of it at a cut what a real one might.
//
// To kill the emulator of a machine is no power cut: what the machine had written, and not synced, survives in the page cache of
// the host. With this disk it does not.
package powercut

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
)

// BlockSize is what such a disk writes as a whole or not at all, in bytes: that of the physical sectors of today's disks.
const BlockSize = 4096

type block = [BlockSize]byte

// Disk is a disk. Its methods may be called from any goroutine.
type Disk struct {
	size int64

	mu     sync.Mutex
	stable map[int64]*block   // what is there after a cut, by number; a block that is missing is zeroes
	cache  map[int64][]*block // what was written since the last flush, the oldest first
}

// Load returns a disk with the content of a file, a multiple of BlockSize. Its holes take no memory.
func Load(path string) (*Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d := &Disk{stable: make(map[int64]*block), cache: make(map[int64][]*block)}
	for {
		b := new(block)
		n, err := io.ReadFull(f, b[:])
		switch {
		case err == io.EOF:
			return d, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %d bytes beyond the last block: %w", path, n, err)
		}
		if *b != (block{}) {
			d.stable[d.size/BlockSize] = b
		}
		d.size += BlockSize
	}
}

// Size returns the disk's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// newest returns a block as it is read; nil is zeroes.
func (d *Disk) newest(n int64) *block {
	if c := d.cache[n]; len(c) > 0 {
		return c[len(c)-1]
	}
	return d.stable[n]
}

// each calls f for the part of p that lies in each block.
func (d *Disk) each(p []byte, off int64, f func(n int64, at int, part []byte)) error {
	if off < 0 || off > d.size || int64(len(p)) > d.size-off {
		return fmt.Errorf("%d bytes at %d of a disk of %d", len(p), off, d.size)
	}
	for len(p) > 0 {
		at := int(off % BlockSize)
		part := p[:min(len(p), BlockSize-at)]
		f(off/BlockSize, at, part)
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// ReadAt implements io.ReaderAt, within the disk.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.each(p, off, func(n int64, at int, part []byte) {
		if b := d.newest(n); b != nil {
			copy(part, b[at:])
		} else {
			clear(part)
		}
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt implements io.WriterAt, within the disk. What it writes may be lost until Flush.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) { return d.write(p, off, false) }

// write writes to the cache, or past it.
func (d *Disk) write(p []byte, off int64, through bool) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.each(p, off, func(n int64, at int, part []byte) {
		b := new(block)
		if old := d.newest(n); old != nil {
			*b = *old
		}
		copy(b[at:], part)
		if through {
			d.stable[n] = b
			delete(d.cache, n)
		} else {
			d.cache[n] = append(d.cache[n], b)
		}
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush makes all that was written survive.
func (d *Disk) Flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n, versions := range d.cache {
		d.stable[n] = versions[len(versions)-1]
	}
	clear(d.cache)
}

// Cut cuts the power. Of each block that was written since the last flush one of the versions that it has had is there
// afterwards, independently of all others, as rnd has it; how many of them are lost is another for each cut, from all to none. It
// returns how many blocks had been written and how many of these are not as they were written last.
func (d *Disk) Cut(rnd *rand.Rand) (written, lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	keep := min(1, max(0, 1.5*rnd.Float64()-0.25))
	for _, n := range slices.Sorted(maps.Keys(d.cache)) { // in an order, so that the same seed does the same
		versions := d.cache[n]
		last := len(versions) - 1
		for last >= 0 && rnd.Float64() >= keep {
			last--
		}
		if last >= 0 {
			d.stable[n] = versions[last]
		}
		if last < len(versions)-1 {
			lost++
		}
	}
	written = len(d.cache)
	clear(d.cache)
	return written, lost
}
