package evdev

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hid"
)

// Device is an open input device. One goroutine reads it; the other methods may be called by any.
type Device struct {
	info *Info
	node node
	told *state
	asm  assembler
	buf  [64 * sizeEvent]byte
	rest []byte // of buf: what was read and not yet looked at
}

// Open opens the device at path, /dev/input/eventN. Its time is CLOCK_MONOTONIC from then on, and it reports no scan codes
// and lights, so that nobody wakes up for them. What is held on it at that moment counts as pressed: only its release is
// reported.
func Open(path string) (*Device, error) {
	// Non-blocking, so that the runtime's poller waits and not a thread.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("input device: %w", err)
	}
	return open(fileNode{f}, path)
}

// NewStream returns a device whose events come from r as the kernel writes them (struct input_event), for machines without
// one: benchmarks are run on those too. Nothing is held on it at first, and it can only be read and closed.
func NewStream(r io.ReadCloser, info *Info) *Device {
	return &Device{info: info, node: streamNode{r}, told: newState(info)}
}

// streamNode is a node without a kernel behind it.
type streamNode struct{ io.ReadCloser }

func (streamNode) Write([]byte) (int, error)          { return 0, unix.ENOTTY }
func (streamNode) ioctl(uintptr, []byte) (int, error) { return 0, unix.ENOTTY }
func (streamNode) ioctlInt(uintptr, int) error        { return unix.ENOTTY }
func (streamNode) setMask(uint16, []byte) error       { return unix.ENOTTY }

func open(n node, path string) (*Device, error) {
	d := &Device{node: n}
	err := d.prepare(path)
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("input device %s: %w", path, err)
	}
	return d, nil
}

func (d *Device) prepare(path string) (err error) {
	if d.info, err = readInfo(d.node, path); err != nil {
		return err
	}
	clock := [sizeInt]byte{unix.CLOCK_MONOTONIC}
	if _, err := d.node.ioctl(evioCSClockID(), clock[:]); err != nil {
		return fmt.Errorf("EVIOCSCLOCKID: %w", err)
	}
	for _, typ := range []uint16{hid.EVMsc, hid.EVLED} {
		if err := d.Mask(typ, nil); err != nil {
			return err
		}
	}
	d.told, err = readState(d.node, d.info)
	return err
}

// Info returns what the device said of itself when it was opened. It is not to be changed.
func (d *Device) Info() *Info { return d.info }

// Held returns the keys that were held when the device was opened, before the first Read. Buttons are not among them: they
// may mean other ones to a guest.
func (d *Device) Held() (held hid.Keys) {
	for code := range uint16(hid.KeyMax + 1) {
		if code < hid.BtnMisc || code >= buttonEnd {
			held.Set(code, d.told.keys.Has(code))
		}
	}
	return held
}

// Grab takes the device for the caller alone: nothing else on the host gets its events until it is closed. It fails with
// EBUSY if somebody else has it. Changes between Open and Grab are seen by all; a key that goes down before and up after
// stays down for the others.
func (d *Device) Grab() error {
	if err := d.node.ioctlInt(evioCGrab(), 1); err != nil {
		return fmt.Errorf("input device %s: EVIOCGRAB: %w", d.info.Path, err)
	}
	return nil
}

// Ungrab gives the device back to all.
func (d *Device) Ungrab() error {
	if err := d.node.ioctlInt(evioCGrab(), 0); err != nil {
		return fmt.Errorf("input device %s: EVIOCGRAB: %w", d.info.Path, err)
	}
	return nil
}

// Revoke makes this descriptor, and whatever shares it, useless: reads fail with ENODEV. It is for a descriptor that was
// passed to another process.
func (d *Device) Revoke() error {
	if err := d.node.ioctlInt(evioCRevoke(), 0); err != nil {
		return fmt.Errorf("input device %s: EVIOCREVOKE: %w", d.info.Path, err)
	}
	return nil
}

// Mask lets only the events of the given codes through, of those of a type. Who reads is not woken up by others.
func (d *Device) Mask(typ uint16, codes []uint16) error {
	room := roomSmall
	if typ == hid.EVKey {
		room = roomKeys
	}
	bits := make(Bits, room)
	for _, c := range codes {
		if int(c) < room*8 {
			bits.set(c, true)
		}
	}
	if err := d.node.setMask(typ, bits); err != nil {
		return fmt.Errorf("input device %s: EVIOCSMASK(%#x): %w", d.info.Path, typ, err)
	}
	return nil
}

// SetLEDs switches the lock lights of a keyboard, those that it has.
func (d *Device) SetLEDs(leds hid.LEDs) error {
	var p []byte
	for code := range uint16(hid.LEDScrollL + 1) {
		if d.info.LEDs.Has(code) {
			p = putEvent(p, hid.Event{Type: hid.EVLED, Code: code, Value: int32(leds >> code & 1)})
		}
	}
	if p == nil {
		return nil
	}
	if _, err := d.node.Write(putEvent(p, hid.Event{Type: hid.EVSyn, Code: hid.SynReport})); err != nil {
		return fmt.Errorf("input device %s: lights: %w", d.info.Path, err)
	}
	return nil
}

// LEDs returns the lock lights that are on.
func (d *Device) LEDs() (hid.LEDs, error) {
	leds := make(Bits, roomSmall)
	if _, err := d.node.ioctl(evioCGLED(len(leds)), leds); err != nil {
		return 0, fmt.Errorf("input device %s: EVIOCGLED: %w", d.info.Path, err)
	}
	return hid.LEDs(leds[0]) & (hid.LEDNum | hid.LEDCaps | hid.LEDScroll), nil
}

// Switches returns the switches that are on: the state that no report tells when the device is opened.
func (d *Device) Switches() (Bits, error) {
	sw := make(Bits, roomSmall)
	if _, err := d.node.ioctl(evioCGSW(len(sw)), sw); err != nil {
		return nil, fmt.Errorf("input device %s: EVIOCGSW: %w", d.info.Path, err)
	}
	return sw, nil
}

// Read waits for a report. When the kernel has lost some, the next report is what changed meanwhile, save for relative
// motion. After Close it fails with os.ErrClosed, when the device is unplugged with ENODEV.
func (d *Device) Read() (Report, error) {
	d.asm.next()
	for {
		n, at, done, lost := d.asm.feed(d.rest)
		d.rest = d.rest[n:]
		if done {
			events := d.asm.events
			if lost {
				now, err := readState(d.node, d.info)
				if err != nil {
					return Report{}, fmt.Errorf("input device %s: after lost events: %w", d.info.Path, err)
				}
				d.rest = nil // older than now
				events = d.told.diff(now, events[:0])
				d.told = now
			} else {
				events = d.told.apply(events)
			}
			if len(events) > 0 {
				return Report{At: at, Events: events}, nil
			}
			d.asm.next()
			continue
		}
		n, err := d.node.Read(d.buf[:])
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				err = os.ErrClosed
			}
			return Report{}, fmt.Errorf("input device %s: %w", d.info.Path, err)
		}
		d.rest = d.buf[:n]
	}
}

// Close gives the device up, with its grab. A Read that waits returns.
func (d *Device) Close() error { return d.node.Close() }
