package route

import "github.com/lodgehv/lodge/hid"

// inOrder calls f with every key of a set, in the order in which they are best released: modifiers last, so that no key is
// without them for a moment; and of those Ctrl last, for an Alt or Meta that goes up by itself opens a menu in many guests.
func inOrder(k hid.Keys, f func(code uint16)) {
	for code := range k.All() {
		if modifier(code) == 0 {
			f(code)
		}
	}
	for i := len(modifiers) - 1; i >= 0; i-- {
		for _, code := range [...]uint16{modifiers[i].left, modifiers[i].right} {
			if k.Has(code) {
				f(code)
			}
		}
	}
}

// buttonEnd is where the codes of buttons that point end, and those of further keys begin.
const buttonEnd = 0x160

func isButton(code uint16) bool { return code >= hid.BtnMisc && code < buttonEnd }

// anyButton says whether a button of a mouse, a pen or a touch device is in a set.
func anyButton(k *hid.Keys) bool {
	for code := range k.All() {
		if isButton(code) {
			return true
		}
	}
	return false
}

// device is what the router knows of an input device.
type device struct {
	held hid.Keys
	slot int32 // the contact that the events of a touch screen are about
}
