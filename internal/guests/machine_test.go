package guests

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/legacy"
)

// A real machine is started, paused, saved, restored and switched off. Its program writes to its serial port, and powers off
// when its power button is pressed.
func TestMachine(t *testing.T) {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skip("needs /dev/kvm")
	} else {
		f.Close()
	}
	dir := t.TempDir()
	vmm := filepath.Join(dir, "lodge-vmm")
	if out, err := exec.Command("go", "build", "-o", vmm, "github.com/lodgehv/lodge/cmd/lodge-vmm").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := define(t, dir, "real", "", "serial = { mode = \"file\", path = \"serial\" }")
	img := kvmtest.Image(kvmtest.Program{Ring: kvmtest.Ring0, Main: func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RDX, legacy.COM1Base).Mov(kvmtest.RAX, '!').Out8()
		loop := a.Here()
		a.Mov(kvmtest.RDX, legacy.PMBase+legacy.PM1EventOff+1).In8().Bytes(0xa8, 1) // PWRBTN_STS
		a.Bytes(0x74, byte(loop-a.Here()-2))
		a.Mov(kvmtest.RDX, legacy.PMBase+legacy.PM1ControlOff).Mov(kvmtest.RAX, uint64(legacy.S5.SleepType())<<10|1<<13).Out16().Spin()
	}})
	kernel, err := io.ReadAll(io.NewSectionReader(img.R, 0, img.Size))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kernel"), kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	g := New(Config{VMM: vmm, Guests: []Guest{{Name: "real", Definition: file}}})
	t.Cleanup(func() { _ = g.Do(context.Background(), "real", textui.ForceOff, nil) })
	is := func(want textui.State) textui.Guest {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			got := g.first(t)
			if got.State == want {
				return got
			}
			if time.Now().After(deadline) {
				log, _ := os.ReadFile(logFile(file))
				t.Fatalf("%+v, want %s; its log:\n%s", got, want, log)
			}
		}
	}
	do := func(c textui.Command, progress func(textui.Progress)) {
		t.Helper()
		if err := g.Do(t.Context(), "real", c, progress); err != nil {
			t.Fatalf("%s: %v", c, err)
		}
	}
	do(textui.Start, nil)
	time.Sleep(2 * shortest)
	if got := is(textui.Running); got.CPU >= 0 && got.Resident < 1<<20 {
		t.Errorf("%+v", got)
	}
	for deadline := time.Now().Add(30 * time.Second); is(textui.Running).CPU < 1; time.Sleep(2 * shortest) { // it looks at a port all the time
		if time.Now().After(deadline) {
			t.Fatal("it uses no time of a processor")
		}
	}
	do(textui.Pause, nil)
	is(textui.Paused)
	do(textui.Resume, nil)
	is(textui.Running)
	var last textui.Progress
	do(textui.Save, func(p textui.Progress) { last = p })
	if is(textui.Saved); last.Total != 16<<20 {
		t.Errorf("told %+v of 16 MiB", last)
	}
	do(textui.Start, nil)
	is(textui.Running)
	if _, err := os.Stat(savedDir(file)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the saved state: %v", err)
	}
	do(textui.PowerButton, nil)
	if got := is(textui.Off); got.Note != "" {
		t.Error(got.Note)
	}
	if b, err := g.Log(t.Context(), "real", "serial port", 10); err != nil || string(b) != "!" {
		t.Errorf("it wrote %q, %v", b, err)
	}
	if b, err := g.Log(t.Context(), "real", "machine", 10000); err != nil || len(b) == 0 {
		t.Errorf("its machine's log: %q, %v", b, err)
	}
	do(textui.Start, nil)
	do(textui.ForceOff, nil)
	if got := is(textui.Off); got.Note != "" {
		t.Errorf("forced off: %s", got.Note)
	}
}
