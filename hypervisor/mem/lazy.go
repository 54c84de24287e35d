package mem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// LazyOptions changes how Lazy works. The zero value is right for a process with CAP_SYS_PTRACE.
type LazyOptions struct {
	// Device is /dev/userfaultfd, opened by somebody who may: a jailed process needs no privilege then. It stays the
	// caller's.
	Device *os.File
	// Failed is called, once and from any goroutine, when part of the file cannot be read. The guest cannot go on: a vCPU
	// that needs that part sees KVM_RUN fail with EFAULT, Slice fails with ErrDamaged. It must return soon and not call
	// Close.
	Failed func(error)

	onDemand bool // do not read ahead: for tests
}

// Lazy returns the memory that f, a RAM file of snapshot id, holds, in a memfd as from Alloc. The file is read in the
// background and, first of all, where it is needed. Other processes may be given the memfd after WaitFilled. want, the
// errors, and who owns f are as with MapPrivate. Until WaitFilled returns, only Slice, ReadAt and WriteAt may be used to
// reach the bytes, not Region.Bytes, save for its address.
func Lazy(f *os.File, id [16]byte, want []Range, opt LazyOptions) (*Memory, error) {
	h, err := openImage(f, id, want)
	if err != nil {
		return nil, err
	}
	m, err := Alloc(h.ranges, AllocOptions{})
	if err != nil {
		return nil, err
	}
	b := m.backing.(*memfd)
	fl := &filler{
		file:   f,
		dst:    b.image,
		blocks: make([]atomic.Uint32, (h.size+blockSize-1)/blockSize),
		failed: opt.Failed,
		quit:   make(chan struct{}),
		filled: make(chan struct{}),
		ended:  make(chan struct{}),
	}
	if fl.src, err = unix.Mmap(int(f.Fd()), PageSize, int(h.size), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_NORESERVE); err != nil {
		return nil, errors.Join(fmt.Errorf("map RAM file %s: %w", f.Name(), err), m.Close())
	}
	if fl.uffd, err = newUffd(opt.Device); err == nil {
		if err = fl.uffd.register(fl.dst); err != nil {
			err = errors.Join(err, fl.uffd.close())
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore RAM lazily: %w", err), unix.Munmap(fl.src), m.Close())
	}
	m.backing = &lazy{memfd: b, filler: fl}
	m.filling.Store(fl)
	go fl.run(&m.filling, !opt.onDemand)
	return m, nil
}

// lazy is the backing of memory that is, or was, filled from a file.
type lazy struct {
	*memfd
	filler *filler
}

func (b *lazy) discard(p []byte) error {
	if ok, err := b.filler.release(p); !ok || err != nil {
		return err
	}
	return b.memfd.discard(p)
}

func (b *lazy) close() error {
	<-b.filler.ended // Close has stopped it, or it has nothing left to do
	return b.memfd.close()
}

// blockSize is how much of the file is read at once, in bytes.
const blockSize = 64 << 10

// States of a block. A page of a block that is not missing never raises a userfault.
const (
	blockMissing = iota
	blockFilled
	blockFailed // mapped without access
)

// maxReleased bounds the pieces that discards may cut the mapping into: the kernel allows 65,530 per process.
const maxReleased = 4096

// A filler fills a memory from a file, block by block, each once. Three sides ask for blocks:
//
//   - serve, for faults that the kernel takes on the guest's behalf (KVM_RUN, vhost);
//   - need, for accesses of our own, before they happen. They must not fault: the Go runtime does not see that a thread
//     hangs in a page fault, so as many of them as there are Ps, or one beside a garbage collection that waits for it,
//     would keep serve from ever running;
//   - prefetch, for the rest.
//
// When all is filled the mapping becomes ordinary memory, and the filler ends.
type filler struct {
	file   *os.File
	src    []byte // the file's image, mapped to be read; only the kernel touches it, which reports damage as EFAULT
	dst    []byte // the memory
	uffd   *uffd
	failed func(error)

	blocks []atomic.Uint32
	locks  [64]sync.Mutex // held while filling a block: locks[block%64]

	mu       sync.Mutex // guards all below
	released int        // pieces given up by release
	over     bool       // the mapping is ordinary memory
	err      error      // the first failure; set before a block becomes blockFailed

	quit   chan struct{} // closed by stop
	filled chan struct{} // closed when all is filled or something has failed
	ended  chan struct{} // closed when no goroutine is left

	reports sync.WaitGroup // calls of failed
}

// stop ends the filler, whether the memory is filled or not, and returns when it has ended.
func (f *filler) stop() {
	close(f.quit)
	<-f.ended
}

func (f *filler) wait(ctx context.Context) error {
	select {
	case <-f.filled:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run owns the goroutines. It clears current once the memory is filled.
func (f *filler) run(current *atomic.Pointer[filler], readAhead bool) {
	defer close(f.ended)
	served := make(chan struct{})
	go func() {
		defer close(served)
		f.serve()
	}()
	if readAhead && f.prefetch() && f.finish() {
		current.Store(nil)
	} else {
		// Stopped, failed, or not to read ahead: faults are served until Close.
		<-f.quit
	}
	f.uffd.interrupt()
	<-served
	// Nobody fills any more: all blocks are filled, or Close is running.
	f.uffd.close()
	unix.Munmap(f.src)
	f.file.Close()
	f.reports.Wait()
	if f.over {
		close(f.filled)
	}
}

// prefetch fills all blocks that hold data and reports whether it could. It returns early when told to stop.
func (f *filler) prefetch() bool {
	done := make(chan bool)
	go func() {
		// A thread of low priority, so that it delays no vCPU. Ending while locked, it takes the thread with it.
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 10) // a wish: a jail may refuse it
		done <- f.fillAll()
	}()
	return <-done
}

func (f *filler) fillAll() bool {
	for off, size := int64(0), int64(len(f.dst)); off < size; {
		start, end, err := nextData(f.file, PageSize+off, PageSize+size)
		if err != nil {
			f.fail(f.damaged(off, err))
			return false
		}
		for b := (start - PageSize) / blockSize; b*blockSize < end-PageSize; b++ {
			select {
			case <-f.quit:
				return false
			default:
			}
			if f.fill(int(b)) != nil {
				return false
			}
		}
		off = end - PageSize
	}
	return true
}

// finish makes the mapping ordinary memory, unless something has failed; what is still missing are holes, which it fills
// with zeros by itself.
func (f *filler) finish() bool {
	if err := f.leave(); err != nil {
		f.fail(err)
		return false
	}
	for i := range f.locks {
		f.locks[i].Lock()
		for b := i; b < len(f.blocks); b += len(f.locks) {
			f.blocks[b].CompareAndSwap(blockMissing, blockFilled)
		}
		f.locks[i].Unlock()
	}
	return true
}

func (f *filler) leave() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if err := f.uffd.unregister(f.dst); err != nil {
		return fmt.Errorf("restore RAM lazily: userfaultfd: unregister: %w", err)
	}
	f.over = true
	return nil
}

// serve answers the faults of the kernel until interrupted.
func (f *filler) serve() {
	var faults [16]uintptr
	base := address(f.dst)
	for {
		n, err := f.uffd.faults(faults[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			f.fail(fmt.Errorf("restore RAM lazily: %w", err))
			return
		}
		for _, at := range faults[:n] {
			off := int(at-base) &^ (PageSize - 1)
			_ = f.fill(off / blockSize) // a failure has been reported, and the faulting thread shall see it
			// If the block was filled between the fault and now, nobody has woken the thread.
			_ = f.uffd.wake(f.dst[off : off+PageSize])
		}
	}
}

// need makes sure that n bytes at off are in memory. The error is what kept one of them out.
func (f *filler) need(off, n uint64) error {
	for b := off / blockSize; b*blockSize < off+n; b++ {
		if f.blocks[b].Load() == blockFilled {
			continue
		}
		if err := f.fill(int(b)); err != nil {
			return err
		}
	}
	return nil
}

// fill fills a block, unless that has been done.
func (f *filler) fill(block int) error {
	lock := &f.locks[block%len(f.locks)]
	lock.Lock()
	defer lock.Unlock()
	switch f.blocks[block].Load() {
	case blockFilled:
		return nil
	case blockFailed:
		return f.failure()
	}
	off := block * blockSize
	end := min(off+blockSize, len(f.dst))
	dst := f.dst[off:end]
	start, _, err := nextData(f.file, PageSize+int64(off), PageSize+int64(end))
	switch {
	case err == nil && start == PageSize+int64(end):
		err = f.uffd.zero(dst)
	case err == nil:
		err = f.uffd.copy(dst, f.src[off:end])
	}
	if err == nil {
		f.blocks[block].Store(blockFilled)
		return nil
	}
	f.fail(f.damaged(int64(off), err))
	// Without access, whoever needs the block gets EFAULT. Zeros would let the guest go on and write its disks; a poisoned
	// page would have KVM kill this process.
	_ = unix.Mprotect(dst, unix.PROT_NONE)
	f.blocks[block].Store(blockFailed)
	_ = f.uffd.wake(dst)
	return f.failure()
}

func (f *filler) damaged(off int64, err error) error {
	return fmt.Errorf("RAM file %s: at %#x: %w (%w)", f.file.Name(), PageSize+off, ErrDamaged, err)
}

func (f *filler) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// fail records the first failure and tells who wants to know. It is called before anybody can see the failed block.
func (f *filler) fail(err error) {
	f.mu.Lock()
	first := f.err == nil && !f.over
	if first {
		f.err = err
		close(f.filled)
	}
	f.mu.Unlock()
	if first && f.failed != nil {
		f.reports.Go(func() { f.failed(err) }) // beside us: we may hold the lock of a block that it wants
	}
}

// release takes p out of what the filler fills, so that it can be discarded: its missing pages are zero from then on. It
// returns false, and p keeps its content, when that would cut the mapping into too many pieces.
func (f *filler) release(p []byte) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return true, nil
	}
	if f.released == maxReleased {
		return false, nil
	}
	f.released++
	if err := f.uffd.unregister(p); err != nil {
		return false, fmt.Errorf("discard guest memory: %w", err)
	}
	return true, nil
}

// interrupt makes faults return os.ErrDeadlineExceeded, now and later.
func (u *uffd) interrupt() { u.file.SetReadDeadline(time.Unix(1, 0)) }

func (u *uffd) close() error { return u.file.Close() }
