package virtio

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// Descriptor flags, virtio 1.2 §2.7.5.
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	descSize     = 16
)

// MaxChain is the largest number of descriptors in one chain, indirect ones included. A driver may not make a chain
// longer than its queue (§2.7.5.3.1), and no queue of ours is longer than this.
const MaxChain = MaxQueueSize

// maxIOV is the kernel's limit for one vector (UIO_MAXIOV). A chain has more pieces if regions of memory split some.
const maxIOV = 1024

// ErrShort reports that a chain has fewer bytes than were asked for.
var ErrShort = errors.New("descriptor chain is too short")

// Chain is one descriptor chain: bytes to read from the driver, then bytes to write for it. Both are consumed from the
// front. The slices alias guest memory, which the guest may change meanwhile: what is validated is read once. A Chain's
// storage is reused by Next, so that a warm queue allocates nothing.
type Chain struct {
	head    uint16
	written uint32
	last    bool     // WriteLast was called
	out, in [][]byte // what is left of the device-readable and the device-writable part
	nout    int      // bytes in out
	nin     int      // bytes in in

	outBuf, inBuf [][]byte // the storage of out and in
	iov           []unix.Iovec
}

// Head returns the number of the chain's first descriptor, by which the driver knows it.
func (c *Chain) Head() uint16 { return c.head }

// Readable returns how many bytes of the device-readable part are left.
func (c *Chain) Readable() int { return c.nout }

// Writable returns how many bytes of the device-writable part are left.
func (c *Chain) Writable() int { return c.nin }

// Written returns how many bytes at the front of the device-writable part were written. This is what the driver is told:
// a status byte behind data that was not all written does not count (§2.7.8.2).
func (c *Chain) Written() int { return int(c.used()) }

func (c *Chain) used() uint32 {
	if c.last && c.nin == 0 {
		return c.written + 1
	}
	return c.written
}

// Read copies the next bytes of the device-readable part into p. Unlike most readers it fills p, or returns ErrShort and
// how much there was; at the end it returns io.EOF.
func (c *Chain) Read(p []byte) (int, error) {
	if c.nout == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && len(c.out) > 0 {
		k := copy(p[n:], c.out[0])
		c.out, n = trim(c.out, k), n+k
	}
	c.nout -= n
	if n < len(p) {
		return n, ErrShort
	}
	return n, nil
}

// Write copies p to the next bytes of the device-writable part, or as much as fits and returns ErrShort.
func (c *Chain) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) && len(c.in) > 0 {
		k := copy(c.in[0], p[n:])
		c.in, n = trim(c.in, k), n+k
	}
	c.nin -= n
	c.written += uint32(n)
	if n < len(p) {
		return n, ErrShort
	}
	return n, nil
}

// NextReadable returns the next contiguous piece of the device-readable part, at most limit bytes, and consumes it. The
// slice aliases guest memory; it is empty at the end.
func (c *Chain) NextReadable(limit int) []byte {
	if len(c.out) == 0 {
		return nil
	}
	b := c.out[0][:min(limit, len(c.out[0]))]
	c.out = trim(c.out, len(b))
	c.nout -= len(b)
	return b
}

// NextWritable does the same for the device-writable part. The bytes count as written.
func (c *Chain) NextWritable(limit int) []byte {
	if len(c.in) == 0 {
		return nil
	}
	b := c.in[0][:min(limit, len(c.in[0]))]
	c.in = trim(c.in, len(b))
	c.nin -= len(b)
	c.written += uint32(len(b))
	return b
}

// trim drops the first n bytes of v, n being at most the length of v[0].
func trim(v [][]byte, n int) [][]byte {
	v[0] = v[0][n:]
	if len(v[0]) == 0 {
		return v[1:]
	}
	return v
}

// WriteLast writes b to the last byte of the device-writable part and takes it from there, as the status of a request
// that comes after its data, written before or after it.
func (c *Chain) WriteLast(b byte) error {
	if c.nin == 0 {
		return ErrShort
	}
	last := &c.in[len(c.in)-1]
	(*last)[len(*last)-1] = b
	if *last = (*last)[:len(*last)-1]; len(*last) == 0 {
		c.in = c.in[:len(c.in)-1]
	}
	c.nin--
	c.last = true
	return nil
}

// IOVWritable returns the next n bytes of the device-writable part as an I/O vector, without consuming them: call
// AdvanceWritable with what was used. It is shorter if there is less, or if the kernel would not take so many pieces at
// once. The vector is valid until the next call on c.
func (c *Chain) IOVWritable(n int) []unix.Iovec { return c.vector(c.in, n) }

// IOVReadable does the same for the device-readable part.
func (c *Chain) IOVReadable(n int) []unix.Iovec { return c.vector(c.out, n) }

func (c *Chain) vector(v [][]byte, n int) []unix.Iovec {
	c.iov = c.iov[:0]
	for _, b := range v {
		if n <= 0 || len(c.iov) == maxIOV {
			break
		}
		k := min(n, len(b))
		iov := unix.Iovec{Base: &b[0]}
		iov.SetLen(k)
		c.iov = append(c.iov, iov)
		n -= k
	}
	return c.iov
}

// AdvanceWritable consumes n bytes of the device-writable part, which count as written.
func (c *Chain) AdvanceWritable(n int) {
	n = min(n, c.nin)
	for n > 0 {
		n -= len(c.NextWritable(n))
	}
}

// AdvanceReadable consumes n bytes of the device-readable part.
func (c *Chain) AdvanceReadable(n int) {
	n = min(n, c.nout)
	for n > 0 {
		n -= len(c.NextReadable(n))
	}
}

// ReadFileAt reads n bytes of the file fd at off straight into the device-writable part. The end of the file before that
// is io.ErrUnexpectedEOF.
func (c *Chain) ReadFileAt(fd int, n int, off int64) error {
	for n > 0 {
		k, err := vectored(unix.SYS_PREADV, fd, c.IOVWritable(n), off)
		if err != nil {
			return os.NewSyscallError("preadv", err)
		}
		if k == 0 {
			return io.ErrUnexpectedEOF
		}
		c.AdvanceWritable(k)
		n, off = n-k, off+int64(k)
	}
	return nil
}

// ReadCachedAt is ReadFileAt for what needs no waiting: it reads up to n bytes that the page cache holds and returns how
// many there were.
func (c *Chain) ReadCachedAt(fd int, n int, off int64) (int, error) {
	iov := c.IOVWritable(n)
	if len(iov) == 0 {
		return 0, nil
	}
	k, _, errno := rawVectored(unix.SYS_PREADV2, fd, iov, off, unix.RWF_NOWAIT)
	switch errno {
	case 0:
		c.AdvanceWritable(k)
		return k, nil
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	default:
		return 0, os.NewSyscallError("preadv2", errno)
	}
}

// WriteFileAt writes the next n bytes of the device-readable part to the file fd at off.
func (c *Chain) WriteFileAt(fd int, n int, off int64) error {
	for n > 0 {
		k, err := vectored(unix.SYS_PWRITEV, fd, c.IOVReadable(n), off)
		if err != nil {
			return os.NewSyscallError("pwritev", err)
		}
		if k == 0 {
			return io.ErrShortWrite
		}
		c.AdvanceReadable(k)
		n, off = n-k, off+int64(k)
	}
	return nil
}

// IsProtocol reports whether err says that the driver broke the rules.
func IsProtocol(err error) bool {
	var p *ErrProtocol
	return errors.As(err, &p)
}

// reset empties c for a new chain.
func (c *Chain) reset(head uint16) {
	c.head, c.written, c.last, c.nout, c.nin = head, 0, false, 0, 0
	c.outBuf, c.inBuf = c.outBuf[:0], c.inBuf[:0]
}

// walk follows the chain from head. Each descriptor is copied once. A chain of more than MaxChain descriptors, which a
// loop is, is refused; so are an address outside memory, a readable descriptor after a writable one, a nested indirect
// table and more than 4 GiB in one direction.
func (q *Queue) walk(head uint16, c *Chain) error {
	c.reset(head)
	table, n := q.desc, int(q.cfg.Size)
	i, indirect := int(head), false
	for range MaxChain {
		if i >= n {
			return Protocolf("queue %d: descriptor %d of a table of %d", q.index, i, n)
		}
		d := table[i*descSize:]
		addr := mem.GPA(binary.LittleEndian.Uint64(d))
		// One load for length, flags and next: the guest cannot change one of them between two looks.
		rest := binary.LittleEndian.Uint64(d[8:])
		length, flags, next := uint32(rest), uint16(rest>>32), uint16(rest>>48)
		if flags&descIndirect != 0 {
			if !q.indirect || indirect || flags&descNext != 0 || length == 0 || length%descSize != 0 || length/descSize > 1<<15 {
				return Protocolf("queue %d: indirect descriptor %d (flags %#x, %d bytes)", q.index, i, flags, length)
			}
			t, err := q.mem.Slice(addr, int(length))
			if err != nil {
				return Protocolf("queue %d: indirect table at %#x: %v", q.index, addr, err)
			}
			table, n, i, indirect = t, int(length/descSize), 0, true
			continue
		}
		if err := q.add(c, addr, length, flags&descWrite != 0); err != nil {
			return err
		}
		if flags&descNext == 0 {
			c.out, c.in = c.outBuf, c.inBuf
			return nil
		}
		i = int(next)
	}
	return Protocolf("queue %d: chain at %d has more than %d descriptors or a loop", q.index, head, MaxChain)
}

// add appends a descriptor's bytes to c, in as many pieces as memory regions hold them.
func (q *Queue) add(c *Chain, addr mem.GPA, length uint32, write bool) error {
	list, total := &c.outBuf, &c.nout
	if write {
		list, total = &c.inBuf, &c.nin
	} else if c.nin > 0 {
		return Protocolf("queue %d: a device-readable descriptor after a device-writable one", q.index)
	}
	if int64(*total)+int64(length) > 1<<32-1 {
		return Protocolf("queue %d: a chain of more than 4 GiB", q.index)
	}
	for left := int(length); left > 0; {
		b, err := q.mem.Piece(addr, left)
		if err != nil {
			return Protocolf("queue %d: descriptor for %d bytes at %#x: %v", q.index, length, addr, err)
		}
		*list = append(*list, b)
		*total += len(b)
		left, addr = left-len(b), addr+mem.GPA(len(b))
	}
	return nil
}

// vectored calls preadv or pwritev, again when a signal interrupts it. It goes through the blocking kind of system call: a
// disk may be slow.
func vectored(trap uintptr, fd int, iov []unix.Iovec, off int64) (int, error) {
	if len(iov) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := rawVectored(trap, fd, iov, off, 0)
		switch errno {
		case 0:
			return n, nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
