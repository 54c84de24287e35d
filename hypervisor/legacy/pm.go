package legacy

import (
	"fmt"
	"math/bits"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Where the power-management block and the APM ports are, and what the FADT says of them.
const (
	PMBase = 0x600
	PMSize = 0x80

	PM1EventOff   = 0x00 // PM1a_EVT_BLK, 4 bytes
	PM1ControlOff = 0x04 // PM1a_CNT_BLK, 2 bytes
	PMTimerOff    = 0x08 // PM_TMR_BLK, 4 bytes
	GPE0Off       = 0x20 // GPE0_BLK, 16 bytes
	GPE0Size      = 16

	APMBase     = 0xb2 // SMI_CMD; the port after it is a scratch register
	APMSize     = 2
	ACPIEnable  = 2 // written to SMI_CMD
	ACPIDisable = 3

	PMTimerHz = 3579545
)

// Registers of the block that ACPI does not know (Intel ICH9 data sheet, §13.8.3).
const (
	pmSMIEnable = 0x30
	pmSMIStatus = 0x34

	// smiAPMEnable is on from the start: to SeaBIOS it means that System Management Mode, of which there is none, was
	// set up already.
	smiAPMEnable = 1 << 5
)

// Bits of the PM1 status and, those below 14, enable registers (ACPI 6.5 §4.8.3.1).
const (
	PM1Timer       = 1 << 0
	PM1Global      = 1 << 5
	PM1PowerButton = 1 << 8
	PM1SleepButton = 1 << 9
	PM1RTC         = 1 << 10
	PM1PCIeWake    = 1 << 14
	PM1Wake        = 1 << 15

	pm1Enables = PM1Timer | PM1Global | PM1PowerButton | PM1SleepButton | PM1RTC
)

// Bits of the PM1 control register (ACPI 6.5 §4.8.3.2).
const (
	pm1SCIEnable    = 1 << 0
	pm1GlobalRls    = 1 << 2 // write-only; there is no BIOS to be told
	pm1SleepShift   = 10
	pm1SleepMask    = 7
	pm1SleepEnable  = 1 << 13 // write-only
	pm1ControlStays = 1<<0 | 1<<1 | pm1SleepMask<<pm1SleepShift
)

// SleepState is a state of ACPI that a guest can ask for.
type SleepState int

// The sleep states. Their SLP_TYP values, which the DSDT's \_S3, \_S4 and \_S5 give, are 1, 2 and 0.
const (
	S3 SleepState = 3 // suspend to RAM
	S4 SleepState = 4 // suspend to disk: off
	S5 SleepState = 5 // off
)

// SleepType returns s's value of SLP_TYP.
func (s SleepState) SleepType() uint8 {
	switch s {
	case S3:
		return 1
	case S4:
		return 2
	}
	return 0
}

// PMConfig describes a power-management block.
type PMConfig struct {
	SCI   irq.Line         // level-triggered
	Sleep func(SleepState) // called, with no lock held, when the guest goes to sleep
	// ACPI says that ACPI mode is on from the start, as a kernel wants it that is started without firmware.
	ACPI bool
	// Timer32 makes the timer 32 bits wide, which the FADT flag TMR_VAL_EXT announces; else it has 24.
	Timer32 bool
}

// PM is the power-management block of the ICH9: ACPI's fixed hardware and its general-purpose events. Its registers take
// accesses of any size. The timer counts while the machine runs.
type PM struct {
	sleep func(SleepState)
	width uint // of the timer, in bits
	acpi  bool

	mu     sync.Mutex
	sci    pin
	timer  *time.Timer // calls fire
	since  time.Time   // when the machine was resumed; zero while it is paused
	before int64       // nanoseconds that it ran before

	status, enable, control uint16
	gpeStatus, gpeEnable    uint64
	smiEnable               uint32
	apm                     [APMSize]uint8
	halves                  uint64 // how often the timer's top bit has changed
}

// NewPM returns a power-management block, mapped at PMBase; its APM ports are a device apart.
func NewPM(cfg PMConfig) *PM {
	pm := &PM{sleep: cfg.Sleep, width: 24, acpi: cfg.ACPI, sci: pin{line: cfg.SCI}}
	if cfg.Timer32 {
		pm.width = 32
	}
	pm.timer = time.AfterFunc(time.Hour, pm.fire)
	pm.timer.Stop()
	pm.reset()
	return pm
}

func (pm *PM) reset() {
	pm.status, pm.enable, pm.control = 0, 0, 0
	if pm.acpi {
		pm.control = pm1SCIEnable
	}
	pm.gpeStatus, pm.gpeEnable = 0, 0
	pm.smiEnable = smiAPMEnable
	pm.apm = [APMSize]uint8{}
}

// Read implements bus.Device.
func (pm *PM) Read(a bus.Access, p []byte) {
	pm.mu.Lock()
	defer pm.mu.Unlock()
	var reg uint32
	for i := range p {
		off := a.Off + uint64(i)
		if i == 0 || off%4 == 0 { // the bytes of one register are of one moment
			reg = pm.read(off &^ 3)
		}
		p[i] = byte(reg >> (off % 4 * 8))
	}
}

// read returns the 32 bits at off, which is a multiple of 4.
func (pm *PM) read(off uint64) uint32 {
	switch off {
	case PM1EventOff:
		pm.catchUp()
		return uint32(pm.status) | uint32(pm.enable)<<16
	case PM1ControlOff:
		return uint32(pm.control)
	case PMTimerOff:
		return uint32(pm.ticks() & (1<<pm.width - 1))
	case GPE0Off:
		return uint32(pm.gpeStatus)
	case GPE0Off + 4:
		return uint32(pm.gpeStatus >> 32)
	case GPE0Off + 8:
		return uint32(pm.gpeEnable)
	case GPE0Off + 12:
		return uint32(pm.gpeEnable >> 32)
	case pmSMIEnable:
		return pm.smiEnable
	}
	return 0
}

// Write implements bus.Device.
func (pm *PM) Write(a bus.Access, p []byte) {
	pm.mu.Lock()
	pm.catchUp()
	sleep := SleepState(0)
	for i, b := range p {
		if s := pm.write(a.Off+uint64(i), b); s != 0 {
			sleep = s
		}
	}
	pm.update()
	pm.mu.Unlock()
	if sleep != 0 {
		pm.sleep(sleep)
	}
}

// write returns the state that the guest wants to sleep in, or 0.
func (pm *PM) write(off uint64, b byte) SleepState {
	switch {
	case off < PM1EventOff+2: // status: ones clear
		pm.status &^= uint16(b) << (off * 8)
	case off < PM1EventOff+4:
		setByte16(&pm.enable, off-2, b)
		pm.enable &= pm1Enables
	case off == PM1ControlOff, off == PM1ControlOff+1:
		v := pm.control
		setByte16(&v, off-PM1ControlOff, b)
		pm.control = v & pm1ControlStays
		if v&pm1SleepEnable == 0 {
			return 0
		}
		for _, s := range [...]SleepState{S3, S4, S5} {
			if uint16(s.SleepType()) == v>>pm1SleepShift&pm1SleepMask {
				return s
			}
		}
	case off >= GPE0Off && off < GPE0Off+8: // status: ones clear
		pm.gpeStatus &^= uint64(b) << ((off - GPE0Off) * 8)
	case off >= GPE0Off+8 && off < GPE0Off+16:
		shift := (off - GPE0Off - 8) * 8
		pm.gpeEnable = pm.gpeEnable&^(0xff<<shift) | uint64(b)<<shift
	case off >= pmSMIEnable && off < pmSMIEnable+4:
		shift := (off - pmSMIEnable) * 8
		pm.smiEnable = pm.smiEnable&^(0xff<<shift) | uint32(b)<<shift
	}
	return 0 // the timer and the SMI status, of which there never is one, are read-only
}

// setByte16 replaces byte i, 0 or 1, of v.
func setByte16(v *uint16, i uint64, b byte) {
	*v = *v&^(0xff<<(i*8)) | uint16(b)<<(i*8)
}

// ran returns for how many nanoseconds the machine has run.
func (pm *PM) ran() int64 {
	if pm.since.IsZero() {
		return pm.before
	}
	return pm.before + int64(time.Since(pm.since))
}

// ticks returns the timer's count, without its limit.
func (pm *PM) ticks() uint64 {
	hi, lo := bits.Mul64(uint64(pm.ran()), PMTimerHz)
	t, _ := bits.Div64(hi, lo, uint64(time.Second)) // ran is not negative: hi is below PMTimerHz, so below a second's ns
	return t
}

// catchUp sets the timer's status bit if its top bit has changed since catchUp was last called. It returns the count.
func (pm *PM) catchUp() uint64 {
	t := pm.ticks()
	if h := t >> (pm.width - 1); h != pm.halves {
		pm.halves = h
		pm.status |= PM1Timer
	}
	return t
}

// update drives the SCI, and sets the timer's interrupt.
func (pm *PM) update() {
	now := pm.catchUp()
	pending := pm.status&pm.enable != 0 || pm.gpeStatus&pm.gpeEnable != 0
	pm.sci.set(pending && pm.control&pm1SCIEnable != 0) // in legacy mode it would be an SMI, which nobody handles
	if pm.since.IsZero() || pm.enable&PM1Timer == 0 || pm.status&PM1Timer != 0 {
		pm.timer.Stop()
		return
	}
	left := (pm.halves+1)<<(pm.width-1) - now
	pm.timer.Reset(time.Duration(left*uint64(time.Second)/PMTimerHz) + 1)
}

// fire is what the timer calls.
func (pm *PM) fire() {
	pm.mu.Lock()
	defer pm.mu.Unlock()
	if pm.since.IsZero() { // Pause came first: it need not wait for us, as we do nothing
		return
	}
	pm.update()
}

// PowerButton presses the power button.
func (pm *PM) PowerButton() { pm.raise(PM1PowerButton) }

// SleepButton presses the sleep button.
func (pm *PM) SleepButton() { pm.raise(PM1SleepButton) }

// RTCAlarm tells that the CMOS clock's alarm has interrupted.
func (pm *PM) RTCAlarm() { pm.raise(PM1RTC) }

// Wake tells why the guest is about to run again after it has slept in S3: cause is PM1PowerButton, PM1SleepButton,
// PM1RTC, PM1PCIeWake, or 0 for a general-purpose event.
func (pm *PM) Wake(cause uint16) { pm.raise(PM1Wake | cause) }

func (pm *PM) raise(status uint16) {
	pm.mu.Lock()
	defer pm.mu.Unlock()
	pm.status |= status
	pm.update()
}

// RaiseGPE sets the status of general-purpose event n, 0 to 63.
func (pm *PM) RaiseGPE(n int) error {
	if n < 0 || n >= GPE0Size/2*8 {
		return fmt.Errorf("general-purpose event %d: there are 0 to %d", n, GPE0Size/2*8-1)
	}
	pm.mu.Lock()
	defer pm.mu.Unlock()
	pm.gpeStatus |= 1 << n
	pm.update()
	return nil
}

// APM returns the device of the APM ports, mapped at APMBase. A write to the first is what once called System
// Management Mode; it turns ACPI mode on and off, and does nothing else.
func (pm *PM) APM() bus.Device { return apm{pm} }

type apm struct{ pm *PM }

func (d apm) Read(a bus.Access, p []byte) {
	d.pm.mu.Lock()
	defer d.pm.mu.Unlock()
	for i := range p {
		p[i] = 0xff
		if off := a.Off + uint64(i); off < APMSize {
			p[i] = d.pm.apm[off]
		}
	}
}

func (d apm) Write(a bus.Access, p []byte) {
	d.pm.mu.Lock()
	defer d.pm.mu.Unlock()
	for i, b := range p {
		off := a.Off + uint64(i)
		if off >= APMSize {
			return
		}
		d.pm.apm[off] = b
		switch {
		case off == 0 && b == ACPIEnable:
			d.pm.control |= pm1SCIEnable
		case off == 0 && b == ACPIDisable:
			d.pm.control &^= pm1SCIEnable
		}
		d.pm.update()
	}
}

// SnapID implements snap.Component.
func (pm *PM) SnapID() string { return "pm" }

// SnapVersion implements snap.Component.
func (pm *PM) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component. The timer stands still until Resume.
func (pm *PM) Pause() error {
	pm.mu.Lock()
	defer pm.mu.Unlock()
	pm.before, pm.since = pm.ran(), time.Time{}
	pm.timer.Stop()
	return nil
}

// Resume implements snap.Component.
func (pm *PM) Resume() error {
	pm.mu.Lock()
	defer pm.mu.Unlock()
	if err := pm.sci.drive(); err != nil {
		return fmt.Errorf("power management: SCI: %w", err)
	}
	pm.since = time.Now()
	pm.update()
	return nil
}

// State implements snap.Component.
func (pm *PM) State(c *snap.Codec) {
	pm.mu.Lock()
	defer pm.mu.Unlock()
	c.Match("the width of the PM timer", uint64(pm.width))
	c.I64(&pm.before)
	c.U64(&pm.halves)
	c.U16(&pm.status)
	c.U16(&pm.enable)
	c.U16(&pm.control)
	c.U64(&pm.gpeStatus)
	c.U64(&pm.gpeEnable)
	c.U32(&pm.smiEnable)
	c.Fixed(pm.apm[:])
	c.Bool(&pm.sci.level)
	if c.Loading() && (pm.before < 0 || pm.before > 1<<62) {
		c.Fail("the machine has run for %d ns", pm.before)
		pm.before = 0
	}
}
