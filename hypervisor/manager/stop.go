package manager

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
)

// How a guest is stopped.
const (
	pressEvery     = 10 * time.Second // a guest that is booting loses the first press
	quitLimit      = 3 * time.Second  // for a VMM to take the command to end, and then to end
	killLimit      = 10 * time.Second // for the kernel to end a process
	defaultTimeout = time.Minute      // of a guest whose definition is gone
)

// pressPower stops the guest gently, and in the end by force.
func (g *guest) pressPower() {
	if g.proc == nil {
		g.cancelLaunch()
		return
	}
	again := g.again
	g.begin(func(ctx context.Context, number uint64) {
		if !again {
			g.m.stopDependents(ctx, g)
		}
		g.stopGently(ctx, number)
	})
}

// deadline returns when a guest that is stopped is switched off, which counts from its first power button on.
func (g *guest) deadline(number uint64) (deadline time.Time) {
	g.do(func() {
		if g.task != number {
			return
		}
		if g.rec.Deadline.IsZero() {
			timeout := defaultTimeout
			if g.def != nil {
				timeout = time.Duration(g.def.StopTimeout)
			}
			g.rec.Deadline = time.Now().Add(timeout)
			g.save()
		}
		deadline = g.rec.Deadline
	})
	return deadline
}

// cancelLaunch ends a start before there is a process. StartFailed follows.
func (g *guest) cancelLaunch() {
	if g.cancel != nil {
		g.cancel()
	}
}

func (g *guest) stopGently(ctx context.Context, number uint64) {
	deadline := g.deadline(number)
	if st, err := g.status(ctx); err == nil && st.State == "paused" {
		g.report("is resumed, to hear its power button")
		if err := g.call(ctx, commandLimit, "resume", nil, nil, nil); err != nil {
			g.report("cannot be resumed: %v", err)
		}
	}
	for first := true; ctx.Err() == nil && time.Now().Before(deadline); first = false {
		err := g.call(ctx, answerLimit, "power-button", nil, nil, nil)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && first:
			g.report("power button: %v", err)
		case first:
			g.report("power button pressed; has until %s to end", deadline.Format(time.TimeOnly))
		}
		if g.endsWithin(ctx, min(pressEvery, time.Until(deadline))) {
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	g.report("has not ended after its power button: is switched off")
	g.do(func() {
		if g.task == number && g.state == life.Stopping {
			g.unplug()
		}
	})
}

// endsWithin waits so long for the guest to end, or until ctx does.
func (g *guest) endsWithin(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_, err := g.await(ctx, func(p *published) bool { return p.PID == 0 })
	return err == nil
}

// stopDependents stops the guests that need g, and waits for them.
func (m *Manager) stopDependents(ctx context.Context, g *guest) {
	for _, o := range m.all() {
		p := o.info.Load()
		if !slices.Contains(p.Depends, g.name) || !p.State.Alive() && p.State != life.Waiting && p.State != life.Restarting {
			continue
		}
		g.report("guest %s, which depends on it, is stopped first", o.name)
		if err := m.stopAndWait(ctx, o); err != nil && ctx.Err() == nil {
			g.report("guest %s: %v", o.name, err)
		}
	}
}

// unplug ends the VMM, whether it listens or not.
func (g *guest) unplug() {
	if g.proc == nil {
		g.cancelLaunch()
		return
	}
	p := g.proc
	g.unplugged = true
	g.begin(func(ctx context.Context, number uint64) {
		err := g.call(ctx, quitLimit, "quit", nil, nil, nil)
		if err == nil && g.endsWithin(ctx, quitLimit) {
			return
		}
		g.do(func() { // while it is ours, its number is nobody else's
			if g.proc != p {
				return
			}
			g.report("its VMM does not end by itself: is killed")
			if err := p.kill(unix.SIGKILL); err != nil {
				g.report("its VMM cannot be killed: %v", err)
			}
		})
		if !g.endsWithin(ctx, killLimit) && ctx.Err() == nil {
			g.do(func() {
				if g.task == number {
					g.note = "its VMM was killed, and the kernel has not ended it yet: it waits for a device"
					g.publish()
				}
			})
		}
	})
}

// giveUp lets a guest run on that was to stop.
func (g *guest) giveUp() {
	if g.state != life.Stopping || g.unplugged || g.proc == nil {
		return
	}
	g.abandon()
	g.again, g.rec.Deadline = false, time.Time{}
	_ = g.step(life.GaveUp) // an occurrence
	p := g.proc
	g.spawn(func() { // it may be paused
		st, err := g.status(g.m.ctx)
		g.do(func() {
			if g.proc == p && err == nil {
				g.seen(st)
			}
		})
	})
}
