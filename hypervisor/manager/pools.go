package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// ErrNoPool says that there is no pool of that name.
var ErrNoPool = errors.New("no such pool")

// Pool is a pool of images as it was at one moment.
type Pool struct {
	Name, Path string
	Fault      string     // why it cannot be used; "" if it can
	Level      pool.Level // how much space is left
}

// openPool is a pool that this manager has open, or one that it cannot open.
type openPool struct {
	Pool
	images *pool.Pool // nil if there is a Fault
	end    context.CancelFunc
}

// poolPaths returns the directories of all pools by name, and what is wrong with the files of others. STATE-DIR/images is the
// pool "default" unless a file says otherwise.
func (m *Manager) poolPaths() (paths map[string]string, faults map[string]error, err error) {
	paths, faults = map[string]string{store.DefaultPool: filepath.Join(m.cfg.StateDir, "images")}, make(map[string]error)
	dir := filepath.Join(m.cfg.ConfigDir, "pools")
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("pools: %w", err)
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".toml")
		if !ok || !definition.IsName(name) {
			continue // an editor's backup, or a README
		}
		if paths[name], err = poolPath(filepath.Join(dir, f.Name())); err != nil {
			faults[name] = err
		}
	}
	return paths, faults, nil
}

// poolPath reads the file of a pool.
func poolPath(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var d struct {
		Path string `toml:"path"`
	}
	keys, err := definition.Decode(file, "lodged(8)", b, &d)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(d.Path) {
		return "", keys.Fault("path", "path %q: give the pool's directory, from / on", d.Path)
	}
	// A directory that was made where a disk is to be mounted would hide that it is not.
	if st, err := os.Stat(d.Path); err != nil || !st.IsDir() {
		return d.Path, keys.Fault("path", "path: there is no directory %s: mount it, or make one", d.Path)
	}
	return filepath.Clean(d.Path), nil
}

// loadPools opens the pools that there are now, and closes those that there were.
func (m *Manager) loadPools() error {
	paths, faults, err := m.poolPaths()
	if err != nil {
		return err
	}
	m.poolsMu.Lock()
	defer m.poolsMu.Unlock()
	for name, p := range m.pools {
		if p.images == nil || paths[name] != p.Path || faults[name] != nil {
			p.close()
			delete(m.pools, name)
			m.bus.send(Event{Kind: PoolChanged, Name: name})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		if m.pools[name] == nil {
			m.pools[name] = m.newPool(name, paths[name], faults[name])
			m.bus.send(Event{Kind: PoolChanged, Name: name})
		}
	}
	return nil
}

// newPool opens a pool, unless there is a fault already. With poolsMu.
func (m *Manager) newPool(name, path string, fault error) *openPool {
	p := &openPool{Pool: Pool{Name: name, Path: path}, end: func() {}}
	if fault == nil {
		p.images, fault = pool.Open(path, pool.Options{Log: m.log.With("pool", name)})
	}
	if fault != nil {
		m.log.Warn("pool cannot be used", "pool", name, "err", fault)
		p.Fault = fault.Error()
		return p
	}
	ctx, cancel := context.WithCancel(m.ctx)
	p.end = cancel
	m.background(func() {
		err := p.images.Watch(ctx, func(l pool.Level, u pool.Usage) {
			m.poolsMu.Lock()
			p.Level = l
			m.poolsMu.Unlock()
			if l != pool.Enough {
				m.log.Warn("space is low: delete images or snapshots", "pool", name, "level", l.String(), "free", u.Free)
			}
			m.bus.send(Event{Kind: PoolChanged, Name: name})
		})
		if ctx.Err() == nil {
			m.log.Error("space of a pool cannot be watched", "pool", name, "err", err)
		}
	})
	return p
}

func (p *openPool) close() {
	p.end()
	if p.images != nil {
		p.images.Close()
	}
}

// closePools closes all.
func (m *Manager) closePools() {
	m.poolsMu.Lock()
	defer m.poolsMu.Unlock()
	for _, p := range m.pools {
		p.close()
	}
}

// Pools returns all pools, by name.
func (m *Manager) Pools() []Pool {
	m.poolsMu.Lock()
	defer m.poolsMu.Unlock()
	list := make([]Pool, 0, len(m.pools))
	for _, name := range slices.Sorted(maps.Keys(m.pools)) {
		list = append(list, m.pools[name].Pool)
	}
	return list
}

// pool returns an open pool.
func (m *Manager) pool(name string) (*pool.Pool, error) {
	m.poolsMu.Lock()
	defer m.poolsMu.Unlock()
	switch p := m.pools[name]; {
	case p == nil:
		return nil, fmt.Errorf("%w: %.80q: make CONFIG-DIR/pools/NAME.toml with its path, or use pool %s", ErrNoPool, name, store.DefaultPool)
	case p.images == nil:
		return nil, fmt.Errorf("pool %s cannot be used: %s", name, p.Fault)
	default:
		return p.images, nil
	}
}

// imagePath is where an image is, or would be if it was imported as a disk.
func (m *Manager) imagePath(poolName, image string) (string, error) {
	m.poolsMu.Lock()
	p := m.pools[poolName]
	m.poolsMu.Unlock()
	if p == nil {
		return "", fmt.Errorf("%w: %.80q", ErrNoPool, poolName)
	}
	if p.images != nil {
		path, err := p.images.PathOf(image)
		if !errors.Is(err, pool.ErrNotFound) {
			return path, err
		}
	}
	return filepath.Join(p.Path, image+".raw"), nil
}

// createImages makes the images of a definition that are to be made and are not there yet.
func (m *Manager) createImages(def *store.Guest) error {
	for i := range def.Disks {
		k := &def.Disks[i]
		if k.Create == 0 {
			continue
		}
		poolName, name := store.SplitImage(k.Image)
		p, err := m.pool(poolName)
		if err == nil {
			if _, err = p.Get(name); errors.Is(err, pool.ErrNotFound) {
				err = m.CreateImage(poolName, name, int64(k.Create))
			}
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", k.Name, err)
		}
	}
	return nil
}

// withImages returns a definition with the disks that its images are now.
func (m *Manager) withImages(def *store.Guest) (*store.Guest, error) {
	now := *def
	now.Disks, now.Definition.Disks = slices.Clone(def.Disks), slices.Clone(def.Definition.Disks)
	for i := range now.Disks {
		k := &now.Disks[i]
		if k.Image == "" {
			continue
		}
		poolName, name := store.SplitImage(k.Image)
		p, err := m.pool(poolName)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", k.Name, err)
		}
		image, err := p.Get(name)
		if k.Create != 0 && errors.Is(err, pool.ErrNotFound) {
			continue // it is made at the start, where its path says
		}
		if err == nil && image.ReadOnly && !k.ReadOnly {
			err = fmt.Errorf("image %s: %w: set readonly = true, or clone it", name, pool.ErrReadOnly)
		}
		if err == nil {
			k.Path, err = p.PathOf(name)
		}
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", k.Name, err)
		}
		if !k.Served() {
			now.Definition.Disks[i].Path = k.Path
		}
	}
	return &now, nil
}
