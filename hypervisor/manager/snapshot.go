package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/hypervisor/manager/vmm"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Errors of snapshots.
var (
	ErrNoSnapshot     = errors.New("no such snapshot")
	ErrSnapshotExists = errors.New("there is a snapshot of that name")
)

// maxSnapshots bounds how many there are of one guest.
const maxSnapshots = 1000

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

// Snapshot is a guest as it was at one moment: its disks, and if it ran its memory.
type Snapshot struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Memory  bool      `json:"memory"`
	Disks   []string  `json:"disks"` // by the names that they have in the definition
	Size    int64     `json:"size"`  // bytes that its files take up, where nothing is shared with others
	Picture bool      `json:"picture"`
}

const (
	metaName     = "snapshot.json"
	pictureName  = "screen.png"
	memoryName   = "memory"
	revertSuffix = ".lodge-new" // of a disk that is about to be put back
)

func (g *guest) snapshotsDir() string { return filepath.Join(g.dir(), "snapshots") }

func (g *guest) snapshotDir(name string) string { return filepath.Join(g.snapshotsDir(), name) }

// Snapshots returns a guest's snapshots, the oldest first.
func (m *Manager) Snapshots(name string) ([]Snapshot, error) {
	g, err := m.find(name)
	if err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir(g.snapshotsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("guest %s: %w", name, err)
	}
	var list []Snapshot
	for _, d := range dirs {
		if s, err := readJSON[Snapshot](filepath.Join(g.snapshotDir(d.Name()), metaName)); err == nil && definition.IsName(d.Name()) {
			s.Name = d.Name()
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Snapshot) int { return a.Created.Compare(b.Created) })
	return list, nil
}

func (g *guest) findSnapshot(snapshot string) (Snapshot, error) {
	if !definition.IsName(snapshot) {
		return Snapshot{}, fmt.Errorf("guest %s: %w: %.80q", g.name, ErrNoSnapshot, snapshot)
	}
	s, err := readJSON[Snapshot](filepath.Join(g.snapshotDir(snapshot), metaName))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("guest %s: %w: %s", g.name, ErrNoSnapshot, snapshot)
	}
	s.Name = snapshot
	return s, err
}

// DeleteSnapshot removes a snapshot.
func (m *Manager) DeleteSnapshot(name, snapshot string) error {
	g, err := m.find(name)
	if err != nil {
		return err
	}
	if _, err := g.findSnapshot(snapshot); err != nil {
		return err
	}
	if !g.do(func() {
		if g.busy != "" {
			err = g.errBusy()
			return
		}
		err = os.Rename(g.snapshotDir(snapshot), filepath.Join(g.snapshotsDir(), tmpPrefix+"deleted-"+snapshot))
	}) {
		return ErrClosed
	}
	if err != nil {
		return err
	}
	m.bus.send(Event{Kind: SavedChanged, Name: name})
	return errors.Join(syncPath(g.snapshotsDir()), os.RemoveAll(filepath.Join(g.snapshotsDir(), tmpPrefix+"deleted-"+snapshot)))
}

// snapshotDisk is the file of a snapshot that has a disk's content.
func (g *guest) snapshotDisk(snapshot, disk string) string {
	return filepath.Join(g.snapshotDir(snapshot), disk+".raw")
}

// written returns the disks that a guest writes to.
func written(def *store.Guest) (list []store.Disk) {
	for _, k := range def.Disks {
		if !k.ReadOnly {
			list = append(list, k)
		}
	}
	return list
}

// Snapshot makes a snapshot of a guest: of one that runs with its memory, during which it is paused.
func (m *Manager) Snapshot(name, snapshot string) (job uint64, err error) {
	return m.snapshot(name, order{snapshot, true})
}

// SnapshotDisks makes a snapshot without memory: a guest that runs is paused for as long as its disks are copied, which by
// reflink takes milliseconds. To the guest they look as after a power cut.
func (m *Manager) SnapshotDisks(name, snapshot string) (job uint64, err error) {
	return m.snapshot(name, order{snapshot, false})
}

// order says what snapshot is to be made.
type order struct {
	name   string
	memory bool
}

func (m *Manager) snapshot(name string, o order) (job uint64, err error) {
	if !definition.IsName(o.name) {
		return 0, fmt.Errorf("guest %s: snapshot %.80q: use up to 64 letters, digits, '-', '_' and '.'", name, o.name)
	}
	g, err := m.find(name)
	if err != nil {
		return 0, err
	}
	list, err := m.Snapshots(name)
	if err != nil {
		return 0, err
	}
	if len(list) >= maxSnapshots {
		return 0, fmt.Errorf("guest %s: %d snapshots: delete some", name, len(list))
	}
	if _, err := os.Stat(g.snapshotDir(o.name)); err == nil {
		return 0, fmt.Errorf("guest %s: %w: %s", name, ErrSnapshotExists, o.name)
	}
	if !g.info.Load().State.Alive() {
		return g.whileOff("snapshot", "a snapshot of its disks is made", func(ctx context.Context, def *store.Guest, op *progress) error {
			return g.makeSnapshot(ctx, def, o.name, op, nil)
		})
	}
	return m.operate(name, life.Snapshot, func(g *guest) error {
		switch d := g.running.def; {
		case g.busy != "":
			return g.errBusy()
		case d == nil || g.def == nil || d.Disposable || g.def.Disposable:
			return errors.New("it is disposable, or its definition is gone: it has no disks of its own")
		}
		g.order = o
		return nil
	}, func(ctx context.Context, g *guest) error {
		p, err := g.awaitSaved(ctx)
		if err == nil {
			err = p.failed
		}
		return err
	})
}

// tellSnapshot makes the snapshot of a guest that runs.
func (g *guest) tellSnapshot() {
	op, def, o := g.op, g.running.def, g.order
	g.begin(func(ctx context.Context, number uint64) {
		s := &still{g: g, number: number, op: op, memory: o.memory}
		err := errors.Join(g.makeSnapshot(ctx, def, o.name, op, s), s.end())
		if err != nil {
			err = fmt.Errorf("snapshot %s: %w", o.name, err)
		}
		g.goesOn(number, err)
	})
}

// holdStill pauses a guest. letRun, or the next manager, lets it run on if it did.
func (g *guest) holdStill(ctx context.Context) error {
	st, err := g.status(ctx)
	if err != nil || st.State != "running" {
		return err
	}
	g.do(func() { // before it is: whoever comes after us resumes it
		g.rec.Resume = true
		g.save()
	})
	return g.call(ctx, commandLimit, "pause", nil, nil, nil)
}

// letRun lets a guest run on that the task of that number has paused.
func (g *guest) letRun(number uint64) error {
	resume := false
	g.do(func() { resume = g.task == number && g.rec.Resume })
	if !resume {
		return nil
	}
	err := g.call(g.m.ctx, commandLimit, "resume", nil, nil, nil)
	if err == nil {
		g.do(func() {
			if g.task == number {
				g.rec.Resume = false
				g.save()
			}
		})
	}
	return err
}

// saveMemory saves a guest, which holdStill has paused, to dir.
func (g *guest) saveMemory(ctx context.Context, dir string, op *progress) error {
	return vmm.Save(ctx, g.control(), dir, func(p control.Progress) { op.set(int64(p.Done), int64(p.Total)) })
}

// still keeps a guest that runs still while its disks are copied.
type still struct {
	g      *guest
	number uint64 // of the task
	op     *progress
	memory bool
}

// begin pauses the guest, and saves its memory to the snapshot that is being made in tmp.
func (s *still) begin(ctx context.Context, tmp string) error {
	s.g.m.keepPicture(ctx, s.g.info.Load().Display, filepath.Join(tmp, pictureName))
	if err := s.g.holdStill(ctx); err != nil || !s.memory {
		return err
	}
	return s.g.saveMemory(ctx, filepath.Join(tmp, memoryName), s.op)
}

// end lets the guest run on, if it did.
func (s *still) end() error { return s.g.letRun(s.number) }

// makeSnapshot makes the snapshot of that name, all or nothing. live, which is nil for a guest that is off, keeps it still
// meanwhile; that is for as short as possible.
func (g *guest) makeSnapshot(ctx context.Context, def *store.Guest, name string, op *progress, live *still) (err error) {
	disks, err := g.copied(def, live != nil)
	if err != nil {
		return err
	}
	tmp := filepath.Join(g.snapshotsDir(), tmpPrefix+name)
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // it is gone if all is well
	if live != nil {
		for _, k := range disks { // now, since a reflink waits for it
			if err := syncPath(k.Path); err != nil {
				return fmt.Errorf("disk %s: %w", k.Name, err)
			}
		}
		if err := live.begin(ctx, tmp); err != nil {
			return err
		}
	}
	s := Snapshot{Name: name, Created: time.Now()}
	for _, k := range disks {
		to := filepath.Join(tmp, k.Name+".raw")
		if err := pool.CopyFile(ctx, k.Path, to, pool.CopyOptions{Paused: live != nil}, op.set); err != nil {
			return fmt.Errorf("disk %s: %w", k.Name, err)
		}
		s.Disks = append(s.Disks, k.Name)
	}
	if live != nil {
		if err := live.end(); err != nil {
			return err
		}
	}
	for _, k := range disks {
		if err := syncPath(filepath.Join(tmp, k.Name+".raw")); err != nil {
			return fmt.Errorf("disk %s: %w", k.Name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(tmp, memoryName, snap.StateName)); err == nil {
		s.Memory = true
	}
	if _, err := os.Stat(filepath.Join(tmp, pictureName)); err == nil {
		s.Picture = true
	}
	if s.Size, err = diskUsage(tmp); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(tmp, metaName), s); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Rename(tmp, g.snapshotDir(name)); err != nil {
		return err
	}
	g.m.bus.send(Event{Kind: SavedChanged, Name: g.name})
	return syncPath(g.snapshotsDir())
}

// copied returns the disks that are part of a snapshot: those that the guest writes to. Of one that runs they are where its VMM
// has opened them.
func (g *guest) copied(def *store.Guest, runs bool) ([]store.Disk, error) {
	if !runs {
		var err error
		if def, err = g.m.withImages(def); err != nil {
			return nil, err
		}
	}
	disks := written(def)
	for i := range disks {
		if err := isPlain(&disks[i]); err != nil {
			return nil, err
		}
	}
	return disks, nil
}

// diskUsage returns what the files in a directory take up, in bytes.
func diskUsage(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Mode().IsRegular() {
			n += allocated(st)
		}
		return err
	})
	return n, err
}

// whileOff begins a job on the disks of a guest that is off, and keeps it from being started meanwhile. what says so to people.
func (g *guest) whileOff(kind, what string, f func(ctx context.Context, def *store.Guest, op *progress) error) (id uint64, err error) {
	if !g.do(func() {
		switch err = g.step(life.Change); {
		case err != nil:
			return
		case g.busy != "":
			err = g.errBusy()
			return
		case g.def == nil:
			err = g.fault
			return
		}
		def := g.def
		if id, err = g.m.jobs.Start(kind, g.name, func(ctx context.Context, report func(done, total int64)) error {
			op := &progress{}
			op.to.Store(&report)
			err := f(ctx, def, op)
			g.do(func() {
				g.busy = ""
				if !g.state.Alive() && g.state != life.Crashed {
					g.state = life.Rest(g.facts())
				}
				g.publish()
			})
			if err != nil {
				return fmt.Errorf("guest %s: %s: %w", g.name, kind, err)
			}
			return nil
		}); err == nil {
			g.busy = what
		}
	}) {
		return 0, ErrClosed
	}
	return id, err
}

// revert is the order to put a snapshot back. It is on the disk before the first disk is touched, and carried out as often as
// need be.
type revert struct {
	Snapshot string            `json:"snapshot"`
	Disks    map[string]string `json:"disks"` // from where to where
	Memory   bool              `json:"memory"`
}

func (g *guest) revertFile() string { return filepath.Join(g.dir(), "revert.json") }

// Restore puts a snapshot back: the disks of a guest that is off become what they were, and with memory the next start goes on
// from there. What they held, and a saved state, is lost when the job ends, and not before.
func (m *Manager) Restore(name, snapshot string, memory bool) (job uint64, err error) {
	g, err := m.find(name)
	if err != nil {
		return 0, err
	}
	s, err := g.findSnapshot(snapshot)
	if err != nil {
		return 0, err
	}
	if memory && !s.Memory {
		return 0, fmt.Errorf("guest %s: snapshot %s: %w", name, snapshot, ErrNoMemory)
	}
	return g.whileOff("restore", "a snapshot is put back", func(ctx context.Context, def *store.Guest, op *progress) (err error) {
		r := revert{Snapshot: snapshot, Disks: make(map[string]string), Memory: memory}
		defer func() {
			if err != nil {
				for from := range r.Disks {
					os.Remove(from)
				}
			}
		}()
		if def, err = g.m.withImages(def); err != nil {
			return err
		}
		for _, disk := range s.Disks {
			i := slices.IndexFunc(def.Disks, func(k store.Disk) bool { return k.Name == disk && !k.ReadOnly })
			if i < 0 {
				return fmt.Errorf("the guest has no disk %s to write to any more: edit its definition first", disk)
			}
			from := def.Disks[i].Path + revertSuffix
			err := isPlain(&def.Disks[i])
			if err == nil {
				err = pool.CopyFile(ctx, g.snapshotDisk(snapshot, disk), from, pool.CopyOptions{}, op.set)
			}
			if err == nil {
				err = syncPath(from)
			}
			if err != nil {
				return fmt.Errorf("disk %s: %w", disk, err)
			}
			r.Disks[from] = def.Disks[i].Path
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := writeFile(g.revertFile(), r); err != nil {
			return err
		}
		return g.carryOut(r)
	})
}

// finishRevert carries out an order that the manager before this one has left.
func (g *guest) finishRevert() {
	r, err := readJSON[revert](g.revertFile())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = g.carryOut(r)
	}
	if err != nil {
		g.log.Error("a snapshot could not be put back", "err", err)
		g.busy = "a snapshot could not be put back: " + err.Error()
	}
}

func (g *guest) carryOut(r revert) error {
	g.dropSaved()
	for from, to := range r.Disks {
		if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) { // done already
			return err
		}
		if err := syncPath(filepath.Dir(to)); err != nil {
			return err
		}
	}
	if r.Memory {
		if err := writeFile(g.suspendedDir()+".json", suspension{Snapshot: r.Snapshot}); err != nil {
			return err
		}
		if err := snap.PublishDir(g.suspendedDir(), func(tmp string) error {
			for _, name := range []string{snap.RAMName, snap.StateName} { // the guest changes neither
				if err := os.Link(filepath.Join(g.snapshotDir(r.Snapshot), memoryName, name), filepath.Join(tmp, name)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if err := copyPicture(filepath.Join(g.snapshotDir(r.Snapshot), pictureName), g.suspendedDir()+".png"); err != nil {
			return err
		}
	}
	return errors.Join(os.Remove(g.revertFile()), syncPath(g.dir()))
}

// overlays makes the copies of disks that a disposable guest writes to, and returns its disks with them.
func (g *guest) overlays(ctx context.Context, def *store.Guest) ([]definition.Disk, error) {
	if err := os.RemoveAll(g.overlayDir()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(g.overlayDir(), 0o700); err != nil {
		return nil, err
	}
	disks := slices.Clone(def.Definition.Disks)
	for i, k := range disks {
		if k.ReadOnly {
			continue
		}
		to := filepath.Join(g.overlayDir(), k.Name+".raw")
		if err := pool.CopyFile(ctx, k.Path, to, pool.CopyOptions{}, func(done, total int64) {}); err != nil {
			return nil, fmt.Errorf("disk %s: %w", k.Name, err)
		}
		disks[i].Path = to
	}
	return disks, nil
}
