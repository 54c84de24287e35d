package legacy

import (
	"fmt"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// The ports and ISA interrupts of the keyboard controller. Between its two ports lies 0x61, which is not its.
const (
	I8042Data    = 0x60
	I8042Command = 0x64
	KeyboardIRQ  = 1
	MouseIRQ     = 12
)

// Commands of the 8042, written to I8042Command (IBM PS/2 Hardware Interface Technical Reference, keyboard and
// auxiliary device controller).
const (
	kbcReadRAM      = 0x20 // to 0x3f; byte 0 is the command byte
	kbcWriteRAM     = 0x60 // to 0x7f
	kbcDisableAux   = 0xa7
	kbcEnableAux    = 0xa8
	kbcTestAux      = 0xa9
	kbcSelfTest     = 0xaa
	kbcTestKbd      = 0xab
	kbcDisableKbd   = 0xad
	kbcEnableKbd    = 0xae
	kbcReadInput    = 0xc0
	kbcReadOutput   = 0xd0
	kbcWriteOutput  = 0xd1
	kbcEchoKbd      = 0xd2 // the next byte comes back as if the keyboard had sent it
	kbcEchoAux      = 0xd3
	kbcWriteAux     = 0xd4 // the next byte goes to the auxiliary device
	kbcDisableA20   = 0xdd
	kbcEnableA20    = 0xdf
	kbcPulseOutput  = 0xf0 // to 0xff: bits 0 to 3 say which lines stay up; line 0 is the reset line
	kbcSelfTestGood = 0x55
)

const (
	kbcOBF = 1 << 0 // status: output buffer full
	kbcSYS = 1 << 2 // status and command byte: the self-test has passed
	kbcCMD = 1 << 3 // status: the last write was to the command port
	kbcINH = 1 << 4 // status: the key lock is open
	kbcAUX = 1 << 5 // status: the output buffer holds a byte of the auxiliary device
	kbcTO  = 1 << 6 // status: the device has not answered

	kbcIntKbd = 1 << 0 // command byte: interrupt when the keyboard's byte is in the output buffer
	kbcIntAux = 1 << 1
	kbcOffKbd = 1 << 4 // command byte: the clock line is held, the device cannot send
	kbcOffAux = 1 << 5
	kbcXlate  = 1 << 6 // command byte: translate scan codes from set 2 to set 1

	kbcOutReset = 1 << 0 // output port: reset line, active low
	kbcOutA20   = 1 << 1
	kbcOutOBF   = 1 << 4
	kbcOutAux   = 1 << 5

	ps2Resend = 0xfe // what the controller puts into the output buffer for a device that is not there
)

// PS2Index says which of the controller's ports is meant.
type PS2Index int

// The two ports of the controller.
const (
	PS2Keyboard PS2Index = iota
	PS2Mouse
)

// PS2Port is a device at one of the controller's ports. The bytes that it has to send wait in the device, as in hardware:
// the controller takes one when the guest has read the last. Both methods may be called by any vCPU.
type PS2Port interface {
	// Write is a byte of the guest's, sent while the controller is not locked. What the device has to say to it is
	// taken as soon as Write has returned.
	Write(b byte)
	// Next removes the next byte that the device sends; ok is false if there is none. The controller is locked: Next
	// may not call it.
	Next() (b byte, ok bool)
}

// I8042 is the keyboard controller. It is mapped twice, one port each, at I8042Data and at I8042Command.
//
// A port to which nothing is attached behaves as the hardware's: the byte that was sent to it times out, which the
// guest sees as "resend" with the time-out bit. The clock is not modelled: the next byte is in the output buffer as soon
// as the guest has taken the last.
//
// A20 is always open, as KVM cannot close it: its bit only reads back.
type I8042 struct {
	reset func()

	mu      sync.Mutex
	irq     [2]pin // by PS2Index
	dev     [2]PS2Port
	ram     [32]uint8 // 0 is the command byte
	output  uint8     // output port, bits that were written
	command uint8     // the command that waits for its data byte, or 0
	status  uint8
	data    uint8 // output buffer
	answer  ring  // the controller's own byte, which goes before the devices'
	release bool  // the translation has seen 0xf0
}

// NewI8042 returns a keyboard controller. It calls reset, without holding a lock, when the guest pulls the reset line.
func NewI8042(keyboard, mouse irq.Line, reset func()) *I8042 {
	k := &I8042{reset: reset, irq: [2]pin{{line: keyboard}, {line: mouse}}, answer: newRing(1)}
	k.powerOn()
	return k
}

// Attach puts dev at a port, before the machine runs. A nil dev empties the port.
func (k *I8042) Attach(port PS2Index, dev PS2Port) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dev[port] = dev
}

func (k *I8042) powerOn() {
	k.ram = [32]uint8{kbcIntKbd | kbcIntAux | kbcSYS | kbcXlate} // where the BIOS leaves it, for guests that had none
	k.output = kbcOutReset | kbcOutA20
	k.command, k.data, k.release = 0, 0, false
	k.answer.clear()
	for i := range k.irq {
		k.irq[i].set(false)
	}
	k.status = kbcINH | kbcSYS
}

// Read implements bus.Device.
func (k *I8042) Read(a bus.Access, p []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range p {
		switch a.Addr + uint64(i) {
		case I8042Data:
			p[i] = k.take()
		case I8042Command:
			p[i] = k.status
		default:
			p[i] = 0xff
		}
	}
}

// Write implements bus.Device.
func (k *I8042) Write(a bus.Access, p []byte) {
	for i, b := range p {
		switch a.Addr + uint64(i) {
		case I8042Data:
			k.writeData(b)
		case I8042Command:
			k.writeCommand(b)
		}
	}
}

// take empties the output buffer, and fills it with what comes next. Reading it empty gives the last byte again.
func (k *I8042) take() byte {
	b := k.data
	k.status &^= kbcOBF | kbcAUX | kbcTO
	k.irq[PS2Keyboard].set(false)
	k.irq[PS2Mouse].set(false)
	k.next()
	return b
}

// next fills the output buffer if it is empty and anything waits.
func (k *I8042) next() {
	if k.status&kbcOBF != 0 {
		return
	}
	if k.answer.n > 0 {
		k.put(PS2Keyboard, k.answer.pop())
		return
	}
	for {
		b, ok := k.from(PS2Keyboard, kbcOffKbd)
		if !ok {
			break
		}
		if k.ram[0]&kbcXlate == 0 {
			k.put(PS2Keyboard, b)
			return
		}
		if b == scanRelease {
			k.release = true
			continue
		}
		k.put(PS2Keyboard, translateScan(b, k.release))
		k.release = false
		return
	}
	if b, ok := k.from(PS2Mouse, kbcOffAux); ok {
		k.put(PS2Mouse, b)
	}
}

// from returns the next byte of the device at a port, unless the port's clock is held by bit off of the command byte.
func (k *I8042) from(port PS2Index, off uint8) (b byte, ok bool) {
	if k.dev[port] == nil || k.ram[0]&off != 0 {
		return 0, false
	}
	return k.dev[port].Next()
}

// put sets the output buffer, whatever it held, as if b came from the given port.
func (k *I8042) put(from PS2Index, b byte) {
	k.data = b
	k.status = k.status&^(kbcAUX|kbcTO) | kbcOBF
	if from == PS2Mouse {
		k.status |= kbcAUX
	}
	k.update()
}

// update drives the interrupt lines.
func (k *I8042) update() {
	full, aux := k.status&kbcOBF != 0, k.status&kbcAUX != 0
	k.irq[PS2Keyboard].set(full && !aux && k.ram[0]&kbcIntKbd != 0)
	k.irq[PS2Mouse].set(full && aux && k.ram[0]&kbcIntAux != 0)
}

// reply is the controller's own byte: it waits for the output buffer, if that is full, but in front of all others.
func (k *I8042) reply(b byte) {
	k.answer.clear()
	k.answer.push(b)
	k.next()
}

func (k *I8042) writeCommand(b byte) {
	k.mu.Lock()
	k.status |= kbcCMD
	k.command = 0
	reset := false
	switch {
	case b&0xe0 == kbcReadRAM:
		k.reply(k.ram[b&0x1f])
	case b&0xe0 == kbcWriteRAM, b == kbcWriteOutput, b == kbcEchoKbd, b == kbcEchoAux, b == kbcWriteAux:
		k.command = b
	case b == kbcDisableAux:
		k.ram[0] |= kbcOffAux
	case b == kbcEnableAux:
		k.ram[0] &^= kbcOffAux
		k.next()
	case b == kbcDisableKbd:
		k.ram[0] |= kbcOffKbd
	case b == kbcEnableKbd:
		k.ram[0] &^= kbcOffKbd
		k.next()
	case b == kbcTestAux, b == kbcTestKbd:
		k.reply(0) // clock and data lines are good, with a device or without
	case b == kbcSelfTest:
		k.ram[0] |= kbcSYS
		k.status |= kbcSYS
		k.reply(kbcSelfTestGood)
	case b == kbcReadInput:
		k.reply(1 << 7) // the key lock is open
	case b == kbcReadOutput:
		k.reply(k.outputPort())
	case b == kbcDisableA20:
		k.output &^= kbcOutA20
	case b == kbcEnableA20:
		k.output |= kbcOutA20
	case b&0xf0 == kbcPulseOutput:
		reset = b&kbcOutReset == 0
	}
	k.mu.Unlock()
	if reset {
		k.reset()
	}
}

// outputPort returns the output port as it reads.
func (k *I8042) outputPort() uint8 {
	v := k.output | kbcOutReset
	if k.status&kbcOBF != 0 {
		if k.status&kbcAUX != 0 {
			v |= kbcOutAux
		} else {
			v |= kbcOutOBF
		}
	}
	return v
}

func (k *I8042) writeData(b byte) {
	k.mu.Lock()
	command := k.command
	k.command = 0
	k.status &^= kbcCMD
	var dev PS2Port
	reset := false
	switch {
	case command&0xe0 == kbcWriteRAM:
		k.ram[command&0x1f] = b
		if command == kbcWriteRAM {
			k.status = k.status&^kbcSYS | b&kbcSYS
			k.update()
			k.next()
		}
	case command == kbcWriteOutput:
		k.output = b & (kbcOutReset | kbcOutA20 | 0xcc)
		reset = b&kbcOutReset == 0
	case command == kbcEchoKbd:
		k.put(PS2Keyboard, b)
	case command == kbcEchoAux:
		k.put(PS2Mouse, b)
	case command == kbcWriteAux:
		k.ram[0] &^= kbcOffAux
		dev = k.send(PS2Mouse)
	default:
		k.ram[0] &^= kbcOffKbd // the clock line must be free for the controller to send
		dev = k.send(PS2Keyboard)
	}
	k.mu.Unlock()
	if dev != nil {
		dev.Write(b)
		k.Ready()
	}
	if reset {
		k.reset()
	}
}

// send returns the device at a port. If there is none, what is sent to it times out.
func (k *I8042) send(port PS2Index) PS2Port {
	if k.dev[port] == nil {
		k.put(port, ps2Resend)
		k.status |= kbcTO
		return nil
	}
	k.next()
	return k.dev[port]
}

// Ready says that a device has something to send. A device calls it without a lock that its Next takes.
func (k *I8042) Ready() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next()
}

// SnapID implements snap.Component.
func (k *I8042) SnapID() string { return "i8042" }

// SnapVersion implements snap.Component.
func (k *I8042) SnapVersion() uint16 { return 2 }

// Pause implements snap.Component. The controller has no workers.
func (k *I8042) Pause() error { return nil }

// Resume implements snap.Component.
func (k *I8042) Resume() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.irq {
		if err := k.irq[i].drive(); err != nil {
			return fmt.Errorf("keyboard controller: interrupt line of port %d: %w", i, err)
		}
	}
	return nil
}

// State implements snap.Component.
func (k *I8042) State(c *snap.Codec) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.Fixed(k.ram[:])
	for _, r := range []*uint8{&k.output, &k.command, &k.status, &k.data} {
		c.U8(r)
	}
	c.Bool(&k.release)
	for i := range k.irq {
		c.Bool(&k.irq[i].level)
		if c.Version() < 2 { // the bytes of the port's device, which had none
			var n uint32
			if c.U32(&n); n != 0 {
				c.Fail("%d bytes of a device that nobody had", n)
			}
		}
	}
	k.answer.state(c)
}
