package vga

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
)

// SnapID implements snap.Component.
func (c *Card) SnapID() string { return c.cfg.Name }

// SnapVersion implements snap.Component.
func (c *Card) SnapVersion() uint16 { return 1 }

// State implements snap.Component.
func (c *Card) State(s *snap.Codec) {
	c.fn.State(s)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.regs.state(s)
	c.vbe.state(s, len(c.video.memory))
	if shown := c.picture.inVideo(); shown != nil {
		shown.Mu.Lock()
		defer shown.Mu.Unlock()
	}
	c.video.state(s)
	if s.Err() != nil { // nobody draws what cannot be
		c.regs.powerOn()
		c.vbe.powerOn(len(c.video.memory))
	}
	c.touch()
}

func (r *registers) state(s *snap.Codec) {
	for _, x := range []struct {
		name string
		p    *uint8
		mask uint8 // of the bits it has
	}{
		{"miscellaneous output", &r.misc, miscMask}, {"feature control", &r.feature, featureMask},
		{"input status", &r.status1, status1Blanked | status1Retrace},
		{"sequencer index", &r.seqIndex, 7}, {"CRTC index", &r.crtcIndex, 0xff}, {"graphics index", &r.gfxIndex, 0xf},
		{"attribute index", &r.attrIndex, attrVideo | 0x1f}, {"DAC mask", &r.dacMask, 0xff}, {"DAC read index", &r.dacRead, 0xff},
		{"DAC write index", &r.dacWrite, 0xff}, {"DAC part", &r.dacPart, 3},
	} {
		s.U8(x.p)
		if *x.p&^x.mask != 0 {
			s.Fail("%s register is %#x", x.name, *x.p)
		}
	}
	if r.dacPart > 2 {
		s.Fail("DAC part is %d", r.dacPart)
	}
	s.Bool(&r.attrData)
	s.Bool(&r.dacReading)
	s.U32(&r.latch)
	masked(s, "sequencer", r.seq[:], seqMask[:])
	masked(s, "graphics", r.gfx[:], gfxMask[:])
	masked(s, "attribute", r.attr[:], attrMask[:])
	s.Fixed(r.crtc[:])
	s.Fixed(r.dacIncoming[:])
	s.Fixed(r.dac[:])
}

// masked carries registers that have the bits of mask only.
func masked(s *snap.Codec, name string, regs, mask []uint8) {
	s.Fixed(regs)
	for i, v := range regs {
		if v&^mask[i] != 0 {
			s.Fail("%s register %d is %#x", name, i, v)
		}
	}
}

func (v *vbe) state(s *snap.Codec, memory int) {
	s.Match("size of video memory", uint64(memory))
	s.U16(&v.index)
	for i := range v.regs {
		if i != vbeMemory64K {
			s.U16(&v.regs[i])
		}
	}
	s.Bool(&v.bigEndian)
	if s.Err() != nil || !s.Loading() {
		return
	}
	if id := v.regs[vbeID]; id < vbeID0 || id > vbeID5 || v.regs[vbeEnable]&^vbeEnableMask != 0 || int(v.regs[vbeBank]) >= memory>>16 {
		s.Fail("VBE registers %#x cannot be", v.regs)
	}
	if fit := *v; v.on() {
		if fit.fit(memory); fit.regs != v.regs {
			s.Fail("VBE mode %#x does not fit into memory of %d MiB", v.regs, memory>>20)
		}
	}
}

// state carries the pages that are not all zero: how many, then the index and the bytes of each in ascending order.
func (v *video) state(s *snap.Codec) {
	total := len(v.memory) / pageSize
	if s.Loading() {
		next := 0 // the first page that is not known
		for range s.Len(0, total) {
			var i uint32
			s.U32(&i)
			if s.Err() == nil && (int(i) < next || int(i) >= total) {
				s.Fail("page %d of video memory after page %d", i, next-1)
			}
			if s.Err() != nil {
				return
			}
			v.zero(next, int(i))
			s.Fixed(v.page(int(i)))
			if s.Err() == nil && bytes.Equal(v.page(int(i)), zeroPage[:]) {
				s.Fail("page %d of video memory is all zero", i)
			}
			next = int(i) + 1
		}
		v.zero(next, total)
		v.dirty.all()
		return
	}
	var used []uint32
	for i := v.nextUsed(0); i < total; i = v.nextUsed(i + 1) {
		used = append(used, uint32(i))
	}
	s.Len(len(used), total)
	for _, i := range used {
		s.U32(&i)
		s.Fixed(v.page(int(i)))
	}
}

var zeroPage [pageSize]byte

func (v *video) page(i int) []byte { return v.memory[i*pageSize:][:pageSize] }

// zero clears the pages from i up to end, without giving memory to those that have none.
func (v *video) zero(i, end int) {
	for i = v.nextUsed(i); i < end; i = v.nextUsed(i + 1) {
		clear(v.page(i))
	}
}

// nextUsed returns the first page from i on that is not all zero, or the number of pages. It does not read pages that the
// guest has never touched: that would give them memory.
func (v *video) nextUsed(i int) int {
	total := len(v.memory) / pageSize
	for i < total {
		end := total
		if v.file != nil {
			i, end = v.data(i)
		}
		for ; i < end; i++ {
			if !bytes.Equal(v.page(i), zeroPage[:]) {
				return i
			}
		}
	}
	return total
}

// data returns the first extent of pages from i on that have memory. Nobody else uses the file's offset.
func (v *video) data(i int) (start, end int) {
	total := len(v.memory) / pageSize
	fd := int(v.file.Fd())
	from, err := unix.Seek(fd, int64(i)*pageSize, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return total, total
	}
	if err != nil {
		return i, total
	}
	to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
	if err != nil {
		return int(from / pageSize), total
	}
	return int(from / pageSize), int((to + pageSize - 1) / pageSize)
}
