package evdev

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hid"
)

// The ioctls of /dev/uinput, include/uapi/linux/uinput.h. TestUinputNumbers says what they are.
func uiDevCreate() uintptr          { return ui(iocNone, 1, 0) }
func uiDevDestroy() uintptr         { return ui(iocNone, 2, 0) }
func uiDevSetup() uintptr           { return ui(iocWrite, 3, 92) }
func uiAbsSetup() uintptr           { return ui(iocWrite, 4, 28) }
func uiSetBit(typ uint16) uintptr   { return ui(iocWrite, 100+int(typ), sizeInt) } // UI_SET_KEYBIT and so on
func uiSetPropBit() uintptr         { return ui(iocWrite, 110, sizeInt) }
func uiGetSysname(room int) uintptr { return ui(iocRead, 44, room) }
func ui(dir, nr, size int) uintptr  { return ioc(dir, nr, size)&^(0xff<<8) | 'U'<<8 }

// The expected numbers were printed by a C program that includes linux/uinput.h.
func TestUinputNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"UI_DEV_CREATE", uiDevCreate(), 0x5501},
		{"UI_DEV_DESTROY", uiDevDestroy(), 0x5502},
		{"UI_DEV_SETUP", uiDevSetup(), 0x405c5503},
		{"UI_ABS_SETUP", uiAbsSetup(), 0x401c5504},
		{"UI_SET_EVBIT", uiSetBit(0), 0x40045564},
		{"UI_SET_KEYBIT", uiSetBit(hid.EVKey), 0x40045565},
		{"UI_SET_RELBIT", uiSetBit(hid.EVRel), 0x40045566},
		{"UI_SET_LEDBIT", uiSetLEDBit(), 0x40045569},
		{"UI_SET_SWBIT", uiSetSWBit(), 0x4004556d},
		{"UI_SET_PROPBIT", uiSetPropBit(), 0x4004556e},
		{"UI_GET_SYSNAME(64)", uiGetSysname(64), 0x8040552c},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, the kernel's is %#x", c.name, c.got, c.want)
		}
	}
}

func uiSetLEDBit() uintptr { return ui(iocWrite, 105, sizeInt) }
func uiSetSWBit() uintptr  { return ui(iocWrite, 109, sizeInt) }

// virtual is a device that the kernel makes for us.
type virtual struct {
	t    *testing.T
	node fileNode
	path string // its evdev node
}

// newVirtual makes a device as info describes it.
func newVirtual(t *testing.T, info Info) *virtual {
	t.Helper()
	f, err := os.OpenFile("/dev/uinput", os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip("needs root and /dev/uinput")
	}
	v := &virtual{t: t, node: fileNode{f}}
	t.Cleanup(v.destroy)
	info = complete(info)
	set := func(nr uintptr, code uint16) {
		if err := v.node.ioctlInt(nr, int(code)); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range []struct {
		typ  uint16
		nr   uintptr
		bits Bits
	}{
		{hid.EVKey, uiSetBit(hid.EVKey), info.Keys}, {hid.EVRel, uiSetBit(hid.EVRel), info.Rel},
		{hid.EVLED, uiSetLEDBit(), info.LEDs}, {hid.EVSW, uiSetSWBit(), info.SW},
	} {
		for code := range uint16(len(b.bits) * 8) {
			if b.bits.Has(code) {
				set(uiSetBit(0), b.typ)
				set(b.nr, code)
			}
		}
	}
	for code := range uint16(len(info.Props) * 8) {
		if info.Props.Has(code) {
			set(uiSetPropBit(), code)
		}
	}
	for code, a := range info.Axes {
		set(uiSetBit(0), hid.EVAbs)
		var p []byte // struct uinput_abs_setup; it sets the bit too
		p = binary.NativeEndian.AppendUint32(p, uint32(code))
		for _, n := range []int32{a.Value, a.Min, a.Max, a.Fuzz, a.Flat, a.Resolution} {
			p = binary.NativeEndian.AppendUint32(p, uint32(n))
		}
		v.ioctl(uiAbsSetup(), p)
	}
	setup := make([]byte, 92) // struct uinput_setup
	for i, n := range []uint16{info.ID.Bus, info.ID.Vendor, info.ID.Product, info.ID.Version} {
		binary.NativeEndian.PutUint16(setup[2*i:], n)
	}
	copy(setup[8:87], info.Name)
	v.ioctl(uiDevSetup(), setup)
	v.ioctl(uiDevCreate(), nil)
	v.path = v.find()
	return v
}

func (v *virtual) ioctl(nr uintptr, p []byte) {
	v.t.Helper()
	if _, err := v.node.ioctl(nr, p); err != nil {
		v.t.Fatalf("uinput: ioctl %#x: %v", nr, err)
	}
}

// find returns the evdev node. The kernel makes it before UI_DEV_CREATE returns, but something may move it.
func (v *virtual) find() string {
	v.t.Helper()
	name := make([]byte, 64)
	v.ioctl(uiGetSysname(len(name)), name)
	input, _, _ := strings.Cut(string(name), "\x00")
	nodes, _ := filepath.Glob("/sys/devices/virtual/input/" + input + "/event*")
	if len(nodes) != 1 {
		v.t.Fatalf("%s has the nodes %v", input, nodes)
	}
	path := "/dev/input/" + filepath.Base(nodes[0])
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(path); err == nil {
			return path
		} else if time.Now().After(deadline) {
			v.t.Fatal(err)
		}
	}
}

func (v *virtual) send(events ...string) {
	v.t.Helper()
	if _, err := v.node.Write(stream(0, events...)); err != nil {
		v.t.Fatal(err)
	}
}

func (v *virtual) destroy() {
	if v.path != "" {
		_, _ = v.node.ioctl(uiDevDestroy(), nil)
		v.path = ""
	}
	v.node.Close()
}

// read returns the next report as words, which must have come within the last minute.
func read(t *testing.T, d *Device) string {
	t.Helper()
	r, err := d.Read()
	if err != nil {
		t.Fatal(err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	if age := time.Duration(now.Nano()) - r.At; age < 0 || age > time.Minute {
		t.Errorf("a report that is %v old", age)
	}
	return words(r.Events)
}

func openVirtual(t *testing.T, v *virtual) *Device {
	t.Helper()
	d, err := Open(v.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestUinputKeyboard(t *testing.T) {
	v := newVirtual(t, keyboard)
	d, other := openVirtual(t, v), openVirtual(t, v)
	want := complete(keyboard)
	want.Path, want.Phys = v.path, ""
	if diff := cmp.Diff(want, *d.Info()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	v.send("key 30=1", "syn")
	for _, r := range []*Device{d, other} {
		if got := read(t, r); got != "key 30=1" {
			t.Errorf("before the grab: %s", got)
		}
	}
	// While d has the device, others see nothing: what other sees next is from after the grab.
	if err := d.Grab(); err != nil {
		t.Fatal(err)
	}
	if err := other.Grab(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a second grab: %v", err)
	}
	v.send("key 30=0", "key 31=1", "syn")
	if got := read(t, d); got != "key 30=0, key 31=1" {
		t.Errorf("grabbed: %s", got)
	}
	if err := d.Ungrab(); err != nil {
		t.Fatal(err)
	}
	v.send("key 32=1", "syn")
	if got := read(t, other); got != "key 32=1" {
		t.Errorf("the other reader sees %s", got)
	}
	if got := read(t, d); got != "key 32=1" {
		t.Errorf("after the grab: %s", got)
	}
}

// A reader who is too slow learns what is held, and not what was.
func TestUinputDropped(t *testing.T) {
	v := newVirtual(t, keyboard)
	d := openVirtual(t, v)
	v.send("key 30=1", "syn")
	for range 1000 { // the kernel's queue has room for some 64
		v.send("key 31=1", "syn")
		v.send("key 31=0", "syn")
	}
	v.send("key 32=1", "syn")
	v.send("key 33=1", "syn")
	down := make(Bits, roomKeys)
	for !down.Has(33) {
		r, err := d.Read()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Events {
			down.set(e.Code, e.Value != 0)
		}
	}
	if want := bitsOf(hid.EVKey, 30, 32, 33); !cmp.Equal(want, down) {
		t.Errorf("held: %v, want %v", down, want)
	}
}

func TestUinputHeld(t *testing.T) {
	v := newVirtual(t, keyboard)
	v.send("key 30=1", "syn")
	d := openVirtual(t, v)
	v.send("key 30=0", "key 31=1", "syn")
	if got := read(t, d); got != "key 30=0, key 31=1" {
		t.Error(got)
	}
}

func TestUinputMask(t *testing.T) {
	v := newVirtual(t, keyboard)
	d := openVirtual(t, v)
	if err := d.Mask(hid.EVKey, []uint16{31}); err != nil {
		t.Fatal(err)
	}
	v.send("key 30=1", "syn")
	v.send("key 31=1", "syn")
	if got := read(t, d); got != "key 31=1" {
		t.Error(got)
	}
}

func TestUinputLEDs(t *testing.T) {
	v := newVirtual(t, keyboard)
	d := openVirtual(t, v)
	if err := d.SetLEDs(hid.LEDCaps); err != nil {
		t.Fatal(err)
	}
	// uinput hands its maker what is written to the device.
	p := make([]byte, 8*sizeEvent)
	if err := v.node.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n, err := v.node.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	var a assembler
	a.feed(p[:n])
	// The text console may have set its own lights before.
	if got := words(a.events); !strings.Contains(got, "led 1=1") {
		t.Errorf("the device got %s", got)
	}
	if leds, err := d.LEDs(); err != nil || leds != hid.LEDCaps {
		t.Errorf("lights %b, %v", leds, err)
	}
}

func TestUinputTouch(t *testing.T) {
	v := newVirtual(t, screen)
	d := openVirtual(t, v)
	v.send("abs 47=0", "abs 57=7", "abs 53=10", "abs 54=20", "key 330=1", "syn")
	if got, want := read(t, d), "abs 57=7, abs 53=10, abs 54=20, key 330=1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	now, err := readState(d.node, d.info)
	if err != nil {
		t.Fatal(err)
	}
	if want := contactAt(7, 10, 20); now.slots[0] != want || now.slots[1][trackingID] != -1 {
		t.Errorf("contacts %v, want %v", now.slots, want)
	}
	if got := d.told.diff(now, nil); len(got) != 0 {
		t.Errorf("told, and not true: %s", words(got))
	}
}

func TestUinputUnplugged(t *testing.T) {
	v := newVirtual(t, keyboard)
	d := openVirtual(t, v)
	v.destroy()
	if _, err := d.Read(); !errors.Is(err, unix.ENODEV) {
		t.Errorf("Read: %v", err)
	}
}

func TestUinputRevoke(t *testing.T) {
	v := newVirtual(t, keyboard)
	d := openVirtual(t, v)
	if err := d.Revoke(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(); !errors.Is(err, unix.ENODEV) {
		t.Errorf("Read: %v", err)
	}
}

// TestUinputSeat plugs a keyboard in and out of a seat that uses nothing else: the machine's own stay as they are.
func TestUinputSeat(t *testing.T) {
	const name = "Lodge test keyboard"
	info := keyboard
	info.Name = name
	newVirtual(t, keyboard).destroy() // or there is no uinput
	events := make(chan string, 10)
	s := NewSeat(Config{
		Use:       func(i *Info) bool { return i.Name == name },
		Plugged:   func(int, *Device) { events <- "plugged" },
		Unplugged: func(int) { events <- "unplugged" },
		Input:     func(_ int, _ time.Duration, batch []hid.Event) { events <- words(batch) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	want := func(want string, before ...string) { // perhaps after what before says
		t.Helper()
		select {
		case got := <-events:
			if slices.Contains(before, got) {
				got = <-events
			}
			if got != want {
				t.Fatalf("%s, want %s", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("waited in vain for %s", want)
		}
	}
	for range 3 {
		v := newVirtual(t, info)
		want("plugged")
		v.send("key 30=1", "syn")
		want("key 30=1")
		v.destroy()
		want("unplugged", "key 30=0") // the kernel releases what is held, and we may or may not be in time to read it
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
