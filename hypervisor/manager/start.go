package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/internal/broker"
)

// Restarts.
const (
	maxRestartDelay = 5 * time.Minute
	steadyAfter     = 5 * time.Minute // a guest that ran for so long begins with the first delay again
)

// awaitDependencies starts what the guest depends on and waits until all of that is ready.
func (g *guest) awaitDependencies(ctx context.Context, number uint64) {
	def, err := g.m.store.Get(g.name)
	if err != nil {
		g.tell(number, life.StartFailed, err)
		return
	}
	errs := make([]error, len(def.Depends))
	var wg sync.WaitGroup
	for i, name := range def.Depends {
		wg.Go(func() {
			if err := g.m.awaitReady(ctx, name); err != nil {
				errs[i] = fmt.Errorf("it depends on guest %s, which is not ready: %w", name, err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		g.tell(number, life.StartFailed, err)
		return
	}
	g.tell(number, life.DepsReady, nil)
}

// startAllowance is how long a guest may take until it runs, beside the time for its probe.
const startAllowance = time.Minute

// awaitReady starts a guest, if it is off, and waits until it is ready.
func (m *Manager) awaitReady(ctx context.Context, name string) error {
	g, err := m.find(name)
	if err != nil {
		return err
	}
	def, err := m.store.Get(name)
	if err != nil {
		return err
	}
	limit := time.Duration(def.Ready.Timeout) + startAllowance
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("after %v", limit))
	defer cancel()
	off := func(p *published) bool {
		return p.State == life.Defined || p.State == life.Saved || p.State == life.Crashed
	}
	started := false
	for {
		p, err := g.await(ctx, func(p *published) bool { return p.Ready || off(p) })
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case p.Ready:
			return nil
		case started && p.Note != "":
			return errors.New(p.Note)
		case started:
			return errors.New("it has ended")
		}
		// Somebody else may have been faster.
		if _, err := m.Start(name); err != nil && !errors.Is(err, life.ErrNotNow) {
			return err
		}
		started = true
	}
}

// suspension is what is known of a saved state beside its content.
type suspension struct {
	// Snapshot is where it comes from. The disks have been put back then, and their times say nothing.
	Snapshot string `json:"snapshot"`
}

func readJSON[T any](path string) (v T, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	return v, err
}

// launch starts the VMM.
func (g *guest) launch() {
	def, tag := g.def, g.tag()
	if def == nil {
		g.failed, g.note = g.fault, g.fault.Error()
		_ = g.step(life.StartFailed)
		return
	}
	g.rec.Restored = !g.saved().IsZero()
	restored := g.rec.Restored
	g.begin(func(ctx context.Context, number uint64) {
		if err := g.start(ctx, number, def, tag, restored); err != nil {
			g.tell(number, life.StartFailed, err)
		}
	})
}

// start prepares what a VMM needs and starts it. It returns nil if there was a process: what becomes of it is seen by who
// attends it.
func (g *guest) start(ctx context.Context, number uint64, def *store.Guest, tag string, restored bool) error {
	for _, dir := range []string{g.m.logDir(g.name), g.m.runDir(g.name)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := g.m.createImages(def); err != nil {
		return err
	}
	def, err := g.m.withImages(def)
	if err != nil {
		return err
	}
	if err := g.serve(ctx, def); err != nil {
		return err
	}
	if err := def.CheckHost(g.name + ".toml"); err != nil {
		return err
	}
	if def.NICs, err = g.m.networks.attach(ctx, g.name, def.NICs); err != nil {
		return err
	}
	vmm := def.Definition
	from, err := g.startFrom(ctx, number, def)
	if err != nil {
		return err
	}
	if def.Disposable {
		if vmm.Disks, err = g.overlays(ctx, def, from.template); err != nil {
			return err
		}
	}
	l := Launch{Definition: &vmm, File: filepath.Join(g.dir(), "vmm.toml"), Outcome: filepath.Join(g.dir(), outcomeName)}
	text, err := vmm.Marshal()
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.File, text, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(l.Outcome, nil, 0o600); err != nil {
		return err
	}
	if restored {
		l.Restore = g.suspendedDir()
		s, err := readJSON[suspension](g.suspendedDir() + ".json")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l.IgnoreDiskChanges = s.Snapshot != ""
	}
	if from.template != "" {
		l.Restore, l.IgnoreDiskChanges = filepath.Join(from.template, memoryName), true // the copies are as they were
	}
	if l.Log, err = openLog(filepath.Join(g.m.logDir(g.name), vmmLog)); err != nil {
		return err
	}
	defer l.Log.Close()
	if l.UID, err = g.m.uid(g.dir()); err != nil {
		return err
	}
	if l.Cgroup, err = g.newCgroup(def.Shares); err != nil {
		return err
	}
	defer l.Cgroup.Close()
	asks, ask, err := broker.Pair()
	if err != nil {
		return err
	}
	defer ask.Close()
	l.Broker = ask
	serialFrom := fileSize(def.SerialLog())
	recorded := false
	err = g.m.cfg.Launcher.Launch(ctx, l, func(pid int, lacks []cell.Lack) (err error) {
		if !g.do(func() {
			if g.task != number || g.state != life.Starting {
				err = errStopped
				return
			}
			g.rec.Template, g.rec.Key = from.template != "", from.key
			if err = g.enter(pid, def, tag, serialFrom, asks); err == nil {
				recorded = true
				g.tellLacks(lacks)
			}
		}) {
			err = ErrClosed
		}
		return err
	})
	switch {
	case !recorded:
		asks.Close()
	case err != nil:
		g.log.Error("VMM", "err", err)
		return nil
	}
	return err
}

// origin is what a guest starts from.
type origin struct {
	template string      // directory of its template; "" if it boots
	key      templateKey // nil if it has no template, and is to get none
}

// startFrom returns what a guest starts from whose images have been found, and tells why that is not the template which is there.
func (g *guest) startFrom(ctx context.Context, number uint64, def *store.Guest) (o origin, err error) {
	if !def.Template {
		return o, nil
	}
	if o.key, err = g.templateKey(&def.Definition, def.Disks); err != nil {
		return o, fmt.Errorf("template: %w", err)
	}
	dir, why := g.useTemplate(o.key, def)
	if why != "" {
		g.do(func() {
			if g.task == number {
				g.fresh(why)
			}
		})
	}
	if o.template = dir; dir != "" {
		g.spawn(func() {
			if err := readAhead(ctx, dir); err != nil {
				g.log.Warn("template cannot be read ahead", "err", err)
			}
		})
	}
	return o, nil
}

// tellLacks tells what the cell of the guest's VMM has to do without, once and when it is something else.
func (g *guest) tellLacks(lacks []cell.Lack) {
	var all []string
	for _, l := range lacks {
		all = append(all, l.String())
	}
	text := strings.Join(all, "; ")
	if text != g.lacks && text != "" {
		g.report("its cell does without: %s", text)
	}
	g.lacks = text
}

// enter puts a process on record that is about to become the guest's VMM.
func (g *guest) enter(pid int, def *store.Guest, tag string, serialFrom int64, asks *net.UnixConn) error {
	p, err := openProcess(pid, 0)
	if err != nil {
		return err
	}
	p.child = true
	g.proc, g.running, g.change = p, launched{def: def}, 0
	g.rec.Began, g.rec.Tag, g.rec.SerialFrom = time.Now(), tag, serialFrom
	if err := g.writeRecord(); err != nil {
		g.proc, g.running = nil, launched{}
		p.close()
		return err
	}
	g.attend(asks)
	g.publish()
	return nil
}

// schedule has the guest started again after a pause.
func (g *guest) schedule() {
	delay := maxRestartDelay
	if g.def != nil && g.rec.Restarts < 16 {
		delay = min(time.Duration(g.def.RestartDelay)<<g.rec.Restarts, maxRestartDelay)
	}
	g.rec.Restarts++
	g.restartAt = time.Now().Add(delay)
	g.report("is started again in %v", delay)
	g.begin(func(ctx context.Context, number uint64) {
		select {
		case <-time.After(delay):
			g.tell(number, life.Due, nil)
		case <-ctx.Done():
		}
	})
}
