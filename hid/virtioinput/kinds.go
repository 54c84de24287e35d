package virtioinput

import (
	"encoding/binary"
	"slices"

	"github.com/lodgehv/lodge/hid"
)

// Kind says what a device is.
type Kind int

// The kinds of devices.
const (
	Keyboard Kind = iota
	Mouse         // relative motion, buttons, wheels
	Tablet        // a position from 0 to hid.AbsMax on each axis, buttons, wheels
	Touch         // contacts on the screen, each with such a position
)

// Slots is how many contacts a touch device tells apart.
const Slots = 10

// maxTrackingID is the largest number that a contact can have.
const maxTrackingID = 0xffff

// description is what the driver is told of a kind of device.
type description struct {
	name   string
	props  []uint16
	keys   []span
	rel    []uint16
	abs    []axis
	leds   []uint16
	repeat bool // the driver is to repeat keys that are held
}

// span is a range of codes, with both its ends.
type span struct{ from, to uint16 }

// axis is an absolute axis, from 0 to max.
type axis struct {
	code uint16
	max  int32
}

// The buttons of a pointer, and its wheels.
var (
	buttons = []span{{hid.BtnLeft, hid.BtnTask}}
	wheels  = []uint16{hid.RelHWheel, hid.RelWheel, hid.RelWheelHiRes, hid.RelHWheelHiRes}
)

var kinds = [...]description{
	Keyboard: {
		name: "Lodge keyboard",
		// All keys that have a name, and none of the buttons: a keyboard with those would be taken for more than one.
		keys:   []span{{hid.KeyEsc, hid.BtnMisc - 1}, {0x160, 0x21f}, {0x224, 0x2bf}},
		leds:   []uint16{hid.LEDNumL, hid.LEDCapsL, hid.LEDScrollL},
		repeat: true,
	},
	Mouse: {
		name: "Lodge mouse",
		keys: buttons,
		rel:  append([]uint16{hid.RelX, hid.RelY}, wheels...),
	},
	Tablet: {
		name: "Lodge tablet",
		keys: buttons,
		rel:  wheels,
		abs:  []axis{{hid.AbsX, hid.AbsMax}, {hid.AbsY, hid.AbsMax}},
	},
	Touch: {
		name:  "Lodge touch screen",
		props: []uint16{hid.PropDirect},
		keys:  []span{{hid.BtnTouch, hid.BtnTouch}},
		abs: []axis{{hid.AbsMTSlot, Slots - 1}, {hid.AbsMTPositionX, hid.AbsMax}, {hid.AbsMTPositionY, hid.AbsMax},
			{hid.AbsMTTrackingID, maxTrackingID}},
	},
}

func (d *description) hasKey(code uint16) bool {
	return slices.ContainsFunc(d.keys, func(s span) bool { return s.from <= code && code <= s.to })
}

func (d *description) axis(code uint16) (axis, bool) {
	for _, a := range d.abs {
		if a.code == code {
			return a, true
		}
	}
	return axis{}, false
}

// The configuration space, struct virtio_input_config, virtio 1.2 §5.8.4.
const (
	cfgSelect = 0
	cfgSubsel = 1
	cfgSize   = 2
	cfgUnion  = 8 // after five reserved bytes
	cfgEnd    = cfgUnion + 128
)

// Values of the configuration's select, virtio 1.2 §5.8.4.
const (
	cfgIDName   = 0x01
	cfgIDSerial = 0x02
	cfgIDDevIDs = 0x03
	cfgPropBits = 0x10
	cfgEVBits   = 0x11 // subsel is the type
	cfgAbsInfo  = 0x12 // subsel is the axis
)

// busVirtual is the bus of devices that are no hardware (Linux's include/uapi/linux/input.h), and vendor the one that
// virtio devices have on PCI too. The product is the kind, from 1.
const (
	busVirtual = 0x06
	vendor     = 0x1af4
	version    = 1
)

// config is the configuration space as it reads.
type config [cfgEnd]byte

// fill sets all but select and subsel to what they ask for: nothing, of size 0, if there is no such thing (§5.8.5.2).
func (c *config) fill(kind Kind, serial string) {
	d := &kinds[kind]
	clear(c[cfgSize:])
	u, n := c[cfgUnion:], 0
	le := binary.LittleEndian
	sub := uint16(c[cfgSubsel])
	switch sel := c[cfgSelect]; {
	case sel == cfgIDName && sub == 0:
		n = copy(u, d.name)
	case sel == cfgIDSerial && sub == 0:
		n = copy(u, serial)
	case sel == cfgIDDevIDs && sub == 0:
		for i, v := range [...]uint16{busVirtual, vendor, uint16(kind) + 1, version} {
			le.PutUint16(u[2*i:], v)
		}
		n = 8
	case sel == cfgPropBits && sub == 0:
		n = setBits(u, d.props)
	case sel == cfgEVBits:
		n = d.eventBits(sub, u)
	case sel == cfgAbsInfo:
		if a, ok := d.axis(sub); ok {
			le.PutUint32(u[4:], uint32(a.max)) // least value, noise, dead zone and resolution are 0
			n = 20
		}
	}
	c[cfgSize] = byte(n)
}

// eventBits sets the bits of the codes that the device has of a type, and returns how many bytes they take.
func (d *description) eventBits(typ uint16, u []byte) (n int) {
	switch typ {
	case hid.EVKey:
		for _, s := range d.keys {
			for code := s.from; code <= s.to; code++ {
				n = max(n, setBits(u, []uint16{code}))
			}
		}
	case hid.EVRel:
		n = setBits(u, d.rel)
	case hid.EVAbs:
		for _, a := range d.abs {
			n = max(n, setBits(u, []uint16{a.code}))
		}
	case hid.EVLED:
		n = setBits(u, d.leds)
	case hid.EVRep:
		if d.repeat {
			n = setBits(u, []uint16{hid.RepDelay, hid.RepPeriod})
		}
	}
	return n
}

// setBits sets the bits of codes in u and returns how many bytes hold them.
func setBits(u []byte, codes []uint16) (n int) {
	for _, code := range codes {
		u[code/8] |= 1 << (code % 8)
		n = max(n, int(code/8)+1)
	}
	return n
}
