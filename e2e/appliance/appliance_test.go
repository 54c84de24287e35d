// Package appliance is the test of a machine whose first process is lodged: QEMU boots Debian's kernel with an initramfs.
package appliance

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/lodgehv/lodge/hypervisor/appliance"
	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

const guest = `name = "work"
memory = "64M"
[boot]
kernel = "/none"
`

// The first start makes the state partition, the next one finds the guest that was defined in the first. The seat is started anew
// when it is killed, the power button ends the machine, and a state that cannot be written to is said to be so on the console.
func TestAppliance(t *testing.T) {
	dir := t.TempDir()
	kernels, err := filepath.Glob("/boot/vmlinuz-*")
	if err != nil || len(kernels) == 0 {
		t.Fatal("no kernel in /boot: run make deps")
	}
	kernel := kernels[len(kernels)-1]
	bin := build(t, dir)
	plain, withGuest := filepath.Join(dir, "initramfs"), filepath.Join(dir, "initramfs.first")
	initramfs(t, plain, kernel, bin)
	def := filepath.Join(dir, "work.toml")
	if err := os.WriteFile(def, []byte(guest), 0o600); err != nil {
		t.Fatal(err)
	}
	initramfs(t, withGuest, kernel, bin, "etc/lodge/guests/work.toml", def)
	disk := filepath.Join(dir, "disk")
	installedDisk(t, disk)

	const sees = "name = 'work'" // in what the seat is to show
	t.Run("first", func(t *testing.T) {
		m := boot(t, kernel, withGuest, disk, "")
		m.await("state partition is made", "definitions are in it", sees, "lodge-seat: is killed", "lodge-seat: runs again")
		m.button()
	})
	t.Run("second", func(t *testing.T) {
		m := boot(t, kernel, plain, disk, "")
		m.await("device=/dev/vda2", "writable=true", sees)
		m.button()
	})
	t.Run("read-only", func(t *testing.T) {
		m := boot(t, kernel, plain, disk, ",readonly=on")
		m.await("something is wrong", "cannot be written to", "c go on")
		m.key("c")
		m.await(sees)
		m.button()
	})
	t.Run("missing", func(t *testing.T) {
		m := boot(t, kernel, plain, "", "")
		m.await("something is wrong", "kept in RAM", "p power off")
		m.key("p")
		check(t, m.Ends(t.Context()))
	})
}

// build returns a directory with programs that are built here.
func build(t *testing.T, dir string) string {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	ours := exec.Command("go", "build", "-ldflags=-s -w", "-o", bin+"/", "../../cmd/lodge-init", "../../cmd/lodged", "../../cmd/lodge-vmm", "../../cmd/lodge-net", "../../cmd/lodge")
	fake := exec.Command("go", "build", "-o", filepath.Join(bin, "lodge-seat"), "./fakeseat")
	for _, c := range []*exec.Cmd{ours, fake} {
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return bin
}

// initramfs writes one for a kernel, with the appliance's files and others: pairs of a path in it and a file.
func initramfs(t *testing.T, name, kernel, bin string, others ...string) {
	t.Helper()
	files, err := appliance.Files(bin)
	if err != nil {
		t.Fatal(err)
	}
	for o := range slices.Chunk(others, 2) {
		files[o[0]] = o[1]
	}
	modules, err := bootimage.ReadModules(filepath.Join("/lib/modules", strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")))
	if err != nil {
		t.Fatal(err)
	}
	load := slices.DeleteFunc(appliance.Modules(), func(m string) bool { // half of the image, for cards that QEMU has not
		return slices.Contains([]string{"i915", "amdgpu", "nouveau"}, m)
	})
	i := bootimage.Initramfs{Init: filepath.Join(bin, appliance.Init), Tree: bootimage.Tree{Files: files, Modules: modules, Load: load}}
	b, _, err := i.Build()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %.1f MB", filepath.Base(name), float64(len(b))/1e6)
}

// installedDisk makes a disk as Lodge's image leaves it: an ESP, and free space behind it.
func installedDisk(t *testing.T, name string) {
	t.Helper()
	const size, sector = 256 << 20, 512
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	table := &gpt.Table{LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true,
		Partitions: []*gpt.Partition{{Index: 1, Start: 2048, End: 2048*65 - 1, Type: gpt.EFISystemPartition, Name: appliance.BootPartition}}}
	w, err := file.New(f, false).Writable()
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Write(w, size); err != nil {
		t.Fatal(err)
	}
}
