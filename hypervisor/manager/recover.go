package manager

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/internal/procstat"
)

// takeUp finds out how the guest is, from what the manager before this one has left. It begins nothing.
func (g *guest) takeUp() {
	g.removeTemporary()
	rec, err := readRecord(g.dir())
	if err != nil || rec == nil {
		g.clear()
		g.state = life.Rest(g.facts())
		g.save()
		g.publish()
		return
	}
	g.state, g.since, g.note, g.again = rec.State, rec.Since, rec.Note, rec.Again
	g.rec = *rec
	if rec.State == life.Paused {
		g.pausedFor = rec.Note
	}
	switch {
	case rec.Boot != g.m.boot:
		g.afterHost()
	case rec.PID != 0:
		g.findVMM()
	case rec.State == life.Crashed || rec.State == life.Restarting:
		g.clear()
	case rec.State == life.Waiting || rec.State == life.Starting: // no VMM was on record yet
		g.clear()
		g.state = life.Waiting
	default: // what cannot be
		g.clear()
		g.state, g.note = life.Rest(g.facts()), ""
	}
	g.save()
	g.publish()
}

// removeTemporary removes what was not finished.
func (g *guest) removeTemporary() {
	for _, dir := range []string{g.dir(), g.snapshotsDir()} {
		files, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, f := range files {
			if strings.HasPrefix(f.Name(), tmpPrefix) {
				err = errors.Join(err, os.RemoveAll(filepath.Join(dir, f.Name())))
			}
		}
		if err != nil {
			g.log.Warn("left over", "err", err)
		}
	}
	if err := snap.RemoveLeftovers(g.suspendedDir()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.log.Warn("left over", "err", err)
	}
	if g.def != nil && g.busy == "" { // else those of disks are what a snapshot is put back from
		for _, k := range g.def.Disks {
			if k.Path != "" {
				_ = os.Remove(k.Path + revertSuffix) // there is none, mostly
			}
		}
	}
}

// afterHost is for a guest of which something is on record that was before the host's start: no VMM has survived that.
func (g *guest) afterHost() {
	was := g.state
	g.clear()
	switch f := g.facts(); {
	case was == life.Crashed:
	case was.Alive() && was != life.Stopping && !f.Saved:
		g.state, g.note = life.Crashed, "the host went down while the guest ran"
	default:
		g.state, g.note = life.Rest(f), ""
	}
}

// findVMM finds the VMM that is on record, or out how it has ended.
func (g *guest) findVMM() {
	p, err := openProcess(g.rec.PID, g.rec.Start)
	if err == nil && g.state == life.Starting && p.waits() { // for the manager before, and so for its own end
		err = errors.Join(p.kill(unix.SIGKILL), procstat.ErrGone)
		p.close()
	}
	if err != nil {
		if !errors.Is(err, procstat.ErrGone) {
			g.log.Error("VMM on record", "err", err)
		}
		switch {
		case g.state == life.Starting && readOutcome(filepath.Join(g.dir(), outcomeName)) == nil:
			// It has not run: the manager was killed before it let it. If there is another reason, it shows again.
			g.clear()
			g.state = life.Waiting
			return
		case !g.state.Alive():
			g.state = life.Running
		}
		g.ended(nil, "")
		return
	}
	g.proc, g.ready, g.change = p, g.rec.Ready, 0
	g.running.def = g.startedAs()
	if g.state == life.Saving && g.saved().IsZero() { // the save ended with the connection over which it was asked for
		g.state, g.note = life.Running, "the manager was restarted while the guest was being saved: save it again"
	}
	g.log.Info("guest runs already", "pid", p.pid, "state", string(g.state))
	g.attend(nil)
}

// startedAs returns the definition that the VMM was started with, as far as it is still known.
func (g *guest) startedAs() *store.Guest {
	d, err := definition.Load(filepath.Join(g.dir(), "vmm.toml"))
	if err != nil {
		return g.def
	}
	as := &store.Guest{Definition: *d}
	for _, k := range d.Disks {
		as.Disks = append(as.Disks, store.Disk{Disk: k})
	}
	if g.def != nil {
		as.Ready, as.Template = g.def.Ready, g.def.Template
		for i := range as.Disks {
			as.Disks[i].Keep = g.def.Keeps(as.Disks[i].Name)
		}
	}
	return as
}

// carryOn does what the manager before this one was killed in the middle of.
func (g *guest) carryOn() {
	switch g.state {
	case life.Waiting:
		g.act(life.Await)
	case life.Restarting:
		g.rec.Restarts = max(g.rec.Restarts-1, 0)
		g.schedule()
	case life.Stopping:
		if g.proc != nil {
			g.pressPower()
		}
	case life.Saving:
		g.endSaved()
	case life.Running, life.Paused:
		if g.rec.Resume {
			g.rec.Resume = false
			g.command("resume")
		}
		if !g.ready {
			g.getReady()
		}
	}
	g.save()
	g.publish()
}
