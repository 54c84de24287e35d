package machine

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
)

// SeaBIOS starts GRUB from a virtio disk: boot.img in the first sector, and core.img from the second, where boot.img
// looks for it as it comes. To switch off GRUB reads the RSDT, the FADT and \_S5 in the DSDT itself.
func TestGRUB(t *testing.T) {
	cfg := small(t, kvmtest.Program{Main: func(*kvmtest.Asm) {}})
	disk := grubDisk(t)
	t.Parallel()
	cfg.Slots = []Slot{diskSlot(disk)}
	bootGRUB(t, cfg)
}

// The same from a qcow2 image, which another process serves.
func TestGRUBVhostUser(t *testing.T) {
	cfg := small(t, kvmtest.Program{Main: func(*kvmtest.Asm) {}})
	disk := grubDisk(t)
	t.Parallel()
	bootGRUB(t, newStorage(t, disk.Name()).on(cfg))
}

// grubDisk returns a disk with a GRUB that says GRUB-OK on the serial port and switches off.
func grubDisk(t *testing.T) *os.File {
	t.Helper()
	const grub = "/usr/lib/grub/i386-pc"
	bootImg, err := os.ReadFile(filepath.Join(grub, "boot.img"))
	if err != nil {
		t.Skipf("needs grub-pc-bin: %v", err)
	}
	tool, err := exec.LookPath("grub-mkimage")
	if err != nil {
		t.Skipf("needs grub-pc-bin: %v", err)
	}
	dir := t.TempDir()
	config, core := filepath.Join(dir, "grub.cfg"), filepath.Join(dir, "core.img")
	if err := os.WriteFile(config, []byte("serial --unit=0 --speed=115200\nterminal_output serial\n"+
		"echo GRUB-OK\nhalt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), tool, "-O", "i386-pc", "-d", grub, "-p", "(hd0)/", "-c", config, "-o", core,
		"biosdisk", "serial", "terminal", "echo", "halt").CombinedOutput(); err != nil {
		t.Fatalf("grub-mkimage: %v\n%s", err, out)
	}
	coreImg, err := os.ReadFile(core)
	if err != nil {
		t.Fatal(err)
	}
	disk := rawDisk(t, 4<<20)
	for off, b := range map[int64][]byte{0: bootImg, 512: coreImg} {
		if _, err := disk.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	return disk
}

// bootGRUB runs a machine with a grubDisk to its end.
func bootGRUB(t *testing.T, cfg Config) {
	t.Helper()
	com1 := newScreen()
	cfg.Boot = Boot{Firmware: openImage(t, seabios)}
	cfg.Memory = 64 << 20
	m := newMachine(t, cfg.withSerial(com1))
	start(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if o, err := m.Wait(ctx); err != nil || o.Reason != PowerOff || !strings.Contains(com1.String(), "GRUB-OK") {
		t.Errorf("the machine ended with %+v, %v, after:\n%s", o, err, com1)
	}
}
