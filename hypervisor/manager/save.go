package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
)

// Save saves a guest with its memory and ends it; the next start goes on from there. To cancel the job lets it run on.
func (m *Manager) Save(name string) (job uint64, err error) {
	return m.operate(name, life.Save, func(g *guest) error {
		if d := g.running.def; g.def != nil && g.def.Disposable || d != nil && d.Disposable {
			return errors.New("it is disposable: what it has written is dropped when it ends, so that its memory would be of no use")
		}
		return nil
	}, func(ctx context.Context, g *guest) error {
		p, err := g.awaitSaved(ctx)
		if err != nil {
			return err
		}
		if p.failed != nil {
			return p.failed
		}
		if p.State != life.Saved {
			return fmt.Errorf("it was not saved: it is %s: %s", p.State, p.Note)
		}
		return nil
	})
}

// awaitSaved returns when the guest is not being saved any more. If ctx ends, so does the save.
func (g *guest) awaitSaved(ctx context.Context) (*published, error) {
	done := func(p *published) bool { return p.State != life.Saving }
	p, err := g.await(ctx, done)
	if g.cancelled(err) {
		g.do(func() {
			if g.state == life.Saving && g.cancel != nil {
				g.cancel() // the task tells how the guest is then
			}
		})
		if p, e := g.await(g.m.ctx, done); e != nil || p.State != life.Saved {
			return p, err
		}
		return g.info.Load(), nil // too late
	}
	return p, err
}

// tellSave has the VMM save the guest and end.
func (g *guest) tellSave() {
	op := g.op
	display := g.display()
	if err := os.Remove(g.suspendedDir() + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.log.Warn("left over of a saved state", "err", err)
	}
	g.begin(func(ctx context.Context, number uint64) {
		g.m.keepPicture(ctx, display, g.suspendedDir()+".png")
		err := g.holdStill(ctx)
		if err == nil {
			err = g.saveMemory(ctx, g.suspendedDir(), op)
		}
		if err != nil {
			g.dropSaved() // it may be whole all the same
			g.goesOn(number, fmt.Errorf("save: %w", err))
			return
		}
		g.do(func() {
			if g.task == number {
				g.endSaved()
			}
		})
	})
}

// endSaved ends the VMM of a guest whose saved state is on the disk.
func (g *guest) endSaved() {
	g.rec.Resume = false
	g.save()
	g.unplug()
}

// display returns the socket of the guest's display, or "".
func (g *guest) display() string {
	if d := g.running.def; d != nil && d.Display != nil {
		return d.Display.Path
	}
	return ""
}

// settleLimit is how long a VMM may take to end a save that was cancelled.
const settleLimit = 30 * time.Second

// goesOn lets a guest that was paused to be saved run on, and tells how it is now. err, which may be nil, is why the save has
// failed.
func (g *guest) goesOn(number uint64, err error) {
	ctx, cancel := context.WithTimeout(g.m.ctx, settleLimit)
	defer cancel()
	err = errors.Join(err, g.letRun(number))
	st, e := g.status(ctx)
	for e == nil && st.State == "saving" {
		select {
		case <-time.After(watchPause):
			st, e = g.status(ctx)
		case <-ctx.Done():
			e = ctx.Err()
		}
	}
	if e != nil && g.endsWithin(ctx, quitLimit) {
		return // how, its end tells
	}
	g.do(func() {
		if g.task != number || g.state != life.Saving {
			return
		}
		g.rec.Resume = false
		g.failed = err
		if e != nil {
			_ = g.step(life.IsRunning) // as far as can be told; an occurrence
			return
		}
		g.seen(st)
		if g.state == life.Saving { // what it says of itself is older than what is known
			_ = g.step(life.IsRunning)
		}
	})
}
