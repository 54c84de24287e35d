package vga

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/vgpu/display"
)

func TestVBERegisters(t *testing.T) {
	r := newRig(t)
	if id, mem := r.vbeRead(vbeID), r.vbeRead(vbeMemory64K); id != 0xb0c5 || mem != 64 {
		t.Errorf("id %#x, memory %d", id, mem)
	}
	for id := uint16(0xb0bf); id <= 0xb0c6; id++ {
		r.vbe(vbeID, id)
		if got := r.vbeRead(vbeID); (got == id) != (id >= 0xb0c0 && id <= 0xb0c5) {
			t.Errorf("id %#x reads %#x", id, got)
		}
	}
	r.vbe(vbeEnable, vbeGetCaps)
	if got := [3]uint16{r.vbeRead(vbeXRes), r.vbeRead(vbeYRes), r.vbeRead(vbeBPP)}; got != [3]uint16{16384, 16384, 32} {
		t.Errorf("capabilities %v", got)
	}
	r.vbeMode(1024, 768, 16)
	var got []uint16
	for i := range uint16(numVBE + 2) {
		got = append(got, r.vbeRead(i))
	}
	if diff := cmp.Diff([]uint16{0xb0c5, 1024, 768, 16, 0x41, 0, 1024, 2048, 0, 0, 64, 0, 0}, got); diff != "" {
		t.Errorf("1024×768 (-want +got)\n%s", diff)
	}
	if v := r.in16(vbePortIndex); v != numVBE+1 {
		t.Errorf("index %d", v)
	}
	r.out16(vbePortIndex, vbeXRes)
	if v := r.in16(vbePortData2); v != 1024 {
		t.Errorf("through the other port: %d", v)
	}
	// Only words are registers.
	r.out8(vbePortIndex, vbeYRes)
	if v, b := r.in16(vbePortIndex), r.in8(vbePortData); v != vbeXRes || b != 0xff {
		t.Errorf("after a byte: index %d, data %#x", v, b)
	}
}

// Memory is cleared when a mode is entered, as much as it shows, unless the guest says otherwise.
func TestVBEClear(t *testing.T) {
	r := newRig(t)
	fill := func() {
		for i := range r.card.video.memory {
			r.card.video.memory[i] = 0x55
		}
	}
	fill()
	r.vbeMode(640, 480, 8)
	if m := r.card.video.memory; m[0] != 0 || m[640*480-1] != 0 || m[640*480] != 0x55 {
		t.Error("640×480×8 is not what was cleared")
	}
	fill()
	r.vbe(vbeEnable, vbeEnabled|vbeLFB|vbe8BitDAC) // it is on already
	r.vbe(vbeEnable, 0)
	r.vbe(vbeEnable, vbeEnabled|vbeNoClearMem)
	if r.card.video.memory[0] != 0x55 {
		t.Error("cleared")
	}
}

// What cannot be is made into what can, and reads back so.
func TestVBEHostile(t *testing.T) {
	type regs = [numVBE]uint16
	for name, c := range map[string]struct{ write, want regs }{
		"all ones": {
			regs{vbeXRes: 0xffff, vbeYRes: 0xffff, vbeBPP: 0xffff, vbeVirtWidth: 0xffff, vbeXOffset: 0xffff, vbeYOffset: 0xffff},
			regs{vbeXRes: 16384, vbeYRes: 256, vbeBPP: 8, vbeVirtWidth: 16384, vbeVirtHeight: 256}},
		"all zeros": {
			regs{}, regs{vbeXRes: 8, vbeYRes: 1, vbeBPP: 8, vbeVirtWidth: 8, vbeVirtHeight: 0xffff}},
		"width of 32 bits": {
			regs{vbeXRes: 0xffff, vbeYRes: 0xffff, vbeBPP: 32},
			regs{vbeXRes: 16384, vbeYRes: 64, vbeBPP: 32, vbeVirtWidth: 16384, vbeVirtHeight: 64}},
		"more than memory": {
			regs{vbeXRes: 1920, vbeYRes: 1080, vbeBPP: 32},
			regs{vbeXRes: 1920, vbeYRes: 546, vbeBPP: 32, vbeVirtWidth: 1920, vbeVirtHeight: 546}},
		"virtual width that wraps": {
			regs{vbeXRes: 640, vbeYRes: 480, vbeBPP: 24, vbeVirtWidth: 65530},
			regs{vbeXRes: 640, vbeYRes: 85, vbeBPP: 24, vbeVirtWidth: 16384, vbeVirtHeight: 85}},
		"offset beyond the lines": {
			regs{vbeXRes: 640, vbeYRes: 480, vbeBPP: 32, vbeXOffset: 100, vbeYOffset: 1600},
			regs{vbeXRes: 640, vbeYRes: 480, vbeBPP: 32, vbeVirtWidth: 640, vbeVirtHeight: 1638, vbeXOffset: 100}},
		"offset beyond the end of the last line": {
			regs{vbeXRes: 640, vbeYRes: 1638, vbeBPP: 32, vbeXOffset: 641, vbeYOffset: 0},
			regs{vbeXRes: 640, vbeYRes: 1638, vbeBPP: 32, vbeVirtWidth: 640, vbeVirtHeight: 1638}},
		"no such depth": {
			regs{vbeXRes: 320, vbeYRes: 200, vbeBPP: 17},
			regs{vbeXRes: 320, vbeYRes: 200, vbeBPP: 8, vbeVirtWidth: 320, vbeVirtHeight: 13107}},
		"planes by eights": {
			regs{vbeXRes: 801, vbeYRes: 600, vbeBPP: 4, vbeVirtWidth: 1001},
			regs{vbeXRes: 800, vbeYRes: 600, vbeBPP: 4, vbeVirtWidth: 1000, vbeVirtHeight: 8388}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, first := range []bool{false, true} { // enabled before the registers are written, or after
				r := newRig(t)
				r.vbeMode(8, 8, 8)
				write := func(is ...uint16) {
					for _, i := range is {
						r.vbe(i, c.write[i])
					}
				}
				if first {
					write(vbeBPP, vbeXRes, vbeVirtWidth, vbeYRes)
				} else {
					r.vbe(vbeEnable, 0)
					write(vbeXRes, vbeYRes, vbeBPP)
					r.vbe(vbeEnable, vbeEnabled)
					write(vbeVirtWidth)
				}
				write(vbeXOffset, vbeYOffset)
				if c.write[vbeVirtWidth] == 0 && first {
					r.vbe(vbeVirtWidth, c.write[vbeXRes])
				}
				var got regs
				for _, i := range []uint16{vbeXRes, vbeYRes, vbeBPP, vbeVirtWidth, vbeVirtHeight, vbeXOffset, vbeYOffset} {
					got[i] = r.vbeRead(i)
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("enabled first: %v (-want +got)\n%s", first, diff)
				}
				r.card.draw()
			}
		})
	}
}

// Whatever is written in whatever order, the mode lies in memory and its surface is bounded.
func TestVBEFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		memory := 1 << rapid.IntRange(20, 25).Draw(t, "memory")
		var v vbe
		v.powerOn(memory)
		v.regs[vbeEnable] = vbeEnabled
		for range rapid.IntRange(1, 12).Draw(t, "writes") {
			i := rapid.SampledFrom([]int{vbeXRes, vbeYRes, vbeBPP, vbeVirtWidth, vbeXOffset, vbeYOffset}).Draw(t, "register")
			v.regs[i] = rapid.OneOf(rapid.Uint16(), rapid.Uint16Range(0, 40)).Draw(t, "value")
			v.fit(memory)
			m := v.mode()
			if m.start < 0 || m.start+(m.height-1)*m.pitch+m.rowBytes > memory {
				t.Fatalf("%+v reaches beyond %#x", m, memory)
			}
			if m.width < 8 || m.height < 1 || m.width*m.height > vbeMaxPixels || m.width > display.MaxSize || m.height > display.MaxSize {
				t.Fatalf("%d×%d pixels", m.width, m.height)
			}
			if again := v; true {
				if again.fit(memory); again != v {
					t.Fatalf("what fits is changed: %v, %v", v, again)
				}
			}
		}
	})
}

// The registers in memory are the same as those at the ports.
func TestMMIO(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.EDID = func(m display.Monitor) []byte { return []byte{0, 0xff, byte(m.Width >> 8), 4} }
	})
	read := func(off uint64, n int) []byte {
		p := make([]byte, n)
		r.mmio.Read(0, mmioBase+off, p)
		return p
	}
	write := func(off uint64, p ...byte) { r.mmio.Write(0, mmioBase+off, p) }
	// As bochs-drm does it: unblank, then a mode of 32 bits.
	write(portsOff+2, miscColour)
	read(portsOff+0x1a, 1)
	write(portsOff, attrVideo)
	for _, reg := range [][2]uint16{
		{vbeEnable, 0}, {vbeBPP, 32}, {vbeXRes, 1024}, {vbeYRes, 768}, {vbeBank, 0}, {vbeVirtWidth, 1024},
		{vbeVirtHeight, 1024}, {vbeXOffset, 0}, {vbeYOffset, 0}, {vbeEnable, vbeEnabled | vbeLFB},
		{vbeVirtWidth, 1024}, {vbeXOffset, 0}, {vbeYOffset, 64},
	} {
		write(vbeOff+2*uint64(reg[0]), byte(reg[1]), byte(reg[1]>>8))
	}
	r.screen.Snapshot(func(s *display.Surface) {
		if s == nil || s.Width != 1024 || s.Height != 768 || s.Stride != 4096 || s.Offset != 64*4096 || s.Format != display.XRGB8888 {
			t.Errorf("surface %+v", s)
		}
	})
	write(extOrder, 0xbe, 0xbe, 0xbe, 0xbe)
	r.screen.Snapshot(func(s *display.Surface) {
		if s.Format != display.BGRX8888 {
			t.Errorf("format %v", s.Format)
		}
	})
	write(extOrder, 1, 2, 3, 4)
	for _, c := range []struct {
		off  uint64
		want []byte
	}{
		{edidOff, []byte{0}}, {edidOff + 1, []byte{0xff}}, {edidOff, []byte{0, 0xff, 4, 4}}, {edidOff + 0x3ff, []byte{0}},
		{vbeOff, []byte{0xc5, 0xb0}}, {vbeOff, []byte{0xc5, 0xb0, 0, 4}}, {vbeOff + 1, []byte{0xb0}}, {vbeOff + 20, []byte{64, 0}},
		{vbeOff + 20, []byte{64, 0, 0, 0}}, {vbeOff + 22, []byte{0, 0}},
		{extOff, []byte{8, 0, 0, 0}}, {extOrder, []byte{0xbe, 0xbe, 0xbe, 0xbe}}, {extOff + 7, []byte{0xbe}}, {extOff + 8, []byte{0}},
		{portsOff + 0xc, []byte{miscColour}}, {portsOff - 1, []byte{0}}, {portsOff + 0x20, []byte{0, 0}}, {mmioSize - 8, make([]byte, 8)},
	} {
		if got := read(c.off, len(c.want)); !bytes.Equal(got, c.want) {
			t.Errorf("%d bytes at %#x: %x, want %x", len(c.want), c.off, got, c.want)
		}
	}
	// Index and data in one.
	write(portsOff+4, seqMapMask, 0x5)
	if got := read(portsOff+4, 2); !bytes.Equal(got, []byte{seqMapMask, 5}) {
		t.Errorf("sequencer %x", got)
	}
	r.screen.SetMonitor(display.Monitor{Connected: true, Width: 0x2100})
	if got := read(2, 1)[0]; got != 0x21 {
		t.Errorf("the EDID of another monitor: %#x", got)
	}
	r.screen.SetMonitor(display.Monitor{})
	if got := read(0, 8); !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("the EDID of no monitor: %x", got)
	}
}

// A guest finds what drivers look for.
func TestFunction(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ROM = make([]byte, 39936) })
	var cfg [64]byte
	for off := range cfg {
		r.card.ReadConfig(off, cfg[off:off+1])
	}
	le := binary.LittleEndian
	if id, class := le.Uint32(cfg[pci.VendorID:]), le.Uint32(cfg[pci.RevisionID:]); id != 0x11111234 || class != 0x03000002 {
		t.Errorf("identity %#x, class and revision %#x", id, class)
	}
	sized := func(off int) uint32 {
		r.card.WriteConfig(off, []byte{0xff, 0xff, 0xff, 0xff})
		var p [4]byte
		r.card.ReadConfig(off, p[:])
		return le.Uint32(p[:])
	}
	if got := [3]uint32{sized(pci.BAR0), sized(pci.BAR0 + 8), sized(pci.ExpansionROM)}; got != [3]uint32{0xffc00008, 0xfffff000, 0xffff0001} {
		t.Errorf("sizes %#x", got)
	}
	for _, size := range []int{-1, 1 << 19, 3 << 20, 64 << 20} {
		if c, err := New(Config{Name: "vga", Screen: r.screen, Memory: size}); err == nil {
			t.Errorf("%d bytes of memory were taken", size)
			c.Close()
		}
	}
}
