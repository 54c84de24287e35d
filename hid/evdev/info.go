package evdev

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hid"
)

// Info is what a device says of itself.
type Info struct {
	Path string // of its node
	Name string
	Phys string // where it is plugged in, as "usb-0000:00:14.0-2/input0"; may be empty
	Uniq string // its serial number or the like; most have none
	ID   ID

	Props Bits // hid.PropPointer and so on
	Keys  Bits // keys and buttons that it has
	Rel   Bits // relative axes
	LEDs  Bits
	SW    Bits // switches
	Axes  map[uint16]Axis
}

// ID identifies a kind of device: struct input_id. Bus is a BUS_* of include/uapi/linux/input.h.
type ID struct{ Bus, Vendor, Product, Version uint16 }

// Axis is an absolute axis: struct input_absinfo. Resolution is in units per millimetre, 0 if it is unknown.
type Axis struct{ Value, Min, Max, Fuzz, Flat, Resolution int32 }

// Bits is a set of codes.
type Bits []byte

// Has says whether a code is in the set.
func (b Bits) Has(code uint16) bool { return int(code/8) < len(b) && b[code/8]>>(code%8)&1 != 0 }

func (b Bits) set(code uint16, on bool) {
	if b[code/8] &^= 1 << (code % 8); on {
		b[code/8] |= 1 << (code % 8)
	}
}

// any says whether one of the codes from first to last is in the set.
func (b Bits) any(first, last uint16) bool {
	for c := first; c <= last; c++ {
		if b.Has(c) {
			return true
		}
	}
	return false
}

// all says whether each of the codes from first to last is in the set.
func (b Bits) all(first, last uint16) bool {
	for c := first; c <= last; c++ {
		if !b.Has(c) {
			return false
		}
	}
	return true
}

// readInfo asks a device what it is.
func readInfo(n node, path string) (*Info, error) {
	info := &Info{Path: path, Axes: make(map[uint16]Axis)}
	var id [sizeID]byte
	if _, err := n.ioctl(evioCGID(), id[:]); err != nil {
		return nil, fmt.Errorf("EVIOCGID: %w", err)
	}
	u16 := func(at int) uint16 { return binary.NativeEndian.Uint16(id[at:]) }
	info.ID = ID{Bus: u16(0), Vendor: u16(2), Product: u16(4), Version: u16(6)}
	for _, s := range []struct {
		to   *string
		name string
		nr   func(room int) uintptr
	}{{&info.Name, "NAME", evioCGName}, {&info.Phys, "PHYS", evioCGPhys}, {&info.Uniq, "UNIQ", evioCGUniq}} {
		buf := make([]byte, 256)
		_, err := n.ioctl(s.nr(len(buf)), buf)
		if err == unix.ENOENT { // it has none
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("EVIOCG%s: %w", s.name, err)
		}
		text, _, _ := bytes.Cut(buf, []byte{0})
		*s.to = string(text)
	}
	var types, abs Bits
	for _, b := range []struct {
		to   *Bits
		name string
		nr   uintptr
		room int
	}{
		{&info.Props, "PROP", evioCGProp(roomSmall), roomSmall},
		{&types, "BIT", evioCGBit(0, roomSmall), roomSmall},
		{&info.Keys, "BIT(KEY)", evioCGBit(hid.EVKey, roomKeys), roomKeys},
		{&info.Rel, "BIT(REL)", evioCGBit(hid.EVRel, roomSmall), roomSmall},
		{&abs, "BIT(ABS)", evioCGBit(hid.EVAbs, roomAbs), roomAbs},
		{&info.LEDs, "BIT(LED)", evioCGBit(hid.EVLED, roomSmall), roomSmall},
		{&info.SW, "BIT(SW)", evioCGBit(hid.EVSW, roomSmall), roomSmall},
	} {
		*b.to = make(Bits, b.room)
		if _, err := n.ioctl(b.nr, *b.to); err != nil {
			return nil, fmt.Errorf("EVIOCG%s: %w", b.name, err)
		}
	}
	for axis := range uint16(roomAbs * 8) {
		if !types.Has(hid.EVAbs) || !abs.Has(axis) {
			continue
		}
		a, err := readAxis(n, axis)
		if err != nil {
			return nil, err
		}
		info.Axes[axis] = a
	}
	return info, nil
}

// readAxis asks for an absolute axis and where it is.
func readAxis(n node, axis uint16) (Axis, error) {
	var b [sizeAbsInfo]byte
	if _, err := n.ioctl(evioCGAbs(axis), b[:]); err != nil {
		return Axis{}, fmt.Errorf("EVIOCGABS(%#x): %w", axis, err)
	}
	v := func(i int) int32 { return int32(binary.NativeEndian.Uint32(b[4*i:])) }
	return Axis{Value: v(0), Min: v(1), Max: v(2), Fuzz: v(3), Flat: v(4), Resolution: v(5)}, nil
}

// slots returns how many contacts a device tells apart, 0 if it does not.
func (i *Info) slots() int {
	a, ok := i.Axes[hid.AbsMTSlot]
	if !ok || a.Max < 0 {
		return 0
	}
	return int(min(a.Max, maxSlots-1)) + 1
}

// maxSlots bounds the contacts of one device. Touch screens have 10.
const maxSlots = 32
