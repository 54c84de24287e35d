package legacy

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// testCMOS is a clock with its line, and short forms of access. In a synctest bubble the host's clock begins at
// 2000-01-01 00:00:00 UTC, a Saturday.
type testCMOS struct {
	*CMOS
	line *testLine
}

func newTestCMOS(cfg CMOSConfig) testCMOS {
	l := new(testLine)
	cfg.IRQ = l
	return testCMOS{NewCMOS(cfg), l}
}

func (r testCMOS) get(reg byte) byte {
	out(r.CMOS, CMOSBase, 0, 1, uint64(reg))
	return byte(in(r.CMOS, CMOSBase, 1, 1))
}

func (r testCMOS) put(reg, v byte) {
	out(r.CMOS, CMOSBase, 0, 1, uint64(reg))
	out(r.CMOS, CMOSBase, 1, 1, uint64(v))
}

// text returns the time registers as the guest sees them.
func (r testCMOS) text() string {
	return fmt.Sprintf("%02x%02x-%02x-%02x %02x:%02x:%02x day %x", r.get(cmosCentury), r.get(rtcYear), r.get(rtcMonth), r.get(rtcMDay),
		r.get(rtcHour), r.get(rtcMin), r.get(rtcSec), r.get(rtcWDay))
}

// start resumes the clock until the test's end.
func (r testCMOS) start(t *testing.T) {
	t.Helper()
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Pause(); err != nil {
			t.Error(err)
		}
	})
}

// setClock sets the clock as Linux does: with the update cycle off and the divider in reset.
func (r testCMOS) setClock(values map[byte]byte) {
	b, a := r.get(rtcB), r.get(rtcA)
	r.put(rtcB, b|rtcSET)
	r.put(rtcA, a|rtcDV)
	for reg, v := range values {
		r.put(reg, v)
	}
	r.put(rtcB, b)
	r.put(rtcA, a)
}

// A reboot is a new clock with the old one's battery: time and memory stay, interrupts and what the board says are new.
func TestCMOSBattery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const free, freeHigh = 0x50, 0x90 // bytes of either bank that are nobody's
		battery := new(Battery)
		r := newTestCMOS(CMOSConfig{Battery: battery, CPUs: 4})
		r.setClock(map[byte]byte{rtcYear: 0x31})
		r.put(free, 0xa5)
		r.put(cmosCPUs, 99)
		out(r.CMOS, CMOSBase, 2, 1, freeHigh-cmosBankSize)
		out(r.CMOS, CMOSBase, 3, 1, 0x5a)
		r.put(rtcSecA, 0xc0)
		r.put(rtcMinA, 0xc0)
		r.put(rtcHourA, 0xc0)
		r.put(rtcB, rtc24|rtcAIE|rtcUIE)
		r.start(t)
		time.Sleep(90 * time.Second)
		if !r.line.level.Load() {
			t.Error("there was no alarm")
		}
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}

		r = newTestCMOS(CMOSConfig{Battery: battery, CPUs: 2})
		r.start(t)
		time.Sleep(time.Second)
		if got, want := r.text(), "2031-01-01 00:01:31 day 4"; got != want {
			t.Errorf("the clock says %s, want %s", got, want)
		}
		if r.get(free) != 0xa5 || r.ram[freeHigh] != 0x5a {
			t.Errorf("its memory holds %#x and %#x", r.get(free), r.ram[freeHigh])
		}
		if n := r.get(cmosCPUs); n != 1 {
			t.Errorf("the board says that there are %d processors more", n)
		}
		if r.get(rtcB) != rtc24 || r.line.level.Load() {
			t.Errorf("register B is %#x, the line is high: %t", r.get(rtcB), r.line.level.Load())
		}
	})
}

func TestCMOSFormats(t *testing.T) {
	for _, tc := range []struct {
		after time.Duration
		b     byte
		want  string
	}{
		{0, rtc24, "2000-01-01 00:00:00 day 7"},
		{0, 0, "2000-01-01 12:00:00 day 7"},
		{12 * time.Hour, 0, "2000-01-01 92:00:00 day 7"},
		{23*time.Hour + 59*time.Minute + 59*time.Second, 0, "2000-01-01 91:59:59 day 7"},
		{13*time.Hour + 45*time.Minute, rtc24 | rtcDM, "1400-01-01 0d:2d:00 day 7"},
		{13 * time.Hour, rtcDM, "1400-01-01 81:00:00 day 7"},
		{59*24*time.Hour + time.Second, rtc24, "2000-02-29 00:00:01 day 3"},
		{-time.Second, rtc24, "1999-12-31 23:59:59 day 6"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newTestCMOS(CMOSConfig{Offset: tc.after})
			r.put(rtcB, tc.b)
			if got := r.text(); got != tc.want {
				t.Errorf("offset %v, B %#x: %s, want %s", tc.after, tc.b, got, tc.want)
			}
		})
	}
}

func TestCMOSSetLikeLinux(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestCMOS(CMOSConfig{})
		time.Sleep(300 * time.Millisecond)
		r.setClock(map[byte]byte{cmosCentury: 0x20, rtcYear: 0x38, rtcMonth: 0x01, rtcMDay: 0x19, rtcHour: 0x03, rtcMin: 0x14, rtcSec: 0x07})
		if got, want := r.text(), "2038-01-19 03:14:07 day 3"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		time.Sleep(499 * time.Millisecond)
		if got := r.get(rtcSec); got != 0x07 {
			t.Errorf("second %x before the first update", got)
		}
		time.Sleep(time.Millisecond)
		if got := r.get(rtcSec); got != 0x08 {
			t.Errorf("second %x half a second after the divider's release, want 8", got)
		}
		r.put(rtcHour, 0x15) // while it runs
		if got, want := r.text(), "2038-01-19 15:14:08 day 3"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		r.put(rtcB, rtc24|rtcSET) // halted, the registers are memory
		time.Sleep(time.Hour)
		if got, want := r.text(), "2038-01-19 15:14:08 day 3"; got != want {
			t.Errorf("halted: %s, want %s", got, want)
		}
	})
}

func TestCMOSRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestCMOS(CMOSConfig{})
		r.setClock(map[byte]byte{rtcYear: 0x25, rtcHour: 0x10})
		state, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(26 * time.Hour) // in the file
		s := newTestCMOS(CMOSConfig{Offset: time.Hour})
		if err := decode(s, state); err != nil {
			t.Fatal(err)
		}
		s.start(t)
		if got, want := s.text(), "2025-01-02 12:00:00 day 5"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

func TestCMOSUpdateInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestCMOS(CMOSConfig{})
		for _, tc := range []struct {
			sleep time.Duration
			want  byte
		}{{0, 0}, {time.Second - 245*time.Microsecond, 0}, {time.Microsecond, rtcUIP}, {243 * time.Microsecond, rtcUIP}, {time.Microsecond, 0}} {
			time.Sleep(tc.sleep)
			if got := r.get(rtcA) & rtcUIP; got != tc.want {
				t.Errorf("%v into the second: UIP %#x, want %#x", time.Duration(time.Now().Nanosecond()), got, tc.want)
			}
		}
		time.Sleep(time.Second - time.Microsecond)
		r.put(rtcB, rtc24|rtcSET)
		if r.get(rtcA)&rtcUIP != 0 {
			t.Error("UIP although updates are off")
		}
	})
}

func TestCMOSInterrupts(t *testing.T) {
	for _, tc := range []struct {
		name  string
		b     byte
		setup map[byte]byte
		want  time.Duration // from the start to the interrupt
		again time.Duration // to the next
		flags byte          // that must be in C
	}{
		{"update ended", rtcUIE, nil, time.Second, time.Second, rtcUIE},
		{"periodic 1024 Hz", rtcPIE, nil, 976563 * time.Nanosecond, 976563 * time.Nanosecond, rtcPIE},
		{"periodic 2 Hz", rtcPIE, map[byte]byte{rtcA: rtc32k | 15}, time.Second / 2, time.Second / 2, rtcPIE},
		{"periodic 256 Hz by rate 1", rtcPIE, map[byte]byte{rtcA: rtc32k | 1}, 3906250, 3906250, rtcPIE},
		{"alarm at 01:02:03", rtcAIE, map[byte]byte{rtcHourA: 1, rtcMinA: 2, rtcSecA: 3}, 3723 * time.Second, 24 * time.Hour, rtcAIE | rtcUIE},
		{"alarm each hour", rtcAIE, map[byte]byte{rtcHourA: 0xc0, rtcMinA: 0, rtcSecA: 5}, 5 * time.Second, time.Hour, rtcAIE},
		{"alarm each second", rtcAIE, map[byte]byte{rtcHourA: 0xff, rtcMinA: 0xff, rtcSecA: 0xff}, time.Second, time.Second, rtcAIE},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				alarms := 0
				r := newTestCMOS(CMOSConfig{Alarm: func() { alarms++ }})
				for reg, v := range tc.setup {
					r.put(reg, v)
				}
				r.put(rtcB, rtc24|tc.b)
				r.start(t)
				for _, wait := range []time.Duration{tc.want, tc.again} {
					time.Sleep(wait - time.Microsecond)
					synctest.Wait()
					if r.line.level.Load() {
						t.Fatalf("line high before %v", wait)
					}
					time.Sleep(time.Microsecond)
					synctest.Wait()
					if !r.line.level.Load() {
						t.Fatalf("line low after %v", wait)
					}
					if c := r.get(rtcC); c&(tc.flags|rtcIRQF) != tc.flags|rtcIRQF {
						t.Errorf("C %#x, want %#x", c, tc.flags|rtcIRQF)
					}
					if r.line.level.Load() || r.get(rtcC) != 0 {
						t.Error("reading C does not acknowledge")
					}
				}
				if want := 2; tc.b == rtcAIE && alarms != want {
					t.Errorf("told of %d alarms, want %d", alarms, want)
				}
			})
		})
	}
}

func TestCMOSNoInterruptWhilePaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestCMOS(CMOSConfig{})
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		r.put(rtcB, rtc24|rtcUIE)
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if r.line.level.Load() {
			t.Error("interrupts while paused")
		}
		r.start(t)
		if !r.line.level.Load() {
			t.Error("what came due is not told after Resume")
		}
	})
}

func TestCMOSMemory(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, tc := range []struct {
		cfg  CMOSConfig
		want map[byte]byte
	}{
		{CMOSConfig{Below4G: 8 * mib, Boot: [3]uint8{2, 3, 4}, CPUs: 2}, map[byte]byte{
			0x15: 0x80, 0x16: 0x02, 0x17: 0, 0x18: 0x1c, 0x30: 0, 0x31: 0x1c, 0x34: 0, 0x35: 0, 0x5b: 0, 0x5c: 0, 0x5d: 0,
			0x38: 0x41, 0x3d: 0x32, 0x5f: 1}},
		{CMOSConfig{Below4G: 2 * gib, Above4G: 3 * gib}, map[byte]byte{
			0x17: 0xff, 0x18: 0xff, 0x30: 0xff, 0x31: 0xff, 0x34: 0x00, 0x35: 0x7f, 0x5b: 0, 0x5c: 0xc0, 0x5d: 0, 0x5f: 0, 0x0f: 0, 0x0d: rtcVRT}},
	} {
		r := newTestCMOS(tc.cfg)
		got := map[byte]byte{}
		for reg := range tc.want {
			got[reg] = r.get(reg)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("below %#x, above %#x (-want +got):\n%s", tc.cfg.Below4G, tc.cfg.Above4G, diff)
		}
	}
	r := newTestCMOS(CMOSConfig{})
	r.put(0x0f, 5)
	out(r.CMOS, CMOSBase, 2, 1, 0x0f)
	out(r.CMOS, CMOSBase, 3, 1, 9)
	if a, b := r.get(0x0f), in(r.CMOS, CMOSBase, 3, 1); a != 5 || b != 9 {
		t.Errorf("the two banks read %d and %d, want 5 and 9", a, b)
	}
}

// TestCMOSSetGet sets the clock to any date, in any format, and reads it a while later.
func TestCMOSSetGet(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		want := time.Unix(rapid.Int64Range(0, 253402300799-1<<31).Draw(rt, "time"), 0).UTC()
		wait := time.Duration(rapid.IntRange(0, 1<<30).Draw(rt, "seconds later")) * time.Second
		b := byte(rapid.SampledFrom([]int{rtc24, 0, rtcDM, rtcDM | rtc24}).Draw(rt, "B"))
		var got time.Time
		synctest.Test(t, func(t *testing.T) {
			r := newTestCMOS(CMOSConfig{})
			r.put(rtcB, b|rtcSET)
			hour := want.Hour()
			if b&rtc24 == 0 {
				hour = (hour + 11) % 12
				hour++
			}
			for reg, v := range map[byte]int{cmosCentury: want.Year() / 100, rtcYear: want.Year() % 100, rtcMonth: int(want.Month()),
				rtcMDay: want.Day(), rtcHour: hour, rtcMin: want.Minute(), rtcSec: want.Second()} {
				e := byte(v/10*16 + v%10)
				if b&rtcDM != 0 {
					e = byte(v)
				}
				if reg == rtcHour && b&rtc24 == 0 && want.Hour() >= 12 {
					e |= rtcPM
				}
				r.put(reg, e)
			}
			r.put(rtcB, b)
			time.Sleep(wait)
			r.get(rtcSec) // latches
			got = time.Unix(r.decode(), 0).UTC()
		})
		if !got.Equal(want.Add(wait)) {
			rt.Fatalf("set %v, read %v, %v later", want, got, wait)
		}
	})
}

// TestCMOSAlarmAgrees compares the search for the next alarm with trying each second.
func TestCMOSAlarmAgrees(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newTestCMOS(CMOSConfig{})
		field := func(name string, n int) int {
			return rapid.OneOf(rapid.Just(-1), rapid.IntRange(0, n)).Draw(rt, name)
		}
		h, m, s := field("hour", 24), field("minute", 60), field("second", 60)
		put := func(reg byte, v int) {
			r.put(reg, byte(v)) // -1 is "any"
		}
		r.put(rtcB, rtc24|rtcDM)
		put(rtcHourA, h)
		put(rtcMinA, m)
		put(rtcSecA, s)
		from := rapid.Int64Range(-1<<40, 1<<40).Draw(rt, "from")
		got, ok := r.untilAlarm(from)
		for d := int64(1); d <= secondsADay; d++ {
			t := time.Unix(from+d, 0).UTC()
			if (h < 0 || t.Hour() == h) && (m < 0 || t.Minute() == m) && (s < 0 || t.Second() == s) {
				if !ok || got != d {
					rt.Fatalf("%d, %v, want %d", got, ok, d)
				}
				return
			}
		}
		if ok {
			rt.Fatalf("%d, want never", got)
		}
	})
}

// TestCMOSAlarmIsCheap holds that a guest cannot make the search long: each access to the clock may begin one.
func TestCMOSAlarmIsCheap(t *testing.T) {
	r := newTestCMOS(CMOSConfig{})
	r.put(rtcB, rtc24|rtcDM)
	for _, alarm := range [][3]byte{{rtcDontCare, rtcDontCare, 60}, {rtcDontCare, 60, 0}, {24, 0, 0}, {0, 0, 59}} {
		r.put(rtcHourA, alarm[0])
		r.put(rtcMinA, alarm[1])
		r.put(rtcSecA, alarm[2])
		start := time.Now()
		for i := range int64(5000) {
			r.untilAlarm(i)
		}
		if d := time.Since(start); d > 300*time.Millisecond { // they take two; trying each second of a day took 800
			t.Errorf("alarm %d: 5000 searches take %v", alarm, d)
		}
	}
}
