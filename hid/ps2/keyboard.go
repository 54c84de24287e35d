package ps2

import (
	"sync"
	"time"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Commands of the keyboard, in their order.
const (
	kbdLEDs         = 0xed // a byte follows: bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock
	kbdEcho         = 0xee
	kbdScanSet      = 0xf0 // a byte follows: the set, or 0 to ask for it
	kbdTypematic    = 0xf3 // a byte follows: bits 0 to 4 rate, 5 and 6 delay
	kbdAllTypematic = 0xf7 // to 0xfa: all keys of set 3 …
	kbdAllMakeBreak = 0xf8
	kbdAllMake      = 0xf9
	kbdAllBoth      = 0xfa
	kbdKeyTypematic = 0xfb // to 0xfd: … or those whose codes in set 3 follow
	kbdKeyMakeBreak = 0xfc
	kbdKeyMake      = 0xfd

	kbdFirstCommand = kbdLEDs // what is below is a parameter
)

// kbdID is what a keyboard answers to cmdID.
const (
	kbdID0 = 0xab
	kbdID1 = 0x83
)

// defaultTypematic is 500 ms, then 10.9 a second.
const defaultTypematic = 0x2b

// Keyboard is a keyboard. It is a legacy.PS2Port of the i8042, a hid.Sink and a snap.Component. It does nothing before Resume.
type Keyboard struct {
	ready func()
	leds  func(hid.LEDs)
	gate  gate

	mu        sync.Mutex
	repeater  *time.Timer // calls repeat while a key is held
	due       time.Time   // of the next repetition
	repeating uint16      // the key that was pressed last; 0 if it is up

	scanning  bool
	set       uint8 // of scan codes
	typematic uint8
	types     keyTypes
	lights    hid.LEDs
	told      hid.LEDs // what leds was called with
	command   uint8    // that waits for its parameter, or 0
	last      uint8    // byte sent
	reply     buffer   // goes before scan codes
	codes     buffer   // scan codes
	down      hid.Keys // that the guest was told of
	recent    hid.Keys // whose release may still be in the buffer
	owed      hid.Keys // whose release has found no room, or was discarded
	print     printForm
}

// NewKeyboard returns a keyboard. It calls ready, the controller's, when it has something to send, and leds, which may be
// nil, when the guest changes the lights; leds holds a vCPU up, so it does not wait.
func NewKeyboard(ready func(), leds func(hid.LEDs)) *Keyboard {
	k := &Keyboard{ready: ready, leds: leds}
	k.repeater = time.AfterFunc(time.Hour, k.repeat)
	k.repeater.Stop()
	k.defaults()
	return k
}

// defaults is the state after power-on.
func (k *Keyboard) defaults() {
	k.scanning, k.set, k.typematic, k.lights = true, 2, defaultTypematic, 0
	k.types.defaults()
	k.command = 0
	k.discard()
	k.hold(0)
}

// discard empties the buffer of scan codes. Releases that were in it are owed.
func (k *Keyboard) discard() {
	for key := range k.recent.All() {
		k.owed.Set(key, true)
	}
	k.recent, k.codes.n = hid.Keys{}, 0
}

// Active reports whether the guest has left the keyboard enabled.
func (k *Keyboard) Active() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.scanning
}

// Send implements hid.Sink.
func (k *Keyboard) Send(batch []hid.Event) {
	if !k.gate.enter() {
		return
	}
	defer k.gate.leave()
	k.mu.Lock()
	for _, e := range batch {
		if e.Type == hid.EVKey && e.Value == 1 {
			k.press(e.Code)
		} else if e.Type == hid.EVKey && e.Value == 0 {
			k.letGo(e.Code)
		}
	}
	k.mu.Unlock()
	k.ready()
}

// ReleaseAll releases every key that is down. When the person lets go of one later, the guest does not hear of it.
func (k *Keyboard) ReleaseAll() {
	if !k.gate.enter() {
		return
	}
	defer k.gate.leave()
	k.mu.Lock()
	k.releaseAll()
	k.mu.Unlock()
	k.ready()
}

func (k *Keyboard) releaseAll() {
	for key := range k.down.All() {
		k.letGo(key)
	}
}

// press takes the press of a key that is up, if there is room and no release has to go first.
func (k *Keyboard) press(key uint16) {
	if !k.scanning || k.down.Has(key) || !k.owed.Empty() {
		return
	}
	if key == hid.KeySysRq {
		k.print = k.printForm()
	}
	var b [maxScan]byte
	n := k.encode(b[:], key, true)
	if n == 0 || !k.codes.push(b[:n]...) {
		return
	}
	k.down.Set(key, true)
	if k.repeats(key) {
		k.hold(key)
	}
}

// letGo takes the release of a key that is down.
func (k *Keyboard) letGo(key uint16) {
	if !k.down.Has(key) {
		return
	}
	if k.down.Set(key, false); k.repeating == key {
		k.hold(0)
	}
	k.owed.Set(key, !k.scanning || !k.sendRelease(key))
}

// sendRelease reports whether there was room for the release of a key.
func (k *Keyboard) sendRelease(key uint16) bool {
	var b [maxScan]byte
	n := k.encode(b[:], key, false)
	if !k.codes.push(b[:n]...) {
		return false
	}
	k.recent.Set(key, n > 0)
	return true
}

// settle sends releases that are owed, as far as there is room.
func (k *Keyboard) settle() {
	for key := range k.owed.All() {
		if !k.sendRelease(key) {
			return
		}
		k.owed.Set(key, false)
	}
}

// hold begins to repeat a key, or ends it with 0.
func (k *Keyboard) hold(key uint16) {
	if k.repeating = key; key == 0 {
		k.repeater.Stop()
		return
	}
	d := delay(k.typematic)
	k.due = time.Now().Add(d)
	k.repeater.Reset(d)
}

// delay is how long a key is held before it is repeated.
func delay(typematic uint8) time.Duration {
	return time.Duration(typematic>>5&3+1) * 250 * time.Millisecond
}

// period is how long it is between two repetitions: (8 + A) × 2ᴮ × 1/240 s.
func period(typematic uint8) time.Duration {
	return time.Duration(typematic&7+8) << (typematic >> 3 & 3) * time.Second / 240
}

// repeat is the timer's. A guest that has not taken what was sent before gets no more.
func (k *Keyboard) repeat() {
	if !k.gate.enter() {
		return
	}
	defer k.gate.leave()
	k.mu.Lock()
	if k.repeating == 0 {
		k.mu.Unlock()
		return
	}
	now := time.Now()
	if now.Before(k.due) { // of a key before
		k.repeater.Reset(k.due.Sub(now))
		k.mu.Unlock()
		return
	}
	if k.scanning && k.codes.n == 0 {
		var b [maxScan]byte
		k.codes.push(b[:k.encodeRepeat(b[:], k.repeating)]...)
	}
	d := period(k.typematic)
	k.due = now.Add(d)
	k.repeater.Reset(d)
	k.mu.Unlock()
	k.ready()
}

// Next implements legacy.PS2Port. Scan codes wait while a command waits for its parameter.
func (k *Keyboard) Next() (b byte, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if b, ok = k.reply.pop(); !ok && k.scanning && k.command == 0 {
		if k.codes.n == 0 {
			k.settle()
		}
		if b, ok = k.codes.pop(); k.codes.n == 0 {
			k.recent = hid.Keys{}
		}
	}
	if ok {
		k.last = b
	}
	return b, ok
}

// Write implements legacy.PS2Port: a command or its parameter. An answer that has not been read is lost, as on the wire,
// where the guest's byte interrupts it.
func (k *Keyboard) Write(b byte) {
	k.mu.Lock()
	k.reply.n = 0
	if k.command != 0 && b < kbdFirstCommand {
		k.parameter(b)
	} else {
		k.command = 0
		k.execute(b)
	}
	k.mu.Unlock()
	k.tell()
}

// tell says which lights are on, if that has changed.
func (k *Keyboard) tell() {
	k.mu.Lock()
	lights := k.lights
	news := lights != k.told
	k.told = lights
	k.mu.Unlock()
	if news && k.leds != nil {
		k.leds(lights)
	}
}

func (k *Keyboard) execute(b byte) {
	switch b {
	case kbdEcho:
		k.reply.set(kbdEcho)
	case kbdLEDs, kbdScanSet, kbdTypematic, kbdKeyTypematic, kbdKeyMakeBreak, kbdKeyMake:
		k.command = b
		k.reply.set(ack)
	case cmdID:
		k.reply.set(ack, kbdID0, kbdID1)
	case cmdEnable:
		k.scanning = true
		k.discard()
		k.reply.set(ack)
	case cmdDisable, cmdDefaults:
		k.releaseAll()
		k.defaults()
		k.scanning = b == cmdDefaults
		k.reply.set(ack)
	case kbdAllTypematic, kbdAllMakeBreak, kbdAllMake, kbdAllBoth:
		k.types.all(typeOf(b))
		k.reply.set(ack)
	case cmdResend:
		k.reply.set(k.last)
	case cmdReset:
		k.defaults()
		k.down, k.owed = hid.Keys{}, hid.Keys{} // who resets a keyboard holds nothing for pressed
		k.reply.set(ack, selfTest)
	default:
		k.reply.set(resend)
	}
}

// parameter takes the byte after a command.
func (k *Keyboard) parameter(b byte) {
	command := k.command
	k.command = 0
	k.reply.set(ack)
	switch command {
	case kbdLEDs:
		k.lights = lights(b)
	case kbdScanSet:
		switch {
		case b == 0:
			k.reply.set(ack, k.set)
		case b <= 3:
			k.releaseAll()
			k.discard()
			k.set = b
		default:
			k.reply.set(resend)
		}
	case kbdTypematic:
		if b > 0x7f {
			k.reply.set(resend)
		} else {
			k.typematic = b
		}
	default: // the keys of a type: others may follow
		if int(b) < len(k.types) {
			k.types[b] = typeOf(command)
		}
		k.command = command
	}
}

// lights returns what kbdLEDs' parameter asks for.
func lights(b byte) (l hid.LEDs) {
	for i, led := range [...]hid.LEDs{hid.LEDScroll, hid.LEDNum, hid.LEDCaps} {
		if b>>i&1 != 0 {
			l |= led
		}
	}
	return l
}

// SnapID implements snap.Component.
func (*Keyboard) SnapID() string { return "ps2.keyboard" }

// SnapVersion implements snap.Component.
func (*Keyboard) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (k *Keyboard) Pause() error {
	k.gate.set(false)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hold(0)
	return nil
}

// Resume implements snap.Component. Keys that are down are released: a person may have let go of them meanwhile.
func (k *Keyboard) Resume() error {
	k.gate.set(true)
	k.ReleaseAll()
	k.tell()
	return nil
}

// State implements snap.Component.
func (k *Keyboard) State(c *snap.Codec) {
	k.mu.Lock()
	defer k.mu.Unlock()
	lights, print := uint8(k.lights), uint8(k.print)
	c.Bool(&k.scanning)
	for _, v := range []*uint8{&k.set, &k.typematic, &lights, &k.command, &k.last, &print} {
		c.U8(v)
	}
	c.Fixed(k.types[:])
	k.reply.state(c)
	k.codes.state(c)
	for _, keys := range []*hid.Keys{&k.down, &k.recent, &k.owed} {
		for i := range keys {
			c.U64(&keys[i])
		}
	}
	oneOf(c, "scan code set", k.set, 1, 2, 3)
	oneOf(c, "command that waits", k.command, 0, kbdLEDs, kbdScanSet, kbdTypematic, kbdKeyTypematic, kbdKeyMakeBreak, kbdKeyMake)
	oneOf(c, "form of Print Screen", print, uint8(printPlain), uint8(printShifted), uint8(printAlt))
	if lights > 7 || k.typematic > 0x7f {
		c.Fail("lights %#x, repetition %#x", lights, k.typematic)
	}
	k.lights, k.print = hid.LEDs(lights), printForm(print)
}
