package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// notebook is one that has everything.
var notebook = map[string]string{
	"proc/cpuinfo":                              "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu vmx sse2\n\nprocessor\t: 1\n",
	"proc/meminfo":                              "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\n",
	"sys/module/kvm_intel/version":              "",
	"sys/module/kvm_intel/parameters/ept":       "Y\n",
	"usr/share/seabios/bios-256k.bin":           "",
	"usr/share/seabios/vgabios-stdvga.bin":      "",
	"usr/bin/qemu-storage-daemon":               "",
	"dev/dri/card0":                             "",
	"sys/class/drm/card0/dev":                   "226:0",
	"sys/class/drm/card0-eDP-1/status":          "connected\n",
	"sys/class/drm/card0-HDMI-A-1/status":       "disconnected\n",
	"proc/bus/input/devices":                    "I: Bus=0011\nN: Name=\"AT\"\nH: Handlers=sysrq kbd leds event0 \n\nH: Handlers=kbd event1 \n\nH: Handlers=mouse0 event2 \n",
	"sys/kernel/iommu_groups/0/type":            "DMA",
	"sys/kernel/iommu_groups/1/type":            "DMA",
	"sys/class/tpm/tpm0/tpm_version_major":      "2\n",
	"sys/power/state":                           "freeze mem disk\n",
	"sys/power/mem_sleep":                       "s2idle [deep]\n",
	"sys/class/power_supply/AC/type":            "Mains\n",
	"sys/class/power_supply/BAT0/type":          "Battery\n",
	"sys/class/power_supply/BAT0/capacity":      "81\n",
	"sys/class/power_supply/BAT0/status":        "Discharging\n",
	"sys/class/power_supply/hid-mouse/type":     "Battery\n",
	"sys/class/power_supply/hid-mouse/scope":    "Device\n",
	"sys/class/power_supply/hid-mouse/capacity": "12\n",
	"sys/fs/cgroup/cgroup.controllers":          "cpuset cpu io memory pids\n",
	"sys/kernel/security/lsm":                   "lockdown,capability,landlock,yama\n",
	"dev/net/tun":                               "", "dev/udmabuf": "", "dev/userfaultfd": "",
}

// host returns a machine with the files of notebook, but for those of change: "" is one that is not there.
func host(t *testing.T, change map[string]string) *Host {
	t.Helper()
	root := t.TempDir()
	files := make(map[string]string)
	for name, text := range notebook {
		files[name] = text
	}
	for name, text := range change {
		if files[name] = text; text == "" {
			delete(files, name)
		}
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, there := files["sys/class/drm/card0/dev"]; there {
		if err := os.MkdirAll(filepath.Join(root, "sys/class/drm/card0/device"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../../bus/pci/drivers/i915", filepath.Join(root, "sys/class/drm/card0/device/driver")); err != nil {
			t.Fatal(err)
		}
	}
	return &Host{
		Root: root,
		KVM:  func(string) (int, error) { return apiVersion, nil },
		Statfs: func(path string, st *unix.Statfs_t) error {
			if path != filepath.Join(root, "var") {
				return unix.ENOENT
			}
			*st = unix.Statfs_t{Bsize: 4096, Bavail: 100 << 18, Type: btrfsMagic}
			return nil
		},
		Manager: func(context.Context) (string, error) { return "1.2.3", nil },
	}
}

func TestNotebook(t *testing.T) {
	seen := map[string]string{
		"processor": "Some CPU, with VT-x", "kvm": "kvm_intel API version 12, EPT", "memory": "15.3 GiB, of which 11.4 GiB are available",
		"space": "100.0 GiB free in /var; snapshots and clones share blocks", "firmware": "SeaBIOS, and its VGA BIOS",
		"screen": "card0 (i915), monitors: 1", "input": "keyboards: 1, pointers: 1", "iommu": "groups: 2", "tpm": "version 2",
		"suspend": "s2idle [deep]", "battery": "BAT0 81 %, discharging", "cgroup": "version 2, with cpu, memory and pids",
		"landlock": "on", "tun": "/dev/net/tun", "udmabuf": "/dev/udmabuf", "userfaultfd": "/dev/userfaultfd",
		"storage daemon": "/usr/bin/qemu-storage-daemon", "lodged": "version 1.2.3",
	}
	list := host(t, nil).Examine(t.Context())
	for _, c := range list {
		if c.State != OK || c.Seen != seen[c.Name] || c.Do != "" || c.Needed != (c.Name == "kvm") {
			t.Errorf("%+v, want to see %q", c, seen[c.Name])
		}
	}
	if len(list) != len(seen) {
		t.Errorf("%d checks, want %d", len(list), len(seen))
	}
}

// Each lack is told, with what to do.
func TestLacks(t *testing.T) {
	kvm := func(version int, err error) func(*Host) {
		return func(h *Host) { h.KVM = func(string) (int, error) { return version, err } }
	}
	statfs := func(st unix.Statfs_t, err error) func(*Host) {
		return func(h *Host) {
			h.Statfs = func(_ string, p *unix.Statfs_t) error { *p = st; return err }
		}
	}
	cpu := func(flags string) map[string]string {
		return map[string]string{"proc/cpuinfo": "model name : X\nflags : " + flags + "\n"}
	}
	for _, tc := range []struct {
		name     string
		change   map[string]string
		with     func(*Host)
		state    State
		seen, do string
	}{
		{"processor", cpu("fpu svm"), nil, OK, "AMD-V", ""},
		{"processor", cpu("fpu hypervisor"), nil, Lack, "in a virtual machine", "nested virtualisation"},
		{"processor", cpu("fpu"), nil, Lack, "without virtualisation", "firmware's setup"},
		{"processor", map[string]string{"proc/cpuinfo": ""}, nil, Unknown, "tells nothing", "lodge report"},
		{"kvm", nil, kvm(0, fs.ErrNotExist), Lack, "no /dev/kvm", "modprobe kvm_intel"},
		{"kvm", cpu("fpu"), kvm(0, fs.ErrNotExist), Lack, "no /dev/kvm", "see processor"},
		{"kvm", nil, kvm(0, fs.ErrPermission), Unknown, "for others than you", "join the group kvm"},
		{"kvm", nil, kvm(0, unix.EIO), Unknown, "input/output error", "lodge report"},
		{"kvm", nil, kvm(11, nil), Lack, "API version 11", "use a kernel"},
		{"kvm", map[string]string{"sys/module/kvm_intel/parameters/ept": "N"}, nil, OK, "without EPT", "without that parameter"},
		{"kvm", map[string]string{"sys/module/kvm_pvm/x": "1"}, nil, OK, "it emulates", "VT-x"},
		{"memory", map[string]string{"proc/meminfo": "MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n"}, nil, Lack, "1.9 GiB", "end what is not needed"},
		{"memory", map[string]string{"proc/meminfo": ""}, nil, Unknown, "tells nothing", "report"},
		{"space", nil, statfs(unix.Statfs_t{Bsize: 4096, Bavail: 1 << 18, Type: xfsMagic}, nil), Lack, "1.0 GiB free", "make space"},
		{"space", nil, statfs(unix.Statfs_t{Bsize: 4096, Bavail: 1 << 28, Type: tmpfsMagic}, nil), Lack, "in memory", "--state-dir"},
		{"space", nil, statfs(unix.Statfs_t{Bsize: 4096, Bavail: 1 << 28}, nil), OK, "are copies", "use btrfs"},
		{"space", nil, statfs(unix.Statfs_t{}, unix.EACCES), Unknown, "permission denied", "as root"},
		{"firmware", map[string]string{"usr/share/seabios/vgabios-stdvga.bin": ""}, nil, Lack, "no /usr/share/seabios/vgabios", "package seabios"},
		{"screen", map[string]string{"dev/dri/card0": ""}, nil, Lack, "no graphics card", "rfb:127.0.0.1"},
		{"input", map[string]string{"proc/bus/input/devices": "H: Handlers=kbd event1 \n"}, nil, Lack, "keyboards: 0, pointers: 0", "plug them in"},
		{"iommu", map[string]string{"sys/kernel/iommu_groups/0/type": "", "sys/kernel/iommu_groups/1/type": ""}, nil, Lack, "none", "firmware's setup"},
		{"iommu", map[string]string{"sys/kernel/iommu_groups/0/type": "", "sys/kernel/iommu_groups/1/type": "", "sys/firmware/acpi/tables/DMAR": "x"},
			nil, Lack, "VT-d is there", "intel_iommu=on"},
		{"iommu", map[string]string{"sys/kernel/iommu_groups/0/type": "", "sys/kernel/iommu_groups/1/type": "", "sys/firmware/acpi/tables/IVRS": "x"},
			nil, Lack, "AMD-Vi is there", "amd_iommu=on"},
		{"tpm", map[string]string{"sys/class/tpm/tpm0/tpm_version_major": ""}, nil, Lack, "none", "firmware's setup"},
		{"suspend", map[string]string{"sys/power/state": "freeze disk"}, nil, Lack, "not possible", "save guests"},
		{"battery", map[string]string{"sys/class/power_supply/BAT0/type": ""}, nil, OK, "no notebook", ""},
		{"cgroup", map[string]string{"sys/fs/cgroup/cgroup.controllers": ""}, nil, Lack, "no version 2", "unified"},
		{"cgroup", map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu io"}, nil, Lack, "without memory, pids", "cgroup_enable"},
		{"landlock", map[string]string{"sys/kernel/security/lsm": "yama"}, nil, Lack, "off", "lsm="},
		{"landlock", map[string]string{"sys/kernel/security/lsm": ""}, nil, Unknown, "no /sys/kernel/security", "mount it"},
		{"tun", map[string]string{"dev/net/tun": ""}, nil, Lack, "no /dev/net/tun", "modprobe tun"},
		{"storage daemon", map[string]string{"usr/bin/qemu-storage-daemon": ""}, nil, Lack, "no qemu-storage-daemon", "qemu-system-common"},
		{"lodged", nil, func(h *Host) { h.Manager = func(context.Context) (string, error) { return "", errors.New("nobody") } }, Lack, "nobody", "systemctl"},
	} {
		h := host(t, tc.change)
		if tc.with != nil {
			tc.with(h)
		}
		found := false
		for _, c := range h.Examine(t.Context()) {
			if c.Name != tc.name {
				continue
			}
			found = true
			if c.State != tc.state || !strings.Contains(c.Seen, tc.seen) || !strings.Contains(c.Do, tc.do) || tc.do == "" && c.Do != "" {
				t.Errorf("%+v, want %s, to see %q and do %q", c, tc.state, tc.seen, tc.do)
			}
		}
		if !found {
			t.Errorf("no check %s", tc.name)
		}
	}
}

// This machine is looked at without a fake, as far as it lets us: everything has an answer.
func TestThisMachine(t *testing.T) {
	for _, c := range (&Host{}).Examine(t.Context()) {
		if c.Name == "" || c.Seen == "" || c.State == "" || c.State != OK && c.Do == "" {
			t.Errorf("%+v", c)
		}
	}
}
