package blk

import (
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// Request types and status values, §5.2.6.
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK          = 0
	statusIOError     = 1
	statusUnsupported = 2

	statusPark = 0xff // ours: the guest is not answered, since the request waits for space
)

const (
	headerSize = 16
	rangeSize  = 16 // struct virtio_blk_discard_write_zeroes
	flagUnmap  = 1  // in its flags
	bounceSize = 64 << 10
)

// request is one request from the ring. It belongs to the queue's goroutine, but from go run until done to that one.
type request struct {
	d      *Device
	run    func() // r.slow: a method value of its own for each go statement would be an allocation
	q      *virtio.Queue
	chain  virtio.Chain
	kind   uint32
	sector uint64
	n      int    // bytes of data
	status byte   // once it is done
	err    error  // of statusPark
	bounce []byte // made when it is first needed, and kept
}

// parse takes the header. A request without room for header and status cannot be answered: the driver is broken.
func (r *request) parse() error {
	var h [headerSize]byte
	if _, err := r.chain.Read(h[:]); err != nil {
		return virtio.Protocolf("disk %s: a request without a whole header", r.d.cfg.Name)
	}
	if r.chain.Writable() == 0 {
		return virtio.Protocolf("disk %s: a request without a status byte", r.d.cfg.Name)
	}
	r.kind, r.sector = binary.LittleEndian.Uint32(h[0:]), binary.LittleEndian.Uint64(h[8:])
	switch r.kind {
	case typeIn, typeGetID:
		r.n = r.chain.Writable() - 1
	default:
		r.n = r.chain.Readable()
	}
	return nil
}

// quick does what needs no waiting, and returns the status if that was all.
func (r *request) quick() (status byte, ok bool) {
	d := r.d
	switch r.kind {
	case typeIn:
		if r.n > maxData || !d.inside(r.sector, uint64(r.n)) {
			return statusIOError, true
		}
		switch {
		case d.inMemory:
			return r.read(), true
		case d.cfg.Direct || d.noCached:
			return 0, false
		}
		k, err := r.chain.ReadCachedAt(d.fd, r.n, r.off())
		if unsupported(err) || errors.Is(err, unix.EINVAL) { // by this file system or kernel: it will never be
			d.noCached = true
		} // another error the ordinary read will tell
		return statusOK, k == r.n
	case typeOut:
		if d.cfg.ReadOnly || r.n > maxData || !d.inside(r.sector, uint64(r.n)) {
			return statusIOError, true
		}
		if d.cfg.Direct || d.through {
			return 0, false
		}
		return r.write(), true
	case typeFlush:
		return 0, false
	case typeGetID:
		_, _ = r.chain.Write(d.serial[:min(r.n, len(d.serial))])
		return statusOK, true
	case typeDiscard, typeWriteZeroes:
		if d.cfg.ReadOnly || r.n%rangeSize != 0 || r.n > maxRanges*rangeSize {
			return statusIOError, true
		}
		return 0, false
	default:
		return statusUnsupported, true
	}
}

// slow does the rest in a goroutine of its own.
func (r *request) slow() {
	d, q := r.d, r.q
	switch r.kind {
	case typeIn:
		r.status = r.read()
	case typeOut:
		r.status = r.write()
		if r.status == statusOK && d.through {
			if err := d.sync(); err != nil {
				r.status = r.fail("write", err)
			}
		}
	case typeFlush:
		r.status = d.flush()
	default:
		r.status = r.ranges()
	}
	d.done <- r // has room for all. r is no longer ours
	q.Kick()
}

// inside reports whether n bytes at sector are on the disk, in whole blocks.
func (d *Device) inside(sector, n uint64) bool {
	blocks, capacity := uint64(d.blockSize/SectorSize), d.capacity.Load()
	return n%uint64(d.blockSize) == 0 && sector%blocks == 0 && sector <= capacity && n/SectorSize <= capacity-sector
}

// off returns where in the file the request begins. inside has seen that it does not overflow.
func (r *request) off() int64 { return int64(r.sector) * SectorSize }

func (d *Device) sync() error {
	return ignoringEINTR(func() error { return unix.Fdatasync(d.fd) })
}

// flush is sync as a request. It is never done again: after an error the kernel takes what it could not write for written,
// so that the next sync would succeed with the data lost.
func (d *Device) flush() byte {
	if err := d.sync(); err != nil {
		return d.fail("flush", err)
	}
	return statusOK
}

// read reads what is left of the data: some may have been read from the page cache.
func (r *request) read() byte {
	d := r.d
	left := r.chain.Writable() - 1
	err := r.chain.ReadFileAt(d.fd, left, r.off()+int64(r.n-left))
	if d.cfg.Direct && errors.Is(err, unix.EINVAL) {
		err = r.bounceIn()
	}
	if err != nil {
		return d.fail("read", err)
	}
	return statusOK
}

// write writes what is left of the data.
func (r *request) write() byte {
	d := r.d
	left := r.chain.Readable()
	err := r.chain.WriteFileAt(d.fd, left, r.off()+int64(r.n-left))
	if d.cfg.Direct && errors.Is(err, unix.EINVAL) {
		err = r.bounceOut()
	}
	if err != nil {
		return r.fail("write", err)
	}
	return statusOK
}

// fail is what becomes of a request that changes the disk and met with err: it waits for space, if that is what lacks and
// somebody is there to be told, or the guest hears of an error. To do all of it again is as good as to do the rest.
func (r *request) fail(what string, err error) byte {
	if r.d.cfg.Full != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		r.err = err
		return statusPark
	}
	return r.d.fail(what, err)
}

// bounceIn reads through a buffer of our own: firmware and boot loaders have some that direct I/O does not take.
func (r *request) bounceIn() error {
	for left := r.chain.Writable() - 1; left > 0; left = r.chain.Writable() - 1 {
		b := r.buffer(left)
		if err := whole(unix.Pread, r.d.fd, b, r.off()+int64(r.n-left)); err != nil {
			return err
		}
		if _, err := r.chain.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// bounceOut does the same for writes.
func (r *request) bounceOut() error {
	for left := r.chain.Readable(); left > 0; left = r.chain.Readable() {
		b := r.buffer(left)
		if _, err := r.chain.Read(b); err != nil {
			return err
		}
		if err := whole(unix.Pwrite, r.d.fd, b, r.off()+int64(r.n-left)); err != nil {
			return err
		}
	}
	return nil
}

// buffer returns up to n bytes of the request's own buffer. Go aligns what is this large to its pages, of 8 KiB.
func (r *request) buffer(n int) []byte {
	if r.bounce == nil {
		r.bounce = make([]byte, bounceSize)
	}
	return r.bounce[:min(n, bounceSize)]
}

// whole reads or writes all of b.
func whole(call func(int, []byte, int64) (int, error), fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := call(fd, b, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			b, off = b[n:], off+int64(n)
		}
	}
	return nil
}

// ranges discards or zeroes the ranges of a request, one by one: those before a wrong one stay done.
func (r *request) ranges() byte {
	d := r.d
	for range r.n / rangeSize {
		var b [rangeSize]byte
		if _, err := r.chain.Read(b[:]); err != nil {
			return d.fail("discard", err)
		}
		sector, n := binary.LittleEndian.Uint64(b[0:]), uint64(binary.LittleEndian.Uint32(b[8:]))
		flags := binary.LittleEndian.Uint32(b[12:])
		if flags&^flagUnmap != 0 || r.kind == typeDiscard && flags != 0 {
			return statusUnsupported
		}
		if n > maxSectors || !d.inside(sector, n*SectorSize) {
			return statusIOError
		}
		if n == 0 {
			continue
		}
		var err error
		if off, size := int64(sector)*SectorSize, int64(n)*SectorSize; r.kind == typeDiscard {
			err = d.discard(off, size)
		} else {
			err = r.zero(off, size, flags&flagUnmap != 0)
		}
		if err != nil {
			return r.fail("discard or write zeroes", err)
		}
	}
	return statusOK
}

// discard tells the file that the guest does not need a range any more. That is a hint: where the host cannot, it is done.
func (d *Device) discard(off, n int64) error {
	var err error
	if d.isBlock {
		err = blkDiscard(d.fd, uint64(off), uint64(n))
	} else {
		err = fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE, off, n)
	}
	if unsupported(err) {
		return nil
	}
	return err
}

// zero makes a range read as zeros, in a hole if unmap allows it. fallocate does it for files and block devices.
func (r *request) zero(off, n int64, unmap bool) error {
	err := error(unix.EOPNOTSUPP)
	if unmap {
		err = fallocate(r.d.fd, unix.FALLOC_FL_PUNCH_HOLE, off, n)
	}
	if unsupported(err) {
		err = fallocate(r.d.fd, unix.FALLOC_FL_ZERO_RANGE, off, n)
	}
	if unsupported(err) {
		return r.overwrite(off, n)
	}
	return err
}

// overwrite writes zeros, for file systems that know no better way.
func (r *request) overwrite(off, n int64) error {
	b := r.buffer(bounceSize)
	clear(b)
	for n > 0 {
		k := min(n, bounceSize)
		if err := whole(unix.Pwrite, r.d.fd, b[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func fallocate(fd int, mode uint32, off, n int64) error {
	return ignoringEINTR(func() error { return unix.Fallocate(fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n) })
}

// unsupported reports whether err says that the file or its driver does not know the operation.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOSYS)
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
