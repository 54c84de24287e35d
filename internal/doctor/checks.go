package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cpuinfo returns the value of a key of the first processor.
func (h *Host) cpuinfo(key string) string {
	text, _ := h.read("/proc/cpuinfo")
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (h *Host) processor() Check {
	flags := strings.Fields(h.cpuinfo("flags"))
	model := h.cpuinfo("model name")
	switch {
	case slices.Contains(flags, "vmx"):
		return ok("processor", "%s, with VT-x", model)
	case slices.Contains(flags, "svm"):
		return ok("processor", "%s, with AMD-V", model)
	case len(flags) == 0:
		return unknown("processor", errors.New("/proc/cpuinfo tells nothing"))
	case slices.Contains(flags, "hypervisor"):
		return lack("processor", model+", in a virtual machine without virtualisation",
			"switch on nested virtualisation for this virtual machine, in the system that runs it")
	}
	return lack("processor", model+", without virtualisation", "switch on VT-x or AMD-V (SVM) in the firmware's setup")
}

// apiVersion is the version of KVM's API that has never changed, and getAPIVersion the number of its ioctl.
const (
	apiVersion    = 12
	getAPIVersion = 0xae00
)

func askKVM(path string) (int, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	v, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getAPIVersion, 0)
	if errno != 0 {
		return 0, fmt.Errorf("%s: %w", path, errno)
	}
	return int(v), nil
}

func (h *Host) kvm() Check {
	c := h.lookAtKVM()
	c.Needed = true
	return c
}

func (h *Host) lookAtKVM() Check {
	const name = "kvm"
	ask := h.KVM
	if ask == nil {
		ask = askKVM
	}
	version, err := ask(h.path("/dev/kvm"))
	var flavour string
	for _, m := range []string{"kvm_intel", "kvm_amd", "kvm_pvm"} {
		if h.exists("/sys/module/" + m) {
			flavour = m
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		do := "load it: modprobe kvm_intel, or kvm_amd"
		if !strings.Contains(h.cpuinfo("flags"), "vmx") && !strings.Contains(h.cpuinfo("flags"), "svm") {
			do = "see processor"
		}
		return lack(name, "no /dev/kvm", do)
	case errors.Is(err, fs.ErrPermission):
		return Check{Name: name, State: Unknown, Seen: "/dev/kvm is there, for others than you",
			Do: "join the group kvm for lodge run (as root: adduser USER kvm), and log in again; guests of lodged do not need it"}
	case err != nil:
		return unknown(name, err)
	case version != apiVersion:
		return lack(name, fmt.Sprintf("API version %d", version), fmt.Sprintf("use a kernel whose KVM has version %d", apiVersion))
	case flavour == "kvm_pvm":
		return Check{Name: name, State: OK, Seen: "kvm_pvm: it emulates what a guest's kernel does",
			Do: "use a machine with VT-x or AMD-V for guests with Linux or Windows: here they are too slow"}
	}
	seen := strings.TrimSpace(flavour + " API version 12")
	for param, what := range map[string]string{"kvm_intel/parameters/ept": "EPT", "kvm_amd/parameters/npt": "nested page tables"} {
		switch v, _ := h.read("/sys/module/" + param); v {
		case "Y", "1":
			seen += ", " + what
		case "N", "0":
			return Check{Name: name, State: OK, Seen: seen + ", without " + what, Do: "load the module without that parameter: guests are slow"}
		}
	}
	return ok(name, "%s", seen)
}

// lowMemory is what a desktop and its host want, in bytes.
const lowMemory = 2 << 30

func (h *Host) memory() Check {
	text, err := h.read("/proc/meminfo")
	if err != nil {
		return unknown("memory", err)
	}
	kib := make(map[string]uint64)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		kib[name], _ = strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
	}
	total, free := kib["MemTotal"]<<10, kib["MemAvailable"]<<10
	seen := fmt.Sprintf("%s, of which %s are available", size(total), size(free))
	switch {
	case total == 0:
		return unknown("memory", errors.New("/proc/meminfo tells nothing"))
	case free < lowMemory:
		return lack("memory", seen, "end what is not needed, or give guests little: a desktop wants 2 GiB")
	}
	return ok("memory", "%s", seen)
}

// Magic numbers of file systems that share blocks between files (statfs(2)), and of those in memory.
const (
	btrfsMagic = 0x9123683e
	xfsMagic   = 0x58465342
	tmpfsMagic = 0x01021994
)

// lowSpace is where the manager begins to warn, in bytes.
const lowSpace = 10 << 30

func (h *Host) space() Check {
	const name = "space"
	dir := h.StateDir
	if dir == "" {
		dir = "/var/lib/lodge"
	}
	statfs := h.Statfs
	if statfs == nil {
		statfs = unix.Statfs
	}
	var st unix.Statfs_t
	err := statfs(h.path(dir), &st)
	for errors.Is(err, unix.ENOENT) && dir != "/" { // it will be made there
		dir = filepath.Dir(dir)
		err = statfs(h.path(dir), &st)
	}
	if err != nil {
		return unknown(name, fmt.Errorf("%s: %w", dir, err))
	}
	free := st.Bavail * uint64(st.Bsize)
	seen := fmt.Sprintf("%s free in %s", size(free), dir)
	switch {
	case st.Type == tmpfsMagic:
		return lack(name, seen+", which is in memory", "have --state-dir of lodged on a disk")
	case free < lowSpace:
		return lack(name, seen, "make space: below 10 GiB the manager warns, and a guest that meets the end is paused")
	case st.Type == btrfsMagic || st.Type == xfsMagic:
		return ok(name, "%s; snapshots and clones share blocks", seen)
	}
	return Check{Name: name, State: OK, Seen: seen + "; snapshots and clones are copies", Do: "use btrfs or XFS there for those that take no time and space"}
}

func (h *Host) firmware() Check {
	c := ok("firmware", "SeaBIOS, and its VGA BIOS")
	for _, f := range []string{"bios-256k.bin", "vgabios-stdvga.bin"} {
		if !h.exists("/usr/share/seabios/" + f) {
			c = lack("firmware", "no /usr/share/seabios/"+f, "install the package seabios: guests that are not started by their kernels need it")
		}
	}
	return c
}

func (h *Host) screens() Check {
	const name = "screen"
	if len(h.glob("/dev/dri/card*")) == 0 {
		return lack(name, "no graphics card in /dev/dri",
			"load its driver; without one the seat is seen by a VNC viewer: lodge-seat --output rfb:127.0.0.1:5900")
	}
	var cards []string
	for _, card := range h.glob("/sys/class/drm/card[0-9]*") {
		base := filepath.Base(card)
		if strings.Contains(base, "-") {
			continue // a connector
		}
		driver, err := os.Readlink(filepath.Join(card, "device/driver"))
		if err != nil {
			driver = "unknown driver"
		}
		connected := 0
		for _, status := range h.glob("/sys/class/drm/" + base + "-*/status") {
			if b, err := os.ReadFile(status); err == nil && strings.TrimSpace(string(b)) == "connected" {
				connected++
			}
		}
		cards = append(cards, fmt.Sprintf("%s (%s), monitors: %d", base, filepath.Base(driver), connected))
	}
	return ok(name, "%s", strings.Join(cards, "; "))
}

func (h *Host) input() Check {
	text, err := h.read("/proc/bus/input/devices")
	if err != nil {
		return unknown("input", err)
	}
	keyboards, pointers := 0, 0
	for line := range strings.Lines(text) {
		handlers, isHandlers := strings.CutPrefix(strings.TrimSpace(line), "H: Handlers=")
		words := strings.Fields(handlers)
		if !isHandlers {
			continue
		}
		// Switches and buttons have keys too, but neither lights nor an Alt key.
		if slices.Contains(words, "kbd") && (slices.Contains(words, "sysrq") || slices.Contains(words, "leds")) {
			keyboards++
		}
		if slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, "mouse") }) {
			pointers++
		}
	}
	if keyboards == 0 || pointers == 0 {
		return lack("input", fmt.Sprintf("keyboards: %d, pointers: %d", keyboards, pointers),
			"plug them in, or load their drivers (evdev, usbhid, i8042): the seat wants both")
	}
	return ok("input", "keyboards: %d, pointers: %d", keyboards, pointers)
}

func (h *Host) iommu() Check {
	const name = "iommu"
	if n := len(h.glob("/sys/kernel/iommu_groups/*")); n > 0 {
		return ok(name, "groups: %d", n)
	}
	tables := "/sys/firmware/acpi/tables/"
	switch {
	case h.exists(tables + "DMAR"):
		return lack(name, "VT-d is there, and off", "add intel_iommu=on to the kernel's command line: devices can be passed through then")
	case h.exists(tables + "IVRS"):
		return lack(name, "AMD-Vi is there, and off", "add amd_iommu=on to the kernel's command line: devices can be passed through then")
	}
	return lack(name, "none", "switch on VT-d or AMD-Vi (IOMMU) in the firmware's setup, if devices are to be passed through")
}

func (h *Host) tpm() Check {
	version, err := h.read("/sys/class/tpm/tpm0/tpm_version_major")
	switch {
	case err != nil:
		return unknown("tpm", err)
	case version != "":
		return ok("tpm", "version %s", version)
	case h.exists("/sys/class/tpm/tpm0"):
		return ok("tpm", "an old one (version 1.2)")
	}
	return lack("tpm", "none", "switch it on in the firmware's setup (TPM, PTT or fTPM), if the machine is to prove what it started")
}

func (h *Host) suspend() Check {
	states, err := h.read("/sys/power/state")
	if err != nil {
		return unknown("suspend", err)
	}
	if !slices.Contains(strings.Fields(states), "mem") {
		return lack("suspend", "to memory is not possible", "switch on sleep states in the firmware's setup; else save guests before you switch off")
	}
	how, _ := h.read("/sys/power/mem_sleep")
	if how == "" {
		how = "to memory"
	}
	return ok("suspend", "%s", how)
}

func (h *Host) battery() Check {
	var seen []string
	for _, dir := range h.glob("/sys/class/power_supply/*") {
		rel := "/sys/class/power_supply/" + filepath.Base(dir) + "/"
		if kind, _ := h.read(rel + "type"); kind != "Battery" {
			continue
		}
		if scope, _ := h.read(rel + "scope"); scope == "Device" {
			continue // a mouse's
		}
		percent, _ := h.read(rel + "capacity")
		status, _ := h.read(rel + "status")
		seen = append(seen, fmt.Sprintf("%s %s %%, %s", filepath.Base(dir), percent, strings.ToLower(status)))
	}
	if len(seen) == 0 {
		return ok("battery", "none: this machine is no notebook")
	}
	return ok("battery", "%s", strings.Join(seen, "; "))
}

func (h *Host) cgroup() Check {
	const name = "cgroup"
	controllers, err := h.read("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return unknown(name, err)
	}
	if controllers == "" {
		return lack(name, "no version 2 at /sys/fs/cgroup", "start the kernel with systemd.unified_cgroup_hierarchy=1: guests have no bounds else")
	}
	var missing []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(strings.Fields(controllers), c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return lack(name, "without "+strings.Join(missing, ", "), "start the kernel with these controllers on (cgroup_enable=): guests have no bounds else")
	}
	return ok(name, "version 2, with cpu, memory and pids")
}

func (h *Host) landlock() Check {
	lsm, err := h.read("/sys/kernel/security/lsm")
	switch {
	case err != nil:
		return unknown("landlock", err)
	case lsm == "":
		return Check{Name: "landlock", State: Unknown, Seen: "no /sys/kernel/security", Do: "mount it: mount -t securityfs none /sys/kernel/security"}
	case !slices.Contains(strings.Split(lsm, ","), "landlock"):
		return lack("landlock", "off", "add landlock to the kernel's parameter lsm=: it is a second wall around guests")
	}
	return ok("landlock", "on")
}

func (h *Host) storageDaemon() Check {
	for _, dir := range []string{"/usr/bin", "/usr/local/bin"} {
		if h.exists(dir + "/qemu-storage-daemon") {
			return ok("storage daemon", "%s/qemu-storage-daemon", dir)
		}
	}
	return lack("storage daemon", "no qemu-storage-daemon", "install the package qemu-system-common, if disks are to be qcow2 in place, LUKS or NBD")
}

func (h *Host) manager(ctx context.Context) Check {
	version, err := h.Manager(ctx)
	if err != nil {
		return lack("lodged", err.Error(), "start it: systemctl enable --now lodged; lodge run does without")
	}
	return ok("lodged", "version %s", version)
}
