package machine

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// memoryCard is a card whose memory the guest has while its register says so.
type memoryCard struct {
	pci.ConfigSpace
	snap.Component
	fn     *pci.Function
	mapper bus.Mapper
	memory []byte
	now    bus.Mapping
	failed error
	class  uint32
	exits  []bus.Access // what reached the card: the guest has not got its memory there
}

const memoryCardSize = 1 << 20

func newMemoryCard(t testing.TB) (*memoryCard, Slot) {
	c := &memoryCard{memory: kvmtest.RAM(t, memoryCardSize), class: 0x058000}
	return c, Slot{Name: "card", New: func(b Board) (_ Card, err error) {
		c.mapper = b.Mapper
		c.fn, err = pci.NewFunction(pci.Config{Name: b.Name, Class: c.class,
			BARs: [6]pci.BAR{{Kind: pci.BARMem32Prefetch, Size: memoryCardSize, Device: c, Moved: c.moved}}})
		c.ConfigSpace, c.Component = c.fn, c.fn
		return c, err
	}}
}

func (c *memoryCard) Function() *pci.Function { return c.fn }
func (c *memoryCard) Close() error            { return nil }

func (c *memoryCard) Read(a bus.Access, p []byte)  { c.exits = append(c.exits, a); clear(p) }
func (c *memoryCard) Write(a bus.Access, _ []byte) { c.exits = append(c.exits, a) }

func (c *memoryCard) moved(base uint64, mapped bool) {
	switch {
	case mapped:
		c.now, c.failed = c.mapper.Map(base, c.memory)
	case c.now != nil:
		c.failed = c.now.Unmap()
		c.now = nil
	}
}

// A card's memory is the guest's, wherever its register is, and what the guest writes to is known.
func TestMapper(t *testing.T) {
	card, slot := newMemoryCard(t)
	g := newGuest(t, small(t, kvmtest.RemoteProgram(), slot))
	const config = ecamBase + slotCards<<15
	if card.failed != nil || card.now == nil {
		t.Fatal(card.failed)
	}
	dirty := func() (pages []int) {
		t.Helper()
		bits := make([]uint64, memoryCardSize/4096/64)
		for i := range bits {
			bits[i] = ^uint64(0) // to be overwritten
		}
		if err := card.now.Dirty(bits); err != nil {
			t.Fatal(err)
		}
		for i := range memoryCardSize / 4096 {
			if bits[i/64]>>(i%64)&1 != 0 {
				pages = append(pages, i)
			}
		}
		return pages
	}
	write := func(base, off, v uint32) {
		t.Helper()
		g.Store32(base+off, v)
		if got := binary.LittleEndian.Uint32(card.memory[off:]); got != v {
			t.Errorf("the guest wrote %#x to %#x, the card has %#x", v, base+off, got)
		}
	}
	base := g.Load32(config+pci.BAR0) &^ 0xf
	write(base, 0x1000, 1)
	write(base, 0x43000, 2)
	binary.LittleEndian.PutUint32(card.memory[0x2000:], 3)
	if v := g.Load32(base + 0x2000); v != 3 {
		t.Errorf("the card wrote 3, the guest reads %d", v)
	}
	if diff := cmp.Diff([]int{1, 0x43}, dirty()); diff != "" {
		t.Errorf("pages (-want +got)\n%s", diff)
	}
	write(base, 0x1ffc, 4)
	if diff := cmp.Diff([]int{1}, dirty()); diff != "" {
		t.Errorf("pages since (-want +got)\n%s", diff)
	}

	const elsewhere = 0xd0000000
	g.Store32(config+pci.BAR0, elsewhere)
	if card.failed != nil || card.now == nil {
		t.Fatal(card.failed)
	}
	write(elsewhere, 0x5000, 5)
	if diff := cmp.Diff([]int{5}, dirty()); diff != "" {
		t.Errorf("pages after moving (-want +got)\n%s", diff)
	}
	if v := g.Load32(base + 0x5000); v != 0xffffffff || len(card.exits) != 0 {
		t.Errorf("where it was: %#x, exits %v", v, card.exits)
	}

	// On top of RAM the guest keeps its RAM.
	g.Store32(config+pci.BAR0, 0x100000)
	if card.failed == nil {
		t.Error("mapped over RAM")
	}
	g.Store32(0x100000, 6)
	if binary.LittleEndian.Uint32(card.memory) == 6 {
		t.Error("a write to RAM reached the card")
	}
	g.Store32(config+pci.BAR0, elsewhere)
	write(elsewhere, 0, 7)
}

// The number of mappings is bounded, and what is unmapped can be mapped again.
func TestMapperFull(t *testing.T) {
	m := newMachine(t, small(t, kvmtest.RemoteProgram()))
	page := kvmtest.RAM(t, 4096)
	var all []bus.Mapping
	for i := range uint64(maxMappings) {
		s, err := m.mapper.Map(pci32Base+i*4096, page)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if _, err := m.mapper.Map(pci32Last+1-4096, page); err == nil {
		t.Error("one more than there may be")
	}
	if err := all[3].Unmap(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.mapper.Map(pci32Last+1-4096, page); err != nil {
		t.Error(err)
	}
}

// The ACPI tables say whether there is a VGA: the FADT by a flag (ACPI 6.5 §5.2.9.3), the DSDT by its window.
func TestVGATables(t *testing.T) {
	for class, want := range map[uint32]bool{0x030000: true, 0x038000: false} {
		card, slot := newMemoryCard(t)
		card.class = class
		m := newMachine(t, small(t, kvmtest.RemoteProgram(), slot))
		tables, err := m.Memory().Slice(tablesBase, tablesEnd-tablesBase)
		if err != nil {
			t.Fatal(err)
		}
		const archOffset, notPresent = 109, 1 << 2
		fadt := bytes.Index(tables, []byte("FACP"))
		if fadt < 0 {
			t.Fatal("no FADT")
		}
		if has := tables[fadt+archOffset]&notPresent == 0; has != want {
			t.Errorf("class %#x: the FADT says %v", class, has)
		}
		if has := bytes.Contains(tables, []byte{0, 0, 0xa, 0, 0xff, 0xff, 0xb, 0}); has != want {
			t.Errorf("class %#x: the DSDT says %v", class, has)
		}
	}
}
