package appliance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/u-root/u-root/pkg/kmodule"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/internal/uevent"
)

// aliases are the patterns of modules.alias, by what is before their first colon ("pci", "usb"); by "" those that have a wildcard there.
type aliases map[string][]alias

type alias struct{ pattern, module string }

// readAliases reads lines "alias PATTERN MODULE" (modules.alias, kmod's depmod(8)); comments and what else is there are skipped.
func readAliases(r io.Reader) (aliases, error) {
	a := make(aliases)
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		w := strings.Fields(s.Text())
		if len(w) != 3 || w[0] != "alias" {
			continue
		}
		p := plain(w[1])
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("modules.alias: line %d: %q: %w", n, w[1], err)
		}
		bus, _, _ := strings.Cut(p, ":")
		if strings.ContainsAny(bus, "*?[\\") {
			bus = ""
		}
		a[bus] = append(a[bus], alias{p, w[2]})
	}
	return a, s.Err()
}

// plain makes a modalias or a pattern fit for path.Match, whose wildcards do not match a slash. Firmware's names have them.
func plain(s string) string { return strings.ReplaceAll(s, "/", "\x01") }

// match returns the modules for a device, or for a name that the kernel asks for, each once.
func (a aliases) match(modalias string) []string {
	name := plain(modalias)
	bus, _, _ := strings.Cut(name, ":")
	var found []string
	seen := make(map[string]bool)
	for _, l := range slices.Concat(a[bus], a[""]) {
		if ok, _ := path.Match(l.pattern, name); ok && !seen[l.module] { // the pattern was tried before
			seen[l.module] = true
			found = append(found, l.module)
		}
	}
	return found
}

// modules loads kernel modules, each once, side by side: many wait for their devices while they are loaded.
type modules struct {
	aliases aliases
	load    func(name, params string) error
	log     *slog.Logger

	mu    sync.Mutex
	tried map[string]<-chan struct{} // closed when it is loaded, or cannot be
}

// openModules reads the indices of this kernel's modules.
func openModules(log *slog.Logger) (*modules, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]), "modules.alias"))
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w: is the image made for this kernel?", err)
	}
	defer f.Close()
	a, err := readAliases(f)
	if err != nil {
		return nil, err
	}
	p, err := kmodule.NewProber(kmodule.ProbeOpts{})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	return &modules{aliases: a, load: p.Probe, tried: make(map[string]<-chan struct{}), log: log}, nil
}

// device begins to load what drives a device, and returns what is closed when that is loaded which services need when they start: KVM, and what
// screens need (PCI class 3).
func (m *modules) device(modalias string) (urgent []<-chan struct{}) {
	screen := strings.HasPrefix(modalias, "pci:") && strings.Contains(modalias, "bc03")
	for _, name := range m.aliases.match(modalias) {
		if c := m.module(name); screen || strings.HasPrefix(name, "kvm") {
			urgent = append(urgent, c)
		}
	}
	return urgent
}

// module begins to load a module, and returns what is closed when that is done. That there is no such hardware is no fault.
func (m *modules) module(name string) (loaded <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.tried[name]; ok {
		return c
	}
	done := make(chan struct{})
	m.tried[name] = done
	go func() {
		defer close(done)
		if err := m.load(name, ""); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
			m.log.Warn("kernel module", "module", name, "err", err)
		}
	}()
	return done
}

// loadAll loads some, and returns when that is done.
func (m *modules) loadAll(names ...string) {
	var loading []<-chan struct{}
	for _, name := range names {
		loading = append(loading, m.module(name))
	}
	await(loading)
}

func await(all []<-chan struct{}) {
	for _, c := range all {
		<-c
	}
}

// coldplug begins to load what drives the devices that are there: those in a sysfs. It waits for what is urgent.
func (m *modules) coldplug(sys string) error {
	var urgent []<-chan struct{}
	defer func() { await(urgent) }()
	return filepath.WalkDir(filepath.Join(sys, "devices"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) { // it has gone meanwhile
				return nil
			}
			return err
		}
		if d.Name() != "modalias" || d.IsDir() {
			return nil
		}
		if b, err := os.ReadFile(p); err == nil { // of a device that has gone there is nothing to load
			urgent = append(urgent, m.device(strings.TrimSpace(string(b)))...)
		}
		return nil
	})
}

// hotplug loads what drives the devices that come, until ctx is done.
func (m *modules) hotplug(ctx context.Context, c *uevent.Conn) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	for {
		switch e, err := c.Read(); {
		case errors.Is(err, uevent.ErrLost):
			if err := m.coldplug("/sys"); err != nil {
				m.log.Warn("devices", "err", err)
			}
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case e.Action == "add":
			if a := e.Get("MODALIAS"); a != "" {
				m.device(a)
			}
		}
	}
}

// modprobePath is what the kernel starts when it wants a module by name, such as "fs-ext4": a link to this program.
const modprobePath = "/run/modprobe"

// IsModprobe reports whether the kernel has started this program to have modules loaded.
func IsModprobe(args []string) bool { return len(args) > 0 && args[0] == modprobePath }

// Modprobe loads the module that the kernel asks for: modprobe -q -- NAME (kernel/kmod.c).
func Modprobe(args []string) error {
	m, err := openModules(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	name := args[len(args)-1]
	found := m.aliases.match(name)
	if len(found) == 0 {
		found = []string{name}
	}
	var errs []error
	for _, f := range found {
		errs = append(errs, m.load(f, ""))
	}
	return errors.Join(errs...)
}

// serveModprobe has the kernel ask this program.
func serveModprobe() error {
	if err := os.Symlink("/init", modprobePath); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.WriteFile("/proc/sys/kernel/modprobe", []byte(modprobePath), 0o644)
}
