package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

// guest is the guest of this process: one machine after the other, since a reboot builds a new one.
type guest struct {
	def *definition.Definition
	res *resources
	log *slog.Logger

	started time.Time

	leaving chan struct{} // closed by quit
	quit    func()        // ends run

	command sync.Mutex // held while the guest is paused, resumed or saved, which takes long; before mu
	saved   bool       // and to run no more; with command

	mu      sync.Mutex
	machine *machine.Machine // nil between two
	life    context.Context  // ends with machine
	changed chan struct{}    // closed and replaced when machine changes
	reboots int
	paused  bool // machine is
	full    bool // machine is paused, or about to be, because the host has no space for what it writes to a disk
	saving  bool
	exits   uint64        // of the machines before this one
	changes uint64        // how often what status tells of the above has changed
	told    chan struct{} // closed and replaced when it does
}

// ended is the outcome of a guest that this process ends.
var ended = machine.Outcome{Reason: machine.Closed, Detail: "lodge-vmm was told to end"}

func newGuest(def *definition.Definition, res *resources, log *slog.Logger) *guest {
	leaving := make(chan struct{})
	g := &guest{def: def, res: res, log: log, started: time.Now(), changed: make(chan struct{}),
		told: make(chan struct{}), leaving: leaving, quit: sync.OnceFunc(func() { close(leaving) })}
	if res != nil {
		res.diskFull = g.diskFull
	}
	return g
}

// rebootEvery is how often a guest may reboot that does so over and over.
const rebootEvery = time.Second

// run runs the guest until it powers off, or ctx ends. build makes the first machine; those after a reboot are new.
func (g *guest) run(ctx context.Context, build func(machine.Config) (*machine.Machine, error)) (machine.Outcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-g.leaving:
			cancel()
		case <-ctx.Done():
		}
	}()
	storm := false
	for {
		m, err := build(g.res.config)
		if err != nil {
			return machine.Outcome{}, err
		}
		began := time.Now()
		o, err := g.live(ctx, m)
		if err != nil {
			return o, err
		}
		if o.Reason != machine.Reboot || ctx.Err() != nil {
			return o, nil
		}
		g.log.Info("guest reboots", "detail", o.Detail)
		g.mu.Lock()
		g.reboots++
		g.tell()
		g.mu.Unlock()
		// A guest that resets at once, over and over, costs the host no more than a machine a second.
		short := time.Since(began) < rebootEvery
		if short && storm {
			select {
			case <-time.After(rebootEvery - time.Since(began)):
			case <-ctx.Done():
				return ended, nil
			}
		}
		storm = short
		build = machine.New
	}
}

// live runs m to its end and closes it.
func (g *guest) live(ctx context.Context, m *machine.Machine) (machine.Outcome, error) {
	life, end := context.WithCancel(ctx)
	g.set(m, life)
	err := m.Start()
	debug.SetGCPercent(25) // the heap is small, and is to stay so; but to collect before now delays the guest
	var o machine.Outcome
	if err == nil {
		o, err = m.Wait(ctx)
	}
	if errors.Is(err, context.Canceled) {
		o, err = ended, nil
	}
	g.set(nil, nil)
	end()
	return o, errors.Join(err, m.Close())
}

func (g *guest) set(m *machine.Machine, life context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine != nil {
		g.exits += g.machine.Exits()
	}
	g.machine, g.life, g.paused, g.full = m, life, false, false
	close(g.changed)
	g.changed = make(chan struct{})
	g.tell()
}

// tell wakes those who watch the guest. With mu.
func (g *guest) tell() {
	g.changes++
	close(g.told)
	g.told = make(chan struct{})
}

// watch returns when changes is another number than after.
func (g *guest) watch(ctx context.Context, after uint64) error {
	for {
		g.mu.Lock()
		changes, told := g.changes, g.told
		g.mu.Unlock()
		if changes != after {
			return nil
		}
		select {
		case <-told:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// current returns the machine and the context that ends with it. Between two it waits for the next.
func (g *guest) current(ctx context.Context) (*machine.Machine, context.Context, error) {
	for {
		g.mu.Lock()
		m, life, changed := g.machine, g.life, g.changed
		g.mu.Unlock()
		if m != nil {
			return m, life, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// receive types p on a device, across reboots. to gives it to that of machine m and returns how much it took before life
// ended.
func (g *guest) receive(ctx context.Context, p []byte, to func(life context.Context, m *machine.Machine, p []byte) (int, error)) error {
	for len(p) > 0 {
		m, life, err := g.current(ctx)
		if err != nil {
			return err
		}
		n, err := to(life, m, p)
		p = p[n:]
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// powerButton presses the machine's power button.
func (g *guest) powerButton(ctx context.Context) error {
	m, _, err := g.current(ctx)
	if err == nil {
		m.PowerButton()
	}
	return err
}

// nmi sends its first vCPU a non-maskable interrupt.
func (g *guest) nmi(ctx context.Context) error {
	m, _, err := g.current(ctx)
	if err != nil {
		return err
	}
	return m.NMI()
}

// pause pauses the machine.
func (g *guest) pause(ctx context.Context) error {
	return g.setPaused(ctx, (*machine.Machine).Pause, true)
}

// resume lets it run again.
func (g *guest) resume(ctx context.Context) error {
	return g.setPaused(ctx, func(m *machine.Machine) error {
		g.mu.Lock()
		g.full = false // before the disks try again, and may say that there still is no space
		g.mu.Unlock()
		return m.Resume()
	}, false)
}

var errSaved = errors.New("the guest was saved and ends")

func (g *guest) setPaused(ctx context.Context, do func(*machine.Machine) error, paused bool) error {
	g.command.Lock()
	defer g.command.Unlock()
	if g.saved {
		return errSaved
	}
	m, _, err := g.current(ctx)
	if err != nil {
		return err
	}
	if err := do(m); err != nil {
		return err
	}
	g.notePaused(m, paused)
	return nil
}

func (g *guest) notePaused(m *machine.Machine, paused bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == m {
		g.paused = paused
		g.tell()
	}
}

// diskFull pauses the guest, whose disk keeps what it could not write until the guest is resumed. A device calls it, which
// a pause waits for: so it happens elsewhere.
func (g *guest) diskFull(err error) {
	g.mu.Lock()
	m, was := g.machine, g.full
	g.full = m != nil
	g.mu.Unlock()
	if m == nil || was { // it ends; or another disk was faster
		return
	}
	g.log.Error("the host has no space for what the guest writes: the guest is paused; make space, then resume it", "err", err)
	go func() {
		g.command.Lock()
		defer g.command.Unlock()
		if err := m.Pause(); err != nil {
			return // it was closed meanwhile
		}
		g.notePaused(m, true)
	}()
}

// saver saves a machine, with the definition of its guest.
type saver func(ctx context.Context, m *machine.Machine, def []byte, progress mem.Progress) error

// save saves the guest by means of to. With stop it does not run again: the caller quits.
func (g *guest) save(ctx context.Context, to saver, stop bool, progress mem.Progress) error {
	if !g.beginSaving() {
		return errors.New("the guest is being saved already: wait for that")
	}
	defer g.endSaving()
	g.command.Lock()
	defer g.command.Unlock()
	if g.saved {
		return errSaved
	}
	m, _, err := g.current(ctx)
	if err != nil {
		return err
	}
	def, err := g.def.Marshal()
	if err != nil {
		return err
	}
	if !stop {
		return to(ctx, m, def, progress)
	}
	wasRunning := m.Running()
	if err := m.Pause(); err != nil {
		return err
	}
	if err := to(ctx, m, def, progress); err != nil {
		if wasRunning {
			err = errors.Join(err, m.Resume())
		}
		return err
	}
	g.saved = true
	g.notePaused(m, true)
	return nil
}

func (g *guest) beginSaving() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.saving
	g.saving = true
	g.tell()
	return !was
}

func (g *guest) endSaving() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.saving = false
	g.tell()
}

// reason says why the guest is paused, if nobody asked for it.
func (g *guest) reason() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paused && g.full {
		return "disk-full"
	}
	return ""
}

// state names what the guest does. It asks not the machine, which answers only after a save.
func (g *guest) state() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.machine == nil:
		return "starting"
	case g.saving:
		return "saving"
	case g.paused:
		return "paused"
	}
	return "running"
}

// restored returns a builder of the machine that was saved in s.
func restored(s *machine.Saved, opt machine.RestoreOptions) func(machine.Config) (*machine.Machine, error) {
	return func(cfg machine.Config) (*machine.Machine, error) {
		m, err := machine.Restore(cfg, s, opt)
		if err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
		return m, nil
	}
}
