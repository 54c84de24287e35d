package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// BARKind says which address space a base address register decodes.
type BARKind uint8

// Kinds of base address registers, PCI 3.0 §6.2.5.1.
const (
	BARNone BARKind = iota
	BARIO
	BARMem32
	BARMem32Prefetch
	BARMem64         // takes two registers: the next one must be BARNone
	BARMem64Prefetch // the same, prefetchable
	barROM           // the expansion ROM's register
)

// BAR describes one base address register.
type BAR struct {
	Kind   BARKind
	Size   uint64     // bytes, a power of two; 4 to 256 for I/O, at least 16 for memory
	Device bus.Device // answers accesses; Off is relative to the register's base
	// Moved is called after the guest mapped, moved or unmapped the range. It may not access the configuration space.
	Moved func(base uint64, mapped bool)
}

// Config describes a function.
type Config struct {
	Name               string
	Vendor, Device     uint16
	SubsystemVendor    uint16
	Subsystem          uint16
	Class              uint32 // base class, subclass and programming interface, 24 bits
	Revision           uint8
	Multifunction      bool
	Pin                uint8 // INTx pin, 1 (A) to 4 (D); 0 is none
	BARs               [6]BAR
	ROM                []byte // the expansion ROM, which is filled up to a power of two with zeros; empty is none. Not copied
	Fixed              []Fixed
	DefaultInterrupt   uint8 // first value of the Interrupt Line register
	DefaultCommandBits uint16
}

// Env is what a function is given when it is attached: the address spaces that its registers map into, and its
// interrupts. Line may be nil for a function without an INTx pin.
type Env struct {
	Ports, MMIO *bus.Bus
	Line        irq.Line
	MSI         irq.Allocator
}

// Function is one emulated PCI function. It implements ConfigSpace. Its capabilities and writable bits are set up before
// it is attached and do not change afterwards.
type Function struct {
	name  string
	bars  [numBARs]BAR // the last is the expansion ROM's
	fixed []Fixed

	mu       sync.Mutex
	cfg      [ConfigSize]byte
	writable [ConfigSize]byte // bits that the guest can set
	nextCap  int              // where the next capability goes
	lastCap  int              // offset of the pointer to it
	mapped   [numBARs]uint64  // where each register is mapped now
	isMapped [numBARs]bool
	isFixed  []bool // by index of fixed: it is mapped
	env      Env
	asserted bool // INTx as the device drives it
	msix     *MSIX
	onWrite  []configHook
}

type configHook struct {
	off, n int
	f      func()
}

// NewFunction returns a function described by c. The error says what in c cannot be.
func NewFunction(c Config) (*Function, error) {
	if c.Pin > 4 {
		return nil, fmt.Errorf("%s: interrupt pin %d: 1 to 4, or 0 for none, are possible", c.Name, c.Pin)
	}
	f := &Function{name: c.Name, fixed: c.Fixed, isFixed: make([]bool, len(c.Fixed)), nextCap: firstCap, lastCap: CapPointer}
	copy(f.bars[:], c.BARs[:])
	if len(c.ROM) > 0 {
		f.bars[romBAR] = BAR{Kind: barROM, Size: romSize(len(c.ROM)), Device: rom(c.ROM)}
	}
	put16 := func(off int, v uint16) { binary.LittleEndian.PutUint16(f.cfg[off:], v) }
	put16(VendorID, c.Vendor)
	put16(DeviceID, c.Device)
	put16(SubsystemVendorID, c.SubsystemVendor)
	put16(SubsystemID, c.Subsystem)
	put16(Command, c.DefaultCommandBits)
	f.cfg[RevisionID] = c.Revision
	f.cfg[ProgIF], f.cfg[SubClass], f.cfg[BaseClass] = byte(c.Class), byte(c.Class>>8), byte(c.Class>>16)
	if c.Multifunction {
		f.cfg[HeaderType] = multifunctionFlag
	}
	f.cfg[InterruptLine], f.cfg[InterruptPin] = c.DefaultInterrupt, c.Pin
	binary.LittleEndian.PutUint16(f.writable[Command:], commandWritable)
	f.writable[CacheLineSize], f.writable[LatencyTimer], f.writable[InterruptLine] = 0xff, 0xff, 0xff
	for i := range f.bars {
		if err := f.initBAR(i); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	return f, nil
}

func (f *Function) initBAR(i int) error {
	b, off := f.bars[i], barOffset(i)
	if b.Kind == BARNone {
		return nil
	}
	// Limits of PCI 3.0 §6.2.5.1: an address bit that a register has is one that can be set.
	flags, smallest, largest := uint32(0), uint64(16), uint64(1<<31)
	enable := uint32(0) // bits beside the address that can be set
	switch b.Kind {
	case BARIO:
		flags, smallest, largest = 1, 4, 256
	case BARMem32:
	case BARMem32Prefetch:
		flags = 8
	case barROM:
		enable, smallest, largest = romEnable, romMin, romMax
	case BARMem64:
		flags, largest = 4, 1<<63
	case BARMem64Prefetch:
		flags, largest = 12, 1<<63
	default:
		return fmt.Errorf("bar %d: no such kind: %d", i, b.Kind)
	}
	if bits.OnesCount64(b.Size) != 1 || b.Size < smallest || b.Size > largest {
		return fmt.Errorf("bar %d: %#x bytes: a power of two from %#x to %#x is possible", i, b.Size, smallest, largest)
	}
	if b.Device == nil {
		return fmt.Errorf("bar %d: no device answers it", i)
	}
	mask := ^(b.Size - 1)
	binary.LittleEndian.PutUint32(f.cfg[off:], flags)
	binary.LittleEndian.PutUint32(f.writable[off:], uint32(mask)|enable)
	if b.is64() {
		if i == 5 || f.bars[i+1].Kind != BARNone {
			return fmt.Errorf("bar %d: a 64-bit register needs the next one", i)
		}
		binary.LittleEndian.PutUint32(f.writable[off+4:], uint32(mask>>32))
	}
	return nil
}

func (b *BAR) is64() bool { return b.Kind == BARMem64 || b.Kind == BARMem64Prefetch }

// Name returns the function's name.
func (f *Function) Name() string { return f.name }

// AddCapability appends a capability with the given body, which follows the identifier and next pointer. writable has a
// bit for each bit of body that the guest can set; it may be shorter. It returns the capability's offset.
func (f *Function) AddCapability(id byte, body, writable []byte) (int, error) {
	off := f.nextCap
	end := off + 2 + len(body)
	if end > ConfigSize {
		return 0, fmt.Errorf("%s: no room for capability %#x in configuration space", f.name, id)
	}
	f.cfg[off], f.cfg[off+1] = id, 0
	copy(f.cfg[off+2:], body)
	copy(f.writable[off+2:end], writable)
	f.cfg[f.lastCap] = byte(off)
	f.cfg[Status] |= statusCapList
	f.lastCap, f.nextCap = off+1, (end+3)&^3
	return off, nil
}

// SetRegister sets a register's first value and the bits that the guest can change, for registers that are neither in
// the header nor in a capability (a chipset's own).
func (f *Function) SetRegister(off int, value, writable []byte) {
	copy(f.cfg[off:], value)
	copy(f.writable[off:], writable)
}

// OnWrite calls h after each guest write that touches the n bytes at off, and after a restore. h may read the
// configuration through Peek, and must not write it.
func (f *Function) OnWrite(off, n int, h func()) {
	f.onWrite = append(f.onWrite, configHook{off, n, h})
}

// Attach connects the function to its bus. From then on it maps its registers as the guest asks.
func (f *Function) Attach(env Env) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.env.MMIO != nil {
		return fmt.Errorf("%s: attached already", f.name)
	}
	if f.msix != nil {
		if env.MSI == nil {
			return fmt.Errorf("%s: no message-signalled interrupts on this bus", f.name)
		}
		v, err := env.MSI.Vectors(f.msix.n)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		f.msix.attach(v)
	}
	f.env = env
	f.remap()
	return nil
}

// Detach unmaps everything and gives the interrupts back. What the guest writes to the configuration space from then on,
// as an access that was under way may, maps nothing.
func (f *Function) Detach() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for i := range f.bars {
		f.unmap(i)
	}
	f.remapFixed(0)
	errs = append(errs, f.drive(false))
	if f.msix != nil {
		errs = append(errs, f.msix.detach())
	}
	f.env = Env{}
	return errors.Join(errs...)
}

// ReadConfig implements ConfigSpace. Beyond ConfigSize all reads are zero.
func (f *Function) ReadConfig(off int, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(p)
	if off+len(p) <= ConfigSize {
		copy(p, f.cfg[off:])
	}
}

// WriteConfig implements ConfigSpace.
func (f *Function) WriteConfig(off int, p []byte) {
	if off+len(p) > ConfigSize {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, v := range p {
		w := f.writable[off+i]
		f.cfg[off+i] = f.cfg[off+i]&^w | v&w
	}
	if moves(off, len(p)) {
		f.remap()
	}
	if f.msix != nil {
		f.msix.configWritten()
	}
	f.updateLine() // the command register and MSI-X can both take the pin away
	f.runHooks(off, len(p))
}

// moves reports whether a write of n bytes at off may change what a function decodes.
func moves(off, n int) bool {
	touches := func(from, to int) bool { return off < to && off+n > from }
	return touches(Command, Status) || touches(BAR0, BAR0+24) || touches(ExpansionROM, ExpansionROM+4)
}

// retry maps what found its place taken.
func (f *Function) retry() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remap()
}

func (f *Function) runHooks(off, n int) {
	for _, h := range f.onWrite {
		if off < h.off+h.n && off+n > h.off {
			h.f()
		}
	}
}

// Peek returns the n bytes of configuration space at off without a lock: for hooks, and for owners before Attach.
func (f *Function) Peek(off, n int) []byte { return f.cfg[off : off+n : off+n] }

// SetBAR places register i at base, as firmware would, and enables its decoding. base is a multiple of the register's
// size.
func (f *Function) SetBAR(i int, base uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	off := BAR0 + 4*i
	low := binary.LittleEndian.Uint32(f.cfg[off:])
	b := &f.bars[i]
	flags := uint32(0xf)
	enable := uint16(CommandMemory)
	if b.Kind == BARIO {
		flags, enable = 3, CommandIO
	}
	binary.LittleEndian.PutUint32(f.cfg[off:], low&flags|uint32(base)&^flags)
	if b.is64() {
		binary.LittleEndian.PutUint32(f.cfg[off+4:], uint32(base>>32))
	}
	cmd := binary.LittleEndian.Uint16(f.cfg[Command:])
	binary.LittleEndian.PutUint16(f.cfg[Command:], cmd|enable)
	f.remap()
}

// barBase returns where register i points.
func (f *Function) barBase(i int) uint64 {
	off := barOffset(i)
	base := uint64(binary.LittleEndian.Uint32(f.cfg[off:]))
	switch f.bars[i].Kind {
	case BARIO:
		return base &^ 3 & 0xffff
	case barROM:
		return base &^ (romMin - 1)
	}
	if f.bars[i].is64() {
		base |= uint64(binary.LittleEndian.Uint32(f.cfg[off+4:])) << 32
	}
	return base &^ 0xf
}

// remap makes the buses agree with the registers. A register that points at nothing (0), or at something that is mapped
// already, is not decoded: while a guest sizes registers or moves them about, both occur and neither is an error. What
// has moved away is unmapped first, so that two registers can change places. What a register of another function has made
// room for is mapped when the Root calls retry.
func (f *Function) remap() {
	if f.env.MMIO == nil {
		return
	}
	var want [numBARs]bool
	cmd := binary.LittleEndian.Uint16(f.cfg[Command:])
	for i := range f.bars {
		enable := uint16(CommandMemory)
		switch f.bars[i].Kind {
		case BARNone:
			continue
		case BARIO:
			enable = CommandIO
		}
		base := f.barBase(i)
		want[i] = cmd&enable != 0 && base != 0 && (i != romBAR || f.cfg[ExpansionROM]&romEnable != 0)
		if !want[i] || base != f.mapped[i] {
			f.unmap(i)
		}
	}
	for i := range f.bars {
		if !want[i] || f.isMapped[i] {
			continue
		}
		b, base := &f.bars[i], f.barBase(i)
		if f.space(i).Map(bus.Range{Base: base, Size: b.Size}, b.Device) != nil {
			continue
		}
		f.mapped[i], f.isMapped[i] = base, true
		if b.Moved != nil {
			b.Moved(base, true)
		}
	}
	f.remapFixed(cmd)
}

// space returns the bus that register i is mapped into.
func (f *Function) space(i int) *bus.Bus {
	if f.bars[i].Kind == BARIO {
		return f.env.Ports
	}
	return f.env.MMIO
}

func (f *Function) unmap(i int) {
	if !f.isMapped[i] {
		return
	}
	base := f.mapped[i]
	f.space(i).Unmap(base)
	f.mapped[i], f.isMapped[i] = 0, false
	if f.bars[i].Moved != nil {
		f.bars[i].Moved(base, false)
	}
}

// Master reports whether the guest lets the function be bus master: access memory, and send messages.
func (f *Function) Master() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cfg[Command]&CommandMaster != 0
}

// SetINTx drives the function's INTx pin. It stays silent while the guest has disabled it in the command register, or
// uses MSI-X instead (PCI 3.0 §6.8.2.3).
func (f *Function) SetINTx(level bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asserted != level {
		f.asserted = level
		f.updateLine()
	}
}

func (f *Function) updateLine() {
	f.cfg[Status] &^= statusInterrupt
	if f.asserted {
		f.cfg[Status] |= statusInterrupt
	}
	disabled := binary.LittleEndian.Uint16(f.cfg[Command:])&CommandINTxOff != 0 || f.msix != nil && f.msix.Enabled()
	_ = f.drive(f.asserted && !disabled) // KVM accepts every level of a line that exists
}

func (f *Function) drive(level bool) error {
	if f.env.Line == nil {
		return nil
	}
	return f.env.Line.Set(level)
}

// State carries the configuration space, the interrupt pin and the MSI-X table, for the device that owns the function.
func (f *Function) State(c *snap.Codec) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cfg := f.cfg
	c.Fixed(cfg[:])
	c.Bool(&f.asserted)
	if f.msix != nil {
		f.msix.state(c, &cfg)
	}
	if !c.Loading() || c.Err() != nil {
		return
	}
	for off, v := range cfg {
		fixed := ^f.writable[off]
		if off == Status {
			fixed &^= statusInterrupt // follows the pin
		}
		if (v^f.cfg[off])&fixed != 0 {
			c.Fail("configuration byte %#x is %#x in the saved state and %#x here: another device", off, v, f.cfg[off])
			return
		}
	}
	if (cfg[Status]&statusInterrupt != 0) != f.asserted {
		c.Fail("the interrupt status is not the pin's, which is %t", f.asserted)
		return
	}
	f.cfg = cfg
	f.remap()
	if f.msix != nil {
		f.msix.restored()
	}
	f.updateLine()
	f.runHooks(0, ConfigSize)
}

// SnapID implements snap.Component, for functions that stand alone: those of a device with more state than registers
// are saved by their device.
func (f *Function) SnapID() string { return f.name }

// SnapVersion implements snap.Component.
func (f *Function) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (f *Function) Pause() error { return nil }

// Resume implements snap.Component.
func (f *Function) Resume() error { return nil }
