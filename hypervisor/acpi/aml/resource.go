package aml

import (
	"encoding/binary"
	"math"
)

// Resource is a descriptor of a resource template (ACPI 6.5 §6.4).
type Resource interface {
	appendTo(b []byte, e *encoder) []byte
}

// ResourceTemplate is the buffer that a _CRS holds: the descriptors and an end tag.
func ResourceTemplate(resources ...Resource) Term { return template(resources) }

type template []Resource

func (t template) encode(e *encoder) {
	var b []byte
	for _, r := range t {
		if r == nil {
			e.fail("nil resource")
			return
		}
		b = r.appendTo(b, e)
	}
	// A checksum of zero stands for a right one (ACPI 6.5 §6.4.2.9), and is what iasl emits: our tables thus survive
	// a round trip through it byte for byte.
	Buffer(append(b, 0x79, 0)).encode(e)
}

// IO is a range of 16-bit ports (ACPI 6.5 §6.4.2.5).
type IO struct {
	Min, Max uint16 // lowest and highest base that the device can be given
	Align    uint8  // alignment of the base
	Len      uint8  // number of ports
}

// FixedIO is the n ports at base.
func FixedIO(base uint16, n uint8) IO { return IO{Min: base, Max: base, Align: 1, Len: n} }

func (r IO) appendTo(b []byte, e *encoder) []byte {
	if r.Min > r.Max || r.Len == 0 || int(r.Max)+int(r.Len) > 1<<16 {
		e.fail("ports %#x-%#x, length %d: not a range", r.Min, r.Max, r.Len)
	}
	b = append(b, 0x47, 1) // 16-bit decode
	b = binary.LittleEndian.AppendUint16(b, r.Min)
	b = binary.LittleEndian.AppendUint16(b, r.Max)
	return append(b, r.Align, r.Len)
}

// IRQ is an ISA interrupt, 0 to 15, edge-triggered, active high and not shared (ACPI 6.5 §6.4.2.1).
type IRQ uint8

func (r IRQ) appendTo(b []byte, e *encoder) []byte {
	if r > 15 {
		e.fail("ISA interrupt %d, want 0 to 15", uint8(r))
	}
	return binary.LittleEndian.AppendUint16(append(b, 0x22), 1<<r)
}

// Interrupt is a set of global system interrupts (ACPI 6.5 §6.4.3.6). Its zero flags mean level-triggered, active high,
// exclusive.
type Interrupt struct {
	Edge, ActiveLow, Shared, Wake bool
	GSIs                          []uint32 // 1 to 255
}

func (r Interrupt) appendTo(b []byte, e *encoder) []byte {
	if len(r.GSIs) < 1 || len(r.GSIs) > math.MaxUint8 {
		e.fail("interrupt descriptor of %d interrupts, want 1 to 255", len(r.GSIs))
	}
	flags := byte(1) // the device consumes it
	for i, set := range [...]bool{r.Edge, r.ActiveLow, r.Shared, r.Wake} {
		if set {
			flags |= 2 << i
		}
	}
	b = largeItem(b, 0x89, 2+4*len(r.GSIs))
	b = append(b, flags, byte(len(r.GSIs)))
	for _, gsi := range r.GSIs {
		b = binary.LittleEndian.AppendUint32(b, gsi)
	}
	return b
}

// Memory32Fixed is a range of memory below 4 GiB (ACPI 6.5 §6.4.3.4).
type Memory32Fixed struct {
	Base, Len uint32
	ReadOnly  bool
}

func (r Memory32Fixed) appendTo(b []byte, e *encoder) []byte {
	if r.Len == 0 || uint64(r.Base)+uint64(r.Len) > 1<<32 {
		e.fail("memory %#x, length %#x: not a range below 4 GiB", r.Base, r.Len)
	}
	info := byte(1) // writable
	if r.ReadOnly {
		info = 0
	}
	b = append(largeItem(b, 0x86, 9), info)
	b = binary.LittleEndian.AppendUint32(b, r.Base)
	return binary.LittleEndian.AppendUint32(b, r.Len)
}

// Cacheability says how a bridge's memory window may be cached (ACPI 6.5 §6.4.3.5.5, _MEM).
type Cacheability byte

// The values of _MEM.
const (
	NonCacheable   Cacheability = 0
	Cacheable      Cacheability = 1
	WriteCombining Cacheability = 2
	Prefetchable   Cacheability = 3
)

// WordBusNumber is the PCI buses min to max that a bridge produces.
func WordBusNumber(min, max uint8) Resource {
	return addressSpace{width: 2, kind: 2, min: uint64(min), max: uint64(max)}
}

// WordIO is the ports min to max that a bridge produces.
func WordIO(min, max uint16) Resource {
	return addressSpace{width: 2, kind: 1, flags: 3, min: uint64(min), max: uint64(max)} // ISA and other ports alike
}

// DWordMemory is the writable memory from address min to max that a bridge produces.
func DWordMemory(min, max uint32, c Cacheability) Resource {
	return addressSpace{width: 4, flags: 1 | byte(c)<<1, min: uint64(min), max: uint64(max)}
}

// QWordMemory is DWordMemory with 64-bit addresses.
func QWordMemory(min, max uint64, c Cacheability) Resource {
	return addressSpace{width: 8, flags: 1 | byte(c)<<1, min: min, max: max}
}

// addressSpace is an address space descriptor of a bridge (ACPI 6.5 §6.4.3.5): it produces the range, decodes it
// positively, and the range cannot move.
type addressSpace struct {
	width    int  // of its addresses, in bytes: 2, 4 or 8
	kind     byte // 0 memory, 1 ports, 2 bus numbers
	flags    byte // type-specific
	min, max uint64
}

func (r addressSpace) appendTo(b []byte, e *encoder) []byte {
	if most := uint64(math.MaxUint64) >> (64 - 8*r.width); r.min > r.max || r.max-r.min >= most {
		e.fail("address space %#x-%#x: its length is not 1 to %#x", r.min, r.max, most)
	}
	const minFixed, maxFixed = 1 << 2, 1 << 3
	tag := map[int]byte{2: 0x88, 4: 0x87, 8: 0x8A}[r.width]
	b = append(largeItem(b, tag, 3+5*r.width), r.kind, minFixed|maxFixed, r.flags)
	const granularity, translation = 0, 0
	for _, v := range [...]uint64{granularity, r.min, r.max, translation, r.max - r.min + 1} {
		b = append(b, binary.LittleEndian.AppendUint64(nil, v)[:r.width]...)
	}
	return b
}

// largeItem appends the header of a large resource item of n bytes.
func largeItem(b []byte, tag byte, n int) []byte {
	return binary.LittleEndian.AppendUint16(append(b, tag), uint16(n))
}
