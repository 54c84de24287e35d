package legacy

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// The ports and ISA interrupts of the two serial ports.
const (
	COM1Base = 0x3f8
	COM1IRQ  = 4
	COM2Base = 0x2f8
	COM2IRQ  = 3
	UARTSize = 8
)

// Registers of the 16550A by their offset, named as in National Semiconductor's PC16550D data sheet.
const (
	uartRBR = 0 // receiver buffer (read), THR: transmitter holding (write); divisor latch low if DLAB
	uartIER = 1 // interrupt enable; divisor latch high if DLAB
	uartIIR = 2 // interrupt identification (read), FCR: FIFO control (write)
	uartLCR = 3 // line control
	uartMCR = 4 // modem control
	uartLSR = 5 // line status
	uartMSR = 6 // modem status
	uartSCR = 7 // scratch
)

const (
	ierRDA  = 1 << 0 // received data available
	ierTHRE = 1 << 1 // transmitter holding register empty
	ierRLS  = 1 << 2 // receiver line status
	ierMS   = 1 << 3 // modem status

	iirMS      = 0x00
	iirNone    = 0x01
	iirTHRE    = 0x02
	iirRDA     = 0x04
	iirRLS     = 0x06
	iirTimeout = 0x0c
	iirFIFO    = 0xc0 // FIFOs enabled

	fcrEnable  = 1 << 0
	fcrClearRX = 1 << 1
	fcrKeep    = 0xc9 // bits that last: enable, DMA mode, trigger level

	lcrDLAB = 1 << 7

	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOUT1 = 1 << 2
	mcrOUT2 = 1 << 3
	mcrLoop = 1 << 4
	mcrMask = 0x1f

	lsrDR   = 1 << 0 // data ready
	lsrOE   = 1 << 1 // overrun error
	lsrTHRE = 1 << 5 // transmitter holding register empty
	lsrTEMT = 1 << 6 // transmitter empty

	msrTERI  = 1 << 2 // trailing edge of ring indicator
	msrDelta = 0x0f
	msrCTS   = 1 << 4
	msrDSR   = 1 << 5
	msrRI    = 1 << 6
	msrDCD   = 1 << 7
)

const (
	uartFIFO  = 16   // depth of the FIFOs
	uartInput = 1024 // bytes that the host may be ahead of the guest
)

// UART is a 16550A serial port whose line has no speed: a byte that the guest sends is on its way at once.
//
// Output goes to an io.Writer through a buffer of 16 KiB and a goroutine of its own, so that a vCPU never waits for the
// host. When the buffer has no room for a whole transmit FIFO, the guest sees the transmitter busy until it has: that is
// the back-pressure, and a guest that sends regardless loses what it sends, as on hardware. What the writer refuses is
// dropped. A writer that may block for good should have SetWriteDeadline: without it Pause waits a second, and what the
// writer was given is lost.
//
// Input waits in a queue of 1 KiB behind the receive FIFO; Receive blocks while it is full, so the receiver never
// overruns, except in loopback mode, where the guest can see to it. The character timeout comes at once: the host's
// bytes arrive in bursts, and there is nothing to wait for that would follow in four character times.
//
// OUT2, which gates the interrupt on a PC's serial card, does not gate it here: guests exist that never set it.
type UART struct {
	id  string
	out output

	mu     sync.Mutex
	irq    pin
	paused bool
	space  chan struct{} // capacity 1: Receive may find room

	ier, fcr, lcr, mcr, msr, scr uint8
	dll, dlm                     uint8
	overrun                      bool // LSR's OE
	busy                         bool // LSR's THRE, inverted: the output has no room for a FIFO
	thre                         bool // the interrupt of THRE is pending
	fifo                         ring // receive FIFO
	in                           ring // what the host has sent and the FIFO has no room for
}

// NewUART returns a serial port that is called id in the saved state, interrupts through line and sends to w.
// It is mapped at COM1Base or COM2Base, UARTSize ports.
func NewUART(id string, line irq.Line, w io.Writer) *UART {
	u := &UART{id: id, irq: pin{line: line}, paused: true, space: make(chan struct{}, 1), fifo: newRing(uartFIFO), in: newRing(uartInput)}
	u.out.init(w, u.drained)
	u.reset()
	return u
}

func (u *UART) reset() {
	u.ier, u.fcr, u.lcr, u.mcr, u.scr = 0, 0, 0, 0, 0
	u.dll, u.dlm = 12, 0             // 9600 baud, where the BIOS leaves it
	u.msr = msrCTS | msrDSR | msrDCD // a terminal is there and listens
	u.overrun, u.thre = false, false
	u.fifo.clear()
	u.busy = u.out.room() < uartFIFO
	u.refill()
}

// Read implements bus.Device.
func (u *UART) Read(a bus.Access, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range p {
		p[i] = u.read(a.Off + uint64(i))
	}
}

// Write implements bus.Device.
func (u *UART) Write(a bus.Access, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, b := range p {
		u.write(a.Off+uint64(i), b)
	}
}

func (u *UART) read(off uint64) byte {
	switch off {
	case uartRBR:
		if u.lcr&lcrDLAB != 0 {
			return u.dll
		}
		b := u.fifo.pop()
		if u.fifo.n == 0 { // the line falls before more comes: a driver may rely on the edge
			u.update()
			u.refill()
		}
		u.update()
		return b
	case uartIER:
		if u.lcr&lcrDLAB != 0 {
			return u.dlm
		}
		return u.ier
	case uartIIR:
		id := u.cause()
		if id == iirTHRE { // reading it is what acknowledges it
			u.thre = false
			u.update()
		}
		if u.fcr&fcrEnable != 0 {
			id |= iirFIFO
		}
		return id
	case uartLCR:
		return u.lcr
	case uartMCR:
		return u.mcr
	case uartLSR:
		return u.readLSR()
	case uartMSR:
		v := u.msr
		u.msr &^= msrDelta
		u.update()
		return v
	case uartSCR:
		return u.scr
	}
	return 0xff
}

func (u *UART) readLSR() byte {
	var v byte
	if !u.busy {
		v = lsrTHRE | lsrTEMT
	}
	if u.fifo.n > 0 {
		v |= lsrDR
	}
	if u.overrun {
		v |= lsrOE
		u.overrun = false
		u.update()
	}
	return v
}

func (u *UART) write(off uint64, b byte) {
	switch off {
	case uartRBR:
		if u.lcr&lcrDLAB != 0 {
			u.dll = b
			return
		}
		u.send(b)
	case uartIER:
		if u.lcr&lcrDLAB != 0 {
			u.dlm = b
			return
		}
		// Enabling the interrupt of an empty transmitter raises it at once; drivers start sending that way.
		if b&^u.ier&ierTHRE != 0 && !u.busy {
			u.thre = true
		}
		u.ier = b & 0x0f
	case uartIIR:
		u.writeFCR(b)
	case uartLCR:
		u.lcr = b
	case uartMCR:
		u.writeMCR(b & mcrMask)
	case uartSCR:
		u.scr = b
	default: // the status registers are read-only
		return
	}
	u.update()
}

// send transmits b. The interrupt line falls and, unless the transmitter is busy now, rises again: the edge is what an
// edge-triggered interrupt controller needs if the driver does not read IIR.
func (u *UART) send(b byte) {
	u.thre = false
	u.update()
	if u.mcr&mcrLoop != 0 {
		u.loop(b)
	} else {
		u.out.push(b)
	}
	u.busy = u.out.room() < uartFIFO
	u.thre = !u.busy
}

// loop receives b from the UART's own transmitter.
func (u *UART) loop(b byte) {
	if u.fifo.n < u.depth() {
		u.fifo.push(b)
		return
	}
	u.overrun = true
	if u.fcr&fcrEnable == 0 { // without FIFO the new byte replaces the old one; with it, the new one is lost
		u.fifo.pop()
		u.fifo.push(b)
	}
}

func (u *UART) writeFCR(b byte) {
	if b&fcrEnable == 0 { // the other bits are taken only together with this one
		b = 0
	}
	if b&fcrClearRX != 0 || (b^u.fcr)&fcrEnable != 0 {
		u.fifo.clear()
	}
	u.fcr = b & fcrKeep
	u.refill()
}

func (u *UART) writeMCR(b byte) {
	u.mcr = b
	lines := uint8(msrCTS | msrDSR | msrDCD)
	if b&mcrLoop != 0 { // the outputs are wired to the inputs
		lines = 0
		for _, w := range [...]struct{ from, to uint8 }{{mcrRTS, msrCTS}, {mcrDTR, msrDSR}, {mcrOUT1, msrRI}, {mcrOUT2, msrDCD}} {
			if b&w.from != 0 {
				lines |= w.to
			}
		}
	}
	delta := (u.msr ^ lines) >> 4
	if u.msr&msrRI == 0 { // the ring indicator is told only when it ends
		delta &^= msrTERI
	}
	u.msr = lines | u.msr&msrDelta | delta
	u.refill()
}

// depth returns how many bytes the receiver holds: one while the FIFOs are off.
func (u *UART) depth() int {
	if u.fcr&fcrEnable != 0 {
		return uartFIFO
	}
	return 1
}

// trigger returns how many bytes in the FIFO raise the interrupt of received data.
func (u *UART) trigger() int {
	switch u.fcr >> 6 {
	case 1:
		return 4
	case 2:
		return 8
	case 3:
		return 14
	}
	return 1
}

// refill moves the host's bytes into the receive FIFO; in loopback mode the line is cut.
func (u *UART) refill() {
	if u.mcr&mcrLoop != 0 {
		return
	}
	for u.in.n > 0 && u.fifo.n < u.depth() {
		u.fifo.push(u.in.pop())
		if u.in.n == uartInput/2 { // Receive waits only while it is full
			signal(u.space)
		}
	}
}

// cause returns the interrupt of the highest priority that is pending, as IIR shows it.
func (u *UART) cause() byte {
	switch {
	case u.ier&ierRLS != 0 && u.overrun:
		return iirRLS
	case u.ier&ierRDA != 0 && u.fifo.n >= u.trigger():
		return iirRDA
	case u.ier&ierRDA != 0 && u.fifo.n > 0:
		return iirTimeout
	case u.ier&ierTHRE != 0 && u.thre:
		return iirTHRE
	case u.ier&ierMS != 0 && u.msr&msrDelta != 0:
		return iirMS
	}
	return iirNone
}

func (u *UART) update() { u.irq.set(u.cause() != iirNone) }

// drained is called by the output when it has made room.
func (u *UART) drained() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.busy && u.out.room() >= uartFIFO {
		u.busy, u.thre = false, true
		u.update()
	}
}

// Receive hands p to the guest. It returns when the last byte is in the queue, or with the number of bytes that are and
// ctx's error. It waits while the queue is full or the UART paused. What several calls hand over at a time is mixed.
func (u *UART) Receive(ctx context.Context, p []byte) (int, error) {
	for n := 0; ; {
		k, room := u.receive(p[n:])
		if n += k; n == len(p) {
			if room {
				signal(u.space) // for another Receive that waits
			}
			return n, nil
		}
		select {
		case <-u.space:
		case <-ctx.Done():
			return n, fmt.Errorf("serial port %s: input: %w", u.id, ctx.Err())
		}
	}
}

// receive takes what there is room for, and returns how much that was and whether there is room for more.
func (u *UART) receive(p []byte) (n int, room bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.paused {
		return 0, false
	}
	for n < len(p) && u.in.push(p[n]) {
		n++
		u.refill()
	}
	u.update()
	return n, u.in.free() > 0
}

// Flush waits until the writer has got all that the guest has sent, or for ctx. The UART must not be paused.
func (u *UART) Flush(ctx context.Context) error {
	if err := u.out.flush(ctx); err != nil {
		return fmt.Errorf("serial port %s: flush: %w", u.id, err)
	}
	return nil
}

// SnapID implements snap.Component.
func (u *UART) SnapID() string { return u.id }

// SnapVersion implements snap.Component.
func (u *UART) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component. Output that the writer has not taken stays with the UART.
func (u *UART) Pause() error {
	u.mu.Lock()
	u.paused = true
	u.mu.Unlock()
	u.out.pause() // without the lock: the goroutine may be about to take it
	return nil
}

// Resume implements snap.Component.
func (u *UART) Resume() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.paused = false
	u.out.start()
	signal(u.space)
	if err := u.irq.drive(); err != nil {
		return fmt.Errorf("serial port %s: interrupt line: %w", u.id, err)
	}
	return nil
}

// State implements snap.Component.
func (u *UART) State(c *snap.Codec) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, r := range []*uint8{&u.ier, &u.fcr, &u.lcr, &u.mcr, &u.msr, &u.scr, &u.dll, &u.dlm} {
		c.U8(r)
	}
	c.Bool(&u.overrun)
	c.Bool(&u.thre)
	u.fifo.state(c)
	u.in.state(c)
	u.out.state(c)
	if c.Loading() {
		u.busy = u.out.room() < uartFIFO
		u.irq.level = u.cause() != iirNone
	}
}
