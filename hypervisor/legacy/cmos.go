package legacy

import (
	"fmt"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// The ports and the ISA interrupt of the CMOS clock.
const (
	CMOSBase = 0x70
	CMOSSize = 4 // index and data, then the same of the upper bank
	CMOSIRQ  = 8
)

// Registers of the MC146818 (Motorola's data sheet).
const (
	rtcSec   = 0x00
	rtcSecA  = 0x01 // alarm
	rtcMin   = 0x02
	rtcMinA  = 0x03
	rtcHour  = 0x04
	rtcHourA = 0x05
	rtcWDay  = 0x06 // 1 is Sunday
	rtcMDay  = 0x07
	rtcMonth = 0x08
	rtcYear  = 0x09
	rtcA     = 0x0a
	rtcB     = 0x0b
	rtcC     = 0x0c
	rtcD     = 0x0d
)

// Bytes of the memory behind them that firmware reads, as PC BIOSes have them; the memory sizes, boot order and number
// of processors where SeaBIOS looks.
const (
	cmosEquipment = 0x14
	cmosBase      = 0x15 // KiB below 640 KiB, 16 bits
	cmosExt       = 0x17 // KiB above 1 MiB, 16 bits
	cmosSum       = 0x2e // sum of 0x10 to 0x2d, 16 bits, high byte first
	cmosExt2      = 0x30 // as cmosExt
	cmosCentury   = 0x32
	cmosAbove16M  = 0x34 // 64 KiB above 16 MiB, 16 bits
	cmosBoot3     = 0x38 // bits 4 to 7: third boot device; bit 0: do not check floppies' signatures
	cmosBoot12    = 0x3d // first boot device, bits 4 to 7: second
	cmosAbove4G   = 0x5b // 64 KiB above 4 GiB, 24 bits
	cmosCPUs      = 0x5f // processors but one
)

const (
	rtcUIP = 1 << 7 // A: an update is near
	rtcDV  = 7 << 4 // A: divider; 11x holds it in reset
	rtcRS  = 0x0f   // A: rate of the periodic interrupt
	rtc32k = 2 << 4 // A: divider of a 32768 Hz crystal

	rtcSET = 1 << 7 // B: the time registers do not count
	rtcPIE = 1 << 6 // B and, as flags, C: periodic interrupt
	rtcAIE = 1 << 5 // alarm
	rtcUIE = 1 << 4 // update ended
	rtcSQW = 1 << 3 // B: square wave output
	rtcDM  = 1 << 2 // B: binary, not BCD
	rtc24  = 1 << 1 // B: 24 hours, not 12

	rtcIRQF = 1 << 7 // C: the interrupt line
	rtcVRT  = 1 << 7 // D: the battery is good

	rtcPM       = 0x80 // in the hours, of 12
	rtcDontCare = 0xc0 // both bits set in an alarm register: any value matches

	rtcHz        = 32768
	rtcUIPTime   = 244 * time.Microsecond // from UIP to the update
	rtcHalf      = time.Second / 2        // from the divider's release to the first update
	rtcMaxSleep  = time.Minute            // the host's clock may be set meanwhile
	secondsADay  = 24 * 60 * 60
	cmosBankSize = 128
)

// CMOSConfig says what the CMOS clock is and what firmware finds in its memory.
type CMOSConfig struct {
	IRQ     irq.Line
	Alarm   func()        // if not nil, called when the alarm interrupts; it must not access the clock
	Battery *Battery      // what an earlier clock left; nil is a new one
	Offset  time.Duration // the guest's clock with a new battery, relative to UTC
	Below4G uint64        // bytes of RAM below 4 GiB
	Above4G uint64        // bytes of RAM from 4 GiB
	Boot    [3]uint8      // boot order: 1 floppy, 2 disk, 3 CD, 4 network, 0 none
	CPUs    int           // at least 1
}

// Battery is what a CMOS clock keeps when its board resets: its memory, and the time that the guest has set. A board that
// takes another's place, as at a reboot, gets the same Battery; no two have it at once. The zero value is new: the clock
// is right.
type Battery struct {
	charged  bool                    // the rest is of use
	ram      [2 * cmosBankSize]uint8 // the time registers count only while ticking says no
	offset   int64                   // whole seconds of guest time less host time
	offsetNs int64                   // and nanoseconds, either sign, below 1 s
}

// CMOS is the clock of the PC, an MC146818, with 256 bytes of memory.
//
// It counts nothing: the guest's time is the host's, UTC, and an offset that changes when the guest sets the clock. So
// it is right after a restore. The flags of register C are worked out when somebody looks; a timer runs only while an
// interrupt is enabled and the line is low, so a guest costs at most one timer per interrupt that it takes.
type CMOS struct {
	*Battery
	alarm func()

	mu      sync.Mutex
	irq     pin
	running bool        // between Resume and Pause
	timer   *time.Timer // calls fire

	index     uint8
	indexHigh uint8
	seen      int64 // guest time, in seconds and
	seenNs    int64 // nanoseconds, up to which register C is worked out
}

// NewCMOS returns a clock, mapped at CMOSBase.
func NewCMOS(cfg CMOSConfig) *CMOS {
	r := &CMOS{Battery: cfg.Battery, alarm: cfg.Alarm, irq: pin{line: cfg.IRQ}}
	if r.Battery == nil {
		r.Battery = new(Battery)
	}
	r.timer = time.AfterFunc(time.Hour, r.fire)
	r.timer.Stop()
	if !r.charged {
		r.charged = true
		r.ram[rtcA], r.ram[rtcB] = rtc32k|6, rtc24
		r.offset, r.offsetNs = int64(cfg.Offset/time.Second), int64(cfg.Offset%time.Second)
	}
	r.ram[rtcB] &^= rtcPIE | rtcAIE | rtcUIE | rtcSQW
	r.ram[rtcC] = 0
	r.ram[cmosEquipment] = 1<<1 | 1<<2 // a numeric coprocessor, a PS/2 mouse port
	put := func(at int, v uint64, n int) {
		for i := range n {
			r.ram[at+i] = uint8(v >> (8 * i))
		}
	}
	above := func(v, floor uint64) uint64 { return max(v, floor) - floor }
	put(cmosBase, min(cfg.Below4G>>10, 640), 2)
	put(cmosExt, min(above(cfg.Below4G, 1<<20)>>10, 0xffff), 2)
	put(cmosExt2, min(above(cfg.Below4G, 1<<20)>>10, 0xffff), 2)
	put(cmosAbove16M, min(above(cfg.Below4G, 16<<20)>>16, 0xffff), 2)
	put(cmosAbove4G, min(cfg.Above4G>>16, 0xffffff), 3)
	r.ram[cmosBoot12] = cfg.Boot[0]&0xf | cfg.Boot[1]<<4
	r.ram[cmosBoot3] = cfg.Boot[2]<<4 | 1
	r.ram[cmosCPUs] = uint8(max(cfg.CPUs, 1) - 1)
	var sum uint16
	for _, b := range r.ram[0x10:cmosSum] {
		sum += uint16(b)
	}
	r.ram[cmosSum], r.ram[cmosSum+1] = uint8(sum>>8), uint8(sum)
	r.seen, r.seenNs = r.now()
	return r
}

// Read implements bus.Device.
func (r *CMOS) Read(a bus.Access, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range p {
		switch a.Off + uint64(i) {
		case 1:
			p[i] = r.read(r.index)
		case 3:
			p[i] = r.ram[cmosBankSize+int(r.indexHigh)]
		default: // the index is write-only
			p[i] = 0xff
		}
	}
}

// Write implements bus.Device.
func (r *CMOS) Write(a bus.Access, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, b := range p {
		switch a.Off + uint64(i) {
		case 0:
			r.index = b & 0x7f // bit 7 masks NMI, of which there is none
		case 1:
			r.write(r.index, b)
		case 2:
			r.indexHigh = b & 0x7f
		case 3:
			r.ram[cmosBankSize+int(r.indexHigh)] = b
		}
	}
}

func (r *CMOS) read(reg uint8) byte {
	switch {
	case isTime(reg):
		if r.ticking() {
			r.latch()
		}
		return r.ram[reg]
	case reg == rtcA:
		if _, ns := r.now(); r.ticking() && ns >= int64(time.Second-rtcUIPTime) {
			return r.ram[rtcA] | rtcUIP
		}
		return r.ram[rtcA]
	case reg == rtcC:
		r.catchUp()
		v := r.ram[rtcC]
		r.ram[rtcC] = 0
		r.update()
		return v
	case reg == rtcD:
		return rtcVRT
	}
	return r.ram[reg]
}

func (r *CMOS) write(reg uint8, b byte) {
	switch {
	case reg == rtcC, reg == rtcD: // read-only
		return
	case reg > rtcD && reg != cmosCentury:
		r.ram[reg] = b
		return
	}
	r.catchUp()
	ticking := r.ticking()
	if ticking {
		r.latch()
	}
	sec, ns := r.now()
	started := reg == rtcA && r.held() && !holds(b)
	if started { // the divider's first update comes half a second later
		ns = int64(rtcHalf)
	}
	switch reg {
	case rtcA:
		r.ram[rtcA] = b &^ rtcUIP
	case rtcB:
		if b&rtcSET != 0 {
			b &^= rtcUIE
		}
		r.ram[rtcB] = b
	default:
		r.ram[reg] = b
	}
	switch {
	case ticking && isTime(reg): // set while it runs
		r.set(r.decode(), ns)
	case !ticking && r.ticking(): // it runs again
		r.set(r.decode(), ns)
	case started: // but SET still holds the registers
		r.set(sec, ns)
	}
	r.update()
}

// isTime reports whether reg counts.
func isTime(reg uint8) bool {
	switch reg {
	case rtcSec, rtcMin, rtcHour, rtcWDay, rtcMDay, rtcMonth, rtcYear, cmosCentury:
		return true
	}
	return false
}

// holds reports whether a value of register A holds the divider in reset.
func holds(a uint8) bool { return a&rtcDV >= 6<<4 }

func (r *CMOS) held() bool { return holds(r.ram[rtcA]) }

// ticking reports whether the time registers count.
func (r *CMOS) ticking() bool { return r.ram[rtcB]&rtcSET == 0 && !r.held() }

// now returns the guest's time since 1970.
func (r *CMOS) now() (sec, ns int64) {
	host := time.Now()
	sec, ns = host.Unix()+r.offset, int64(host.Nanosecond())+r.offsetNs
	switch {
	case ns < 0:
		return sec - 1, ns + int64(time.Second)
	case ns >= int64(time.Second):
		return sec + 1, ns - int64(time.Second)
	}
	return sec, ns
}

// set makes the guest's time sec and ns.
func (r *CMOS) set(sec, ns int64) {
	host := time.Now()
	r.offset, r.offsetNs = sec-host.Unix(), ns-int64(host.Nanosecond())
	r.seen, r.seenNs = sec, ns
}

// latch puts the guest's time into the time registers.
func (r *CMOS) latch() {
	sec, _ := r.now()
	t := time.Unix(sec, 0).UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	var pm uint8
	if r.ram[rtcB]&rtc24 == 0 {
		if hour >= 12 {
			pm = rtcPM
		}
		hour = (hour+11)%12 + 1
	}
	r.ram[rtcSec] = r.encode(second)
	r.ram[rtcMin] = r.encode(minute)
	r.ram[rtcHour] = r.encode(hour) | pm
	r.ram[rtcWDay] = r.encode(int(t.Weekday()) + 1)
	r.ram[rtcMDay] = r.encode(day)
	r.ram[rtcMonth] = r.encode(int(month))
	r.ram[rtcYear] = r.encode(year % 100)
	r.ram[cmosCentury] = r.encode(year / 100)
}

// decode returns the time that the time registers say, in seconds since 1970. What cannot be, such as a 31 February,
// counts on.
func (r *CMOS) decode() int64 {
	return time.Date(r.value(cmosCentury)*100+r.value(rtcYear), time.Month(r.value(rtcMonth)), r.value(rtcMDay),
		r.hour(rtcHour), r.value(rtcMin), r.value(rtcSec), 0, time.UTC).Unix()
}

func (r *CMOS) encode(v int) uint8 {
	if r.ram[rtcB]&rtcDM != 0 {
		return uint8(v)
	}
	return uint8(v/10<<4 | v%10)
}

func (r *CMOS) number(b uint8) int {
	if r.ram[rtcB]&rtcDM != 0 {
		return int(b)
	}
	return int(b>>4)*10 + int(b&0xf)
}

func (r *CMOS) value(reg uint8) int { return r.number(r.ram[reg]) }

func (r *CMOS) hour(reg uint8) int {
	b := r.ram[reg]
	if r.ram[rtcB]&rtc24 != 0 {
		return r.number(b)
	}
	h := r.number(b&^rtcPM) % 12
	if b&rtcPM != 0 {
		h += 12
	}
	return h
}

// catchUp sets the flags of register C for all that has happened since it was last called.
func (r *CMOS) catchUp() {
	sec, ns := r.now()
	from, fromNs := r.seen, r.seenNs
	r.seen, r.seenNs = sec, ns
	if sec < from || sec == from && ns < fromNs { // the host's clock was set back
		return
	}
	if s, ok := r.period(); ok && ticks(sec, ns)>>s != ticks(from, fromNs)>>s {
		r.ram[rtcC] |= rtcPIE
	}
	if r.ticking() && sec != from {
		r.ram[rtcC] |= rtcUIE
		if d, ok := r.untilAlarm(from); ok && d <= sec-from {
			if r.ram[rtcC]&rtcAIE == 0 && r.ram[rtcB]&rtcAIE != 0 && r.alarm != nil {
				r.alarm()
			}
			r.ram[rtcC] |= rtcAIE
		}
	}
}

// update drives the interrupt line, and sets the timer for the next event that will.
func (r *CMOS) update() {
	pending := r.ram[rtcC]&r.ram[rtcB]&(rtcPIE|rtcAIE|rtcUIE) != 0
	r.ram[rtcC] &^= rtcIRQF
	if pending {
		r.ram[rtcC] |= rtcIRQF
	}
	r.irq.set(pending)
	if !r.running || pending {
		r.timer.Stop()
		return
	}
	if d, ok := r.untilEvent(); ok {
		r.timer.Reset(min(d, rtcMaxSleep))
	} else {
		r.timer.Stop()
	}
}

// fire is what the timer calls.
func (r *CMOS) fire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running { // Pause came first: it need not wait for us, as we do nothing
		return
	}
	r.catchUp()
	r.update()
}

// untilEvent returns how long it is from seen to the next event whose interrupt is enabled.
func (r *CMOS) untilEvent() (time.Duration, bool) {
	const never = time.Duration(1<<63 - 1)
	d, enabled := never, r.ram[rtcB]
	if s, ok := r.period(); ok && enabled&rtcPIE != 0 {
		next := (ticks(r.seen, r.seenNs)>>s + 1) << s
		ns := ((next-r.seen*rtcHz)*int64(time.Second)+rtcHz-1)/rtcHz - r.seenNs
		d = min(d, time.Duration(ns))
	}
	if r.ticking() {
		if enabled&rtcUIE != 0 {
			d = min(d, time.Second-time.Duration(r.seenNs))
		}
		if enabled&rtcAIE != 0 {
			if s, ok := r.untilAlarm(r.seen); ok {
				d = min(d, time.Duration(s)*time.Second-time.Duration(r.seenNs))
			}
		}
	}
	return d, d != never
}

// ticks returns a time in periods of the crystal.
func ticks(sec, ns int64) int64 { return sec*rtcHz + ns*rtcHz/int64(time.Second) }

// period returns the binary logarithm of the periodic interrupt's period, in ticks.
func (r *CMOS) period() (shift uint8, ok bool) {
	rs := r.ram[rtcA] & rtcRS
	switch {
	case rs == 0 || r.held():
		return 0, false
	case rs <= 2: // with a crystal of 32768 Hz these two are 256 Hz and 128 Hz
		return rs + 6, true
	}
	return rs - 1, true
}

// untilAlarm returns the number of seconds, from 1 to a day, until the alarm registers match after sec, if they ever do.
// It skips what does not match, so it looks at 150 times at most.
func (r *CMOS) untilAlarm(sec int64) (int64, bool) {
	field := func(reg uint8, v int) int64 {
		if r.ram[reg]&rtcDontCare == rtcDontCare {
			return -1
		}
		return int64(v)
	}
	h, m, s := field(rtcHourA, r.hour(rtcHourA)), field(rtcMinA, r.value(rtcMinA)), field(rtcSecA, r.value(rtcSecA))
	if h > 23 || m > 59 || s > 59 {
		return 0, false
	}
	today := ((sec % secondsADay) + secondsADay) % secondsADay
	for d := int64(1); d <= secondsADay; {
		t := (today + d) % secondsADay
		switch {
		case h >= 0 && t/3600 != h:
			d += 3600 - t%3600
		case m >= 0 && t/60%60 != m:
			d += 60 - t%60
		case s >= 0 && t%60 != s:
			d += (s - t%60 + 60) % 60
		default:
			return d, true
		}
	}
	return 0, false
}

// SnapID implements snap.Component.
func (r *CMOS) SnapID() string { return "cmos" }

// SnapVersion implements snap.Component.
func (r *CMOS) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (r *CMOS) Pause() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = false
	r.timer.Stop()
	return nil
}

// Resume implements snap.Component. Alarms and updates that came due while the machine was paused or saved happen now.
func (r *CMOS) Resume() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.irq.drive(); err != nil {
		return fmt.Errorf("CMOS clock: interrupt line: %w", err)
	}
	r.running = true
	r.catchUp()
	r.update()
	return nil
}

// State implements snap.Component.
func (r *CMOS) State(c *snap.Codec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.Fixed(r.ram[:])
	c.U8(&r.index)
	c.U8(&r.indexHigh)
	c.I64(&r.offset)
	c.I64(&r.offsetNs)
	c.I64(&r.seen)
	c.I64(&r.seenNs)
	if !c.Loading() {
		return
	}
	const second = int64(time.Second)
	const limit = 1 << 40 // seconds; no calendar of two BCD bytes for the year goes so far
	if max(r.offset, -r.offset, r.seen, -r.seen) > limit || min(r.offset, r.seen) < -limit {
		c.Fail("clock off by %d s at %d s", r.offset, r.seen)
	}
	if r.index >= cmosBankSize || r.indexHigh >= cmosBankSize {
		c.Fail("index %#x or %#x beyond a bank's 128 bytes", r.index, r.indexHigh)
	}
	if r.offsetNs <= -second || r.offsetNs >= second || r.seenNs < 0 || r.seenNs >= second {
		c.Fail("%d or %d nanoseconds are not within a second", r.offsetNs, r.seenNs)
	}
	r.irq.level = r.ram[rtcC]&rtcIRQF != 0
}
