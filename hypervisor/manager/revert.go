package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

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
