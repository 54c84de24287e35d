package vga

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What is written to a register reads back in the bits that it has.
func TestReadBack(t *testing.T) {
	r := newRig(t)
	r.out8(portStatus0, 0xff)
	if v := r.in8(portMisc); v != 0xef {
		t.Errorf("miscellaneous output reads %#x", v)
	}
	pair := func(port uint64) func(i, v uint8) uint8 {
		return func(i, v uint8) uint8 {
			r.indexed(port, i, v)
			return r.in8(port + 1)
		}
	}
	attr := func(i, v uint8) uint8 { r.attr(i, v); return r.in8(portAttrData) }
	for _, c := range []struct {
		name  string
		write func(i, v uint8) uint8 // and read
		want  []uint8                // after 0xff
	}{
		{"sequencer", pair(portSeqIndex), []uint8{0x03, 0x3d, 0x0f, 0x3f, 0x0e, 0, 0, 0}},
		{"graphics", pair(portGfxIndex), []uint8{0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff, 0, 0, 0, 0, 0, 0, 0}},
		{"attribute", attr, []uint8{
			0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f,
			0xef, 0xff, 0x3f, 0x0f, 0x0f, 0, 0, 0}},
	} {
		var got []uint8
		for i := range c.want {
			got = append(got, c.write(uint8(i), 0xff))
			if v := c.write(uint8(i), 0); v != 0 {
				t.Errorf("%s register %d cannot be cleared: %#x", c.name, i, v)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s registers (-want +got)\n%s", c.name, diff)
		}
	}
	crtc := pair(portCRTCIndex)
	for i := range uint8(0x20) {
		want := uint8(0xa5)
		if i >= numCRTC {
			want = 0
		}
		if i == crtcVSyncEnd {
			want = 0x25 // without the protection
		}
		if v := crtc(i, want|0x25); i < numCRTC && v != want {
			t.Errorf("CRTC register %d reads %#x, want %#x", i, v, want)
		}
	}
}

func TestCRTCProtection(t *testing.T) {
	r := newRig(t)
	r.out8(portStatus0, miscColour)
	for i := range uint8(9) {
		r.indexed(portCRTCIndex, i, 0x11)
	}
	r.indexed(portCRTCIndex, crtcVSyncEnd, vSyncEndProtect)
	var got []uint8
	for i := range uint8(9) {
		r.indexed(portCRTCIndex, i, 0xee)
		got = append(got, r.in8(portCRTCData))
	}
	if diff := cmp.Diff([]uint8{0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x01, 0xee}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// The CRTC is at the colour card's ports or at the monochrome card's.
func TestMonochromePorts(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		misc      uint8
		here, not uint64
	}{{0, 0x3b0, 0x3d0}, {miscColour, 0x3d0, 0x3b0}} {
		r.out8(portStatus0, c.misc)
		r.indexed(c.here+4, crtcCursorLow, 0x42+c.misc)
		r.indexed(c.not+4, crtcCursorLow, 0x99)
		if v := r.in8(c.here + 5); v != 0x42+c.misc {
			t.Errorf("misc %d: %#x", c.misc, v)
		}
		for _, port := range []uint64{4, 5, 0xa} {
			if v := r.in8(c.not + port); v != 0xff {
				t.Errorf("misc %d: port %#x answers %#x", c.misc, c.not+port, v)
			}
		}
	}
	if v := r.in8(0x3bc); v != 0xff {
		t.Errorf("the printer's port answers %#x", v)
	}
}

func TestAttributeFlipFlop(t *testing.T) {
	r := newRig(t)
	r.out8(portStatus0, miscColour)
	r.in8(portStatus1)
	r.out8(portAttrIndex, 0x31)
	if v := r.in8(portAttrIndex); v != 0 {
		t.Errorf("between index and data: %#x", v)
	}
	r.in8(portStatus1) // an index again
	if v := r.in8(portAttrIndex); v != 0x31 {
		t.Errorf("index reads %#x", v)
	}
	r.out8(portAttrIndex, 0x35)
	r.out8(portAttrIndex, 0x12) // data of a register that is not there
	r.out8(portAttrIndex, 0x05)
	r.out8(portAttrIndex, 0x0c)
	if v := r.in8(portAttrData); v != 0x0c {
		t.Errorf("register 5 reads %#x", v)
	}
}

func TestDAC(t *testing.T) {
	r := newRig(t)
	r.out8(portDACWrite, 0xff)
	for i := range uint8(6) { // colours 255 and 0
		r.out8(portDACData, 0x10+i)
	}
	r.out8(portDACData, 0x7f) // one part changes nothing
	if v := r.in8(portDACWrite); v != 1 {
		t.Errorf("write index %d", v)
	}
	r.out8(portDACState, 0xff)
	if v := r.in8(portDACState); v != 3 {
		t.Errorf("state %d while reading", v)
	}
	var got []uint8
	for range 7 {
		got = append(got, r.in8(portDACData))
	}
	if diff := cmp.Diff([]uint8{0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	r.out8(portDACWrite, 0)
	if v := r.in8(portDACState); v != 0 {
		t.Errorf("state %d while writing", v)
	}
	r.out8(portDACMask, 0x0f)
	if v := r.in8(portDACMask); v != 0x0f {
		t.Errorf("mask %#x", v)
	}
}

// A guest that waits for a retrace sees one begin and end once in a frame, and lines always.
func TestRetrace(t *testing.T) {
	r := newRig(t)
	r.out8(portStatus0, miscColour)
	var retraces, lines int
	last := r.in8(portStatus1)
	for ; r.time < time.Second; r.time += 100 * time.Microsecond {
		v := r.in8(portStatus1)
		if v&^last&status1Retrace != 0 {
			retraces++
		}
		if v&^last&status1Blanked != 0 {
			lines++
		}
		if v&status1Retrace != 0 && v&status1Blanked == 0 {
			t.Fatalf("status %#x: a retrace that is not blank", v)
		}
		last = v
	}
	if retraces != 60 || lines < 1000 {
		t.Errorf("%d retraces and %d lines in a second", retraces, lines)
	}
}

// Of the window as much is decoded as the graphics controller says; the rest is not there.
func TestWindow(t *testing.T) {
	for _, c := range []struct {
		gfxMap uint8
		base   uint64
		size   uint64
	}{{0, 0xa0000, 0x20000}, {1, 0xa0000, 0x10000}, {2, 0xb0000, 0x8000}, {3, 0xb8000, 0x8000}} {
		r := newRig(t)
		r.set(mode13)
		r.indexed(portGfxIndex, gfxMisc, c.gfxMap<<2|1)
		r.poke(c.base, 1)
		r.poke(c.base+c.size-1, 2)
		if got := [2]uint8{r.peek(c.base), r.peek(c.base + c.size - 1)}; got != [2]uint8{1, 2} {
			t.Errorf("map %d: %v", c.gfxMap, got)
		}
		if got := [2]uint8{r.card.video.memory[0], r.card.video.memory[c.size-1]}; got != [2]uint8{1, 2} {
			t.Errorf("map %d: memory has %v", c.gfxMap, got)
		}
		for _, out := range []uint64{c.base - 1, c.base + c.size} {
			if r.poke(out, 3); r.peek(out) != 0xff {
				t.Errorf("map %d: %#x answers", c.gfxMap, out)
			}
		}
	}
}

// Even addresses are planes 0 and 2, odd ones 1 and 3, as text has them.
func TestOddEven(t *testing.T) {
	r := newRig(t)
	r.set(mode03)
	r.indexed(portSeqIndex, seqMapMask, 0xf)
	r.poke(0xb8000, 'x', 0x1f)
	if diff := cmp.Diff([]byte{'x', 0x1f, 'x', 0x1f}, r.card.video.memory[:4]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	r.indexed(portSeqIndex, seqMapMask, 3)
	r.poke(0xb8000, 'y', 0x70)
	if diff := cmp.Diff([]byte{'y', 0x70, 'x', 0x1f}, r.card.video.memory[:4]); diff != "" {
		t.Errorf("with a mask (-want +got)\n%s", diff)
	}
	r.indexed(portGfxIndex, gfxReadMap, 2)
	if got := [2]uint8{r.peek(0xb8000), r.peek(0xb8001)}; got != [2]uint8{'x', 0x1f} {
		t.Errorf("planes 2 and 3 read %v", got)
	}
}
