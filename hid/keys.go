package hid

import (
	"iter"
	"math/bits"
)

// Keys is a set of keys and buttons, by their codes. The zero value is empty.
type Keys [(KeyMax + 1) / 64]uint64

// Set adds the key of that code, or removes it if it is not down. There is no key beyond KeyMax.
func (k *Keys) Set(code uint16, down bool) {
	switch {
	case code > KeyMax:
	case down:
		k[code/64] |= 1 << (code % 64)
	default:
		k[code/64] &^= 1 << (code % 64)
	}
}

// Has reports whether the key of that code is in the set.
func (k *Keys) Has(code uint16) bool { return code <= KeyMax && k[code/64]>>(code%64)&1 != 0 }

// Empty reports whether no key is in the set.
func (k *Keys) Empty() bool { return *k == Keys{} }

// All yields the keys in the order of their codes. The set may be changed meanwhile: a word of 64 keys is looked at once.
func (k *Keys) All() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i := range k {
			for word := k[i]; word != 0; word &= word - 1 {
				if !yield(uint16(64*i + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}
