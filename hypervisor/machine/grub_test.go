package machine

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
)

// SeaBIOS starts GRUB from a virtio disk: boot.img in the first sector, and core.img from the second, where boot.img
// looks for it as it comes.
func TestGRUB(t *testing.T) {
	cfg := small(t, kvmtest.Program{Main: func(*kvmtest.Asm) {}})
	const grub = "/usr/lib/grub/i386-pc"
	bootImg, err := os.ReadFile(filepath.Join(grub, "boot.img"))
	if err != nil {
		t.Skipf("needs grub-pc-bin: %v", err)
	}
	tool, err := exec.LookPath("grub-mkimage")
	if err != nil {
		t.Skipf("needs grub-pc-bin: %v", err)
	}
	t.Parallel()
	dir := t.TempDir()
	config, core := filepath.Join(dir, "grub.cfg"), filepath.Join(dir, "core.img")
	if err := os.WriteFile(config, []byte("serial --unit=0 --speed=115200\nterminal_output serial\n"+
		"echo GRUB-OK\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), tool, "-O", "i386-pc", "-d", grub, "-p", "(hd0)/", "-c", config, "-o", core,
		"biosdisk", "serial", "terminal", "echo").CombinedOutput(); err != nil {
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
	com1 := newScreen()
	cfg.Boot = Boot{Firmware: openImage(t, seabios)}
	cfg.Memory = 64 << 20
	cfg.Slots = []Slot{diskSlot(disk)}
	m := newMachine(t, cfg.withSerial(com1))
	start(t, m)
	com1.await(t, m, "GRUB-OK", 3*time.Minute)
}
