package poweron_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/image"
)

// limit is more than switching on takes, also beside other work: 10 s if there is none.
const limit = 4 * time.Minute

// workshop has the programs of a test, and a directory.
type workshop struct {
	dir, lodgeImage, init string
}

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	b, err := image.NewBuilder(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &workshop{dir: t.TempDir()}
	for pkg, path := range map[string]*string{"./cmd/lodge-image": &w.lodgeImage, "./e2e/poweron/init": &w.init} {
		if *path, _, err = b.GoProgram(t.Context(), pkg, "amd64"); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// run runs lodge-image, and returns what it says.
func (w *workshop) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), w.lodgeImage, args...)
	cmd.Dir = w.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("lodge-image %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// build makes images in a directory out, whose init greets so.
func (w *workshop) build(t *testing.T, out, greeting string, args ...string) {
	t.Helper()
	file := out + ".greeting"
	if err := os.WriteFile(filepath.Join(w.dir, file), []byte(greeting), 0o644); err != nil {
		t.Fatal(err)
	}
	w.run(t, append([]string{
		"build", out, "--init", w.init, "--file", file + ":etc/greeting", "--module", "loop,efivarfs", "--cmdline", "console=ttyS0 quiet panic=-1",
	}, args...)...)
}

// switchOn runs a computer until it switches itself off, and returns what it says on its serial port.
func (w *workshop) switchOn(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the computer is on for more than %v", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append([]string{
		"-accel", "tcg", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio",
	}, args...)...)
	cmd.Dir = w.dir
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v %v\n%s", err, context.Cause(ctx), out)
	}
	t.Logf("off again after %.1f s", time.Since(begin).Seconds())
	return string(out)
}

func expect(t *testing.T, what, said, want string) {
	t.Helper()
	if !strings.Contains(said, want) {
		t.Errorf("%s: want %q in:\n%s", what, want, said)
	}
}

// With nothing but the flash, Lodge comes up; and from the flash still when there is a disk that could be started, and a network.
func TestFlash(t *testing.T) {
	w := newWorkshop(t)
	w.build(t, "out", "from the flash", "--media", "uki,flash")
	said := w.switchOn(t, "-machine", "q35,max-fw-size=16777216", "-drive", "if=pflash,format=raw,unit=0,file=out/lodge.rom")
	expect(t, "serial port", said, `init: from the flash pid=1 counted="" secure=0`)
	w.build(t, "other", "from the disk", "--media", "disk")
	said = w.switchOn(t, "-machine", "q35,max-fw-size=16777216", "-drive", "if=pflash,format=raw,unit=0,file=out/lodge.rom",
		"-drive", "if=none,id=disk,format=raw,file=other/lodge.img", "-device", "virtio-blk-pci,drive=disk", "-nic", "user,model=virtio-net-pci")
	expect(t, "serial port with a disk", said, `init: from the flash pid=1 counted="" secure=0`)
}

// Debian's firmware under Secure Boot starts a disk whose programs are signed: the new slot, whose tries it counts.
func TestDisk(t *testing.T) {
	w := newWorkshop(t)
	w.snakeoil(t)
	sign := []string{"--key", "key.pem", "--cert", snakeoilCert}
	w.build(t, "out", "the first", append(sign, "--media", "disk")...)
	w.build(t, "new", "the second", append(sign, "--media", "uki")...)
	w.run(t, "update", "out/lodge.img", "new/lodge.efi")
	vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "vars"), vars, 0o644); err != nil {
		t.Fatal(err)
	}
	said := w.switchOn(t, "-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "-drive", "if=pflash,format=raw,unit=1,file=vars",
		"-drive", "if=none,id=disk,format=raw,file=out/lodge.img", "-device", "virtio-blk-pci,drive=disk")
	expect(t, "serial port", said, `init: the second pid=1 counted="\\EFI\\Linux\\lodge-2+2-1.efi" secure=1`)
	expect(t, "slots", w.run(t, "status", "out/lodge.img"), "slot 2: to be tried, 2 times at most\nslot 1: has come up\n")
}

const snakeoilCert = "/usr/share/ovmf/PkKek-1-snakeoil.pem"

// snakeoil writes key.pem: the key that the firmware of the test trusts. Its passphrase is known to everybody.
func (w *workshop) snakeoil(t *testing.T) {
	t.Helper()
	cmd := exec.Command("openssl", "pkcs8", "-in", "/usr/share/ovmf/PkKek-1-snakeoil.key", "-passin", "pass:snakeoil", "-out", filepath.Join(w.dir, "key.pem"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
}
