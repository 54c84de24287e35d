package aml

import "fmt"

// Objects that have a name (ACPI 6.5 §20.2.5.1 and §20.2.5.2).

// Scope puts body into the namespace below the existing object at path.
func Scope(path Path, body ...Term) Term {
	return op{"\x10", true, append([]Term{path}, body...)}
}

// Name gives value the name path.
func Name(path Path, value Term) Term {
	return op{"\x08", false, []Term{path, value}}
}

// Device declares a device, whose objects are body.
func Device(path Path, body ...Term) Term {
	return op{"\x5B\x82", true, append([]Term{path}, body...)}
}

// Method declares a method of args arguments, 0 to 7. Several threads may run it at once, so it must not create named
// objects: that is for MethodSerialized.
func Method(path Path, args int, body ...Term) Term { return method(path, args, 0, body) }

// MethodSerialized declares a method of args arguments, 0 to 7, that one thread runs at a time.
func MethodSerialized(path Path, args int, body ...Term) Term { return method(path, args, 1<<3, body) }

func method(path Path, args int, flags byte, body []Term) Term {
	if args < 0 || args > 7 {
		return bad{fmt.Errorf("method %q: %d arguments, want 0 to 7", path, args)}
	}
	return op{"\x14", true, append([]Term{path, raw{flags | byte(args)}}, body...)}
}

// Mutex declares a mutex of the given sync level, 0 to 15.
func Mutex(path Path, syncLevel int) Term {
	if syncLevel < 0 || syncLevel > 15 {
		return bad{fmt.Errorf("mutex %q: sync level %d, want 0 to 15", path, syncLevel)}
	}
	return op{"\x5B\x01", false, []Term{path, raw{byte(syncLevel)}}}
}

// RegionSpace is the address space of an operation region (ACPI 6.5 §20.2.5.2, RegionSpace).
type RegionSpace byte

// The address spaces that a virtual board has a use for.
const (
	SystemMemory RegionSpace = 0x00
	SystemIO     RegionSpace = 0x01
	PCIConfig    RegionSpace = 0x02
	SystemCMOS   RegionSpace = 0x05
)

// OperationRegion declares length bytes at offset of an address space.
func OperationRegion(path Path, space RegionSpace, offset, length Term) Term {
	return op{"\x5B\x80", false, []Term{path, raw{byte(space)}, offset, length}}
}

// FieldFlags is the sum of an access width, a lock rule and an update rule of a field list.
type FieldFlags byte

// Access widths, lock and update rules (ACPI 6.5 §20.2.5.2, FieldFlags). Zero is any width, no lock, preserve.
const (
	AnyAcc       FieldFlags = 0
	ByteAcc      FieldFlags = 1
	WordAcc      FieldFlags = 2
	DWordAcc     FieldFlags = 3
	QWordAcc     FieldFlags = 4
	Lock         FieldFlags = 1 << 4
	WriteAsOnes  FieldFlags = 1 << 5
	WriteAsZeros FieldFlags = 2 << 5
)

// FieldElement is a run of bits in a field list. One without a name skips Bits bits.
type FieldElement struct {
	Name string // a single segment, or empty
	Bits int    // 1 to 2^28-1
}

func (f FieldElement) encode(e *encoder) {
	if f.Bits < 1 || f.Bits > maxPkgLength {
		e.fail("field %q: %d bits", f.Name, f.Bits)
		return
	}
	if f.Name == "" {
		e.buf = append(e.buf, 0x00) // ReservedField
	} else {
		nameSeg(f.Name).encode(e)
	}
	// The length is a PkgLength that counts bits and not itself.
	e.buf = appendPkgLength(e.buf, f.Bits)
}

// Field divides the operation region at path into elements, from bit 0 up.
func Field(path Path, flags FieldFlags, elements ...FieldElement) Term {
	args := []Term{path, raw{byte(flags)}}
	for _, f := range elements {
		args = append(args, f)
	}
	return op{"\x5B\x81", true, args}
}

// CreateDWordField names the 32 bits at byte offset of a buffer.
func CreateDWordField(buffer, offset Term, name Path) Term {
	return op{"\x8A", false, []Term{buffer, offset, name}}
}
