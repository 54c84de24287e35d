package pci

import (
	"testing"

	"github.com/lodgehv/lodge/hypervisor/bus"
)

// FuzzConfigSpace lets a guest write anything anywhere: nothing panics, no read-only bit changes, and what is mapped is
// what the registers say.
func FuzzConfigSpace(f *testing.F) {
	f.Add([]byte{0x04, 2, 7, 0, 0, 0, 0x14, 4, 0, 0, 0, 0xe0})
	f.Add([]byte{0x18, 4, 0xff, 0xff, 0xff, 0xff, 0x1c, 4, 0xff, 0xff, 0xff, 0xff, 0x04, 2, 7, 0})
	f.Add([]byte{0x43, 1, 0x80, 0xff, 8, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{0x30, 2, 1, 0, 0xb0, 0xfe, 0x04, 1, 3, 0, 0x10, 2, 0, 0, 0, 0xe0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newMSIXRig(t, 3)
		configure(t, r.rig, r.trigger, data)
		configure(t, newCardRig(t, 5000), nil, data)
	})
}

// configure makes the accesses that data says.
func configure(t *testing.T, r *rig, trigger func(int), data []byte) {
	var root Root
	at := Address{Device: 2}
	if err := root.Insert(at, r.f); err != nil {
		t.Fatal(err)
	}
	ecam := root.ECAM()
	var before, after [ConfigSize]byte
	r.f.ReadConfig(0, before[:])
	for len(data) > 2 {
		off, n := uint64(data[0]), 1<<(data[1]&3)
		if data[1]&0x80 != 0 {
			off |= 0xf00
		}
		a := bus.Access{Off: uint64(at.devfn())<<12 | off}
		p := make([]byte, n)
		data = data[2+copy(p, data[2:]):]
		ecam.Write(a, p)
		ecam.Read(a, p)
		r.f.SetINTx(p[0]&1 != 0)
		if trigger != nil {
			trigger(int(p[0] & 3))
		}
		for _, m := range r.mmio.Ranges() { // the table may be anywhere
			r.mmio.Write(0, m.Base+off&^7, p)
			r.mmio.Read(0, m.Base+off, p)
		}
	}
	r.f.ReadConfig(0, after[:])
	for off := range before {
		if changed := before[off] ^ after[off]; changed&^r.f.writable[off] != 0 && off != Status {
			t.Errorf("byte %#x changed from %#x to %#x; it can change %#x", off, before[off], after[off], r.f.writable[off])
		}
	}
	mapped := 0
	for i := range r.f.bars {
		if r.f.isMapped[i] {
			mapped++
			if r.f.mapped[i] != r.f.barBase(i) {
				t.Errorf("register %d says %#x and is mapped at %#x", i, r.f.barBase(i), r.f.mapped[i])
			}
		}
	}
	for _, is := range r.f.isFixed {
		if is {
			mapped++
		}
	}
	if n := len(r.mapped()); n != mapped {
		t.Errorf("%d ranges are mapped, and %d registers", n, mapped)
	}
}
