package vga

import (
	"bytes"
	"testing"
	"time"

	"github.com/lodgehv/lodge/vgpu/display"
)

// FuzzPorts lets a guest access anything in any order, drawing now and then. Nothing panics, surfaces are what they must
// be, and a sink that was told of each change has the picture that a card has that draws the same state afresh.
func FuzzPorts(f *testing.F) {
	add := func(ops ...byte) { f.Add(ops) }
	add(opMode, 0, opPort, 0x14, 0x0a, opWindow, 0x80, 0x80, 'x', opDraw, 0)
	add(opMode, 3, opWindow, 1, 2, 3, opDraw, 1, opWindow, 3, 4, 5, opDraw, 1)
	add(opVBE, vbeXRes, 0, 1, opVBE, vbeYRes, 90, 0, opVBE, vbeBPP, 4, 0, opVBE, vbeEnable, 1, 0, opVBE, vbeXOffset, 5, 0, opBlock, 3, 4, 5, opDraw, 0)
	add(opVBE, vbeXRes, 0, 1, opVBE, vbeYRes, 100, 0, opVBE, vbeBPP, 24, 0, opVBE, vbeEnable, 1, 0, opFrameBuffer, 1, 2, 3, opDraw, 0)
	add(opMode, 8, opBlock, 0, 7, 9, opBlock, 9, 3, 1, opDraw, 0, opPort, 0x24, crtcStartLow, 77, opBlock, 1, 1, 1, opDraw, 9)
	add(opMode, 6, opBlock, 40, 7, 9, opPort, 0x24, crtcLineCompare, 101, opPort, 0x24, crtcOverflow, 1, opPort, 0x24, crtcMaxScan, 1, opDraw, 0)
	add(opMode, 2, opBlock, 2, 7, 9, opPort, 0x24, crtcMode, 0xc1, opPort, 0x24, crtcStartHigh, 0xff, opDraw, 0, opBlock, 0, 1, 4, opDraw, 0)
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig(t, func(c *Config) { c.Memory = MinMemory })
		sink := new(recorder)
		defer r.screen.Attach(sink)()
		ops = ops[:min(len(ops), 1000)]
		for draws := 0; len(ops) > 0; ops = r.op(ops) {
			if ops[0]%opNumber != opDraw {
				continue
			}
			if draws++; draws > 8 { // a large picture takes long
				break
			}
		}
		r.card.draw()
		if s := sink.surface; s != nil {
			if err := s.Check(); err != nil || len(s.Pixels) > 4*vbeMaxPixels {
				t.Fatalf("%v: %d bytes of pixels", err, len(s.Pixels))
			}
			for _, u := range sink.updates {
				if u.Empty() || !u.In(s.Bounds()) {
					t.Fatalf("update of %v in %v", u, s.Bounds())
				}
			}
		}
		fresh := new(recorder)
		n := r.restored(r.save())
		defer n.screen.Attach(fresh)()
		n.card.draw()
		if !bytes.Equal(sink.pixels, fresh.pixels) {
			t.Fatalf("the sink has another picture than a fresh card: %+v", r.card.scan())
		}
	})
}

// What an operation of the fuzz target does: the first byte, modulo opNumber.
const (
	opPort = iota
	opVBE
	opWindow
	opFrameBuffer
	opMMIO
	opMode
	opDraw
	opBlock
	opNumber
)

// op does what ops begins with and returns the rest.
func (r *rig) op(ops []byte) []byte {
	var p [4]byte
	copy(p[:], ops)
	rest := ops[min(4, len(ops)):]
	switch p[0] % opNumber {
	case opPort:
		port := monoPorts + uint64(p[1]%0x30)
		if p[3]&1 != 0 {
			r.out16(port, uint16(p[2])|uint16(p[3])<<8)
		} else {
			r.out8(port, p[2])
			r.in8(port)
		}
	case opVBE:
		r.vbe(uint16(p[1]%(numVBE+1)), uint16(p[2])|uint16(p[3])<<8)
		r.vbeRead(uint16(p[1]))
	case opWindow:
		addr := windowBase + uint64(p[1]&0x1f)<<12 + uint64(p[2])
		r.peek(addr)
		r.poke(addr, p[3], p[2])
	case opFrameBuffer:
		addr := lfbBase + uint64(p[1])<<12 + uint64(p[2])
		r.mmio.Write(0, addr, p[:])
		r.mmio.Read(0, addr, p[:])
	case opMMIO:
		addr := mmioBase + uint64(p[1]%8)<<8 + uint64(p[2])
		r.mmio.Write(0, addr, p[2:])
		r.mmio.Read(0, addr, p[:1<<(p[3]%3)])
	case opMode:
		modes := []vgaMode{mode03, mode01, mode04, mode06, mode0D, mode10, mode12, mode13, modeX}
		r.set(modes[int(p[1])%len(modes)])
		return ops[min(2, len(ops)):]
	case opDraw:
		r.time += time.Duration(p[1]) * 10 * time.Millisecond
		r.card.draw()
		return ops[min(2, len(ops)):]
	case opBlock: // memory that is not all alike
		for i := range uint64(256) {
			r.mmio.Write(0, lfbBase+uint64(p[1])<<10+4*i, []byte{p[2] * byte(i), p[3], byte(i) >> 3, p[2]})
		}
	}
	return rest
}

var _ display.Sink = (*recorder)(nil)
