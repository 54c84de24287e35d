package machine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

// Every way in which a guest ends its machine.
func TestEndings(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(g *guest)
		want Outcome
	}{
		{"debug exit", func(g *guest) { g.Out8(legacy.DebugExitBase, 3) },
			Outcome{Reason: DebugExit, Code: 7, Detail: "debug exit 3"}},
		{"debug exit 0", func(g *guest) { g.Out32(legacy.DebugExitBase, 0) },
			Outcome{Reason: DebugExit, Code: 1, Detail: "debug exit 0"}},
		{"triple fault", (*guest).fault, Outcome{Reason: Reboot, Detail: "triple fault"}},
		{"0xcf9", func(g *guest) { g.Out8(legacy.ResetPort, 2); g.Out8(legacy.ResetPort, 6) },
			Outcome{Reason: Reboot, Detail: "reset by port 0xcf9"}},
		{"i8042", func(g *guest) { g.Out8(legacy.I8042Command, 0xfe) },
			Outcome{Reason: Reboot, Detail: "reset by the keyboard controller"}},
		{"port 0x92", func(g *guest) { g.Out8(legacy.Port92, 1) },
			Outcome{Reason: Reboot, Detail: "reset by port 0x92"}},
		{"FADT's reset register", (*guest).resetByFADT, Outcome{Reason: Reboot, Detail: "reset by port 0xcf9"}},
		{"PM1a_CNT", func(g *guest) { g.Out16(legacy.PMBase+legacy.PM1ControlOff, uint16(legacy.S5.SleepType())<<10|1<<13) },
			Outcome{Reason: PowerOff, Detail: "ACPI state S5"}},
		{"PM1a_CNT by \\_S4", (*guest).hibernate, Outcome{Reason: PowerOff, Detail: "ACPI state S4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, small(t, kvmtest.RemoteProgram()))
			if v := g.In8(0x80); v != 0xff {
				t.Errorf("port 0x80 reads %#x: the guest does not run", v)
			}
			c.do(g)
			if got := outcome(t, g.Machine); got != c.want {
				t.Errorf("ended with %+v, want %+v", got, c.want)
			}
		})
	}
	t.Run("Close", func(t *testing.T) {
		g := newGuest(t, small(t, kvmtest.RemoteProgram()))
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if got, want := outcome(t, g.Machine), (Outcome{Reason: Closed}); got != want {
			t.Errorf("ended with %+v, want %+v", got, want)
		}
		if g.Start() == nil || g.Pause() == nil || g.NMI() == nil || g.Save(t.Context(), t.TempDir()+"/x", nil, nil) == nil {
			t.Error("a closed machine obeys")
		}
	})
}

func (g *guest) fault() { g.TripleFault() }

// resetByFADT does what an operating system does: start information → RSDP → XSDT → FADT → RESET_REG and RESET_VALUE
// (ACPI 6.5 §4.8.3.6).
func (g *guest) resetByFADT() {
	const startInfo = 0x6000
	rsdp := g.Load32(startInfo + 32)
	xsdt := g.Load32(rsdp + 24)
	n := (g.Load32(xsdt+4) - 36) / 8
	for i := range n {
		table := g.Load32(xsdt + 36 + 8*i)
		if string(binary.LittleEndian.AppendUint32(nil, g.Load32(table))) != "FACP" {
			continue
		}
		reg := g.bytes(mem.GPA(table)+116, 12) // a generic address structure
		if reg[0] != 1 {
			g.t.Fatalf("RESET_REG is in address space %d", reg[0])
		}
		g.Out8(binary.LittleEndian.Uint16(reg[4:]), g.Load8(table+128))
		return
	}
	g.t.Fatalf("no FADT among %d tables", n)
}

// A guest that has ended its machine does not see its next instruction, and cannot be saved.
func TestNothingAfterTheEnd(t *testing.T) {
	for name, end := range map[string]func(a *kvmtest.Asm){
		"reset": func(a *kvmtest.Asm) { a.Mov(kvmtest.RDX, legacy.Port92).Mov(kvmtest.RAX, 1).Out8() },
		"power off": func(a *kvmtest.Asm) {
			a.Mov(kvmtest.RDX, legacy.PMBase+legacy.PM1ControlOff).Mov(kvmtest.RAX, uint64(legacy.S5.SleepType())<<10|1<<13).Out16()
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, small(t, kvmtest.Program{Ring: kvmtest.Ring0, Main: func(a *kvmtest.Asm) {
				end(a)
				counts.Main(a)
			}}))
			start(t, m)
			outcome(t, m)
			dir := filepath.Join(t.TempDir(), "saved")
			for range 3 {
				if err := m.Save(t.Context(), dir, nil, nil); !errors.Is(err, ErrEnded) {
					t.Errorf("saved: %v", err)
				}
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("there is a saved state: %v", err)
			}
			if err := errors.Join(m.Pause(), m.Resume(), m.Pause()); err != nil {
				t.Error(err)
			}
			if n := counter(t, m); n != 0 {
				t.Errorf("the guest has counted to %d", n)
			}
		})
	}
}

// hibernate takes SLP_TYP from the DSDT's \_S4, a package that begins with it (ACPI 6.5 §7.4.2.5).
func (g *guest) hibernate() {
	tables := g.bytes(tablesBase, tablesEnd-tablesBase)
	_, after, ok := bytes.Cut(tables, []byte("_S4_"))
	if !ok {
		g.t.Fatal("the DSDT has no _S4")
	}
	const packageOp, bytePrefix = 0x12, 0x0a // a package's length is one byte and the number of its elements another
	if after[0] != packageOp || after[3] != bytePrefix {
		g.t.Fatalf("_S4 is % x", after[:8])
	}
	g.Out16(legacy.PMBase+legacy.PM1ControlOff, uint16(after[4])<<10|1<<13)
}

// What the guest has set its clock to and put into the CMOS memory is there after a reboot.
func TestBatteryOutlivesReboot(t *testing.T) {
	const year, free = 9, 0x50
	cfg := small(t, kvmtest.RemoteProgram())
	cfg.Battery = new(legacy.Battery)
	g := newGuest(t, cfg)
	for reg, v := range map[uint8]uint8{year: 0x77, free: 0xa5} {
		g.Out8(legacy.CMOSBase, reg)
		g.Out8(legacy.CMOSBase+1, v)
	}
	g.Out8(legacy.Port92, 1)
	outcome(t, g.Machine)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, cfg)
	for reg, want := range map[uint8]uint8{year: 0x77, free: 0xa5} {
		g.Out8(legacy.CMOSBase, reg)
		if v := g.In8(legacy.CMOSBase + 1); v != want {
			t.Errorf("register %#x is %#x, want %#x", reg, v, want)
		}
	}
}

// The power button sets its bit and interrupts; the guest then switches off.
func TestPowerButton(t *testing.T) {
	g := newGuest(t, small(t, kvmtest.RemoteProgram()))
	const status, enable, sci, vector = legacy.PMBase, legacy.PMBase + 2, 9, 0x25
	g.ioapic(sci, vector, true)
	g.Out16(enable, legacy.PM1PowerButton)
	g.Sti()
	g.quiet()
	g.PowerButton()
	g.expect(vector)
	if v := g.In16(status); v&legacy.PM1PowerButton == 0 {
		t.Errorf("PM1_STS is %#x", v)
	}
	g.Out16(status, legacy.PM1PowerButton)
	g.endLevel(vector)
	g.Out16(legacy.PMBase+legacy.PM1ControlOff, 1<<13|1)
	if o := outcome(t, g.Machine); o.Reason != PowerOff {
		t.Errorf("ended with %+v", o)
	}
}
