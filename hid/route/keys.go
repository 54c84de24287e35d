package route

import (
	"math/bits"

	"github.com/lodgehv/lodge/hid"
)

// keys is a set of keys and buttons.
type keys [(hid.KeyMax + 64) / 64]uint64

func (k *keys) has(code uint16) bool { return k[code/64]>>(code%64)&1 != 0 }
func (k *keys) add(code uint16)      { k[code/64] |= 1 << (code % 64) }
func (k *keys) remove(code uint16)   { k[code/64] &^= 1 << (code % 64) }

// each calls f with every key of the set, in the order in which they are best released: modifiers last, so that no key is
// without them for a moment; and of those Ctrl last, for an Alt or Meta that goes up by itself opens a menu in many guests.
func (k keys) each(f func(code uint16)) {
	for i, w := range k {
		for ; w != 0; w &= w - 1 {
			if code := uint16(i*64 + bits.TrailingZeros64(w)); modifier(code) == 0 {
				f(code)
			}
		}
	}
	for i := len(modifiers) - 1; i >= 0; i-- {
		for _, code := range [...]uint16{modifiers[i].left, modifiers[i].right} {
			if k.has(code) {
				f(code)
			}
		}
	}
}

// anyButton says whether a button of a mouse, a pen or a touch device is in the set.
func (k *keys) anyButton() bool {
	return k[hid.BtnMisc/64] != 0 || k[hid.BtnMisc/64+1]&(1<<(buttonEnd%64)-1) != 0
}

// buttonEnd is where the codes of buttons that point end, and those of further keys begin.
const buttonEnd = 0x160

func isButton(code uint16) bool { return code >= hid.BtnMisc && code < buttonEnd }

// device is what the router knows of an input device.
type device struct {
	held keys
	slot int32 // the contact that the events of a touch screen are about
}
