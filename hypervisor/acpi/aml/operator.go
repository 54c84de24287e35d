package aml

import "fmt"

// Discard is the target of an operator whose result is used as a value, not stored.
const Discard noTarget = nullName

type noTarget byte

func (n noTarget) encode(e *encoder) { e.buf = append(e.buf, byte(n)) }

// Local is a method's local variable i, 0 to 7.
func Local(i int) Term {
	if i < 0 || i > 7 {
		return bad{fmt.Errorf("local variable %d, want 0 to 7", i)}
	}
	return raw{0x60 + byte(i)}
}

// Arg is a method's argument i, 0 to 6.
func Arg(i int) Term {
	if i < 0 || i > 6 {
		return bad{fmt.Errorf("argument %d, want 0 to 6", i)}
	}
	return raw{0x68 + byte(i)}
}

// Call calls the method at path.
func Call(path Path, args ...Term) Term { return op{"", false, append([]Term{path}, args...)} }

// Statements (ACPI 6.5 §20.2.5.3).

// If runs body if cond is not zero.
func If(cond Term, body ...Term) Term { return op{"\xA0", true, append([]Term{cond}, body...)} }

// Else follows an If at once and runs body if that did not.
func Else(body ...Term) Term { return op{"\xA1", true, body} }

// While runs body as long as cond is not zero.
func While(cond Term, body ...Term) Term { return op{"\xA2", true, append([]Term{cond}, body...)} }

// Return ends a method with value.
func Return(value Term) Term { return op{"\xA4", false, []Term{value}} }

// Notify tells the operating system of an event on object, such as 0x80.
func Notify(object, value Term) Term { return op{"\x86", false, []Term{object, value}} }

// Release gives up mutex.
func Release(mutex Path) Term { return op{"\x5B\x27", false, []Term{mutex}} }

// Sleep waits for ms milliseconds.
func Sleep(ms Term) Term { return op{"\x5B\x22", false, []Term{ms}} }

// Expressions (ACPI 6.5 §20.2.5.4). The result of one with a dst is stored there, unless it is Discard, and is the
// expression's value.

// Acquire takes mutex, waiting at most ms milliseconds (0xFFFF: forever). It is not zero if that failed.
func Acquire(mutex Path, ms uint16) Term {
	return op{"\x5B\x23", false, []Term{mutex, raw{byte(ms), byte(ms >> 8)}}}
}

// Store stores src in dst.
func Store(src, dst Term) Term { return op{"\x70", false, []Term{src, dst}} }

// Add is a + b.
func Add(a, b, dst Term) Term { return op{"\x72", false, []Term{a, b, dst}} }

// Subtract is a - b.
func Subtract(a, b, dst Term) Term { return op{"\x74", false, []Term{a, b, dst}} }

// Increment adds one to v.
func Increment(v Term) Term { return op{"\x75", false, []Term{v}} }

// Decrement subtracts one from v.
func Decrement(v Term) Term { return op{"\x76", false, []Term{v}} }

// Multiply is a * b.
func Multiply(a, b, dst Term) Term { return op{"\x77", false, []Term{a, b, dst}} }

// Divide stores a mod b in remainder and a / b, which is its value, in dst.
func Divide(a, b, remainder, dst Term) Term {
	return op{"\x78", false, []Term{a, b, remainder, dst}}
}

// ShiftLeft is a << n.
func ShiftLeft(a, n, dst Term) Term { return op{"\x79", false, []Term{a, n, dst}} }

// ShiftRight is a >> n.
func ShiftRight(a, n, dst Term) Term { return op{"\x7A", false, []Term{a, n, dst}} }

// And is a & b, bit by bit.
func And(a, b, dst Term) Term { return op{"\x7B", false, []Term{a, b, dst}} }

// Or is a | b, bit by bit.
func Or(a, b, dst Term) Term { return op{"\x7D", false, []Term{a, b, dst}} }

// Xor is a ^ b, bit by bit.
func Xor(a, b, dst Term) Term { return op{"\x7F", false, []Term{a, b, dst}} }

// Not is the complement of a, bit by bit.
func Not(a, dst Term) Term { return op{"\x80", false, []Term{a, dst}} }

// DerefOf is what ref refers to.
func DerefOf(ref Term) Term { return op{"\x83", false, []Term{ref}} }

// SizeOf is the number of bytes or elements of object.
func SizeOf(object Term) Term { return op{"\x87", false, []Term{object}} }

// Index is a reference to element i of a buffer, package or string.
func Index(object, i, dst Term) Term { return op{"\x88", false, []Term{object, i, dst}} }

// LAnd is whether both a and b are not zero.
func LAnd(a, b Term) Term { return op{"\x90", false, []Term{a, b}} }

// LOr is whether a or b is not zero.
func LOr(a, b Term) Term { return op{"\x91", false, []Term{a, b}} }

// LNot is whether a is zero.
func LNot(a Term) Term { return op{"\x92", false, []Term{a}} }

// LEqual is whether a equals b.
func LEqual(a, b Term) Term { return op{"\x93", false, []Term{a, b}} }

// LGreater is whether a > b.
func LGreater(a, b Term) Term { return op{"\x94", false, []Term{a, b}} }

// LLess is whether a < b.
func LLess(a, b Term) Term { return op{"\x95", false, []Term{a, b}} }

// LNotEqual is whether a and b differ.
func LNotEqual(a, b Term) Term { return LNot(LEqual(a, b)) }

// LLessEqual is whether a <= b.
func LLessEqual(a, b Term) Term { return LNot(LGreater(a, b)) }

// LGreaterEqual is whether a >= b.
func LGreaterEqual(a, b Term) Term { return LNot(LLess(a, b)) }
