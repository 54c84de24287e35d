package pci

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Fields of the MSI-X capability and of a table entry, PCI 3.0 §6.8.2.
const (
	msixEntrySize    = 16
	msixControlHigh  = 1 // byte of Message Control within the capability's body that has the two bits
	msixEnable       = 0x80
	msixFunctionMask = 0x40
	msixEntryMasked  = 1
	// MaxVectors is how many vectors one function can have here: the table and its pending bits fill one page.
	MaxVectors = 128
)

// MSIX is a function's message-signalled interrupts with their table. The table and the pending bits are devices that the
// owner puts into one of its registers.
type MSIX struct {
	f   *Function
	n   int
	cap int // offset of the capability

	mu      sync.Mutex
	table   []byte
	vectors irq.Vectors // nil before Attach
	enabled bool        // as last told to vectors: the enable bit,
	masked  bool        // and whether all are masked
}

// AddMSIX gives f a table of n vectors, at tableOff and with its pending bits at pbaOff in register bar. Both offsets are
// multiples of 8.
func (f *Function) AddMSIX(n, bar int, tableOff, pbaOff uint32) (*MSIX, error) {
	if n < 1 || n > MaxVectors {
		return nil, fmt.Errorf("%s: %d interrupt vectors: 1 to %d are possible", f.name, n, MaxVectors)
	}
	table, pba := uint64(tableOff)+uint64(n)*msixEntrySize, uint64(pbaOff)+uint64(n+63)/64*8
	if bar < 0 || bar > 5 || tableOff%8 != 0 || pbaOff%8 != 0 || max(table, pba) > f.bars[bar].Size {
		return nil, fmt.Errorf("%s: bar %d has no room for %d interrupt vectors at %#x and their pending bits at %#x",
			f.name, bar, n, tableOff, pbaOff)
	}
	var body [10]byte
	binary.LittleEndian.PutUint16(body[0:], uint16(n-1))
	binary.LittleEndian.PutUint32(body[2:], tableOff|uint32(bar))
	binary.LittleEndian.PutUint32(body[6:], pbaOff|uint32(bar))
	off, err := f.AddCapability(CapMSIX, body[:], []byte{0, msixEnable | msixFunctionMask})
	if err != nil {
		return nil, err
	}
	f.msix = &MSIX{f: f, n: n, cap: off, table: make([]byte, n*msixEntrySize)}
	f.msix.maskAll()
	return f.msix, nil
}

func (m *MSIX) maskAll() {
	clear(m.table)
	for i := range m.n {
		m.table[i*msixEntrySize+12] = msixEntryMasked
	}
}

func (m *MSIX) attach(v irq.Vectors) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.vectors = v
}

func (m *MSIX) detach() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.vectors == nil {
		return nil
	}
	err := m.vectors.Close()
	m.vectors = nil
	return err
}

// Cancel makes no vector pending, for a device that its driver resets: what is left would go to the next driver.
func (m *MSIX) Cancel() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.n {
		if m.vectors != nil {
			m.vectors.Cancel(i)
		}
	}
}

// Enabled reports whether the guest uses MSI-X; otherwise the function interrupts by its pin.
func (m *MSIX) Enabled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enabled
}

// Trigger sends vector i. A number that the table does not have is ignored: a guest may name one.
func (m *MSIX) Trigger(i int) error {
	m.mu.Lock()
	v, enabled := m.vectors, m.enabled
	m.mu.Unlock()
	if v == nil || !enabled || i < 0 || i >= m.n {
		return nil
	}
	return v.Trigger(i)
}

// EventFD returns an eventfd whose signal sends vector i; see irq.Vectors.
func (m *MSIX) EventFD(i int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.vectors == nil || i < 0 || i >= m.n {
		return -1, fmt.Errorf("%s: no interrupt vector %d", m.f.name, i)
	}
	return m.vectors.EventFD(i)
}

// configWritten is called with the function locked.
func (m *MSIX) configWritten() {
	m.mu.Lock()
	defer m.mu.Unlock()
	enabled, masked := m.enabled, m.masked
	if m.readControl(&m.f.cfg); enabled != m.enabled || masked != m.masked {
		m.updateAll()
	}
}

// readControl takes enabled and masked from a configuration space. A message is a write to memory: a function that is not
// to be bus master sends none, and it waits like one that is masked.
func (m *MSIX) readControl(cfg *[ConfigSize]byte) {
	v := cfg[m.cap+2+msixControlHigh]
	m.enabled, m.masked = v&msixEnable != 0, v&msixFunctionMask != 0 || cfg[Command]&CommandMaster == 0
}

// waits reports whether vector i, when it is triggered, stays pending.
func (m *MSIX) waits(i int) bool {
	return !m.enabled || m.masked || m.table[i*msixEntrySize+12]&msixEntryMasked != 0
}

func (m *MSIX) updateAll() {
	for i := range m.n {
		m.update(i)
	}
}

func (m *MSIX) update(i int) {
	if m.vectors == nil {
		return
	}
	e := m.table[i*msixEntrySize:]
	msg := irq.MSI{Addr: binary.LittleEndian.Uint64(e), Data: binary.LittleEndian.Uint32(e[8:])}
	_ = m.vectors.Update(i, msg, m.waits(i))
}

// state carries the table and the pending bits. cfg is the configuration space that is saved with them.
func (m *MSIX) state(c *snap.Codec, cfg *[ConfigSize]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c.Match("number of interrupt vectors", uint64(m.n))
	c.Fixed(m.table)
	m.readControl(cfg)
	for i := range m.n {
		if v := binary.LittleEndian.Uint32(m.table[i*msixEntrySize+12:]); v&^msixEntryMasked != 0 {
			c.Fail("interrupt vector %d has reserved bits: %#x", i, v)
		}
		waits := m.waits(i)
		pending := waits && m.vectors != nil && m.vectors.Pending(i)
		c.Bool(&pending)
		if pending && !waits {
			c.Fail("interrupt vector %d is pending and not masked", i)
		}
		if c.Loading() && pending && m.vectors != nil {
			_ = m.vectors.Trigger(i) // every vector is masked still: it stays pending
		}
	}
}

// restored is called with the function locked, once its configuration space is the saved one.
func (m *MSIX) restored() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.updateAll()
}

// clearReserved clears the bits of vector i's Vector Control that do not exist.
func (m *MSIX) clearReserved(i int) {
	control := m.table[i*msixEntrySize+12:]
	binary.LittleEndian.PutUint32(control, binary.LittleEndian.Uint32(control)&msixEntryMasked)
}

// Table returns the device of the table: 16 bytes a vector.
func (m *MSIX) Table() bus.Device { return msixTable{m} }

// PBA returns the device of the pending bits: one bit a vector, in whole quadwords.
func (m *MSIX) PBA() bus.Device { return msixPBA{m} }

type msixTable struct{ m *MSIX }

func (t msixTable) Read(a bus.Access, p []byte) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	clear(p)
	if a.Off < uint64(len(t.m.table)) {
		copy(p, t.m.table[a.Off:])
	}
}

// Write takes aligned dwords and quadwords: §6.8.2 leaves the rest undefined.
func (t msixTable) Write(a bus.Access, p []byte) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if n := uint64(len(p)); n < 4 || a.Off%n != 0 || a.Off+n > uint64(len(t.m.table)) {
		return
	}
	copy(t.m.table[a.Off:], p)
	e := int(a.Off) / msixEntrySize
	t.m.clearReserved(e)
	t.m.update(e)
}

type msixPBA struct{ m *MSIX }

func (b msixPBA) Read(a bus.Access, p []byte) {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	clear(p)
	for i := range b.m.n {
		byteOff := uint64(i / 8)
		if byteOff >= a.Off && byteOff < a.Off+uint64(len(p)) && b.m.vectors != nil && b.m.vectors.Pending(i) {
			p[byteOff-a.Off] |= 1 << (i % 8)
		}
	}
}

func (b msixPBA) Write(bus.Access, []byte) {} // read-only
