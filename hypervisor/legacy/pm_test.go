package legacy

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// testPM is a power-management block with its line and what its callback was told.
type testPM struct {
	*PM
	line  *testLine
	slept []SleepState
}

func newTestPM(cfg PMConfig) *testPM {
	pm := &testPM{line: new(testLine)}
	cfg.SCI, cfg.Sleep = pm.line, func(s SleepState) { pm.slept = append(pm.slept, s) }
	pm.PM = NewPM(cfg)
	return pm
}

func (pm *testPM) in(off uint64, n int) uint64     { return in(pm.PM, PMBase, off, n) }
func (pm *testPM) out(off uint64, n int, v uint64) { out(pm.PM, PMBase, off, n, v) }

func (pm *testPM) start(t *testing.T) {
	t.Helper()
	if err := pm.Resume(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pm.Pause(); err != nil {
			t.Error(err)
		}
	})
}

func TestPMEvents(t *testing.T) {
	for _, tc := range []struct {
		name  string
		raise func(*PM)
		bit   uint64
	}{
		{"power button", (*PM).PowerButton, PM1PowerButton},
		{"sleep button", (*PM).SleepButton, PM1SleepButton},
		{"clock", (*PM).RTCAlarm, PM1RTC},
		{"wake by button", func(pm *PM) { pm.Wake(PM1PowerButton) }, PM1Wake | PM1PowerButton},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pm := newTestPM(PMConfig{ACPI: true})
			tc.raise(pm.PM)
			if got := pm.in(PM1EventOff, 2); got != tc.bit || pm.line.level.Load() {
				t.Errorf("status %#x, line %v, want %#x and no interrupt yet", got, pm.line.level.Load(), tc.bit)
			}
			pm.out(PM1EventOff+2, 2, 0xffff)
			if got := pm.in(PM1EventOff+2, 2); got != pm1Enables || !pm.line.level.Load() {
				t.Errorf("enable %#x, line %v", got, pm.line.level.Load())
			}
			pm.out(PM1EventOff, 2, 0xffff&^tc.bit) // ones clear, zeros do not
			if !pm.line.level.Load() {
				t.Error("line low after clearing other bits")
			}
			pm.out(PM1EventOff, 2, tc.bit)
			if got := pm.in(PM1EventOff, 2); got != 0 || pm.line.level.Load() {
				t.Errorf("status %#x, line %v after clearing", got, pm.line.level.Load())
			}
		})
	}
}

func TestPMGeneralEvents(t *testing.T) {
	pm := newTestPM(PMConfig{ACPI: true})
	for _, n := range []int{0, 9, 31, 32, 63} {
		pm.out(GPE0Off+8+uint64(n/8), 1, 1<<(n%8))
		if err := pm.RaiseGPE(n); err != nil {
			t.Fatal(err)
		}
		if got := pm.in(GPE0Off, 8); got != 1<<n || !pm.line.level.Load() {
			t.Errorf("event %d: status %#x, line %v", n, got, pm.line.level.Load())
		}
		pm.out(GPE0Off+uint64(n/8), 1, 1<<(n%8))
		if pm.line.level.Load() {
			t.Errorf("event %d: line high after it was cleared", n)
		}
	}
	if got := pm.in(GPE0Off+8, 8); got != 1|1<<9|1<<31|1<<32|1<<63 {
		t.Errorf("enable %#x", got)
	}
	for _, n := range []int{-1, 64} {
		if pm.RaiseGPE(n) == nil {
			t.Errorf("event %d was raised", n)
		}
	}
}

func TestPMSleep(t *testing.T) {
	pm := newTestPM(PMConfig{ACPI: true})
	for _, typ := range []uint64{1, 2, 0, 5} {
		pm.out(PM1ControlOff, 2, pm1SCIEnable|typ<<pm1SleepShift)
		pm.out(PM1ControlOff, 2, pm1SCIEnable|typ<<pm1SleepShift|pm1SleepEnable)
		if got := pm.in(PM1ControlOff, 2); got != pm1SCIEnable|typ<<pm1SleepShift {
			t.Errorf("control reads %#x: SLP_EN is write-only", got)
		}
	}
	if diff := cmp.Diff([]SleepState{S3, S4, S5}, pm.slept); diff != "" {
		t.Errorf("slept (-want +got):\n%s", diff)
	}
}

func TestPMACPIMode(t *testing.T) {
	pm := newTestPM(PMConfig{})
	pm.out(PM1EventOff+2, 2, PM1PowerButton)
	pm.PowerButton()
	for _, tc := range []struct {
		apm  uint64
		want bool
	}{{0x55, false}, {ACPIEnable, true}, {0x55, true}, {ACPIDisable, false}} {
		out(pm.APM(), APMBase, 0, 1, tc.apm)
		if got := pm.in(PM1ControlOff, 2)&pm1SCIEnable != 0; got != tc.want || pm.line.level.Load() != tc.want {
			t.Errorf("after SMI command %#x: SCI_EN %v, line %v, want %v", tc.apm, got, pm.line.level.Load(), tc.want)
		}
		if got := in(pm.APM(), APMBase, 0, 1); got != tc.apm {
			t.Errorf("SMI command port reads %#x, want %#x", got, tc.apm)
		}
	}
}

func TestPMTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pm := newTestPM(PMConfig{ACPI: true})
		time.Sleep(time.Hour) // not running yet
		pm.start(t)
		for _, tc := range []struct {
			sleep time.Duration
			want  uint64
		}{{0, 0}, {time.Second, PMTimerHz}, {time.Hour, 3601 * PMTimerHz & (1<<24 - 1)}, {100 * 365 * 24 * time.Hour, (3601 + 100*365*86400) * PMTimerHz & (1<<24 - 1)}} {
			time.Sleep(tc.sleep)
			if got := pm.in(PMTimerOff, 4); got != tc.want {
				t.Errorf("after %v: %d, want %d", tc.sleep, got, tc.want)
			}
		}
	})
}

func TestPMTimerOverflow(t *testing.T) {
	for _, wide := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			pm := newTestPM(PMConfig{ACPI: true, Timer32: wide})
			half := uint64(1 << 23)
			if wide {
				half = 1 << 31
			}
			pm.start(t)
			pm.out(PM1EventOff+2, 2, PM1Timer)
			for range 3 {
				time.Sleep(time.Duration(half * uint64(time.Second) / PMTimerHz))
				synctest.Wait()
				if pm.line.level.Load() {
					t.Fatal("interrupts before the top bit changes")
				}
				time.Sleep(2 * time.Nanosecond)
				synctest.Wait()
				if !pm.line.level.Load() || pm.in(PM1EventOff, 2) != PM1Timer {
					t.Fatal("no interrupt when the top bit changes")
				}
				pm.out(PM1EventOff, 2, PM1Timer)
			}
		})
	}
}

// TestPMTimerMonotonic reads the timer across pauses, and a save and restore: it never goes back, and stands while the
// machine does.
func TestPMTimerMonotonic(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.IntRange(0, 1<<20), 1, 20).Draw(rt, "microseconds")
		synctest.Test(t, func(t *testing.T) {
			pm := newTestPM(PMConfig{Timer32: true})
			var last, ran uint64
			for i, us := range steps {
				if err := pm.Resume(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(us) * time.Microsecond)
				ran += uint64(us)
				now := pm.in(PMTimerOff, 4)
				if now < last || now != ran*PMTimerHz/1e6 {
					t.Errorf("step %d: %d after %d, want %d", i, now, last, ran*PMTimerHz/1e6)
				}
				last = now
				if err := pm.Pause(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(us) * time.Second)
				state, err := encode(pm)
				if err != nil {
					t.Error(err)
				}
				pm = newTestPM(PMConfig{Timer32: true})
				if err := decode(pm, state); err != nil {
					t.Error(err)
				}
			}
		})
	})
}

func TestPMStateOtherWidth(t *testing.T) {
	state, err := encode(newTestPM(PMConfig{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := decode(newTestPM(PMConfig{Timer32: true}), state); err == nil {
		t.Error("a 24-bit timer's state was accepted for one of 32 bits")
	}
}
