package manager

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
)

// supplies writes a directory like /sys/class/power_supply.
func supplies(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnBattery(t *testing.T) {
	notebook := map[string]string{"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"}
	for _, tc := range []struct {
		name   string
		base   map[string]string
		change map[string]string
		want   bool
	}{
		{"unplugged", notebook, nil, true},
		{"plugged in", notebook, map[string]string{"AC/online": "1", "BAT0/status": "Charging"}, false},
		{"plugged in, charger too weak", notebook, map[string]string{"AC/online": "1"}, false},
		{"charged by USB", notebook, map[string]string{"usb/type": "USB", "usb/online": "1"}, false},
		{"second battery", notebook, map[string]string{"BAT1/type": "Battery", "BAT1/status": "Not charging"}, true},
		{"status unknown", notebook, map[string]string{"BAT0/status": "Unknown"}, false},
		{"a mouse's battery", nil, map[string]string{"m/type": "Battery", "m/status": "Discharging", "m/scope": "Device"}, false},
		{"no notebook", nil, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			files := maps.Clone(tc.base)
			if files == nil {
				files = make(map[string]string)
			}
			maps.Copy(files, tc.change)
			supplies(t, dir, files)
			if got := onBattery(dir); got != tc.want {
				t.Errorf("on battery: %v", got)
			}
		})
	}
	if onBattery(filepath.Join(t.TempDir(), "none")) {
		t.Error("on battery without a word of batteries")
	}
}

// On battery, guests that want mains power wait for it, also over a restart of the manager; what a person has started
// meanwhile is not started again.
func TestAutostartOnAC(t *testing.T) {
	r := newRig(t)
	r.Close()
	r.cfg.PowerSupplies = filepath.Join(r.dir, "power")
	supplies(t, r.cfg.PowerSupplies, map[string]string{"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"})
	r.open()
	for _, name := range []string{"waits", "byhand"} {
		r.define(name, "", "autostart = true\nautostart_on_ac = true")
	}
	r.define("now", "", "autostart = true")
	auto := func(f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	off := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if g, err := r.find(name); err != nil || g.info.Load().State != life.Defined {
				t.Errorf("%s: %v, %v", name, g.info.Load().State, err)
			}
		}
	}
	auto(r.Autostart)
	r.state("now", life.Running)
	auto(r.PowerChanged)
	off("waits", "byhand")
	r.must(r.Start("byhand"))
	r.state("byhand", life.Running)
	r.must(r.Stop("byhand"))

	r.Close()
	r.open()
	auto(r.Autostart)
	off("waits", "byhand")

	supplies(t, r.cfg.PowerSupplies, map[string]string{"AC/online": "1"})
	auto(r.PowerChanged)
	r.state("waits", life.Running)
	off("byhand")
	r.must(r.Stop("waits"))
	auto(r.PowerChanged) // once in a boot
	off("waits", "byhand")
}
