package notebook

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lodgehv/lodge/e2e/image"
)

// Config says which notebook to start. The zero value is the usual one.
type Config struct {
	// Builder makes and caches the images; nil is image.NewBuilder(Log).
	Builder *image.Builder
	// Memory is the notebook's RAM in MiB; 0 is 2560. Above
	// 2752 a part of it lies beyond 4 GiB.
	Memory int
	// CPUs is the number of its processors; 0 is 2.
	CPUs int
	// ICount emulates one processor whose clock advances by one nanosecond for
	// each instruction: times inside are then instruction counts, the same in
	// each run to 0.01 %.
	ICount bool
	// Args are further arguments of QEMU, devices for instance. They must be
	// able to be saved: not nvme, amd-iommu, usb-serial or 9p.
	Args []string
	// Display is QEMU's -display, such as gtk; "" is none.
	Display string
	// Append is added to the kernel's command line.
	Append string
	// Disks are in the notebook beside those of the guests.
	Disks []Disk
	// Tools are local files to have under /tools inside, by their names there.
	Tools map[string]string
	// Life is after how long the notebook is ended if Close was not called; 0 is
	// half an hour.
	Life time.Duration
	// Log receives progress, nil is silence.
	Log io.Writer
}

// DisplayArgs are for Config.Args: QEMU's display can be connected to, see
// [Notebook.Display], and has two outputs, of which the first is connected.
func DisplayArgs() []string {
	return []string{"-display", "dbus,p2p=yes", "-global", "virtio-gpu-device.max_outputs=2"}
}

// Disk is a virtio disk of the notebook, there as /disk/NAME. What is written to
// it is forgotten, unless NBD is set.
type Disk struct {
	Name string // at most 20 characters
	Base string // a raw file to begin with; none when empty
	Size int64  // bytes, if there is no Base
	NBD  string // Unix socket of a server that has the disk, in place of both
}

// toolsSize is the fixed size of the drive that brings Tools in, in bytes.
const toolsSize = 256 << 20

func (c Config) withDefaults(set *image.Set) Config {
	if c.Memory == 0 {
		c.Memory = 2560
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.ICount {
		c.CPUs = 1
	}
	if c.Life == 0 {
		c.Life = 30 * time.Minute
	}
	c.Disks = slices.Clone(c.Disks)
	for _, g := range set.Guests {
		c.Disks = append(c.Disks, Disk{Name: g.Arch.Name, Base: g.Disk})
	}
	return c
}

// Descriptors that QEMU inherits, connected sockets.
const (
	fdQMP   = 3
	fdAgent = 4
)

// drive is where the content of one of the notebook's disks lies, and QEMU's
// options for that.
type drive struct{ name, file, options string }

// forgotten are the options of an overlay of a disk.
const forgotten = "qcow2,cache=unsafe,discard=unmap"

// processor is the notebook's. It lacks CMPXCHG16B, which QEMU 7.2 gets wrong: it computes the other flags from what an earlier
// instruction left, so that an interrupt just after it finds garbage in them, such as the trap or the nested-task flag.
// Linux's allocator executes it all the time where it is there.
const processor = "EPYC,+svm,+npt,-cx16"

// I386Cmdline is for the command line of 32-bit kernels in the notebook. QEMU 7.2 gets CMPXCHG8B wrong as it does
// CMPXCHG16B, and they cannot do without: but their allocator does, if it checks what it is given.
const I386Cmdline = "slub_debug=F"

// args is QEMU's command line. AHCI is absent because its state cannot be
// brought back.
func (c Config) args(set *image.Set, tools, console string, drives []drive) []string {
	accel := []string{"-accel", "tcg,thread=multi"}
	line := "console=ttyS0 panic=-1 quiet intel_iommu=on"
	if c.ICount {
		accel = []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on"}
		line += " lodge.noclock" // setting the clock is not deterministic
	}
	if c.Append != "" {
		line += " " + c.Append
	}
	display := c.Display
	if display == "" {
		display = "none"
	}
	a := append([]string{"-nodefaults", "-display", display, "-no-reboot", "-d", "cpu_reset"}, accel...)
	a = append(a,
		"-M", "q35,sata=off,kernel-irqchip=split", "-cpu", processor,
		"-smp", strconv.Itoa(c.CPUs), "-m", strconv.Itoa(c.Memory),
		"-device", "intel-iommu,intremap=on,caching-mode=on",
		"-global", "ICH9-LPC.disable_s3=0",
		"-kernel", set.Notebook.Kernel.VMLinux, "-initrd", set.Notebook.Initrd, "-append", line,
		"-chardev", "file,id=console,path="+comma(console), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-device", "virtio-serial-pci,id=ports", "-chardev", fmt.Sprintf("socket,id=agent,fd=%d", fdAgent),
		"-device", "virtserialport,bus=ports.0,chardev=agent,name=agent",
		"-device", "virtio-rng-pci",
		"-vga", "none", "-device", "virtio-vga,id=vga,xres=1024,yres=768",
		"-device", "qemu-xhci,id=xhci", "-device", "virtio-keyboard-pci", "-device", "virtio-tablet-pci",
	)
	a = append(a, c.Args...)
	a = append(a, driveArgs("system", set.Notebook.Disk, "raw,readonly=on")...)
	a = append(a, driveArgs("tools", tools, "raw,readonly=on")...)
	for _, d := range drives {
		a = append(a, driveArgs(d.name, d.file, d.options)...)
	}
	return a
}

func driveArgs(name, file, format string) []string {
	return []string{
		"-drive", fmt.Sprintf("if=none,id=d-%s,file=%s,format=%s", name, comma(file), format),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=d-%s,serial=%s", name, name),
	}
}

// comma doubles the commas of a value in QEMU's option syntax.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }
