package pci

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// board is a root as a board maps it.
type board struct {
	Root
	ports, mmio bus.Bus
}

const testECAM = 0xb0000000

func newBoard(t *testing.T) *board {
	t.Helper()
	b := new(board)
	if err := b.ports.Map(bus.Range{Base: ConfigAddressPort, Size: 8}, b.Ports()); err != nil {
		t.Fatal(err)
	}
	if err := b.mmio.Map(bus.Range{Base: testECAM, Size: ECAMSize}, b.ECAM()); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *board) insert(t *testing.T, a Address, f ConfigSpace) {
	t.Helper()
	if err := b.Insert(a, f); err != nil {
		t.Fatal(err)
	}
}

// address selects by configuration mechanism 1.
func (b *board) address(busNo, devfn, off int) {
	v := uint32(1)<<31 | uint32(busNo)<<16 | uint32(devfn)<<8 | uint32(off)&0xfc
	b.ports.Write(0, ConfigAddressPort, binary.LittleEndian.AppendUint32(nil, v))
}

// recorder is a configuration space that checks and remembers its accesses.
type recorder struct {
	t   *testing.T
	b   [4096]byte
	got []string
}

func (r *recorder) check(what string, off int, p []byte) {
	r.got = append(r.got, fmt.Sprintf("%s %#x+%d", what, off, len(p)))
	if n := len(p); n != 1 && n != 2 && n != 4 || off%n != 0 || off < 0 || off+n > 4096 {
		r.t.Errorf("%s of %d bytes at %#x", what, n, off)
	}
}

func (r *recorder) ReadConfig(off int, p []byte) {
	r.check("read", off, p)
	copy(p, r.b[off:])
}

func (r *recorder) WriteConfig(off int, p []byte) {
	r.check("write", off, p)
	copy(r.b[off:], p)
}

// Both ways to the configuration space agree, for every size and offset.
func TestPortsAndECAMAgree(t *testing.T) {
	b := newBoard(t)
	at := Address{Device: 5, Function: 3}
	rec := &recorder{t: t}
	for i := range rec.b {
		rec.b[i] = byte(i*7 + i>>8)
	}
	b.insert(t, at, rec)
	base := testECAM + uint64(at.devfn())<<12
	for off := range ConfigSize {
		for _, n := range []int{1, 2, 4} {
			if off%4+n > 4 {
				continue
			}
			b.address(0, at.devfn(), off)
			port, ecam := make([]byte, n), make([]byte, n)
			b.ports.Read(0, ConfigDataPort+uint64(off%4), port)
			b.mmio.Read(0, base+uint64(off), ecam)
			if !bytes.Equal(port, ecam) || !bytes.Equal(port, rec.b[off:off+n]) {
				t.Fatalf("%d bytes at %#x: %x by port, %x by memory, want %x", n, off, port, ecam, rec.b[off:off+n])
			}
			want := []byte{byte(off), 1, 2, 3}[:n]
			b.ports.Write(0, ConfigDataPort+uint64(off%4), want)
			b.mmio.Read(0, base+uint64(off), ecam)
			if !bytes.Equal(ecam, want) {
				t.Fatalf("%d bytes written at %#x by port read %x by memory, want %x", n, off, ecam, want)
			}
			copy(rec.b[off:], port)
		}
	}
	// The extended part, quadwords and misaligned accesses exist by memory only.
	var p [8]byte
	b.mmio.Read(0, base+0xff8, p[:])
	if !bytes.Equal(p[:], rec.b[0xff8:]) {
		t.Errorf("the end reads %x, want %x", p, rec.b[0xff8:])
	}
	rec.got = nil
	b.mmio.Write(0, base+0x41, p[:4])
	b.mmio.Write(0, base+0x100, p[:])
	b.mmio.Read(0, base+0xffc, p[:]) // into the next function's part, where nothing is
	want := []string{"write 0x41+1", "write 0x42+2", "write 0x44+1", "write 0x100+4", "write 0x104+4", "read 0xffc+4"}
	if diff := cmp.Diff(want, rec.got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if binary.LittleEndian.Uint32(p[4:]) != 0xffffffff {
		t.Errorf("past the end: %x", p[4:])
	}
}

func TestAbsent(t *testing.T) {
	b := newBoard(t)
	at := Address{Device: 1}
	b.insert(t, at, &recorder{t: t})
	data := func() uint32 {
		var p [4]byte
		b.ports.Read(0, ConfigDataPort, p[:])
		return binary.LittleEndian.Uint32(p[:])
	}
	b.address(0, at.devfn(), 0)
	if v := data(); v != 0 {
		t.Errorf("the function reads %#x", v)
	}
	b.address(1, at.devfn(), 0)
	if v := data(); v != 0xffffffff {
		t.Errorf("bus 1 reads %#x", v)
	}
	b.address(0, at.devfn()+1, 0)
	b.ports.Write(0, ConfigDataPort, []byte{1, 2, 3, 4}) // lost
	if v := data(); v != 0xffffffff {
		t.Errorf("an empty slot reads %#x", v)
	}
	b.ports.Write(0, ConfigAddressPort, binary.LittleEndian.AppendUint32(nil, uint32(at.devfn())<<8))
	if v := data(); v != 0xffffffff {
		t.Errorf("without the enable bit: %#x", v)
	}
	b.address(0, at.devfn(), 0)
	var p [4]byte
	b.ports.Read(0, ConfigDataPort+2, p[:]) // across the data register's end
	if binary.LittleEndian.Uint32(p[:]) != 0xffffffff {
		t.Errorf("across the end: %x", p)
	}
	for _, n := range []int{1, 2, 4, 8} {
		q := make([]byte, n)
		b.mmio.Read(0, testECAM+31<<15+uint64(n), q)
		if !bytes.Equal(q, bytes.Repeat([]byte{0xff}, n)) {
			t.Errorf("%d bytes of an empty slot: %x", n, q)
		}
	}
	b.Remove(at)
	if v := data(); v != 0xffffffff {
		t.Errorf("a removed function reads %#x", v)
	}
}

func TestConfigAddress(t *testing.T) {
	b := newBoard(t)
	read := func(off uint64, n int) uint32 {
		var p [4]byte
		b.ports.Read(0, ConfigAddressPort+off, p[:n])
		return binary.LittleEndian.Uint32(p[:])
	}
	b.ports.Write(0, ConfigAddressPort, []byte{0xff, 0xff, 0xff, 0xff})
	if v := read(0, 4); v != 0x80fffffc {
		t.Errorf("it reads %#x", v)
	}
	for _, n := range []int{1, 2} {
		b.ports.Write(0, ConfigAddressPort, []byte{1, 2, 3, 4}[:n])
	}
	b.ports.Write(0, ConfigAddressPort+2, []byte{0, 0})
	if lo, mid, hi := read(0, 2), read(1, 2), read(3, 1); lo != 0xfffc || mid != 0xffff || hi != 0x80 {
		t.Errorf("its parts read %#x, %#x, %#x", lo, mid, hi)
	}
}

func TestSlots(t *testing.T) {
	var r Root
	f := &recorder{t: t}
	for _, a := range []Address{{32, 0}, {0, 8}} {
		if err := r.Insert(a, f); err == nil {
			t.Errorf("%v was filled", a)
		}
	}
	for _, a := range []Address{{1, 0}, {2, 7}} {
		if err := r.Insert(a, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Insert(Address{2, 7}, f); err == nil || !strings.Contains(err.Error(), "00:02.7") {
		t.Errorf("a slot was filled twice: %v", err)
	}
	for d := uint8(3); d < 31; d++ {
		a, err := r.Free(1)
		if err != nil || a != (Address{Device: d}) {
			t.Fatalf("free slot %v, %v, want device %d", a, err, d)
		}
		if err := r.Insert(a, f); err != nil {
			t.Fatal(err)
		}
	}
	if a, err := r.Free(1); err == nil {
		t.Errorf("a full bus has slot %v", a)
	}
	r.Remove(Address{2, 7})
	if a, err := r.Free(1); err != nil || a.Device != 2 {
		t.Errorf("free slot %v, %v, want device 2", a, err)
	}
}

func TestRootState(t *testing.T) {
	a, b := newBoard(t), newBoard(t)
	a.address(0, 0x42, 0x10)
	enc := snap.NewEncoder(a.SnapVersion())
	a.State(enc)
	dec := snap.NewDecoder(enc.Data(), 1)
	b.State(dec)
	if dec.Done(); dec.Err() != nil || b.Root.address.Load() != 0x80004210 {
		t.Errorf("restored %#x, %v", b.Root.address.Load(), dec.Err())
	}
	dec = snap.NewDecoder([]byte{1, 0x42, 0, 0x80}, 1)
	if b.State(dec); dec.Err() == nil {
		t.Error("took a CONFIG_ADDRESS with bits that do not exist")
	}
}

func TestPlace(t *testing.T) {
	r := newRig(t)
	w := Windows{
		IO:    Window{Next: 0xc008, Last: 0xffff},
		Mem32: Window{Next: 0xe0000010, Last: 0xe0001fff},
		Mem64: Window{Next: 0x8_0000_0000, Last: 0xf_ffff_ffff},
	}
	if err := w.Place(r.f); err != nil {
		t.Fatal(err)
	}
	r.wantMapped("placed", "io [0xc020, 0xc040)", "[0xe0001000, 0xe0002000)", "[0x800000000, 0x800001000)", "[0xa00000000, 0xc00000000)")
	if v := r.read32(BAR0 + 16); v != 0xc {
		t.Errorf("a prefetchable register reads %#x: its flags changed", v)
	}
	err := w.Place(r.f)
	if err == nil || !strings.Contains(err.Error(), "test bar 1: no room for 0x1000 bytes") {
		t.Errorf("placed twice: %v", err)
	}
	for _, w := range []Window{{1, 0}, {^uint64(0) - 0x1000, ^uint64(0)}, {^uint64(0), ^uint64(0)}, {0x1001, 0x2fff}} {
		old := w
		if base, err := w.take(0x2000); err == nil || w != old {
			t.Errorf("took %#x from %#x and left %#x", base, old, w)
		}
	}
}

// device is a ConfigSpace that has a Function, as a virtio device is.
type device struct {
	ConfigSpace
	f *Function
}

func (d device) Function() *Function { return d.f }

// A register whose place was taken is decoded once the place is free, in whatever order the guest moves things.
func TestPlaceBecomesFree(t *testing.T) {
	b := newBoard(t)
	r := newRig(t)
	g, err := NewFunction(Config{Name: "other", BARs: [6]BAR{{Kind: BARMem32, Size: 0x1000, Device: new(ram)}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Attach(Env{Ports: &r.ports, MMIO: &r.mmio}); err != nil {
		t.Fatal(err)
	}
	b.insert(t, Address{Device: 1}, r.f)
	b.insert(t, Address{Device: 2}, device{g, g})
	write := func(dev, off int, v uint32) {
		b.mmio.Write(0, testECAM+uint64(dev)<<15+uint64(off), binary.LittleEndian.AppendUint32(nil, v))
	}
	write(1, BAR0+4, 0xe0000000)
	write(1, Command, CommandMemory)
	write(2, BAR0, 0xe0000000)
	write(2, Command, CommandMemory)
	r.wantMapped("one on top of the other", "[0xe0000000, 0xe0001000)")
	write(1, BAR0+4, 0xe0001000)
	r.wantMapped("the first has moved away", "[0xe0000000, 0xe0001000)", "[0xe0001000, 0xe0002000)")
	write(1, BAR0+4, 0xe0000000)
	write(2, Command, 0)
	r.wantMapped("the second is off", "[0xe0000000, 0xe0001000)")
	if !r.f.isMapped[1] || g.isMapped[0] {
		t.Error("what is mapped is not the first's")
	}
}
