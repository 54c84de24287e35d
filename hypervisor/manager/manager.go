// Package manager turns single machines into a system: it keeps the definitions of guests, starts and stops their VMMs, saves
// them, hears what becomes of them and tells who wants to know. It knows nothing of D-Bus and prints nothing: its methods are
// what an API calls.
//
// Each guest has an owner, a goroutine that alone changes its state (package life) and sleeps while nothing happens. What takes
// time runs beside it, as a job if somebody asked for it, and tells the owner how it went. docs/manager.md describes the
// directories and what happens when something is killed.
package manager

import (
	"context"
	"errors"
	"fmt"
	"image"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/job"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/network/bridge"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// Config says where things are and who does what.
type Config struct {
	ConfigDir string // definitions: guests/NAME.toml, pools/NAME.toml, networks/NAME.toml
	StateDir  string // what outlives a boot: guests/NAME, versions/NAME, images
	RunDir    string // sockets, which do not: guests/NAME, networks/NAME

	Launcher Launcher
	LodgeNet string       // the program lodge-net, which carries networks
	Bridge   *bridge.Host // what has the host's kernel carry networks; nil: it carries none
	Cgroups  *cell.Parent // what VMMs' control groups are made in; nil: they have none

	// Screen returns what a guest shows, over the socket of its display. nil: there are no thumbnails.
	Screen func(ctx context.Context, socket string) (image.Image, error)

	PowerSupplies string // where the kernel tells of batteries and chargers; "" is /sys/class/power_supply

	Log *slog.Logger // nil is none
}

// Errors that a caller may want to tell apart, beside those of store, life and job. What is returned says which guest it is
// about.
var (
	ErrBusy     = errors.New("busy")
	ErrClosed   = errors.New("the manager ends")
	ErrNoMemory = errors.New("it has no memory of a running guest")
)

// Manager is all guests of a host. Its methods may be called from any goroutine.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	boot  string
	lock  *os.File
	store *store.Store
	jobs  *job.Jobs
	bus   bus
	stats sampler

	networks networks

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	defining sync.Mutex // held while the set of definitions changes; before mu
	naming   sync.Mutex // held while a user is chosen

	autostart sync.Mutex // held while guests are started with the host, or because it has got mains power

	poolsMu sync.Mutex
	pools   map[string]*openPool

	mu     sync.Mutex
	guests map[string]*guest
	closed bool
}

// maxJobs is how many jobs run at a time: one for each guest, and some.
const maxJobs = 300

// New opens the directories, which it makes if need be, finds the guests that run already, and takes up what the manager before
// it was killed in the middle of. There is one manager of a directory at a time.
func New(cfg Config) (_ *Manager, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.PowerSupplies == "" {
		cfg.PowerSupplies = powerSupplies
	}
	m := &Manager{cfg: cfg, log: cfg.Log, guests: make(map[string]*guest), pools: make(map[string]*openPool)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if m.boot, err = bootID(); err != nil {
		return nil, err
	}
	for _, dir := range []*string{&m.cfg.ConfigDir, &m.cfg.StateDir, &m.cfg.RunDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{m.stateDir(""), filepath.Join(m.cfg.RunDir, "guests")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if m.lock, err = lockDir(m.cfg.StateDir); err != nil {
		return nil, err
	}
	if err := m.loadPools(); err != nil {
		return nil, err
	}
	if err := m.openNetworks(); err != nil {
		return nil, err
	}
	m.store, err = store.Open(store.Config{
		Dir: filepath.Join(m.cfg.ConfigDir, "guests"), Versions: filepath.Join(m.cfg.StateDir, "versions"), Sockets: m.sockets, Images: m.imagePath,
		Network: m.networks.usable,
	})
	if err != nil {
		return nil, err
	}
	m.jobs = job.New(job.Options{Running: maxJobs, Changed: func(s job.Status) {
		m.bus.send(Event{Kind: JobChanged, Name: s.Object, Job: &s})
	}})
	m.stats.m = m
	m.finishMaking()
	for name, fault := range m.store.Faults() {
		m.log.Warn("definition cannot be used", "guest", name, "err", fault)
	}
	return m, m.recover()
}

// lockDir makes us the only manager of a directory until the file is closed or this process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// Of a manager that was killed as it started a VMM, the child has the lock until it executes the program.
	for deadline := time.Now().Add(lockLimit); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("%s: %w: does another manager run already?", dir, err)
		}
	}
}

// How long a manager waits for the one before it, and how often it looks.
const (
	lockLimit = 2 * time.Second
	lockRetry = 20 * time.Millisecond
)

// recover makes the guests: of definitions, and of what is left of others.
func (m *Manager) recover() error {
	names := make(map[string]bool)
	for _, g := range m.store.List() {
		names[g.Name] = true
	}
	for name := range m.store.Faults() {
		names[name] = true
	}
	dirs, err := os.ReadDir(m.stateDir(""))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if name := d.Name(); definition.IsName(name) && !m.finishDeletion(name, names[name]) {
			if r, err := readRecord(m.stateDir(name)); err != nil {
				m.log.Warn("record of a guest is damaged", "guest", name, "err", err)
				_ = removeRecord(m.stateDir(name))
			} else if r != nil {
				names[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		m.add(name, true)
	}
	for _, g := range m.all() {
		g.do(g.takeUp)
	}
	m.networks.settle()
	for _, g := range m.all() { // only now, when it is known of all whether they run
		g.do(g.carryOn)
	}
	return nil
}

// add makes the guest of that name and its owner. known is whether something of it may be on the disk.
func (m *Manager) add(name string, known bool) *guest {
	g := &guest{m: m, name: name, calls: make(chan func()), gone: make(chan struct{}), state: life.Defined, since: time.Now(),
		log: m.log.With("guest", name)}
	g.info.Store(&published{changed: make(chan struct{})})
	g.def, g.fault = m.store.Get(name)
	if known {
		g.finishRevert()
		g.state = life.Rest(g.facts())
	}
	g.publish()
	m.mu.Lock()
	m.guests[name] = g
	m.mu.Unlock()
	if !m.background(g.own) {
		g.end()
	}
	return g
}

// background runs f until Close has waited for it. It reports whether there was no Close before.
func (m *Manager) background(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.wg.Go(f)
	return true
}

// Close ends the manager. The guests run on; the next manager finds them.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	if m.jobs != nil {
		m.jobs.Close()
	}
	for _, g := range m.all() {
		g.end()
	}
	m.networks.close()
	m.wg.Wait()
	m.closePools()
	if m.lock != nil {
		m.lock.Close()
	}
}

func (m *Manager) stateDir(guest string) string {
	return filepath.Join(m.cfg.StateDir, "guests", guest)
}
func (m *Manager) runDir(guest string) string { return filepath.Join(m.cfg.RunDir, "guests", guest) }
func (m *Manager) logDir(guest string) string { return filepath.Join(m.stateDir(guest), "logs") }

func (m *Manager) sockets(guest string) store.Sockets {
	return store.Sockets{Run: m.runDir(guest), Logs: m.logDir(guest)}
}

// all returns the guests in the order of their names.
func (m *Manager) all() []*guest {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := slices.Collect(maps.Values(m.guests))
	slices.SortFunc(list, func(a, b *guest) int { return strings.Compare(a.name, b.name) })
	return list
}

func (m *Manager) find(name string) (*guest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch g := m.guests[name]; {
	case m.closed:
		return nil, ErrClosed
	case g != nil:
		return g, nil
	case !definition.IsName(name):
		return nil, fmt.Errorf("%w: %.80q", store.ErrName, name)
	}
	return nil, fmt.Errorf("%w: %s", store.ErrNotFound, name)
}

// Guest is a guest as it was at one moment.
type Guest struct {
	Name        string
	Label       string
	Color, Icon string
	Slot        int
	UUID        string
	CPUs        int
	Memory      uint64 // bytes
	Autostart   bool
	Disposable  bool
	Depends     []string

	// Fault says what is wrong with the definition; the guest cannot be started then, and of the above only Name counts.
	Fault string

	State  life.State
	Since  time.Time // when it came into this state
	Note   string    // for people: why it crashed, why it is paused, that it does not answer
	Reason string    // for programs: why its machine has paused it, such as "disk-full"
	Ready  bool      // it runs, and its probe has succeeded if it has one
	Stale  bool      // it runs with an older definition

	PID     int       // of its VMM; 0 is none
	Began   time.Time // when the VMM was started
	Reboots int       // since then

	Restarts  int       // by the restart policy, one after the other
	RestartAt time.Time // of state Restarting

	Saved time.Time // when the saved state was made that a start goes on from; zero if there is none

	// Sockets, while there is a VMM; "" if it has none.
	Control, Display, Serial, Console, Vsock string
}

// List returns all guests, by name. It waits for nothing.
func (m *Manager) List() []Guest {
	all := m.all()
	list := make([]Guest, len(all))
	for i, g := range all {
		list[i] = g.info.Load().Guest
	}
	return list
}

// Get returns one guest. It waits for nothing.
func (m *Manager) Get(name string) (Guest, error) {
	g, err := m.find(name)
	if err != nil {
		return Guest{}, err
	}
	return g.info.Load().Guest, nil
}

// Subscribe returns a subscription to events from now on.
func (m *Manager) Subscribe() *Subscription { return m.bus.subscribe() }

// Jobs returns the long work that runs and has ended.
func (m *Manager) Jobs() *job.Jobs { return m.jobs }

// Check validates a definition and saves nothing.
func (m *Manager) Check(text []byte) error { return m.store.Check(text) }

// Define adds a guest and returns its name.
func (m *Manager) Define(text []byte) (string, error) {
	m.defining.Lock()
	defer m.defining.Unlock()
	def, err := m.store.Define(text)
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	g, closed := m.guests[def.Name], m.closed
	m.mu.Unlock()
	switch {
	case closed:
		return "", ErrClosed
	case g != nil: // its definition had gone while it ran
		g.do(g.redefine)
	default:
		m.add(def.Name, true)
	}
	m.log.Info("guest defined", "guest", def.Name)
	m.refresh()
	return def.Name, nil
}

// Edit replaces the definition of a guest, if it is still the one that tag belongs to; "" replaces any. A guest that runs gets
// it at its next start.
func (m *Manager) Edit(name string, text []byte, tag string) error {
	m.defining.Lock()
	defer m.defining.Unlock()
	g, err := m.find(name)
	if err != nil {
		return err
	}
	if _, err := m.store.Edit(name, text, tag); err != nil {
		return err
	}
	g.do(g.redefine)
	m.log.Info("definition changed", "guest", name)
	m.refresh()
	return nil
}

// refresh looks at the definitions that were wrong, perhaps because of another one.
func (m *Manager) refresh() {
	if len(m.store.Faults()) > 0 {
		if err := m.reload(); err != nil {
			m.log.Warn("definitions cannot be read", "err", err)
		}
	}
}

// Definition returns a guest's definition as text, and its tag for Edit.
func (m *Manager) Definition(name string) (text []byte, tag string, err error) {
	return m.store.Text(name)
}

// Versions returns the definitions before the current one, the newest first.
func (m *Manager) Versions(name string) ([]store.Version, error) { return m.store.Versions(name) }

// VersionText returns one of them.
func (m *Manager) VersionText(name string, number int) ([]byte, error) {
	return m.store.VersionText(name, number)
}

// Reload reads the definitions of pools, networks and guests anew, which people may have edited by hand.
func (m *Manager) Reload() error {
	m.defining.Lock()
	defer m.defining.Unlock()
	return errors.Join(m.loadPools(), m.networks.reload(), m.reload())
}

// reload is Reload with defining held.
func (m *Manager) reload() error {
	changed, err := m.store.Reload()
	if err != nil {
		return err
	}
	for _, name := range changed {
		_, err := m.store.Get(name)
		g, _ := m.find(name)
		switch {
		case g != nil && errors.Is(err, store.ErrNotFound):
			if g.info.Load().State.Alive() {
				g.do(g.redefine)
			} else if err := m.remove(g); err != nil {
				m.log.Warn("guest whose definition has gone", "guest", name, "err", err)
			}
		case g != nil:
			g.do(g.redefine)
		case !errors.Is(err, store.ErrNotFound):
			m.add(name, true)
		}
	}
	return nil
}

// Delete removes a guest that is off, with its saved state, snapshots and logs. Its disks, which are files of the user's, stay.
func (m *Manager) Delete(name string) error {
	m.defining.Lock()
	defer m.defining.Unlock()
	g, err := m.find(name)
	if err != nil {
		return err
	}
	var refused error
	if !g.do(func() {
		if refused = g.step(life.Change); refused == nil && g.busy != "" {
			refused = g.errBusy()
		}
		if refused == nil {
			if refused = m.deleteDefinition(name); refused == nil {
				g.busy = "it is deleted"
			}
		}
	}) {
		return ErrClosed
	}
	if refused != nil {
		return refused
	}
	m.log.Info("guest deleted", "guest", name)
	return m.remove(g)
}

// deletedName is a file in the directory of a guest that is being deleted: if its definition has gone, so is the rest to.
const deletedName = "deleted"

// deleteDefinition deletes a guest's definition. The next manager knows from then on what to do with what is left of the guest.
func (m *Manager) deleteDefinition(name string) error {
	mark := filepath.Join(m.stateDir(name), deletedName)
	if err := writeFile(mark, true); err != nil && !errors.Is(err, fs.ErrNotExist) { // without a directory, nothing is left
		return err
	}
	err := m.store.Delete(name)
	if err == nil || errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if e := os.Remove(mark); !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// finishDeletion removes what is left of a guest whose deletion was interrupted, and reports whether there was one. defined is
// whether its definition is still there: it was not deleted then.
func (m *Manager) finishDeletion(name string, defined bool) bool {
	mark := filepath.Join(m.stateDir(name), deletedName)
	if _, err := os.Stat(mark); err != nil {
		return false
	}
	left := mark
	if !defined {
		left = m.stateDir(name)
	}
	if err := os.RemoveAll(left); err != nil {
		m.log.Error("left over of a deleted guest", "guest", name, "err", err)
	}
	return !defined
}

// remove drops a guest that has no definition and no VMM any more, and all that is kept of it.
func (m *Manager) remove(g *guest) error {
	g.end()
	m.mu.Lock()
	delete(m.guests, g.name)
	m.mu.Unlock()
	m.stats.forget(g.name)
	m.bus.send(Event{Kind: GuestDeleted, Name: g.name})
	return errors.Join(os.RemoveAll(m.stateDir(g.name)), os.RemoveAll(m.runDir(g.name)))
}
