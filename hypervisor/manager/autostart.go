package manager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// powerSupplies is where the kernel tells of batteries and chargers (Documentation/ABI/testing/sysfs-class-power).
const powerSupplies = "/sys/class/power_supply"

// onBattery reports whether the host runs on its battery, by a directory such as powerSupplies: a battery of its own discharges,
// and no charger is online. A host that tells nothing of that is not on battery.
func onBattery(dir string) bool {
	read := func(supply, file string) string {
		b, _ := os.ReadFile(filepath.Join(dir, supply, file)) // what is not there is not told
		return strings.TrimSpace(string(b))
	}
	supplies, _ := os.ReadDir(dir)
	discharging := false
	for _, s := range supplies {
		switch kind := read(s.Name(), "type"); {
		case read(s.Name(), "scope") == "Device": // a mouse's
		case kind == "Battery":
			discharging = discharging || read(s.Name(), "status") == "Discharging"
		case read(s.Name(), "online") == "1":
			return false
		}
	}
	return discharging
}

// Autostart starts the guests that are to be, those of the highest priority first, once in a boot of the host. It does not wait
// for them. Those that want mains power, which the host has not, are started by PowerChanged.
func (m *Manager) Autostart() error {
	m.autostart.Lock()
	defer m.autostart.Unlock()
	b, err := os.ReadFile(m.autostartFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if boot, waiting, _ := strings.Cut(string(b), "\n"); boot == m.boot {
		return m.startWaiting(strings.Fields(waiting))
	}
	list := m.store.List()
	slices.SortStableFunc(list, func(a, b *store.Guest) int { return b.Priority - a.Priority })
	battery := onBattery(m.cfg.PowerSupplies)
	var waiting []string
	for _, def := range list {
		switch {
		case !def.Autostart:
		case battery && def.AutostartOnAC:
			m.log.Info("guest is started when there is mains power", "guest", def.Name)
			waiting = append(waiting, def.Name)
		default:
			m.autostartGuest(def.Name)
		}
	}
	return m.writeWaiting(waiting)
}

// PowerChanged is to be called when the host has gone on battery or mains: it starts what waits for mains, once in a boot.
// A guest that has run meanwhile, or is not to be started any more, is not.
func (m *Manager) PowerChanged() error {
	m.autostart.Lock()
	defer m.autostart.Unlock()
	b, err := os.ReadFile(m.autostartFile())
	if err != nil {
		return fmt.Errorf("guests that wait for mains power: %w", err)
	}
	boot, waiting, _ := strings.Cut(string(b), "\n")
	if boot != m.boot {
		return nil // Autostart is yet to come
	}
	return m.startWaiting(strings.Fields(waiting))
}

// startWaiting starts guests that wait for mains power, in their order, if there is any. The caller holds autostart.
func (m *Manager) startWaiting(names []string) error {
	if len(names) == 0 || onBattery(m.cfg.PowerSupplies) {
		return nil
	}
	for _, name := range names {
		if def, err := m.store.Get(name); err == nil && def.Autostart {
			m.autostartGuest(name)
		}
	}
	return m.writeWaiting(nil)
}

// autostartGuest starts a guest that is off.
func (m *Manager) autostartGuest(name string) {
	if g, err := m.find(name); err == nil && !g.info.Load().State.Alive() {
		if _, err := m.start(name); err != nil {
			m.log.Warn("guest is not started", "guest", name, "err", err)
		}
	}
}

// startedByHand has a guest that somebody starts wait for mains power no more.
func (m *Manager) startedByHand(name string) {
	m.autostart.Lock()
	defer m.autostart.Unlock()
	b, err := os.ReadFile(m.autostartFile())
	if err != nil {
		return // nothing waits
	}
	boot, waiting, _ := strings.Cut(string(b), "\n")
	names := strings.Fields(waiting)
	if i := slices.Index(names, name); boot == m.boot && i >= 0 {
		if err := m.writeWaiting(slices.Delete(names, i, i+1)); err != nil {
			m.log.Warn("guest still waits for mains power", "guest", name, "err", err)
		}
	}
}

// autostartFile holds the boot of the host in which guests were started, and below it the names of those that wait for mains.
func (m *Manager) autostartFile() string { return filepath.Join(m.cfg.RunDir, "autostarted") }

func (m *Manager) writeWaiting(names []string) error {
	return os.WriteFile(m.autostartFile(), []byte(strings.Join(append([]string{m.boot}, names...), "\n")), 0o600)
}
