package image

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/lodgehv/lodge/guest/debian"
)

// Notebook is the simulated notebook's software.
type Notebook struct {
	Kernel *debian.Kernel
	Initrd string
	Disk   string // ext4 with QEMU, the agent and the guests' boot files
	Key    string
}

// notebookModules are the drivers in the notebook; it loads what its devices ask
// for, and the rest when a test does.
var notebookModules = [...]string{
	"virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "overlay", // needed before the disk is there
	"kvm-amd", "irqbypass", "ccp", "vfio-pci", "vfio_iommu_type1", "msr",
	"virtio_net", "virtio_input", "virtio-gpu", "vgem", "cirrus", "virtio_console", "virtio_rng", "virtio_balloon", "bochs", "e1000e", "nvme",
	"xhci-pci", "usb-storage", "uas", "usbhid", "hid-generic", "evdev", "psmouse", "uinput", "uhid", "usbmon", "sd_mod",
	"snd-usb-audio", "battery", "ac", "button", "qemu_fw_cfg",
	"tun", "bridge", "veth", "vhost_net", "vhost_vsock", "vmw_vsock_virtio_transport", "vsock_loopback",
	"squashfs", "xfs", "loop",
}

// earlyModules is how many of notebookModules the initrd needs.
const earlyModules = 5

// hostPackages are what the notebook's programs come from.
var hostPackages = [...]string{
	"qemu-system-x86", "qemu-system-common", "qemu-system-data", "qemu-utils", "seabios", "busybox-static", "pciutils", "passt", "libc6",
	"dbus-daemon", "dbus-system-bus-common", "polkitd",
}

// notebookPrograms are copied from this machine, with their libraries.
var notebookPrograms = [...]string{
	"/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-img", "/usr/bin/lspci", "/usr/bin/passt", "/usr/bin/dbus-daemon", "/usr/lib/polkit-1/polkitd",
}

// notebookData are directories and files copied as they are. QEMU looks for its
// modules beside its own libraries.
var notebookData = [...]string{
	"/usr/lib/x86_64-linux-gnu/qemu/hw-display-virtio-gpu.so", "/usr/lib/x86_64-linux-gnu/qemu/hw-display-virtio-gpu-pci.so",
	"/usr/lib/x86_64-linux-gnu/qemu/hw-display-virtio-vga.so",
	"/usr/share/seabios", "/usr/share/misc/pci.ids",
	"/usr/share/dbus-1/system.conf", "/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf",
	"/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/pvh.bin", "/usr/share/qemu/bios-microvm.bin",
}

// Notebook builds the notebook's software with the boot files of guests.
func (b *Builder) Notebook(ctx context.Context, guests ...*Guest) (*Notebook, error) {
	agent, agentKey, err := b.GoProgram(ctx, "./e2e/agent", "amd64")
	if err != nil {
		return nil, err
	}
	k, err := b.kernel(ctx, AMD64())
	if err != nil {
		return nil, err
	}
	overlay, err := hashFS(files)
	if err != nil {
		return nil, err
	}
	versions, err := run(ctx, "", nil, "dpkg-query", append([]string{"-W", "-f=${Package} ${Version}\n"}, hostPackages[:]...)...)
	if err != nil {
		return nil, err
	}
	parts := []string{"2", agentKey, filepath.Base(k.Dir), overlay, versions, strings.Join(notebookModules[:], " ")}
	for _, g := range guests {
		parts = append(parts, g.Key)
	}
	key := Key(parts...)
	dir, err := b.Result(ctx, "notebook", key, func(ctx context.Context, dir string) error {
		return notebookImage(ctx, dir, k, agent, guests)
	})
	if err != nil {
		return nil, err
	}
	return &Notebook{Kernel: k, Initrd: filepath.Join(dir, "initrd"), Disk: filepath.Join(dir, "disk.img"), Key: key}, nil
}

func notebookImage(ctx context.Context, dir string, k *debian.Kernel, agent string, guests []*Guest) error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	init, err := files.ReadFile("files/notebook-initrd")
	if err != nil {
		return err
	}
	if err := k.WriteInitramfs(filepath.Join(dir, "initrd"), busybox, init, notebookModules[:earlyModules]...); err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := copyEmbedded("files/notebook", root); err != nil {
		return err
	}
	modules, err := k.Modules(notebookModules[:]...)
	if err != nil {
		return err
	}
	lib := filepath.Join("lib/modules", k.Version)
	copies := map[string]string{"/bin/busybox": "bin/busybox", agent: "bin/agent"}
	for _, m := range append(modules, "modules.builtin", "modules.builtin.modinfo", "modules.order") {
		copies[filepath.Join(k.Dir, lib, m)] = filepath.Join(lib, m)
	}
	for _, g := range guests {
		to := filepath.Join("guests", g.Arch.Name)
		copies[g.Kernel.VMLinux] = filepath.Join(to, "vmlinux")
		copies[g.Kernel.BzImage] = filepath.Join(to, "vmlinuz")
		copies[g.Initrd] = filepath.Join(to, "initrd")
	}
	var objects []string
	objects = append(objects, notebookPrograms[:]...)
	for _, d := range notebookData {
		copies[d] = d
		if strings.HasSuffix(d, ".so") {
			objects = append(objects, d)
		}
	}
	for _, p := range notebookPrograms {
		copies[p] = p
	}
	for _, o := range objects {
		libs, err := libraries(ctx, o)
		if err != nil {
			return err
		}
		for _, l := range libs {
			copies[l] = l
		}
	}
	for from, to := range copies {
		to = filepath.Join(root, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if _, err := run(ctx, dir, nil, "cp", "-rL", from, to); err != nil {
			return err
		}
	}
	return asRoot(ctx, dir, `
depmod -b root "$1"
for d in dev proc sys run tmp mnt root disk tools var/tmp sbin usr/bin usr/sbin; do mkdir -p root/$d; done
for a in $(busybox --list); do [ -e root/bin/$a ] || ln -s busybox root/bin/$a; done
ln -s ../bin/busybox root/sbin/init
ln -s ../run root/var/run
chown -R 0:0 root
size=$(du -sm root | cut -f1)
mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0 -L notebook -d root disk.img $((size + size / 8 + 32))M
rm -rf root`, k.Version)
}

// libraries returns the shared libraries of a program, its interpreter included.
func libraries(ctx context.Context, file string) ([]string, error) {
	out, err := run(ctx, "", []string{"LC_ALL=C"}, "ldd", file)
	if err != nil {
		return nil, err
	}
	var libs []string
	for l := range strings.Lines(out) {
		for f := range strings.FieldsSeq(l) {
			if strings.HasPrefix(f, "/") {
				libs = append(libs, f)
				break
			}
		}
	}
	return libs, nil
}
