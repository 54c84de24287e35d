package arch

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/lodgehv/lodge"

// rule says what packages of ours may reach, directly or not. Patterns are paths within the module: "a/b" is that
// package, "a/..." it and all below, "a/*" all directly below.
type rule struct {
	why    string
	of     []string // packages that the rule is about
	except []string // and those of them that it is not
	only   []string // if not nil, all of ours that they may reach, beside themselves and what is below them
	never  []string // what of ours they must not reach
}

var rules = []rule{
	{
		why:  "the leaves know nothing of machines",
		of:   []string{"hypervisor/kvm", "hypervisor/mem", "hypervisor/snap"},
		only: []string{},
	},
	{
		why: "a device is described by its subject: it knows neither KVM nor the board nor another device",
		of:  []string{"hypervisor/legacy", "hypervisor/virtio/*"},
		except: []string{
			"hypervisor/virtio/virtiopci",  // the transport, which devices are put into
			"hypervisor/virtio/virtiotest", // the test rig
		},
		only: deviceImports,
	},
	{
		why:  "a graphics card or an input device is a device like others; beside that it knows what it shows on, and events",
		of:   []string{"vgpu/virtiogpu", "vgpu/vga", "hid/virtioinput", "hid/ps2"},
		only: append([]string{"vgpu/display", "vgpu/dmabuf", "vgpu/edid", "hid"}, deviceImports...),
	},
	{
		why:   "what a person sees and touches knows nothing of machines and their devices",
		of:    []string{"console/...", "hid/evdev", "hid/route", "vgpu/display", "vgpu/dmabuf", "vgpu/edid"},
		never: []string{"hypervisor/...", "vgpu/virtiogpu", "vgpu/vga", "hid/virtioinput", "hid/ps2"},
	},
	{
		why:  "the transport knows no particular device",
		of:   []string{"hypervisor/virtio/virtiopci", "hypervisor/virtio/virtiotest"},
		only: append([]string{"hypervisor/virtio/virtiopci"}, deviceImports...),
	},
	{
		why:    "a machine takes factories of devices: commands compose what it has no need to know",
		of:     []string{"hypervisor/..."},
		except: []string{"hypervisor/manager/..."},
		never:  []string{"passthrough/...", "vgpu/...", "hid/...", "power/...", "console/...", "ui/...", "hypervisor/manager/..."},
	},
	{
		why:  "what the manager is made of knows neither it nor the VMM",
		of:   []string{"hypervisor/manager/pool", "hypervisor/manager/job"},
		only: []string{},
	},
	{
		why:  "what confines a process has little to do that could be wrong",
		of:   []string{"hypervisor/manager/cell", "internal/seccomp", "internal/broker"},
		only: []string{},
	},
	{
		why:   "lodge-vmm runs in a cell: it starts none",
		of:    []string{"cmd/lodge-vmm"},
		never: []string{"hypervisor/manager/..."},
	},
	{
		why:  "the life of a guest is pure: a table",
		of:   []string{"hypervisor/manager/life"},
		only: []string{},
	},
	{
		why:  "the store knows definitions, and nothing of what becomes of them",
		of:   []string{"hypervisor/manager/store"},
		only: []string{"hypervisor/definition", "internal/deffile"},
	},
	{
		why:   "the manager takes functions for what people see: commands compose it, and an API is one of its users",
		of:    []string{"hypervisor/manager"},
		never: []string{"vgpu/...", "hid/...", "console/...", "ui/...", "hypervisor/manager/api/...", "hypervisor/manager/client/..."},
	},
	{
		why:    "what reads the frames of guests knows no way to change the host, and neither knows the manager",
		of:     []string{"hypervisor/manager/network/...", "cmd/lodge-net"},
		except: []string{"hypervisor/manager/network"},
		only: []string{"hypervisor/manager/network", "hypervisor/manager/network/netctl", "hypervisor/manager/network/usermode", "hypervisor/definition", "hypervisor/control",
			"internal/deffile", "internal/framing", "internal/ratelog", "internal/seccomp"},
	},
	{
		why:   "what starts and commands lodge-net has no network stack in it",
		of:    []string{"cmd/lodge", "cmd/lodged", "hypervisor/manager", "hypervisor/manager/api"},
		never: []string{"hypervisor/manager/network/usermode"},
	},
	{
		why:  "what makes boot images knows nothing of what runs in them",
		of:   []string{"hypervisor/bootimage"},
		only: []string{},
	},
	{
		why:  "a machine's first program is small, as it is in the flash: it knows how others are found and started",
		of:   []string{"cmd/lodge-init"},
		only: []string{"hypervisor/appliance", "hypervisor/bootimage/system", "hypervisor/bootimage/fat", "internal/uevent"},
	},
	{
		why:  "what opens the state knows nothing of the machine around it",
		of:   []string{"hypervisor/appliance/vault"},
		only: []string{"hypervisor/bootimage", "hypervisor/bootimage/system", "hypervisor/bootimage/fat"},
	},
	{
		why:   "libraries know nothing of programs and of tests",
		of:    []string{"hypervisor/...", "passthrough/...", "vgpu/...", "hid/...", "power/...", "console/...", "ui/..."},
		never: []string{"cmd/...", "e2e/..."},
	},
	{
		why:  "the console in text knows what it shows from its System, and draws on any Screen",
		of:   []string{"console/textui"},
		only: []string{},
	},
	{
		why:  "a client of the manager is in another process",
		of:   []string{"hypervisor/manager/client"},
		only: []string{},
	},
	{
		why:  "the user's tools speak to the manager over its D-Bus API, like everybody else",
		of:   []string{"ui/...", "cmd/lodge-ui"},
		only: []string{"hypervisor/manager/client", "ui/..."},
	},
	{
		why:   "the command line reaches guests by the manager's API alone",
		of:    []string{"cmd/lodge"},
		never: []string{"hypervisor/manager", "hypervisor/manager/api", "hypervisor/manager/store"},
	},
	{
		why: "who commands machines knows their definitions and sockets, and no machine",
		of:  []string{"cmd/lodge", "internal/guests", "internal/seatctl"},
		never: []string{
			"hypervisor/kvm", "hypervisor/mem", "hypervisor/bus", "hypervisor/irq", "hypervisor/pci", "hypervisor/vcpu", "hypervisor/legacy",
			"hypervisor/virtio/...", "hypervisor/boot", "hypervisor/machine", "vgpu/virtiogpu", "vgpu/vga", "hid/virtioinput", "hid/ps2",
		},
	},
}

var deviceImports = []string{
	"hypervisor/mem", "hypervisor/bus", "hypervisor/irq", "hypervisor/pci", "hypervisor/virtio", "hypervisor/snap",
	"hypervisor/acpi/...", "internal/framing",
}

// mayUseCgo are the only packages that may call C. All that touches a guest's data is Go.
var mayUseCgo = []string{"cmd/lodge-ui", "ui/...", "passthrough/usb/inventory"}

// pkg is a package as go list describes it.
type pkg struct {
	ImportPath string
	Standard   bool
	CgoFiles   []string
	Deps       []string // all of them, direct or not
}

// list returns the packages of the module, by their path in it.
func list(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Standard,CgoFiles,Deps", module+"/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // else go list hides what uses cgo
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	pkgs := make(map[string]pkg)
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[within(p.ImportPath)] = p
	}
}

// within returns a package's path in the module, or "" if it is not ours.
func within(importPath string) string {
	if p, ok := strings.CutPrefix(importPath, module+"/"); ok {
		return p
	}
	return ""
}

func match(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if base, ok := strings.CutSuffix(pattern, "/..."); ok {
			return p == base || strings.HasPrefix(p, base+"/")
		}
		if base, ok := strings.CutSuffix(pattern, "/*"); ok {
			return path.Dir(p) == base
		}
		return p == pattern
	})
}

// breaks returns the packages among deps that a package p may not reach by r.
func (r *rule) breaks(p string, deps []string) []string {
	if !match(r.of, p) || match(r.except, p) {
		return nil
	}
	var bad []string
	for _, d := range deps {
		d = within(d)
		if d == "" || match([]string{p + "/..."}, d) {
			continue
		}
		if match(r.never, d) || r.only != nil && !match(r.only, d) {
			bad = append(bad, d)
		}
	}
	return bad
}

func TestImports(t *testing.T) {
	pkgs := list(t)
	if len(pkgs) < 10 {
		t.Fatalf("go list finds only %d packages", len(pkgs))
	}
	for p, info := range pkgs {
		for _, r := range rules {
			if bad := r.breaks(p, info.Deps); bad != nil {
				t.Errorf("%s imports, or imports what imports, %s: %s", p, strings.Join(bad, ", "), r.why)
			}
		}
		if len(info.CgoFiles) > 0 && !match(mayUseCgo, p) {
			t.Errorf("%s uses cgo in %s: only %s may", p, strings.Join(info.CgoFiles, ", "), strings.Join(mayUseCgo, ", "))
		}
	}
}

// The rules bite.
func TestRules(t *testing.T) {
	tests := []struct {
		pkg, dep string
		ok       bool
	}{
		{"hypervisor/kvm", "hypervisor/mem", false},
		{"hypervisor/mem", "hypervisor/snap", false},
		{"hypervisor/kvm", "hypervisor/kvm/abi", true},
		{"hypervisor/legacy", "hypervisor/bus", true},
		{"hypervisor/legacy", "hypervisor/kvm", false},
		{"hypervisor/virtio/blk", "hypervisor/virtio", true},
		{"hypervisor/virtio/blk", "hypervisor/acpi/aml", true},
		{"hypervisor/virtio/blk", "hypervisor/virtio/net", false},
		{"hypervisor/virtio/blk", "hypervisor/machine", false},
		{"hypervisor/virtio/virtiopci", "hypervisor/virtio", true},
		{"hypervisor/virtio/virtiopci", "hypervisor/virtio/net", false},
		{"hypervisor/machine", "hypervisor/virtio/virtiopci", true},
		{"hypervisor/machine", "vgpu/vga", false},
		{"hypervisor/machine", "cmd/lodge-vmm", false},
		{"hypervisor/control", "e2e/agent/rpc", false},
		{"hypervisor/manager/pool", "hypervisor/manager/pool/format", true},
		{"hypervisor/manager/pool", "hypervisor/manager/job", false},
		{"hypervisor/manager/job", "hypervisor/manager", false},
		{"hypervisor/manager/cell", "hypervisor/definition", false},
		{"hypervisor/manager/vmm", "hypervisor/manager/cell", true},
		{"cmd/lodge-vmm", "hypervisor/manager/cell", false},
		{"hypervisor/manager", "power/policy", true},
		{"hypervisor/manager", "console/qdisplay", false},
		{"hypervisor/manager/store", "hypervisor/definition", true},
		{"hypervisor/manager/store", "hypervisor/manager", false},
		{"hypervisor/manager/life", "hypervisor/manager/store", false},
		{"vgpu/vga", "hypervisor/virtio", true},
		{"vgpu/vga", "e2e/notebook", false},
		{"hypervisor/manager/client", "hypervisor/manager", false},
		{"hypervisor/manager/api", "hypervisor/manager/client", true},
		{"ui/widgets", "hypervisor/manager/client", true},
		{"ui/widgets", "hypervisor/manager", false},
		{"cmd/lodge", "hypervisor/manager/client", true},
		{"cmd/lodge", "hypervisor/definition", true},
		{"cmd/lodge", "hypervisor/machine", false},
		{"cmd/lodge", "hypervisor/virtio/blk", false},
		{"cmd/lodge-ui", "hypervisor/definition", false},
		{"internal/guests", "hypervisor/control", true},
		{"internal/guests", "hypervisor/mem", false},
		{"console/textui", "internal/guests", false},
		{"console/textui", "console/textui/fbscreen", true},
		{"cmd/lodge-vmm", "vgpu/vga", true},
		{"cmd/lodge-net", "hypervisor/manager/network/usermode", true},
		{"cmd/lodge-net", "hypervisor/manager/network/bridge", false},
		{"hypervisor/manager/network/bridge", "hypervisor/manager", false},
		{"hypervisor/bootimage", "hypervisor/boot", false},
		{"cmd/lodged", "hypervisor/manager/network/netctl", true},
		{"cmd/lodged", "hypervisor/manager/network/usermode", false},
	}
	for _, tt := range tests {
		ok := true
		for _, r := range rules {
			ok = ok && r.breaks(tt.pkg, []string{module + "/" + tt.dep, "fmt"}) == nil
		}
		if ok != tt.ok {
			t.Errorf("%s may import %s: %v, want %v", tt.pkg, tt.dep, ok, tt.ok)
		}
	}
}

// lodge-vmm is to run in a jail that has no libraries, and the others in a boot image that has none.
func TestStatic(t *testing.T) {
	dir := t.TempDir()
	programs := []string{"lodge-init", "lodge-vmm", "lodge-net", "lodge-seat", "lodge", "lodge-image"}
	args := []string{"build", "-trimpath", "-o", dir}
	for _, p := range programs {
		args = append(args, module+"/cmd/"+p)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range programs {
		f, err := elf.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s is linked dynamically: has a segment %v", name, p.Type)
			}
		}
		if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
			t.Errorf("%s needs the libraries %v (%v)", name, libs, err)
		}
	}
}
