package image

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Where GRUB for BIOS machines lies, of package grub-pc-bin.
const grubDir = "/usr/lib/grub/i386-pc"

// grubModules are what GRUB needs to show a menu and to load a kernel from a disk of our layout.
var grubModules = [...]string{"biosdisk", "part_msdos", "ext2", "normal", "linux", "minicmd", "echo", "terminal", "vga_text"}

// BootDisk builds a disk that a BIOS starts: GRUB in the sectors before the first partition, which has the guest's kernel and
// its initrd. Its menu has one entry, which starts by itself after two seconds and gives the kernel the command line.
func (b *Builder) BootDisk(ctx context.Context, g *Guest, title, cmdline string) (string, error) {
	versions, err := run(ctx, "", nil, "dpkg-query", "-W", "-f=${Package} ${Version}\n", "grub-pc-bin", "grub-common")
	if err != nil {
		return "", err
	}
	dir, err := b.Result(ctx, "boot-"+strings.ReplaceAll(title, " ", "-"), Key("3", g.Key, versions, cmdline), func(ctx context.Context, dir string) error {
		// vga_text writes into the card's memory, where the BIOS would take a dozen exits for a character.
		menu := "terminal_output vga_text\nset timeout=2\nmenuentry \"" + title + "\" {\n" +
			"  echo \"Loading the kernel ...\"\n  linux /vmlinuz " + cmdline + "\n  initrd /initrd\n}\n"
		root := filepath.Join(dir, "root")
		if err := os.MkdirAll(filepath.Join(root, "grub"), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "grub", "grub.cfg"), []byte(menu), 0o644); err != nil {
			return err
		}
		for from, to := range map[string]string{g.Kernel.BzImage: "vmlinuz", g.Initrd: "initrd"} {
			if err := os.Link(from, filepath.Join(root, to)); err != nil {
				return err
			}
		}
		args := append([]string{"-O", "i386-pc", "-d", grubDir, "-p", "(hd0,msdos1)/grub", "-o", filepath.Join(dir, "core.img")}, grubModules[:]...)
		if _, err := run(ctx, dir, nil, "grub-mkimage", args...); err != nil {
			return err
		}
		if err := bootSectors(filepath.Join(dir, "disk.img"), filepath.Join(dir, "core.img")); err != nil {
			return err
		}
		return asRoot(ctx, dir, `
mke2fs -q -t ext2 -E root_owner=0:0,offset="$1" -L boot -d root disk.img "$2"k
rm -r root core.img`, strconv.Itoa(bootStart), strconv.Itoa((bootSize-bootStart)>>10))
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "disk.img"), nil
}

// The boot disk and its one partition, in bytes.
const (
	bootSize  = 64 << 20
	bootStart = 1 << 20
)

// bootSectors makes the disk at path, with GRUB's two parts and a partition table (MBR) but nothing in the partition yet.
// core.img lies from the second sector on, where boot.img looks for it as it comes.
func bootSectors(path, core string) error {
	boot, err := os.ReadFile(filepath.Join(grubDir, "boot.img"))
	if err != nil {
		return err
	}
	rest, err := os.ReadFile(core)
	if err != nil {
		return err
	}
	const sector, table = 512, 446
	if len(boot) != sector || len(rest) > bootStart-sector {
		return fmt.Errorf("boot.img of %d and core.img of %d bytes do not fit before a partition at %d", len(boot), len(rest), bootStart)
	}
	clear(boot[table : table+4*16]) // of code for floppy disks
	entry := boot[table : table+16]
	entry[0], entry[4] = 0x80, 0x83 // active, Linux
	binary.LittleEndian.PutUint32(entry[8:], bootStart/sector)
	binary.LittleEndian.PutUint32(entry[12:], (bootSize-bootStart)/sector)
	if err := os.WriteFile(path, append(boot, rest...), 0o644); err != nil {
		return err
	}
	return os.Truncate(path, bootSize)
}
