package legacy

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// device is what every device of the package is.
type device interface {
	bus.Device
	snap.Component
}

// withAPM reaches both of PM's devices through one range: the APM ports follow the block.
type withAPM struct{ *PM }

func (d withAPM) Read(a bus.Access, p []byte)  { split(d.PM, d.PM.APM(), a).Read(shift(a), p) }
func (d withAPM) Write(a bus.Access, p []byte) { split(d.PM, d.PM.APM(), a).Write(shift(a), p) }

func split(low, high bus.Device, a bus.Access) bus.Device {
	if a.Off < PMSize {
		return low
	}
	return high
}

func shift(a bus.Access) bus.Access {
	a.Off %= PMSize
	return a
}

// rig is one device to be tested, with its interrupt lines.
type rig struct {
	name  string
	base  uint64 // Access.Addr of offset 0
	size  uint64
	fresh func() (device, []*testLine)
}

func rigs() []rig {
	return []rig{
		{"uart", COM1Base, UARTSize, func() (device, []*testLine) {
			l := new(testLine)
			return NewUART("com1", l, io.Discard), []*testLine{l}
		}},
		{"i8042", I8042Data, 5, func() (device, []*testLine) {
			l := []*testLine{new(testLine), new(testLine)}
			k := NewI8042(l[0], l[1], func() {})
			k.Attach(PS2Keyboard, new(echoPort))
			return k, l
		}},
		{"cmos", CMOSBase, CMOSSize, func() (device, []*testLine) {
			l := new(testLine)
			return NewCMOS(CMOSConfig{IRQ: l, Below4G: 1 << 30, Alarm: func() {}}), []*testLine{l}
		}},
		{"pm", PMBase, PMSize + APMSize, func() (device, []*testLine) {
			l := new(testLine)
			return withAPM{NewPM(PMConfig{SCI: l, Sleep: func(SleepState) {}, ACPI: true})}, []*testLine{l}
		}},
		{"fwcfg", FWCfgBase, FWCfgSize, func() (device, []*testLine) {
			return testFWCfg(mem.NewHeap(64<<10), nil), nil
		}},
		{"reset", ResetPort, 1, func() (device, []*testLine) { return NewResetControl(func(ResetKind) {}), nil }},
		{"port92", Port92, 1, func() (device, []*testLine) { return NewFastA20(func(ResetKind) {}), nil }},
		{"debugexit", DebugExitBase, DebugExitSize, func() (device, []*testLine) {
			return NewDebugExit(func(uint32) {}), nil
		}},
		{"debugcon", DebugConsolePort, 1, func() (device, []*testLine) { return NewDebugConsole(io.Discard), nil }},
	}
}

// echoPort is a PS/2 device that sends back what it gets, the last byte if there are several.
type echoPort struct {
	b    byte
	some bool
}

func (e *echoPort) Write(b byte) { e.b, e.some = b, true }

func (e *echoPort) Next() (b byte, ok bool) {
	b, ok, e.some = e.b, e.some, false
	return b, ok
}

// roundTrip saves a device after it was driven, restores that into a new one, and says what differs.
func roundTrip(r rig, data []byte) error {
	d, lines := r.fresh()
	if err := d.Resume(); err != nil {
		return err
	}
	drive(d, r.base, r.size, data)
	if err := d.Pause(); err != nil {
		return err
	}
	saved, err := encode(d)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	d2, lines2 := r.fresh()
	if err := decode(d2, saved); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	again, err := encode(d2)
	if err != nil {
		return fmt.Errorf("encode again: %w", err)
	}
	if diff := cmp.Diff(saved, again); diff != "" {
		return fmt.Errorf("state after restore (-saved +again):\n%s", diff)
	}
	if err := d2.Resume(); err != nil {
		return err
	}
	for i := range lines {
		if was, is := lines[i].level.Load(), lines2[i].level.Load(); was != is {
			return fmt.Errorf("line %d was %v and is %v after restore", i, was, is)
		}
	}
	return d2.Pause()
}

func TestStateRoundTrip(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				data := rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(rt, "accesses")
				var err error
				synctest.Test(t, func(*testing.T) { err = roundTrip(r, data) })
				if err != nil {
					rt.Fatal(err)
				}
			})
		})
	}
}

// TestStateDamaged decodes states that are cut or changed: an error, or a device that is saved again as the same and still
// works, but no panic.
func TestStateDamaged(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) {
			d, _ := r.fresh()
			good, err := encode(d)
			if err != nil {
				t.Fatal(err)
			}
			for n := range good {
				d, _ := r.fresh()
				if decode(d, good[:n]) == nil {
					t.Fatalf("accepted %d of %d bytes", n, len(good))
				}
			}
			try := func(rt *rapid.T, state []byte) {
				d, _ := r.fresh()
				if decode(d, state) != nil {
					return
				}
				if again, err := encode(d); err != nil || !bytes.Equal(again, state) {
					rt.Fatalf("saved again it is another state, %v:\n%x\n%x", err, state, again)
				}
				if d.Resume() != nil {
					return
				}
				drive(d, r.base, r.size, rapid.SliceOf(rapid.Byte()).Draw(rt, "accesses"))
				if err := d.Pause(); err != nil {
					rt.Fatal(err)
				}
			}
			rapid.Check(t, func(rt *rapid.T) { try(rt, rapid.SliceOf(rapid.Byte()).Draw(rt, "noise")) })
			rapid.Check(t, func(rt *rapid.T) {
				bad := bytes.Clone(good)
				for range rapid.IntRange(1, 8).Draw(rt, "changes") {
					if len(bad) > 0 {
						bad[rapid.IntRange(0, len(bad)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
					}
				}
				try(rt, bad)
			})
		})
	}
}

// TestAllocs holds that no access allocates, whatever its size and offset.
func TestAllocs(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) {
			d, _ := r.fresh()
			if err := d.Resume(); err != nil {
				t.Fatal(err)
			}
			defer d.Pause()
			var script []byte
			for op := range 8 {
				for off := range r.size {
					script = append(script, byte(op), byte(off), byte(7*off), 2, 3, 4, 5, 6, 7, 8)
				}
			}
			p := new([8]byte)
			if n := testing.AllocsPerRun(100, func() { driveWith(d, r.base, r.size, script, p) }); n != 0 {
				t.Errorf("%v allocations for %d accesses, want none", n, 8*r.size)
			}
		})
	}
}

// fuzz drives the device of a rig with the fuzzer's bytes, and saves and restores it.
func fuzz(f *testing.F, name string) {
	for _, r := range rigs() {
		if r.name != name {
			continue
		}
		f.Add([]byte{1, 0, 0x0d, 1, 1, 0xff, 0, 0, 0, 1})
		f.Fuzz(func(t *testing.T, data []byte) {
			synctest.Test(t, func(t *testing.T) {
				if err := roundTrip(r, data); err != nil {
					t.Fatal(err)
				}
			})
		})
		return
	}
	f.Fatalf("no device %s", name)
}

func FuzzUART(f *testing.F)         { fuzz(f, "uart") }
func FuzzI8042(f *testing.F)        { fuzz(f, "i8042") }
func FuzzCMOS(f *testing.F)         { fuzz(f, "cmos") }
func FuzzPM(f *testing.F)           { fuzz(f, "pm") }
func FuzzFWCfg(f *testing.F)        { fuzz(f, "fwcfg") }
func FuzzResetControl(f *testing.F) { fuzz(f, "reset") }
func FuzzFastA20(f *testing.F)      { fuzz(f, "port92") }
func FuzzDebugExit(f *testing.F)    { fuzz(f, "debugexit") }
func FuzzDebugConsole(f *testing.F) { fuzz(f, "debugcon") }
