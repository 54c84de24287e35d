package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lodgehv/lodge/hypervisor/manager/job"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// progress is how far a task is, told to the job that waits for it.
type progress struct {
	to atomic.Pointer[func(done, total int64)]
}

func (p *progress) set(done, total int64) {
	if p == nil {
		return
	}
	if f := p.to.Load(); f != nil {
		(*f)(done, total)
	}
}

// operate begins a job that gives a guest the command e and waits with work for what becomes of it. prepare, which may be nil,
// is called by the guest's owner before.
func (m *Manager) operate(
	name string, e life.Event, prepare func(g *guest) error, work func(ctx context.Context, g *guest) error,
) (id uint64, err error) {
	g, err := m.find(name)
	if err != nil {
		return 0, err
	}
	if !g.do(func() {
		if e == life.Start && g.busy != "" {
			err = g.errBusy()
			return
		}
		if _, _, err = life.Next(g.state, e, g.facts()); err != nil {
			err = fmt.Errorf("guest %s: %w", name, err)
			return
		}
		if prepare != nil {
			if err = prepare(g); err != nil {
				err = fmt.Errorf("guest %s: %w", name, err)
				return
			}
		}
		begun := make(chan struct{})
		p := &progress{}
		if id, err = m.jobs.Start(string(e), name, func(ctx context.Context, report func(done, total int64)) error {
			p.to.Store(&report)
			<-begun
			if err := work(ctx, g); err != nil {
				return fmt.Errorf("guest %s: %w", name, err)
			}
			return nil
		}); err != nil {
			return
		}
		defer close(begun)
		g.failed = nil
		g.op = p
		err = g.step(e)
		g.op = nil
	}) {
		return 0, ErrClosed
	}
	return id, err
}

// Start starts a guest, after what it depends on, and from its saved state if there is one. The job ends when it runs; to
// cancel it stops the guest as long as it only waits.
func (m *Manager) Start(name string) (job uint64, err error) {
	m.startedByHand(name)
	return m.start(name)
}

func (m *Manager) start(name string) (job uint64, err error) {
	return m.operate(name, life.Start, func(g *guest) error {
		if g.def == nil {
			return g.fault
		}
		g.rec.Restarts = 0
		return nil
	}, func(ctx context.Context, g *guest) error {
		p, err := g.await(ctx, func(p *published) bool { return p.State != life.Waiting && p.State != life.Starting })
		if g.cancelled(err) {
			g.do(func() {
				if g.state == life.Waiting {
					_ = g.step(life.Stop)
				}
			})
			return err
		}
		if err != nil || p.State.Alive() {
			return err
		}
		if p.failed != nil {
			return p.failed
		}
		if p.Note != "" {
			return errors.New(p.Note)
		}
		return nil // a guest that has switched itself off at once
	})
}

// Stop presses a guest's power button, after the guests that depend on it have stopped, and switches it off if it has not ended
// after its stop timeout. Each step is reported. To cancel the job lets the guest run on.
func (m *Manager) Stop(name string) (job uint64, err error) {
	return m.operate(name, life.Stop, nil, awaitEnd)
}

// Reboot does what Stop does, and starts the guest again.
func (m *Manager) Reboot(name string) (job uint64, err error) {
	return m.operate(name, life.Reboot, func(g *guest) error {
		if g.def == nil {
			return g.fault
		}
		g.again = true
		return nil
	}, func(ctx context.Context, g *guest) error {
		if err := awaitEnd(ctx, g); err != nil {
			return err
		}
		p, err := g.await(ctx, func(p *published) bool { return p.State != life.Waiting && p.State != life.Starting })
		if err != nil || p.State.Alive() {
			return err
		}
		if p.failed != nil {
			return p.failed
		}
		return errors.New("it has not started again: " + p.Note)
	})
}

// Kill switches a guest off, as by pulling the plug.
func (m *Manager) Kill(name string) (job uint64, err error) {
	return m.operate(name, life.Kill, func(g *guest) error {
		g.again = false
		return nil
	}, awaitEnd)
}

// cancelled reports whether somebody has cancelled a job. The end of the manager, which the guest is not to feel, is none.
func (g *guest) cancelled(err error) bool {
	return errors.Is(err, context.Canceled) && g.m.ctx.Err() == nil
}

// awaitEnd waits for the end of a guest that is being stopped. If ctx ends before, the guest runs on, unless its plug was
// pulled.
func awaitEnd(ctx context.Context, g *guest) error {
	pid := g.info.Load().PID // of a reboot the next state may be that of another machine
	p, err := g.await(ctx, func(p *published) bool { return p.State != life.Stopping || p.PID != pid })
	if g.cancelled(err) {
		g.do(g.giveUp)
		return err
	}
	if err == nil && p.PID == pid && p.State.Alive() {
		return errors.New("its stop was cancelled")
	}
	return err
}

// StopAll stops all guests, those of the highest stop priority first, but what depends on a guest always before it, and waits.
func (m *Manager) StopAll(ctx context.Context) error {
	var list []*store.Guest
	for _, g := range m.all() {
		if s := g.info.Load().State; s.Alive() || s == life.Waiting || s == life.Restarting {
			def, err := m.store.Get(g.name)
			if err != nil {
				def = &store.Guest{}
				def.Name = g.name
			}
			list = append(list, def)
		}
	}
	slices.SortStableFunc(list, func(a, b *store.Guest) int { return b.StopPriority - a.StopPriority })
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, def := range list {
		if i > 0 && def.StopPriority != list[i-1].StopPriority {
			wg.Wait()
		}
		if g, err := m.find(def.Name); err == nil {
			wg.Go(func() { errs[i] = m.stopAndWait(ctx, g) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stopAndWait returns when a guest is off, which is stopped unless it ends by itself before that.
func (m *Manager) stopAndWait(ctx context.Context, g *guest) error {
	for {
		p, err := g.await(ctx, func(p *published) bool { return p.State != life.Saving })
		if err != nil {
			return err
		}
		if !p.State.Alive() && p.State != life.Waiting && p.State != life.Restarting {
			return nil
		}
		id, err := m.Stop(g.name)
		if errors.Is(err, life.ErrNotNow) {
			continue // it is another one by now
		}
		if err != nil {
			return err
		}
		switch s, err := m.jobs.Wait(ctx, id); {
		case errors.Is(err, job.ErrNotFound): // it has ended, and others since
		case err != nil || s.Err != nil:
			return errors.Join(err, s.Err)
		case s.State == job.Cancelled:
			return errors.New("its stop was cancelled")
		}
	}
}

// Pause stops a guest where it is.
func (m *Manager) Pause(ctx context.Context, name string) error { return m.ask(ctx, name, life.Pause) }

// Resume lets it run on.
func (m *Manager) Resume(ctx context.Context, name string) error {
	return m.ask(ctx, name, life.Resume)
}

// ask gives a guest a command that its machine answers soon.
func (m *Manager) ask(ctx context.Context, name string, e life.Event) error {
	g, err := m.find(name)
	if err != nil {
		return err
	}
	answer := make(chan error, 1)
	if !g.do(func() {
		g.answer = answer
		if err = g.step(e); err != nil || g.answer != nil { // nothing is to be done
			answer <- err
		}
		g.answer = nil
	}) {
		return ErrClosed
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Discard drops what is said of a guest's crash; or else its saved state, so that the next start is a cold one.
func (m *Manager) Discard(name string) error {
	g, err := m.find(name)
	if err != nil {
		return err
	}
	if !g.do(func() {
		if g.busy != "" {
			err = g.errBusy()
			return
		}
		was := g.state
		if err = g.step(life.Discard); err == nil && was == life.Crashed {
			g.note, g.failed = "", nil
			g.publish()
		}
	}) {
		return ErrClosed
	}
	return err
}
