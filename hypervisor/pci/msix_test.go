package pci

import (
	"encoding/binary"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

const (
	testTable = 0xe0000000
	testPBA   = 0xe0000800
)

// msixRig is a rig with n vectors, whose table is mapped at testTable.
type msixRig struct {
	*rig
	m *MSIX
}

// windowed answers a register with the table and, from 0x800, the pending bits.
type windowed struct{ m *MSIX }

func (w *windowed) part(a bus.Access) (bus.Device, bus.Access) {
	if a.Off >= 0x800 {
		a.Off -= 0x800
		return w.m.PBA(), a
	}
	return w.m.Table(), a
}

func (w *windowed) Read(a bus.Access, p []byte)  { d, a := w.part(a); d.Read(a, p) }
func (w *windowed) Write(a bus.Access, p []byte) { d, a := w.part(a); d.Write(a, p) }

func newMSIXRig(t *testing.T, n int) *msixRig {
	t.Helper()
	w := new(windowed)
	r := newRig(t, func(f *Function) (err error) {
		f.bars[1].Device = w
		w.m, err = f.AddMSIX(n, 1, 0, 0x800)
		return err
	})
	r.write32(BAR0+4, testTable)
	r.command(CommandMemory | CommandMaster)
	return &msixRig{r, w.m}
}

func (r *msixRig) control(v byte) { r.f.WriteConfig(r.m.cap+3, []byte{v}) }

func (r *msixRig) store32(addr uint64, v uint32) {
	r.mmio.Write(0, addr, binary.LittleEndian.AppendUint32(nil, v))
}

func (r *msixRig) load32(addr uint64) uint32 {
	var p [4]byte
	r.mmio.Read(0, addr, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

// message is what the tests program vector i with.
func message(i int) irq.MSI {
	return irq.MSI{Addr: 0xfee00000 + uint64(i)<<12, Data: 0x4000 + uint32(i)}
}

// program sets vector i's message and unmasks it, as Linux does: by dwords.
func (r *msixRig) program(i int) {
	e, m := testTable+16*uint64(i), message(i)
	r.store32(e, uint32(m.Addr))
	r.store32(e+4, uint32(m.Addr>>32))
	r.store32(e+8, m.Data)
	r.store32(e+12, 0)
}

func (r *msixRig) trigger(i int) {
	r.t.Helper()
	if err := r.m.Trigger(i); err != nil {
		r.t.Error(err)
	}
}

func (r *msixRig) want(when string, pending uint32, sent ...int) {
	r.t.Helper()
	var want []irq.MSI
	for _, i := range sent {
		want = append(want, message(i))
	}
	if diff := cmp.Diff(want, r.msi.Last().Sent()); diff != "" {
		r.t.Errorf("%s: sent (-want +got)\n%s", when, diff)
	}
	if got := r.load32(testPBA); got != pending {
		r.t.Errorf("%s: pending %#x, want %#x", when, got, pending)
	}
}

func TestMSIXCapability(t *testing.T) {
	r := newMSIXRig(t, 5)
	if v := r.read32(r.m.cap); v != 4<<16|CapMSIX {
		t.Errorf("capability reads %#x", v)
	}
	if table, pba := r.read32(r.m.cap+4), r.read32(r.m.cap+8); table != 1 || pba != 0x801 {
		t.Errorf("table at %#x and pending bits at %#x", table, pba)
	}
	r.write32(r.m.cap, 0xffffffff)
	if v := r.read32(r.m.cap); v != 0xc0040000|CapMSIX {
		t.Errorf("capability reads %#x after all bits were written", v)
	}
	for i := range uint64(5) {
		if v := r.load32(testTable + 16*i + 12); v != 1 {
			t.Errorf("vector %d has control %#x after reset, not masked", i, v)
		}
	}
	for _, tc := range []struct {
		n, bar     int
		table, pba uint32
	}{{0, 1, 0, 0x800}, {MaxVectors + 1, 1, 0, 0x800}, {1, 6, 0, 0x800}, {1, -1, 0, 0x800}, {1, 3, 0, 0x800}, {1, 1, 4, 0x800},
		{1, 1, 0, 0x804}, {2, 1, 0xff0, 0x800}, {2, 1, 0, 0x1000}, {2, 1, 0xfffffff8, 0}} {
		if _, err := r.f.AddMSIX(tc.n, tc.bar, tc.table, tc.pba); err == nil {
			t.Errorf("AddMSIX(%v) did not fail", tc)
		}
	}
}

func TestMSIXMasks(t *testing.T) {
	r := newMSIXRig(t, 4)
	r.program(0)
	r.program(1)
	r.trigger(0)
	r.want("MSI-X is off", 0)
	r.control(msixEnable)
	r.trigger(0)
	r.want("on", 0, 0)
	r.store32(testTable+12, 1)
	r.trigger(0)
	r.trigger(0)
	r.trigger(2)
	r.want("vectors 0 and 2 masked", 0b101, 0)
	r.store32(testTable+12, 0)
	r.want("vector 0 unmasked", 0b100, 0, 0)
	r.control(msixEnable | msixFunctionMask)
	r.trigger(1)
	r.want("function masked", 0b110, 0, 0)
	r.program(2)
	r.want("vector unmasked, function masked", 0b110, 0, 0)
	r.control(msixEnable)
	r.want("function unmasked", 0, 0, 0, 1, 2)
	r.command(CommandMemory)
	r.trigger(3)
	r.trigger(1)
	r.want("not bus master", 0b1010, 0, 0, 1, 2)
	r.command(CommandMemory | CommandMaster)
	r.want("bus master again", 0b1000, 0, 0, 1, 2, 1)
	for _, i := range []int{-1, 4, 0xffff} {
		r.trigger(i)
	}
	r.want("no such vector", 0b1000, 0, 0, 1, 2, 1)
	r.control(0)
	r.trigger(1)
	r.want("off again", 0b1000, 0, 0, 1, 2, 1)
	if _, err := r.m.EventFD(4); err == nil {
		t.Error("there is an eventfd for a vector that does not exist")
	}
}

func TestMSIXCancel(t *testing.T) {
	r := newMSIXRig(t, 4)
	r.program(1)
	r.control(msixEnable)
	r.store32(testTable+16+12, 1)
	r.trigger(1)
	r.want("masked", 0b10)
	r.m.Cancel()
	r.store32(testTable+16+12, 0)
	r.want("unmasked", 0)
}

func TestMSIXTable(t *testing.T) {
	r := newMSIXRig(t, 2)
	r.control(msixEnable)
	r.mmio.Write(0, testTable+16, binary.LittleEndian.AppendUint64(nil, message(1).Addr))
	r.mmio.Write(0, testTable+24, binary.LittleEndian.AppendUint64(nil, uint64(message(1).Data))) // unmasks it, too
	r.trigger(1)
	r.want("programmed by quadwords", 0, 1)
	r.store32(testTable+28, 0xfffffffe)
	if v := r.load32(testTable + 28); v != 0 {
		t.Errorf("reserved bits read %#x", v)
	}
	var before, after [32]byte
	read := func(b *[32]byte) {
		for i := range uint64(4) {
			r.mmio.Read(0, testTable+8*i, b[8*i:8*i+8])
		}
	}
	read(&before)
	for _, w := range []struct {
		addr uint64
		n    int
	}{{testTable, 1}, {testTable, 2}, {testTable + 2, 4}, {testTable + 4, 8}, {testTable + 32, 4}, {testTable + 30, 4}, {testPBA, 4}, {testPBA, 8}} {
		r.mmio.Write(0, w.addr, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}[:w.n])
	}
	read(&after)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("undefined writes changed the table (-before +after)\n%s", diff)
	}
	if v := r.load32(testTable + 32); v != 0 {
		t.Errorf("beyond the table: %#x", v)
	}
	if v := r.load32(testPBA); v != 0 {
		t.Errorf("pending bits after they were written: %#x", v)
	}
}

func TestMSIXPendingBitsOfMany(t *testing.T) {
	r := newMSIXRig(t, MaxVectors)
	r.control(msixEnable)
	for _, i := range []int{0, 7, 8, 63, 64, 127} {
		r.trigger(i)
	}
	var p [16]byte
	r.mmio.Read(0, testPBA, p[:8])
	r.mmio.Read(0, testPBA+8, p[8:])
	if diff := cmp.Diff([16]byte{0: 0x81, 1: 1, 7: 0x80, 8: 1, 15: 0x80}, p); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	r.mmio.Read(0, testPBA+7, p[:2])
	if p[0] != 0x80 || p[1] != 1 {
		t.Errorf("two bytes at 7: %x", p[:2])
	}
}

// A message that was pending when the machine was saved arrives after the restore, once and where the guest wants it.
func TestMSIXState(t *testing.T) {
	a := newMSIXRig(t, 3)
	a.control(msixEnable)
	a.program(0)
	a.program(2)
	a.store32(testTable+32+12, 1)
	a.trigger(2)
	enc := snap.NewEncoder(1)
	a.f.State(enc)

	b := newMSIXRig(t, 3)
	dec := snap.NewDecoder(enc.Data(), 1)
	b.f.State(dec)
	if dec.Done(); dec.Err() != nil {
		t.Fatal(dec.Err())
	}
	b.want("restored", 0b100)
	b.trigger(0)
	b.want("an unmasked vector", 0b100, 0)
	b.store32(testTable+32+12, 0)
	b.want("unmasked", 0, 0, 2)

	again := snap.NewEncoder(1)
	a.f.State(again)
	if diff := cmp.Diff(enc.Data(), again.Data()); diff != "" {
		t.Errorf("saving changed the state (-first +second)\n%s", diff)
	}
}

// Every trigger arrives, whatever the guest does to the masks meanwhile: pending ones are merged but never lost.
func TestMSIXConcurrent(t *testing.T) {
	r := newMSIXRig(t, 1)
	r.control(msixEnable)
	r.program(0)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 500 {
				r.trigger(0)
			}
		})
	}
	wg.Go(func() {
		for range 200 {
			r.store32(testTable+12, 1)
			r.load32(testPBA)
			r.control(msixEnable | msixFunctionMask)
			r.store32(testTable+12, 0)
			r.control(msixEnable)
		}
	})
	wg.Wait()
	before := r.msi.Last().Count(message(0))
	r.trigger(0)
	if got := r.msi.Last().Count(message(0)); got != before+1 || before == 0 || r.load32(testPBA) != 0 {
		t.Errorf("%d messages before and %d after the last one, pending %#x", before, got, r.load32(testPBA))
	}
}

func TestAllocations(t *testing.T) {
	r := newMSIXRig(t, 4)
	r.control(msixEnable | msixFunctionMask) // the rig's record of messages would grow
	r.program(0)
	var root Root
	if err := root.Insert(Address{Device: 3}, r.f); err != nil {
		t.Fatal(err)
	}
	ecam := root.ECAM()
	p := make([]byte, 4)
	for name, f := range map[string]func(){
		"trigger":      func() { _ = r.m.Trigger(0) },
		"table write":  func() { r.mmio.Write(0, testTable+8, p) },
		"pending bits": func() { r.mmio.Read(0, testPBA, p) },
		"INTx":         func() { r.f.SetINTx(true); r.f.SetINTx(false) },
		"config read":  func() { ecam.Read(bus.Access{Off: 3 << 15}, p) },
		"config write": func() { ecam.Write(bus.Access{Off: 3<<15 | InterruptLine}, p) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}
