package vga

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/bus"
)

const pageSize = 4096

// pages has a bit for each page of video memory.
type pages []uint64

// mark sets the bits of the n bytes at off. n is at least one.
func (p pages) mark(off, n int) {
	for i := off / pageSize; i <= (off+n-1)/pageSize; i++ {
		p[i/64] |= 1 << (i % 64)
	}
}

// all sets all bits.
func (p pages) all() {
	for i := range p {
		p[i] = ^uint64(0)
	}
}

// any reports whether a page of the n bytes at off has its bit set. n is at least one.
func (p pages) any(off, n int) bool {
	for i := off / pageSize; i <= (off+n-1)/pageSize; i++ {
		if p[i/64]>>(i%64)&1 != 0 {
			return true
		}
	}
	return false
}

// video is the card's memory.
type video struct {
	memory  []byte
	file    *os.File    // the memfd that memory is; nil: it is on the heap
	mapping bus.Mapping // the guest has it; nil: it has not
	dirty   pages       // written since the last drawing, as far as is known
	log     pages       // what the mapping says
}

func (v *video) init() {
	words := len(v.memory) / pageSize / 64
	v.dirty, v.log = make(pages, words), make(pages, words)
	v.dirty.all()
}

// gather adds to dirty what the guest has written by itself. It reports whether the guest can: nobody says when it does.
func (v *video) gather() (mapped bool) {
	if v.mapping == nil {
		return false
	}
	if err := v.mapping.Dirty(v.log); err != nil {
		v.dirty.all()
		return true
	}
	for i, w := range v.log {
		v.dirty[i] |= w
	}
	return true
}

// moved is called when the guest has moved the memory's BAR.
func (c *Card) moved(base uint64, mapped bool) {
	if c.cfg.Mapper == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &c.video
	if v.mapping != nil {
		if err := v.mapping.Unmap(); err != nil {
			c.warn("video memory stays where it was", err)
		}
		v.mapping = nil
		v.dirty.all() // the log is gone
	}
	if mapped {
		m, err := c.cfg.Mapper.Map(base, v.memory)
		if err != nil { // it is where RAM is, or accesses exit to frameBuffer
			c.warn("video memory is not the guest's", err)
			return
		}
		v.mapping = m
	}
	c.touch()
}

// clearVideo clears the first n bytes of video memory.
func (c *Card) clearVideo(n int) {
	if s := c.picture.inVideo(); s != nil {
		s.Mu.Lock()
		defer s.Mu.Unlock()
	}
	clear(c.video.memory[:n])
	c.video.dirty.mark(0, n)
}

// frameBuffer answers for the memory's BAR where the guest has not got the memory itself.
type frameBuffer struct{ c *Card }

// Read implements bus.Device.
func (f frameBuffer) Read(a bus.Access, p []byte) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	clear(p)
	if a.Off < uint64(len(f.c.video.memory)) {
		copy(p, f.c.video.memory[a.Off:])
	}
}

// Write implements bus.Device.
func (f frameBuffer) Write(a bus.Access, p []byte) {
	c := f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.Off >= uint64(len(c.video.memory)) {
		return
	}
	if s := c.picture.inVideo(); s != nil {
		s.Mu.Lock()
		defer s.Mu.Unlock()
	}
	copy(c.video.memory[a.Off:], p)
	c.video.dirty.mark(int(a.Off), len(p))
	c.touch()
}

// newMemory returns size bytes, all zero, of a memfd that other processes can map to read: only the mapping that is returned
// can be written to, by us and, through it, by the guest. Nobody can shrink it: a shorter file under a mapping would kill its
// process.
func newMemory(name string, size int) (*os.File, []byte, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("create %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	fail := func(what string, err error) (*os.File, []byte, error) {
		f.Close()
		return nil, nil, fmt.Errorf("%s %s of %d bytes: %w", what, name, size, err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return fail("size", err)
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fail("map", err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return fail("seal", errors.Join(err, unix.Munmap(b)))
	}
	// It would be large in a core dump, and is the guest's secret.
	if err := unix.Madvise(b, unix.MADV_DONTDUMP); err != nil {
		return fail("keep out of core dumps", errors.Join(err, unix.Munmap(b)))
	}
	return f, b, nil
}

func freeMemory(f *os.File, b []byte) error { return errors.Join(unix.Munmap(b), f.Close()) }
