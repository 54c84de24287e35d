package aml

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
)

// Opcodes of data (ACPI 6.5 §20.2.3).
const (
	zeroOp      = 0x00
	oneOp       = 0x01
	bytePrefix  = 0x0A
	wordPrefix  = 0x0B
	dwordPrefix = 0x0C
	stringStart = 0x0D
	qwordPrefix = 0x0E
	onesOp      = 0xFF
)

// Int is an integer in the smallest encoding that holds it. It is 64 bits wide, which a table's revision of 2 or more
// makes true in the guest too.
type Int uint64

func (i Int) encode(e *encoder) {
	switch {
	case i == 0:
		e.buf = append(e.buf, zeroOp)
	case i == 1:
		e.buf = append(e.buf, oneOp)
	case i == math.MaxUint64:
		e.buf = append(e.buf, onesOp)
	case i <= math.MaxUint8:
		e.buf = append(e.buf, bytePrefix, byte(i))
	case i <= math.MaxUint16:
		e.buf = binary.LittleEndian.AppendUint16(append(e.buf, wordPrefix), uint16(i))
	case i <= math.MaxUint32:
		DWord(i).encode(e)
	default:
		e.buf = binary.LittleEndian.AppendUint64(append(e.buf, qwordPrefix), uint64(i))
	}
}

// DWord is an integer that always takes four bytes after its prefix, so that it can be patched in place.
type DWord uint32

func (d DWord) encode(e *encoder) {
	e.buf = binary.LittleEndian.AppendUint32(append(e.buf, dwordPrefix), uint32(d))
}

// String is a string of ASCII characters 1 to 127.
type String string

func (s String) encode(e *encoder) {
	for i := range len(s) {
		if s[i] == 0 || s[i] > 0x7F {
			e.fail("string %q: character %#x is not ASCII", string(s), s[i])
			return
		}
	}
	e.buf = append(append(append(e.buf, stringStart), s...), 0)
}

// Buffer is a buffer that holds b.
func Buffer(b []byte) Term {
	return op{"\x11", true, []Term{Int(len(b)), raw(b)}}
}

// Package is a package of elems: data, references, or packages.
func Package(elems ...Term) Term {
	if len(elems) > math.MaxUint8 {
		return op{"\x13", true, append([]Term{Int(len(elems))}, elems...)} // DefVarPackage
	}
	return op{"\x12", true, append([]Term{raw{byte(len(elems))}}, elems...)}
}

// EISAID is a device's identifier of the form "PNP0A08", three letters and four upper-case hexadecimal digits, packed
// into 32 bits as ACPI 6.5 §19.3.4 (EISAID) lays down.
func EISAID(id string) Term {
	err := fmt.Errorf("EISA identifier %q: want three letters A-Z and four digits 0-9, A-F", id)
	if len(id) != 7 || id != strings.ToUpper(id) {
		return bad{err}
	}
	var v uint32
	for _, c := range []byte(id[:3]) {
		if c < 'A' || c > 'Z' {
			return bad{err}
		}
		v = v<<5 | uint32(c-'A'+1)
	}
	product, e := hex.DecodeString(id[3:])
	if e != nil {
		return bad{err}
	}
	v = v<<16 | uint32(binary.BigEndian.Uint16(product))
	// The identifier's bytes are in big-endian order within the little-endian integer.
	return DWord(v>>24 | v>>8&0xFF00 | v<<8&0xFF0000 | v<<24)
}

// ToUUID is a buffer of the 16 bytes of a UUID such as "33db4d5b-1ff7-401c-9657-7441c03dd766": its first three groups
// little-endian, the others as written (ACPI 6.5 §19.6.142).
func ToUUID(uuid string) Term {
	b, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(b) != 16 || len(uuid) != 36 ||
		uuid[8] != '-' || uuid[13] != '-' || uuid[18] != '-' || uuid[23] != '-' {
		return bad{fmt.Errorf("UUID %q: want 8-4-4-4-12 hexadecimal digits", uuid)}
	}
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
	return Buffer(b)
}
