package pci

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq/irqtest"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// ram is a device of plain bytes.
type ram struct {
	mu sync.Mutex
	b  [4096]byte
}

func (r *ram) Read(a bus.Access, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(p, r.b[a.Off:])
}

func (r *ram) Write(a bus.Access, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.b[a.Off:], p)
}

// rig is a function on buses of its own.
type rig struct {
	t           *testing.T
	f           *Function
	ports, mmio bus.Bus
	line        irqtest.Line
	msi         irqtest.Allocator
	moves       []string // what BAR.Moved was called with
}

func (r *rig) moved(i int) func(uint64, bool) {
	return func(base uint64, mapped bool) {
		r.moves = append(r.moves, fmt.Sprintf("%d %#x %v", i, base, mapped))
	}
}

// newRig returns an attached function with a register of every kind: 0 is I/O, 1 32-bit, 2 64-bit and 4 64-bit
// prefetchable.
func newRig(t *testing.T, setup ...func(*Function) error) *rig {
	t.Helper()
	r := &rig{t: t}
	f, err := NewFunction(Config{
		Name: "test", Vendor: 0x1234, Device: 0x5678, SubsystemVendor: 0x9abc, Subsystem: 0xdef0, Class: 0x020304, Revision: 5,
		Pin: 1, DefaultInterrupt: 0xff,
		BARs: [6]BAR{
			0: {Kind: BARIO, Size: 32, Device: new(ram), Moved: r.moved(0)},
			1: {Kind: BARMem32, Size: 0x1000, Device: new(ram), Moved: r.moved(1)},
			2: {Kind: BARMem64, Size: 0x1000, Device: new(ram), Moved: r.moved(2)},
			4: {Kind: BARMem64Prefetch, Size: 1 << 33, Device: new(ram)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range setup {
		if err := s(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Attach(Env{Ports: &r.ports, MMIO: &r.mmio, Line: &r.line, MSI: &r.msi}); err != nil {
		t.Fatal(err)
	}
	r.f = f
	return r
}

func (r *rig) read32(off int) uint32 {
	var p [4]byte
	r.f.ReadConfig(off, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

func (r *rig) write32(off int, v uint32) {
	r.f.WriteConfig(off, binary.LittleEndian.AppendUint32(nil, v))
}

func (r *rig) command(v uint16) {
	r.f.WriteConfig(Command, binary.LittleEndian.AppendUint16(nil, v))
}

// mapped returns what the buses have, ports first.
func (r *rig) mapped() (s []string) {
	for _, m := range r.ports.Ranges() {
		s = append(s, "io "+m.String())
	}
	for _, m := range r.mmio.Ranges() {
		s = append(s, m.String())
	}
	return s
}

func (r *rig) wantMapped(when string, want ...string) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.mapped()); diff != "" {
		r.t.Errorf("%s: (-want +got)\n%s", when, diff)
	}
}

func TestNewFunction(t *testing.T) {
	dev := new(ram)
	for name, tc := range map[string]struct {
		c    Config
		want string
	}{
		"no registers":        {Config{}, ""},
		"smallest":            {Config{BARs: [6]BAR{{Kind: BARIO, Size: 4, Device: dev}, {Kind: BARMem32, Size: 16, Device: dev}}}, ""},
		"largest":             {Config{BARs: [6]BAR{{Kind: BARIO, Size: 256, Device: dev}, {Kind: BARMem32, Size: 1 << 31, Device: dev}}}, ""},
		"odd size":            {Config{BARs: [6]BAR{{Kind: BARMem32, Size: 0x1800, Device: dev}}}, "bar 0: 0x1800 bytes"},
		"no size":             {Config{BARs: [6]BAR{1: {Kind: BARMem32, Device: dev}}}, "bar 1: 0x0 bytes"},
		"small memory":        {Config{BARs: [6]BAR{{Kind: BARMem32, Size: 8, Device: dev}}}, "bar 0: 0x8 bytes"},
		"small I/O":           {Config{BARs: [6]BAR{{Kind: BARIO, Size: 2, Device: dev}}}, "bar 0: 0x2 bytes"},
		"large I/O":           {Config{BARs: [6]BAR{{Kind: BARIO, Size: 512, Device: dev}}}, "bar 0: 0x200 bytes"},
		"large 32-bit":        {Config{BARs: [6]BAR{{Kind: BARMem32, Size: 1 << 32, Device: dev}}}, "bar 0: 0x100000000 bytes"},
		"no device":           {Config{BARs: [6]BAR{{Kind: BARMem32, Size: 16}}}, "bar 0: no device"},
		"64-bit at the end":   {Config{BARs: [6]BAR{5: {Kind: BARMem64, Size: 16, Device: dev}}}, "bar 5: a 64-bit register"},
		"64-bit without room": {Config{BARs: [6]BAR{{Kind: BARMem64, Size: 16, Device: dev}, {Kind: BARIO, Size: 16, Device: dev}}}, "bar 0: a 64-bit"},
		"no such kind":        {Config{BARs: [6]BAR{{Kind: 9, Size: 16, Device: dev}}}, "bar 0: no such kind"},
		"no such pin":         {Config{Pin: 5}, "interrupt pin 5"},
		"large ROM":           {Config{ROM: make([]byte, 16<<20+1)}, "bar 6: 0x2000000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.c.Name = "card"
			_, err := NewFunction(tc.c)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), "card: "+tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestHeader(t *testing.T) {
	r := newRig(t)
	for off, want := range map[int]uint32{
		VendorID: 0x56781234, RevisionID: 0x02030405, SubsystemVendorID: 0xdef09abc, InterruptLine: 0x000001ff,
		CacheLineSize: 0, ExpansionROM: 0, CapPointer: 0, 0xfc: 0, 0x100: 0, 0xffc: 0,
	} {
		if got := r.read32(off); got != want {
			t.Errorf("%#x reads %#x, want %#x", off, got, want)
		}
	}
}

// What a guest writes to a function without capabilities changes exactly the bits of PCI 3.0 §6.1 that can change.
func TestWritable(t *testing.T) {
	r := newRig(t)
	before := make(map[int]uint32)
	for off := 0; off < ConfigSize; off += 4 {
		before[off] = r.read32(off)
	}
	want := map[int]uint32{
		Command: commandWritable, CacheLineSize: 0xffff, InterruptLine: 0xff,
		BAR0: 0xffffffe0, BAR0 + 4: 0xfffff000, BAR0 + 8: 0xfffff000, BAR0 + 12: 0xffffffff, BAR0 + 20: 0xfffffffe,
	}
	for off := 0; off < ConfigSize; off += 4 {
		changed := uint32(0)
		for _, v := range []uint32{0xffffffff, 0} {
			r.write32(off, v)
			changed |= r.read32(off) ^ before[off]
			r.write32(off, before[off])
		}
		if changed != want[off] {
			t.Errorf("%#x: bits %#x change, want %#x", off, changed, want[off])
		}
	}
}

// An OS sizes a register as PCI 3.0 §6.2.5.1 says, with decoding off and, as some do, on.
func TestSizing(t *testing.T) {
	for _, cmd := range []uint16{0, CommandIO | CommandMemory} {
		r := newRig(t)
		r.command(cmd)
		for i, tc := range []struct {
			is64  bool
			flags uint32
			size  uint64
		}{0: {false, 1, 32}, 1: {false, 0, 0x1000}, 2: {true, 4, 0x1000}, 4: {true, 12, 1 << 33}} {
			if tc.size == 0 {
				continue
			}
			off := BAR0 + 4*i
			old := r.read32(off)
			r.write32(off, 0xffffffff)
			v := r.read32(off)
			mask := uint64(v)
			if tc.is64 {
				r.write32(off+4, 0xffffffff)
				mask |= uint64(r.read32(off+4)) << 32
				r.write32(off+4, 0)
			} else {
				mask |= 0xffffffff << 32
			}
			r.write32(off, old)
			flagMask := uint64(0xf)
			if tc.flags&1 != 0 {
				flagMask = 3
			}
			if size := ^(mask &^ flagMask) + 1; size != tc.size || v&uint32(flagMask) != tc.flags {
				t.Errorf("register %d reads %#x: size %#x and flags %#x, want %#x and %#x", i, v, size, v&uint32(flagMask), tc.size, tc.flags)
			}
		}
		for _, i := range []int{3, 5} { // the upper halves
			if v := r.read32(BAR0 + 4*i); v != 0 {
				t.Errorf("register %d reads %#x", i, v)
			}
		}
		r.wantMapped("after sizing")
	}
}

func TestMapping(t *testing.T) {
	r := newRig(t)
	r.write32(BAR0, 0xc001)
	r.write32(BAR0+4, 0xe0000000)
	r.write32(BAR0+8, 0xe0001000)
	r.write32(BAR0+12, 0x10)
	r.wantMapped("decoding is off")
	r.command(CommandIO)
	r.wantMapped("I/O on", "io [0xc000, 0xc020)")
	r.command(CommandMemory)
	r.wantMapped("memory on", "[0xe0000000, 0xe0001000)", "[0x10e0001000, 0x10e0002000)")
	r.command(CommandIO | CommandMemory | CommandMaster)

	r.mmio.Write(0, 0x10e0001004, []byte{1, 2, 3, 4})
	var p [4]byte
	r.f.bars[2].Device.Read(bus.Access{Off: 4}, p[:])
	if p != [4]byte{1, 2, 3, 4} {
		t.Errorf("a write through the bus reached the device as %v", p)
	}

	r.moves = nil
	r.write32(BAR0+4, 0xd0000000)
	r.wantMapped("moved", "io [0xc000, 0xc020)", "[0xd0000000, 0xd0001000)", "[0x10e0001000, 0x10e0002000)")
	r.write32(BAR0+4, 0xd0000000) // again: nothing happens
	r.write32(BAR0+12, 0x11)
	r.wantMapped("upper half moved", "io [0xc000, 0xc020)", "[0xd0000000, 0xd0001000)", "[0x11e0001000, 0x11e0002000)")
	r.f.WriteConfig(BAR0+1, []byte{0xd0}) // one byte
	r.command(0)
	r.wantMapped("off")
	want := []string{
		"1 0xe0000000 false", "1 0xd0000000 true", "2 0x10e0001000 false", "2 0x11e0001000 true",
		"0 0xc000 false", "0 0xd000 true", "0 0xd000 false", "1 0xd0000000 false", "2 0x11e0001000 false",
	}
	if diff := cmp.Diff(want, r.moves); diff != "" {
		t.Errorf("moves (-want +got)\n%s", diff)
	}
}

// Registers may overlap while a guest moves them. Whoever was there first stays; the other is decoded once it can be.
func TestOverlap(t *testing.T) {
	r := newRig(t)
	r.write32(BAR0+4, 0xe0000000)
	r.write32(BAR0+8, 0xe0001000)
	r.command(CommandMemory)
	both := []string{"[0xe0000000, 0xe0001000)", "[0xe0001000, 0xe0002000)"}
	r.wantMapped("at first", both...)
	r.write32(BAR0+4, 0xe0001000)
	r.wantMapped("on top of each other", both[1:]...)
	r.write32(BAR0+8, 0xe0000000)
	r.wantMapped("places changed", both...)
	if r.f.mapped[1] != 0xe0001000 || r.f.mapped[2] != 0xe0000000 {
		t.Errorf("mapped at %#x", r.f.mapped)
	}
	// Something else, which does not move.
	if err := r.mmio.Map(bus.Range{Base: 0xfee00000, Size: 0x1000}, new(ram)); err != nil {
		t.Fatal(err)
	}
	r.write32(BAR0+4, 0xfee00000)
	r.write32(BAR0+12, 0xffffffff) // at the very end of the address space
	r.write32(BAR0+8, 0xfffff000)
	r.wantMapped("on top of something else", "[0xfee00000, 0xfee01000)")
	r.write32(BAR0+4, 0)
	r.wantMapped("at zero", "[0xfee00000, 0xfee01000)")
}

func TestCapabilities(t *testing.T) {
	r := newRig(t,
		func(f *Function) error {
			_, err := f.AddCapability(CapVendor, []byte{5, 0xaa, 0xbb}, []byte{0, 0x0f})
			return err
		},
		func(f *Function) error { _, err := f.AddMSIX(3, 1, 0, 0x800); return err },
		func(f *Function) error { _, err := f.AddCapability(0x01, make([]byte, 6), nil); return err },
	)
	if v := r.read32(Command) >> 16; v&statusCapList == 0 {
		t.Errorf("status %#x says that there is no list", v)
	}
	var ids []byte
	for p := r.read32(CapPointer) & 0xff; p != 0; p = r.read32(int(p)) >> 8 & 0xff {
		if p%4 != 0 || p < firstCap || len(ids) > 48 {
			t.Fatalf("pointer %#x after capabilities %#x", p, ids)
		}
		ids = append(ids, byte(r.read32(int(p))))
	}
	if diff := cmp.Diff([]byte{CapVendor, CapMSIX, 0x01}, ids); diff != "" {
		t.Errorf("capabilities (-want +got)\n%s", diff)
	}
	r.write32(firstCap, 0xffffffff)
	if v := r.read32(firstCap); v != 0xaf054809 {
		t.Errorf("the first capability reads %#x after it was written", v)
	}

	f, err := NewFunction(Config{Name: "full"})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := f.AddCapability(CapVendor, make([]byte, 62), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.AddCapability(CapVendor, nil, nil); err == nil {
		t.Error("a capability was added to a full configuration space")
	}
}

func TestINTx(t *testing.T) {
	r := newRig(t, func(f *Function) error { _, err := f.AddMSIX(1, 1, 0, 0x800); return err })
	check := func(when string, line, status bool) {
		t.Helper()
		if got := r.read32(Command)>>16&statusInterrupt != 0; r.line.Level() != line || got != status {
			t.Errorf("%s: line %v and status %v, want %v and %v", when, r.line.Level(), got, line, status)
		}
	}
	r.f.SetINTx(true)
	r.f.SetINTx(true)
	check("asserted", true, true)
	r.command(CommandINTxOff)
	check("disabled", false, true)
	r.command(0)
	check("enabled again", true, true)
	r.f.WriteConfig(r.f.msix.cap+3, []byte{msixEnable})
	check("MSI-X on", false, true)
	r.f.WriteConfig(r.f.msix.cap+3, []byte{0})
	check("MSI-X off", true, true)
	r.f.SetINTx(false)
	check("deasserted", false, false)
	if n := r.line.Raised(); n != 3 {
		t.Errorf("the line was raised %d times, want 3", n)
	}
}

func TestHooks(t *testing.T) {
	var seen []string
	r := newRig(t, func(f *Function) error {
		f.SetRegister(0x60, []byte{0x80, 0x80}, []byte{0x8f, 0x8f})
		f.OnWrite(0x60, 2, func() { seen = append(seen, fmt.Sprintf("%x", f.Peek(0x60, 2))) })
		return nil
	})
	r.f.WriteConfig(0x5f, []byte{0xff})
	r.f.WriteConfig(0x62, []byte{0xff})
	r.write32(0x60, 0x7b)
	r.f.WriteConfig(0x61, []byte{0x8a})
	if diff := cmp.Diff([]string{"0b00", "0b8a"}, seen); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestDetach(t *testing.T) {
	r := newRig(t, func(f *Function) error { _, err := f.AddMSIX(2, 1, 0, 0x800); return err })
	r.write32(BAR0+4, 0xe0000000)
	r.command(CommandMemory)
	r.f.SetINTx(true)
	if err := r.f.Attach(Env{Ports: &r.ports, MMIO: &r.mmio, MSI: &r.msi}); err == nil {
		t.Error("it was attached twice")
	}
	if err := r.f.Detach(); err != nil {
		t.Fatal(err)
	}
	if !r.msi.Last().Closed() || r.line.Level() {
		t.Errorf("vectors closed: %v, line: %v", r.msi.Last().Closed(), r.line.Level())
	}
	r.command(CommandMemory | CommandIO) // an access that was under way
	r.f.SetINTx(false)
	r.f.SetINTx(true)
	if err := r.f.msix.Trigger(0); err != nil {
		t.Error(err)
	}
	r.wantMapped("detached")
	if err := r.f.Attach(Env{Ports: &r.ports, MMIO: &r.mmio}); err == nil {
		t.Error("MSI-X was attached to nothing")
	}
	if err := r.f.Attach(Env{Ports: &r.ports, MMIO: &r.mmio, MSI: &r.msi}); err != nil {
		t.Fatal(err)
	}
	r.wantMapped("attached again", "[0xe0000000, 0xe0001000)")
}

func TestState(t *testing.T) {
	msix := func(f *Function) error { _, err := f.AddMSIX(3, 1, 0, 0x800); return err }
	a := newRig(t, msix)
	a.write32(BAR0, 0xc001)
	a.write32(BAR0+4, 0xe0000000)
	a.command(CommandIO | CommandMemory)
	a.f.SetINTx(true)
	enc := snap.NewEncoder(a.f.SnapVersion())
	a.f.State(enc)
	if err := enc.Err(); err != nil {
		t.Fatal(err)
	}

	b, hooks := newRig(t, msix), 0
	b.f.OnWrite(0xf0, 1, func() { hooks++ })
	dec := snap.NewDecoder(enc.Data(), 1)
	b.f.State(dec)
	if dec.Done(); dec.Err() != nil {
		t.Fatal(dec.Err())
	}
	if b.f.cfg != a.f.cfg || !b.line.Level() || hooks != 1 {
		t.Errorf("configuration is the same: %v; line %v; hook ran %d times", b.f.cfg == a.f.cfg, b.line.Level(), hooks)
	}
	b.wantMapped("restored", a.mapped()...)

	vector0, capMSIX := ConfigSize+1+8, int(a.f.cfg[CapPointer])
	for name, tc := range map[string]struct {
		setup func(*Function) error
		spoil func([]byte) []byte
		want  string
	}{
		"vector's control": {msix, func(b []byte) []byte { b[vector0+12] = 2; return b }, "interrupt vector 0 has reserved bits"},
		"pending, unmasked": {msix, func(b []byte) []byte {
			b[Command] |= CommandMaster
			b[capMSIX+2+msixControlHigh] |= msixEnable
			b[vector0+12], b[len(b)-3] = 0, 1
			return b
		}, "interrupt vector 0 is pending and not masked"},
		"another device":    {msix, func(b []byte) []byte { b[DeviceID]++; return b }, "configuration byte 0x2 is 0x79"},
		"interrupt status":  {msix, func(b []byte) []byte { b[Status] ^= statusInterrupt; return b }, "the interrupt status is not the pin's"},
		"without a list":    {msix, func(b []byte) []byte { b[Status] ^= statusCapList; return b }, "configuration byte 0x6"},
		"other vectors":     {func(f *Function) error { _, err := f.AddMSIX(4, 1, 0, 0x800); return err }, nil, "number of interrupt vectors is 3"},
		"cut":               {msix, func(b []byte) []byte { return b[:len(b)-1] }, "ends 1 bytes too early"},
		"pin not a boolean": {msix, func(b []byte) []byte { b[ConfigSize] = 2; return b }, "truth value 2"},
	} {
		t.Run(name, func(t *testing.T) {
			data := append([]byte(nil), enc.Data()...)
			if tc.spoil != nil {
				data = tc.spoil(data)
			}
			r := newRig(t, tc.setup)
			c := snap.NewDecoder(data, 1)
			r.f.State(c)
			if c.Err() == nil || !strings.HasPrefix(c.Err().Error(), tc.want) {
				t.Errorf("error %v, want %q", c.Err(), tc.want)
			}
			r.wantMapped("refused")
		})
	}
}
