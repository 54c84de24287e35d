package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// guest is one guest. Its owner, the goroutine of own, alone touches what is below that comment; others ask it by do.
type guest struct {
	m       *Manager
	name    string
	log     *slog.Logger
	calls   chan func()
	gone    chan struct{} // closed by end
	once    sync.Once
	info    atomic.Pointer[published]
	thumb   thumbnail
	tasks   sync.WaitGroup // what runs beside the owner
	serving sync.WaitGroup // storage daemons that are being ended

	// The owner's:
	def    *store.Guest // nil if fault is not
	fault  error
	state  life.State
	since  time.Time
	note   string
	reason string // why its machine has paused it
	failed error  // why the last start, stop or save has failed
	busy   string // why it may not be started now, nor changed: its disks are being replaced

	proc    *process // the VMM, if there is one
	running launched // what proc was started as
	rec     record   // what is on the disk about it, if it is not simply off
	reboots int
	ready   bool
	again   bool

	restartAt time.Time
	task      uint64             // number of the task that may still tell something: of a start, or a restart
	cancel    context.CancelFunc // ends the task that is under way; nil if there is none
	op        *progress          // of the job that gives the command which is being taken
	answer    chan error         // of who gives a command that is answered soon
	order     order              // for the snapshot that is being made
	keys      map[string][]byte  // of encrypted disks
	unplugged bool
	pausedFor string // what note says of why the machine has paused the guest
	change    uint64 // the newest that the VMM has told of
	lacks     string // of its cell, as told last
}

// launched is what of a definition counts while the VMM runs that was started with it.
type launched struct {
	def *store.Guest // as it was then; nil if that is not known any more
	end context.CancelFunc
}

// published is a guest as others see it.
type published struct {
	Guest
	failed  error
	changed chan struct{} // closed when another one takes its place
}

// own carries out what others ask for, one after the other.
func (g *guest) own() {
	defer func() {
		g.tasks.Wait()
		if g.proc != nil {
			g.proc.close()
		}
	}()
	for {
		select {
		case f := <-g.calls:
			f()
		case <-g.gone:
			if g.cancel != nil {
				g.cancel()
			}
			if g.running.end != nil {
				g.running.end()
			}
			return
		}
	}
}

// end ends the owner. The VMM runs on.
func (g *guest) end() { g.once.Do(func() { close(g.gone) }) }

// do has the owner call f, and waits for that. It reports whether there still is an owner.
func (g *guest) do(f func()) bool {
	done := make(chan struct{})
	select {
	case g.calls <- func() { defer close(done); f() }:
		<-done
		return true
	case <-g.gone:
		return false
	}
}

func (g *guest) dir() string { return g.m.stateDir(g.name) }

// suspendedDir is where the saved state is that a start goes on from.
func (g *guest) suspendedDir() string { return filepath.Join(g.dir(), "suspended") }

// saved returns when that was made; zero if there is none.
func (g *guest) saved() time.Time {
	st, err := os.Stat(filepath.Join(g.suspendedDir(), snap.StateName))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

func (g *guest) facts() life.Facts { return life.Facts{Saved: !g.saved().IsZero(), Again: g.again} }

// step does what follows from e. It is the only place where the state changes.
func (g *guest) step(e life.Event) error { return g.stepWith(e, g.facts()) }

func (g *guest) stepWith(e life.Event, f life.Facts) error {
	to, action, err := life.Next(g.state, e, f)
	if err != nil {
		return fmt.Errorf("guest %s: %w", g.name, err)
	}
	if to != g.state {
		tell := g.log.Info
		if to == life.Crashed {
			tell = g.log.Warn
		}
		tell("guest is "+string(to), "state", string(to), "before", string(g.state), "because", string(e), "note", g.note)
		g.state, g.since = to, time.Now()
	}
	g.act(action)
	g.save()
	g.publish()
	return nil
}

// save brings to the disk what the next manager has to know.
func (g *guest) save() {
	if g.state == life.Defined || g.state == life.Saved {
		if err := removeRecord(g.dir()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			g.log.Error("record cannot be removed", "err", err)
		}
		g.rec = record{Restarts: g.rec.Restarts}
		return
	}
	if err := g.writeRecord(); err != nil {
		g.log.Error("record cannot be written", "err", err)
	}
}

func (g *guest) writeRecord() error {
	g.rec.Boot, g.rec.State, g.rec.Note, g.rec.Since, g.rec.Again = g.m.boot, g.state, g.note, g.since, g.again
	g.rec.PID, g.rec.Start = 0, 0
	if g.proc != nil {
		g.rec.PID, g.rec.Start = g.proc.pid, g.proc.start
	}
	if err := os.MkdirAll(g.dir(), 0o700); err != nil {
		return err
	}
	return g.rec.write(g.dir())
}

// publish lets others see how the guest is.
func (g *guest) publish() {
	i := Guest{
		Name: g.name, State: g.state, Since: g.since, Note: g.note, Reason: g.reason, Ready: g.ready, Saved: g.saved(), Began: g.rec.Began, Reboots: g.reboots,
		Restarts: g.rec.Restarts,
	}
	if g.state == life.Restarting {
		i.RestartAt = g.restartAt
	}
	if g.fault != nil {
		i.Fault = g.fault.Error()
	}
	if d := g.def; d != nil {
		i.Label, i.Color, i.Icon, i.Slot, i.UUID = d.Label, d.Color, d.Icon, d.Slot, d.UUID
		i.CPUs, i.Memory, i.Autostart, i.Disposable, i.Depends = d.CPUs, uint64(d.Memory), d.Autostart, d.Disposable, d.Depends
	}
	if g.proc != nil {
		i.PID = g.proc.pid
		i.Control = g.control()
		if d := g.running.def; d != nil {
			i.Stale = g.def == nil || g.tag() != g.rec.Tag
			if d.Serial.Mode == "socket" {
				i.Serial = d.Serial.Path
			}
			if d.Display != nil {
				i.Display = d.Display.Path
			}
			if d.Console != nil {
				i.Console = d.Console.Path
			}
			if d.Vsock != nil {
				i.Vsock = d.Vsock.Path
			}
		}
	}
	// First of all: what others do because of this, subscribers hear after it.
	g.m.bus.send(Event{Kind: GuestChanged, Name: g.name, Guest: &i})
	old := g.info.Swap(&published{Guest: i, failed: g.failed, changed: make(chan struct{})})
	close(old.changed)
}

// tag is that of the definition as it is now.
func (g *guest) tag() string {
	_, tag, err := g.m.store.Text(g.name)
	if err != nil {
		return ""
	}
	return tag
}

// await returns when the guest is as ok wants it.
func (g *guest) await(ctx context.Context, ok func(p *published) bool) (*published, error) {
	for {
		p := g.info.Load()
		if ok(p) {
			return p, nil
		}
		select {
		case <-p.changed:
		case <-g.gone:
			return p, ErrClosed
		case <-ctx.Done():
			return p, ctx.Err()
		}
	}
}

// redefine takes a new definition into use.
func (g *guest) redefine() {
	g.def, g.fault = g.m.store.Get(g.name)
	g.publish()
}

// report tells those who listen what is being done.
func (g *guest) report(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	g.log.Info(text)
	g.m.bus.send(Event{Kind: GuestStep, Name: g.name, Text: text})
}

func (g *guest) errBusy() error { return fmt.Errorf("guest %s: %w: %s", g.name, ErrBusy, g.busy) }

// spawn runs f beside the owner.
func (g *guest) spawn(f func()) { g.tasks.Go(f) }

// begin runs a task that can be cancelled, and forgets what one before it may still tell: see current.
func (g *guest) begin(f func(ctx context.Context, number uint64)) {
	g.abandon()
	ctx, cancel := context.WithCancel(g.m.ctx)
	g.cancel = cancel
	number := g.task
	g.spawn(func() {
		defer cancel()
		f(ctx, number)
	})
}

// abandon ends the task that is under way.
func (g *guest) abandon() {
	g.task++
	if g.cancel != nil {
		g.cancel()
		g.cancel = nil
	}
}

// tell has the owner take a step for the task of that number, if it is still the one that counts.
func (g *guest) tell(number uint64, e life.Event, err error) {
	g.do(func() {
		if g.task != number {
			return
		}
		if err != nil {
			g.failed, g.note = err, err.Error()
		}
		_ = g.step(e) // an occurrence
	})
}

// act does what the state machine asks for.
func (g *guest) act(a life.Action) {
	switch a {
	case life.Await:
		g.failed, g.note = nil, ""
		g.begin(g.awaitDependencies)
	case life.AbandonStart:
		g.abandon()
		g.failed, g.note, g.rec.Restarts = errStopped, "", 0
	case life.Launch:
		g.launch()
	case life.TellPause:
		g.command("pause")
	case life.TellResume:
		g.command("resume")
	case life.TellSave:
		g.tellSave()
	case life.TellSnapshot:
		g.tellSnapshot()
	case life.PressPower:
		g.pressPower()
	case life.Unplug:
		g.unplug()
	case life.Clear:
		g.clear()
		g.dropKeys()
	case life.ClearAwait:
		g.clear()
		g.rec.Restarts = 0
		g.act(life.Await)
	case life.Schedule:
		g.clear()
		g.schedule()
	case life.Drop:
		g.note, g.failed = "", nil
		g.dropSaved()
		g.dropTemplate()
	}
}

// errStopped is why a start has failed that somebody has stopped.
var errStopped = errors.New("it was stopped")

// clear forgets the VMM, which is gone, and drops what is left of it.
func (g *guest) clear() {
	g.abandon()
	if g.running.end != nil {
		g.running.end()
	}
	if g.proc != nil {
		g.proc.close()
		g.proc = nil
	}
	g.running = launched{}
	g.ready, g.again, g.unplugged, g.reboots, g.reason = false, false, false, 0, ""
	g.rec = record{Restarts: g.rec.Restarts}
	g.m.stats.forget(g.name)
	g.m.networks.release(g.name)
	g.endDaemons()
	g.removeCgroup()
	for _, dir := range []string{g.overlayDir(), g.m.runDir(g.name)} {
		if err := os.RemoveAll(dir); err != nil {
			g.log.Warn("left over of the guest's machine", "err", err)
		}
	}
}

// overlayDir has the copies of disks that a disposable guest writes to.
func (g *guest) overlayDir() string { return filepath.Join(g.dir(), "overlay") }

// dropSaved removes the saved state at once, and what it is made of after that. It must not come back with a crash of the host:
// the disks move on.
func (g *guest) dropSaved() {
	away := filepath.Join(g.dir(), tmpPrefix+"suspended")
	err := os.Rename(g.suspendedDir(), away)
	if err == nil {
		err = syncPath(g.dir())
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, path := range []string{away, g.suspendedDir() + ".json", g.suspendedDir() + ".png"} {
		err = errors.Join(err, os.RemoveAll(path))
	}
	if err != nil {
		g.log.Error("saved state cannot be removed", "err", err)
	}
}
