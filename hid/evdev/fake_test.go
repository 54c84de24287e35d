package evdev

import (
	"encoding/binary"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hid"
)

// fake is a device of ours: a pipe for the events, and answers to the ioctls as the kernel gives them.
type fake struct {
	*os.File // the end that is read
	feed     *os.File

	mu      sync.Mutex
	info    Info
	now     state
	grabs   []int
	revoked bool
	busy    bool
	clock   int
	masks   map[uint16]Bits
	written []byte
}

// bitsOf returns a set of codes that is as large as the kernel's of a type.
func bitsOf(typ uint16, codes ...uint16) Bits {
	room := roomSmall
	if typ == hid.EVKey {
		room = roomKeys
	}
	b := make(Bits, room)
	for _, c := range codes {
		b.set(c, true)
	}
	return b
}

// span returns the codes from first to last.
func span(first, last uint16) (codes []uint16) {
	for c := first; c <= last; c++ {
		codes = append(codes, c)
	}
	return codes
}

// complete makes all sets of an Info as large as they are when they are read.
func complete(i Info) Info {
	for _, b := range []*Bits{&i.Props, &i.Rel, &i.LEDs, &i.SW} {
		if *b == nil {
			*b = make(Bits, roomSmall)
		}
	}
	if i.Keys == nil {
		i.Keys = make(Bits, roomKeys)
	}
	if i.Axes == nil {
		i.Axes = make(map[uint16]Axis)
	}
	return i
}

func newFake(t testing.TB, info Info) *fake {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	f := &fake{File: r, feed: w, info: complete(info), masks: make(map[uint16]Bits)}
	f.now = state{keys: make(Bits, roomKeys), sw: make(Bits, roomSmall), slots: make([]contactState, info.slots())}
	for i := range f.now.slots {
		f.now.slots[i][trackingID] = -1
	}
	return f
}

func (f *fake) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written = append(f.written, p...)
	return len(p), nil
}

func (f *fake) ioctlInt(nr uintptr, v int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case nr == evioCGrab() && f.busy:
		return unix.EBUSY
	case nr == evioCGrab():
		f.grabs = append(f.grabs, v)
	case nr == evioCRevoke() && v == 0:
		f.revoked = true
	default:
		return unix.EINVAL
	}
	return nil
}

func (f *fake) setMask(typ uint16, codes []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.masks[typ] = codes
	return nil
}

func (f *fake) ioctl(nr uintptr, p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if size := int(nr >> 16 & 0x3fff); size != len(p) || nr>>8&0xff != 'E' {
		return 0, unix.EINVAL
	}
	text := func(s string) (int, error) {
		if s == "" {
			return 0, unix.ENOENT
		}
		return copy(p, s+"\x00"), nil
	}
	switch low := int(nr & 0xff); {
	case nr == evioCSClockID():
		f.clock = int(int32(binary.NativeEndian.Uint32(p)))
		return 0, nil
	case low == 0x02:
		for i, v := range []uint16{f.info.ID.Bus, f.info.ID.Vendor, f.info.ID.Product, f.info.ID.Version} {
			binary.NativeEndian.PutUint16(p[2*i:], v)
		}
		return 0, nil
	case low == 0x06:
		return text(f.info.Name)
	case low == 0x07:
		return text(f.info.Phys)
	case low == 0x08:
		return text(f.info.Uniq)
	case low == 0x09:
		return copy(p, f.info.Props), nil
	case low == 0x0a:
		code := binary.NativeEndian.Uint32(p)
		for i := range f.now.slots {
			binary.NativeEndian.PutUint32(p[4+4*i:], uint32(f.now.slots[i][code-hid.AbsMTTouchMajor]))
		}
		return 0, nil
	case low == 0x18:
		return copy(p, f.now.keys), nil
	case low == 0x19:
		return copy(p, f.lights()), nil
	case low == 0x1b:
		return copy(p, f.now.sw), nil
	case low >= 0x20 && low < 0x40:
		return copy(p, f.bits(uint16(low-0x20))), nil
	case low >= 0x40 && low < 0x80:
		return 0, f.axis(uint16(low-0x40), p)
	}
	return 0, unix.EINVAL
}

// lights answers EVIOCGLED by what was written.
func (f *fake) lights() Bits {
	b := make(Bits, roomSmall)
	var a assembler
	a.feed(f.written)
	for _, e := range a.events {
		if e.Type == hid.EVLED {
			b.set(e.Code, e.Value != 0)
		}
	}
	return b
}

// bits answers EVIOCGBIT.
func (f *fake) bits(typ uint16) Bits {
	abs := make(Bits, roomAbs)
	for a := range f.info.Axes {
		abs.set(a, true)
	}
	types := map[uint16]Bits{hid.EVKey: f.info.Keys, hid.EVRel: f.info.Rel, hid.EVAbs: abs, hid.EVLED: f.info.LEDs, hid.EVSW: f.info.SW}
	if typ != hid.EVSyn {
		return types[typ]
	}
	all := make(Bits, roomSmall)
	for t, b := range types {
		all.set(t, b.any(0, uint16(len(b)*8-1)))
	}
	return all
}

// axis answers EVIOCGABS.
func (f *fake) axis(code uint16, p []byte) error {
	a, ok := f.info.Axes[code]
	if !ok {
		return unix.EINVAL
	}
	switch {
	case code == hid.AbsMTSlot:
		a.Value = f.now.slot
	case !isContactAxis(code):
		a.Value = f.now.abs[code]
	}
	for i, v := range []int32{a.Value, a.Min, a.Max, a.Fuzz, a.Flat, a.Resolution} {
		binary.NativeEndian.PutUint32(p[4*i:], uint32(v))
	}
	return nil
}

// send puts events into the queue that is read.
func (f *fake) send(t testing.TB, stream []byte) {
	t.Helper()
	if _, err := f.feed.Write(stream); err != nil {
		t.Fatal(err)
	}
}

// start opens the fake.
func (f *fake) start(t testing.TB) *Device {
	t.Helper()
	d, err := open(f, "/dev/input/event7")
	if err != nil {
		t.Fatal(err)
	}
	return d
}
