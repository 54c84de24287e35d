// Package aml builds ACPI Machine Language, the byte code in which a DSDT or SSDT describes a board to its operating
// system (ACPI 6.5 chapter 20; the operators' meaning is in chapter 19).
//
// A Term is a node of the tree that ASL would describe; functions of ASL's names make one from others. Encode turns
// terms into bytes and reports the first mistake in them, such as a name that ACPI does not allow: building terms never
// fails. The package knows the grammar, not the meaning: whether a name exists or a method gets its arguments is what
// the compiler iasl finds out in our tests.
package aml

import (
	"errors"
	"fmt"
	"slices"
)

// maxPkgLength is the greatest length that a PkgLength can hold (ACPI 6.5 §20.2.4).
const maxPkgLength = 1<<28 - 1

// Term is a piece of AML: an object, an operator with its operands, or a value. Only this package makes terms.
type Term interface {
	encode(e *encoder)
}

// Encode returns the AML of terms in sequence, or an error that names the first term that has none.
func Encode(terms ...Term) ([]byte, error) {
	var e encoder
	e.terms(terms)
	if e.err != nil {
		return nil, fmt.Errorf("aml: %w", e.err)
	}
	return e.buf, nil
}

// encoder gathers bytes until the first error, which sticks.
type encoder struct {
	buf []byte
	err error
}

func (e *encoder) fail(format string, args ...any) {
	if e.err == nil {
		e.err = fmt.Errorf(format, args...)
	}
}

func (e *encoder) terms(terms []Term) {
	for _, t := range terms {
		if t == nil {
			e.fail("nil term")
			return
		}
		t.encode(e)
	}
}

// sized appends what body appends, preceded by its PkgLength.
func (e *encoder) sized(body func()) {
	start := len(e.buf)
	body()
	if e.err != nil {
		return
	}
	n := len(e.buf) - start
	// The length counts its own bytes: find the smallest form that holds the sum.
	width := 1
	for width < 4 && n+width > pkgLengthLimit(width) {
		width++
	}
	if n+width > maxPkgLength {
		e.err = errors.New("package longer than 256 MiB")
		return
	}
	content := slices.Clone(e.buf[start:])
	e.buf = append(appendPkgLength(e.buf[:start], n+width), content...)
}

// pkgLengthLimit returns the greatest value that a PkgLength of width bytes holds: 6 bits in the lone byte, else 4 in
// the first and 8 in each that follows.
func pkgLengthLimit(width int) int {
	if width == 1 {
		return 1<<6 - 1
	}
	return 1<<(4+8*(width-1)) - 1
}

// appendPkgLength appends the smallest PkgLength of value n, which is at most maxPkgLength. The top two bits of the
// first byte say how many bytes follow it (ACPI 6.5 §20.2.4).
func appendPkgLength(b []byte, n int) []byte {
	if n <= pkgLengthLimit(1) {
		return append(b, byte(n))
	}
	width := 2
	for n > pkgLengthLimit(width) {
		width++
	}
	b = append(b, byte(width-1)<<6|byte(n&0xF))
	for n >>= 4; width > 1; width-- {
		b = append(b, byte(n))
		n >>= 8
	}
	return b
}

// op is an opcode and its operands: every term that is not plain data.
type op struct {
	code  string // the opcode's bytes
	sized bool   // whether a PkgLength follows the opcode
	args  []Term
}

func (o op) encode(e *encoder) {
	e.buf = append(e.buf, o.code...)
	if o.sized {
		e.sized(func() { e.terms(o.args) })
	} else {
		e.terms(o.args)
	}
}

// raw is bytes that stand in AML as they are.
type raw []byte

func (r raw) encode(e *encoder) { e.buf = append(e.buf, r...) }

// bad is a term that could not be made; Encode reports its error.
type bad struct{ err error }

func (b bad) encode(e *encoder) { e.fail("%w", b.err) }
