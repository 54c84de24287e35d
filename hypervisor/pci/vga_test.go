package pci

import (
	"testing"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// newCardRig returns an attached function with what a graphics card has: a prefetchable register, an expansion ROM of
// romLen bytes, and ranges that do not move.
func newCardRig(t *testing.T, romLen int) *rig {
	t.Helper()
	r := &rig{t: t}
	image := make([]byte, romLen)
	for i := range image {
		image[i] = byte(i>>8) ^ byte(i)
	}
	f, err := NewFunction(Config{
		Name: "card", Class: 0x030000, ROM: image,
		BARs: [6]BAR{0: {Kind: BARMem32Prefetch, Size: 1 << 24, Device: new(ram), Moved: r.moved(0)}},
		Fixed: []Fixed{
			{Ports: true, Range: bus.Range{Base: 0x3c0, Size: 0x20}, Device: new(ram)},
			{Range: bus.Range{Base: 0xa0000, Size: 0x20000}, Device: new(ram)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Attach(Env{Ports: &r.ports, MMIO: &r.mmio, Line: &r.line}); err != nil {
		t.Fatal(err)
	}
	r.f = f
	return r
}

func TestExpansionROM(t *testing.T) {
	for _, tc := range []struct {
		bytes int
		sized uint32 // what the register reads after all bits were written
	}{{1, 0xfffff801}, {2048, 0xfffff801}, {2049, 0xfffff001}, {39936, 0xffff0001}, {65536, 0xffff0001}} {
		r := newCardRig(t, tc.bytes)
		r.write32(ExpansionROM, 0xffffffff)
		if v := r.read32(ExpansionROM); v != tc.sized {
			t.Errorf("%d bytes: sized %#x, want %#x", tc.bytes, v, tc.sized)
		}
	}
	if v := newRig(t).read32(ExpansionROM); v != 0 {
		t.Errorf("a function without a ROM: %#x", v)
	}

	r := newCardRig(t, 39936)
	r.write32(ExpansionROM, 0xfeb00001)
	r.wantMapped("memory is off")
	r.command(CommandMemory)
	r.wantMapped("both on", "[0xa0000, 0xc0000)", "[0xfeb00000, 0xfeb10000)")
	for _, a := range []struct {
		off  uint64
		want [4]byte
	}{{0x1fc, [4]byte{0xfd, 0xfc, 0xff, 0xfe}}, {39934, [4]byte{0x9b ^ 0xfe, 0x9b ^ 0xff}}, {0xfffc, [4]byte{}}} {
		r.mmio.Write(0, 0xfeb00000+a.off, []byte{1, 2, 3, 4})
		var p [4]byte
		r.mmio.Read(0, 0xfeb00000+a.off, p[:])
		if p != a.want {
			t.Errorf("at %#x: %x, want %x", a.off, p, a.want)
		}
	}
	enc := snap.NewEncoder(1)
	r.f.State(enc)
	r.write32(ExpansionROM, 0xfeb00000)
	r.wantMapped("the ROM is off", "[0xa0000, 0xc0000)")

	again := newCardRig(t, 39936)
	again.f.State(snap.NewDecoder(enc.Data(), 1))
	again.wantMapped("restored", "[0xa0000, 0xc0000)", "[0xfeb00000, 0xfeb10000)")
	if err := again.f.Detach(); err != nil {
		t.Fatal(err)
	}
	again.wantMapped("detached")
}

func TestFixed(t *testing.T) {
	r := newCardRig(t, 1)
	r.wantMapped("after reset")
	r.command(CommandIO)
	r.wantMapped("I/O on", "io [0x3c0, 0x3e0)")
	r.write32(BAR0, 0xe0000000)
	if v := r.read32(BAR0); v != 0xe0000008 {
		t.Errorf("prefetchable register reads %#x", v)
	}
	r.command(CommandIO | CommandMemory)
	r.wantMapped("both on", "io [0x3c0, 0x3e0)", "[0xa0000, 0xc0000)", "[0xe0000000, 0xe1000000)")
	r.command(0)
	r.write32(BAR0, 0)
	r.wantMapped("both off")

	// Another card was there first.
	if err := r.mmio.Map(bus.Range{Base: 0xb8000, Size: 0x8000}, new(ram)); err != nil {
		t.Fatal(err)
	}
	r.command(CommandMemory)
	r.wantMapped("taken", "[0xb8000, 0xc0000)")
	r.command(0)
	r.wantMapped("off", "[0xb8000, 0xc0000)")
	r.mmio.Unmap(0xb8000)
	r.command(CommandMemory)
	r.wantMapped("free", "[0xa0000, 0xc0000)")

	w := Windows{Mem32: Window{0xc0000000, 0xfebfffff}}
	if err := w.Place(r.f); err != nil {
		t.Fatal(err)
	}
	r.wantMapped("placed", "[0xa0000, 0xc0000)", "[0xc0000000, 0xc1000000)")
}
