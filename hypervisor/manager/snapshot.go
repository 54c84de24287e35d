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
	return m.snapshot(name, order{name: snapshot, memory: true})
}

// SnapshotDisks makes a snapshot without memory: a guest that runs is paused for as long as its disks are copied, which by
// reflink takes milliseconds. To the guest they look as after a power cut.
func (m *Manager) SnapshotDisks(name, snapshot string) (job uint64, err error) {
	return m.snapshot(name, order{name: snapshot})
}

// order says what snapshot is to be made.
type order struct {
	name     string
	memory   bool
	template bool // it is to be the guest's template, which has no name
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
	op, def, o, key := g.op, g.running.def, g.order, g.rec.Key
	g.begin(func(ctx context.Context, number uint64) {
		if o.template {
			s := &still{g: g, number: number, op: op, memory: true}
			if err := errors.Join(g.makeTemplate(ctx, def, key, s), s.end()); err != nil {
				g.report("no template was made of it: %v", err)
			} else {
				g.report("a template was made of it: the next start goes on from there")
			}
			g.goesOn(number, nil)
			return
		}
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

// overlay is the copy of a disk that a disposable guest writes to.
func (g *guest) overlay(disk string) string { return filepath.Join(g.overlayDir(), disk+".raw") }

// overlays makes the copies of disks that a disposable guest writes to, as they are in template if that is not "", and returns
// its disks with them.
func (g *guest) overlays(ctx context.Context, def *store.Guest, template string) ([]definition.Disk, error) {
	if err := os.RemoveAll(g.overlayDir()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(g.overlayDir(), 0o700); err != nil {
		return nil, err
	}
	disks := slices.Clone(def.Definition.Disks)
	for i, k := range def.Disks {
		if k.ReadOnly || k.Keep {
			continue
		}
		from, to := k.Path, g.overlay(k.Name)
		if template != "" {
			from = filepath.Join(template, k.Name+".raw")
		}
		if err := pool.CopyFile(ctx, from, to, pool.CopyOptions{}, func(done, total int64) {}); err != nil {
			return nil, fmt.Errorf("disk %s: %w", k.Name, err)
		}
		disks[i].Path = to
	}
	return disks, nil
}
