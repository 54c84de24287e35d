package appliance

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// alwaysLoad are modules that no device and no name makes the kernel ask for.
var alwaysLoad = []string{"tun", "vhost_vsock", "evdev", "efivarfs"}

// EarlyModules returns the names of the kernel modules without which the disk with the system is not found, or somebody could not be told:
// the initramfs has them.
func EarlyModules() []string {
	return append(slices.Clone(systemModules),
		"nvme", "ahci", "sd_mod", "usb-storage", "uas", "xhci-pci", "ehci-pci", "sdhci-pci", "mmc_block", "virtio_blk", "virtio_pci", "virtio_scsi",
		"usbhid", "hid-generic", "i8042", "atkbd", "button")
}

// Modules returns the names of the kernel modules that the image needs, beside those for what a particular machine has more of;
// those that they depend on come along.
func Modules() []string {
	return []string{
		"kvm-intel", "kvm-amd", "tun", "vhost-vsock", "bridge", "nf_tables", "nft_chain_nat", "nft_masq",
		"ext4", "crc32c_generic", "crc32c-intel", "xfs", "overlay", // the state, and what is in it if it is read-only
		"dm_crypt", "xts", "aesni-intel", "algif_skcipher", // if it is encrypted
		"nvme", "ahci", "sd_mod", "usb-storage", "uas", "xhci-pci", "ehci-pci", "sdhci-pci", "mmc_block", "virtio_blk", "virtio_pci", "virtio_scsi",
		"i915", "amdgpu", "nouveau", "virtio-gpu", "bochs", // screens
		"evdev", "usbhid", "hid-generic", "hid-multitouch", "i2c-hid-acpi", "i8042", "atkbd", "psmouse", "virtio_input",
		"af_packet", "virtio_net", "e1000e", "igb", "igc", "r8169", "tg3", "atlantic", "alx", "r8152", "ax88179_178a", "cdc_ether", "cdc_ncm", // Ethernet
		"button", "battery", "ac", "iTCO_wdt", "sp5100_tco", "efivarfs",
	}
}

// Programs that are linked with libraries, by the Debian package that has them.
var foreign = []struct{ path, deb string }{{"/usr/sbin/mke2fs", "e2fsprogs"}, {"/usr/bin/dbus-daemon", "dbus-daemon"},
	{"/usr/sbin/cryptsetup", "cryptsetup-bin"}}

// Init is the name of the first program.
const Init = "lodge-init"

// Files returns the files that the machine needs beside the first program: from their path in the system to that on
// this machine. bin is the directory with Lodge's programs.
func Files(bin string) (map[string]string, error) {
	files := make(map[string]string)
	for _, p := range []string{"lodged", "lodge-vmm", "lodge-net", "lodge-seat"} {
		file := filepath.Join(bin, p)
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("%w: run make build", err)
		}
		files["bin/"+p] = file
	}
	for _, p := range foreign {
		if err := addProgram(files, p.path); err != nil {
			return nil, fmt.Errorf("%w: install the package %s", err, p.deb)
		}
	}
	return files, nil
}

// libraryDirs are where Debian has its libraries; ld.so(8).
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"}

// addProgram adds a program or library of this machine, its interpreter, and the libraries that it needs, to files.
func addProgram(files map[string]string, path string) error {
	if _, there := files[path[1:]]; there {
		return nil
	}
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	files[path[1:]] = path
	if s := f.Section(".interp"); s != nil {
		b, err := s.Data()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		files[text(b)[1:]] = text(b)
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range needed {
		i := slices.IndexFunc(libraryDirs, func(dir string) bool {
			_, err := os.Stat(filepath.Join(dir, name))
			return !errors.Is(err, fs.ErrNotExist)
		})
		if i < 0 {
			return fmt.Errorf("%s needs the library %s, which is not there", path, name)
		}
		// Where the program looks first, whether /lib is a link or not.
		if err := addProgram(files, filepath.Join(libraryDirs[i], name)); err != nil {
			return err
		}
	}
	return nil
}
