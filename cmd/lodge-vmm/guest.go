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

	mu      sync.Mutex
	machine *machine.Machine // nil between two
	life    context.Context  // ends with machine
	changed chan struct{}    // closed and replaced when machine changes
	started time.Time
	reboots int
	saving  bool
	leave   context.CancelFunc // ends run
}

func newGuest(def *definition.Definition, res *resources, log *slog.Logger) *guest {
	return &guest{def: def, res: res, log: log, changed: make(chan struct{}), started: time.Now()}
}

// run runs the guest until it powers off, or ctx ends. build makes the first machine; those after a reboot are new.
func (g *guest) run(ctx context.Context, build func(machine.Config) (*machine.Machine, error)) (machine.Outcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.mu.Lock()
	g.leave = cancel
	g.mu.Unlock()
	for {
		m, err := build(g.res.config)
		if err != nil {
			return machine.Outcome{}, err
		}
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
		g.mu.Unlock()
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
		o, err = machine.Outcome{Reason: machine.Closed, Detail: "lodge-vmm was told to end"}, nil
	}
	g.set(nil, nil)
	end()
	return o, errors.Join(err, m.Close())
}

func (g *guest) set(m *machine.Machine, life context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.machine, g.life = m, life
	close(g.changed)
	g.changed = make(chan struct{})
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

// save saves the guest to dir and, with stop, ends it without letting it run on.
func (g *guest) save(ctx context.Context, dir string, stop bool, progress mem.Progress) error {
	m, _, err := g.current(ctx)
	if err != nil {
		return err
	}
	def, err := g.def.Marshal()
	if err != nil {
		return err
	}
	g.setSaving(true)
	defer g.setSaving(false)
	if stop {
		wasRunning := m.Running()
		if err := m.Pause(); err != nil {
			return err
		}
		if err := m.Save(ctx, dir, def, progress); err != nil {
			if wasRunning {
				err = errors.Join(err, m.Resume())
			}
			return err
		}
		g.quit()
		return nil
	}
	return m.Save(ctx, dir, def, progress)
}

// quit ends run.
func (g *guest) quit() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.leave != nil {
		g.leave()
	}
}

func (g *guest) setSaving(saving bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.saving = saving
}

// state names what the guest does. It does not wait for a save.
func (g *guest) state() string {
	g.mu.Lock()
	m, saving := g.machine, g.saving
	g.mu.Unlock()
	switch {
	case m == nil:
		return "starting"
	case saving:
		return "saving"
	case m.Running():
		return "running"
	}
	return "paused"
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
