package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// Images returns the images of a pool, by name.
func (m *Manager) Images(poolName string) ([]pool.Image, error) {
	p, err := m.pool(poolName)
	if err != nil {
		return nil, err
	}
	return p.List()
}

// Image returns one.
func (m *Manager) Image(poolName, image string) (pool.Image, error) {
	p, err := m.pool(poolName)
	if err != nil {
		return pool.Image{}, err
	}
	return p.Get(image)
}

// PoolUsage returns how full a pool is.
func (m *Manager) PoolUsage(poolName string) (pool.Usage, error) {
	p, err := m.pool(poolName)
	if err != nil {
		return pool.Usage{}, err
	}
	return p.Usage()
}

// changeImages does something to the images of a pool at once.
func (m *Manager) changeImages(poolName string, f func(p *pool.Pool) error) error {
	p, err := m.pool(poolName)
	if err != nil {
		return err
	}
	if err := f(p); err != nil {
		return err
	}
	m.bus.send(Event{Kind: ImagesChanged, Name: poolName})
	return nil
}

// CreateImage makes an image of size bytes of zeros.
func (m *Manager) CreateImage(poolName, image string, size int64) error {
	return m.changeImages(poolName, func(p *pool.Pool) error {
		_, err := p.Create(image, size)
		return err
	})
}

// GrowImage makes an image larger. A guest that runs sees that at its next start.
func (m *Manager) GrowImage(poolName, image string, size int64) error {
	return m.changeImages(poolName, func(p *pool.Pool) error { return p.Grow(image, size) })
}

// DeleteImage removes an image that no guest has. Its snapshots stay.
func (m *Manager) DeleteImage(poolName, image string) error {
	m.defining.Lock() // no guest gets it meanwhile
	defer m.defining.Unlock()
	return m.changeImages(poolName, func(p *pool.Pool) error {
		if path, err := p.PathOf(image); err == nil {
			for _, g := range m.store.List() {
				for _, k := range g.Disks {
					if k.Path == path {
						return fmt.Errorf("image %s: %w: guest %s has it: delete that one first, or edit its definition", image, store.ErrNeeded, g.Name)
					}
				}
			}
		}
		return p.Delete(image)
	})
}

// imageJob begins a job on a pool.
func (m *Manager) imageJob(
	kind, poolName, image string, work func(ctx context.Context, p *pool.Pool, progress pool.Progress) error,
) (id uint64, err error) {
	p, err := m.pool(poolName)
	if err != nil {
		return 0, err
	}
	return m.jobs.Start(kind, poolName+"/"+image, func(ctx context.Context, report func(done, total int64)) error {
		if err := work(ctx, p, report); err != nil {
			return err
		}
		m.bus.send(Event{Kind: ImagesChanged, Name: poolName})
		return nil
	})
}

// CloneImage makes an image with the content of another of the same pool, which may be a snapshot.
func (m *Manager) CloneImage(poolName, image, clone string) (job uint64, err error) {
	return m.imageJob("clone", poolName, image, func(ctx context.Context, p *pool.Pool, progress pool.Progress) error {
		_, err := p.Clone(ctx, image, clone, pool.CopyOptions{}, progress)
		return err
	})
}

// SnapshotImage makes the snapshot IMAGE@SNAPSHOT of an image.
func (m *Manager) SnapshotImage(poolName, image, snapshot string) (job uint64, err error) {
	return m.imageJob("snapshot", poolName, image, func(ctx context.Context, p *pool.Pool, progress pool.Progress) error {
		_, err := p.Snapshot(ctx, image, snapshot, pool.CopyOptions{}, progress)
		return err
	})
}

// RevertImage gives an image the content of one of its snapshots.
func (m *Manager) RevertImage(poolName, image, snapshot string) (job uint64, err error) {
	return m.imageJob("restore", poolName, image, func(ctx context.Context, p *pool.Pool, progress pool.Progress) error {
		return p.Revert(ctx, image, snapshot, progress)
	})
}

// Source is what is imported: a file that is open, or what is at an address.
type Source struct {
	File *os.File // the manager closes it
	URL  string   // http or https
}

func (s *Source) close() {
	if s.File != nil {
		s.File.Close()
	}
}

// open returns the source for a pool. Close what else is returned.
func (s *Source) open(ctx context.Context) (*pool.Source, io.Closer, error) {
	if s.File != nil {
		src, err := pool.FromFile(s.File)
		return src, s.File, err
	}
	return pool.FromURL(ctx, s.URL)
}

// origin is where it is from, for a name.
func (s *Source) origin() string {
	if s.File != nil {
		return s.File.Name()
	}
	return s.URL
}

// ImportImage makes an image of what a file or a server has; several of an OVA with several disks. Without a name it gets that of
// the file.
func (m *Manager) ImportImage(poolName, image string, src Source, opt pool.ImportOptions) (job uint64, err error) {
	if image == "" {
		image = pool.NameFor(src.origin())
	}
	job, err = m.imageJob("import", poolName, image, func(ctx context.Context, p *pool.Pool, progress pool.Progress) error {
		defer src.close()
		from, closer, err := src.open(ctx)
		if err != nil {
			return err
		}
		defer closer.Close()
		_, err = p.Import(ctx, image, from, opt, progress)
		return err
	})
	if err != nil {
		src.close()
	}
	return job, err
}

// ExportImage writes an image to dst, an empty file or a pipe that the manager closes.
func (m *Manager) ExportImage(poolName, image string, dst *os.File, opt pool.ExportOptions) (job uint64, err error) {
	job, err = m.imageJob("export", poolName, image, func(ctx context.Context, p *pool.Pool, progress pool.Progress) error {
		return finish(dst, p.Export(ctx, []string{image}, dst, opt, progress))
	})
	if err != nil {
		dst.Close()
	}
	return job, err
}

// finish ends what was written to a caller's file, err being how that went.
func finish(f *os.File, err error) error {
	if st, e := f.Stat(); err == nil && e == nil && st.Mode().IsRegular() {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ExportGuest writes a guest that is off, with all its disks, as an OVA to dst, an empty file that the manager closes.
func (m *Manager) ExportGuest(name string, dst *os.File) (job uint64, err error) {
	g, err := m.find(name)
	if err == nil {
		job, err = g.whileOff("export", "it is exported", func(ctx context.Context, def *store.Guest, op *progress) error {
			return finish(dst, g.export(ctx, def, dst, op.set))
		})
	}
	if err != nil {
		dst.Close()
	}
	return job, err
}

func (g *guest) export(ctx context.Context, def *store.Guest, dst *os.File, progress pool.Progress) error {
	opt := pool.ExportOptions{Format: format.OVA, Machine: format.Machine{
		Name: def.Name, CPUs: def.CPUs, Memory: int64(def.Memory), Firmware: "bios",
	}}
	for _, n := range def.NICs {
		opt.Machine.NICs = append(opt.Machine.NICs, format.OVFNIC{Network: cmp.Or(n.Network, n.Name), MAC: n.MAC})
	}
	var disks []*os.File
	defer func() {
		for _, f := range disks {
			f.Close()
		}
	}()
	def, err := g.m.withImages(def)
	if err != nil {
		return err
	}
	for _, k := range def.Disks {
		if err := isPlain(&k); err != nil {
			return err
		}
		f, err := pool.OpenLocked(k.Path)
		if err != nil {
			return fmt.Errorf("disk %s: %w", k.Name, err)
		}
		disks = append(disks, f)
	}
	if len(disks) == 0 {
		return errors.New("it has no disk")
	}
	return pool.Export(ctx, disks, dst, opt, progress)
}

// isPlain returns an error unless a disk is a file that has its content as it is.
func isPlain(k *store.Disk) error {
	if k.Served() || k.Path == "" {
		return fmt.Errorf("disk %s is no raw file, and only those can be copied: import it into a pool, lodge-import(1)", k.Name)
	}
	return nil
}
