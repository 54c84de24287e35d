package manager

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/storaged"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// ErrKey says that an encrypted disk cannot be opened without its key.
var ErrKey = errors.New("its key is needed")

// maxKey bounds a key, in bytes.
const maxKey = 4096

// endLimit is how long a storage daemon may take to write what it keeps.
const endLimit = 30 * time.Second

// servedImage returns what a disk is to its storage daemon.
func servedImage(k *store.Disk) storaged.Image {
	i := storaged.Image{Path: k.Path, URL: k.URL, Format: storaged.Raw}
	if k.Format != "" {
		i.Format = k.Format
	}
	return i
}

// encrypted returns the disks of a guest that need a key.
func encrypted(def *store.Guest) (names []string, err error) {
	for i := range def.Disks {
		k := &def.Disks[i]
		if !k.Served() {
			continue
		}
		of := servedImage(k)
		is, e := of.Encrypted()
		if e != nil {
			err = errors.Join(err, fmt.Errorf("disk %s: %w", k.Name, e))
		}
		if is {
			names = append(names, k.Name)
		}
	}
	return names, err
}

// Keys returns the names of a guest's disks whose keys are needed before it can be started.
func (m *Manager) Keys(name string) (disks []string, err error) {
	g, err := m.find(name)
	if err != nil {
		return nil, err
	}
	def, err := m.store.Get(name)
	if err != nil {
		return nil, err
	}
	if def, err = m.withImages(def); err != nil {
		return nil, fmt.Errorf("guest %s: %w", name, err)
	}
	if disks, err = encrypted(def); err != nil {
		return nil, fmt.Errorf("guest %s: %w", name, err)
	}
	if !g.do(func() { disks = slices.DeleteFunc(disks, func(d string) bool { return g.keys[d] != nil }) }) {
		return nil, ErrClosed
	}
	return disks, nil
}

// GiveKey keeps the key of an encrypted disk, in memory, until the guest that has it is off the next time.
func (m *Manager) GiveKey(name, disk string, key []byte) error {
	g, err := m.find(name)
	if err != nil {
		return err
	}
	def, err := m.store.Get(name)
	if err != nil {
		return err
	}
	switch {
	case !slices.ContainsFunc(def.Disks, func(k store.Disk) bool { return k.Name == disk && k.Served() }):
		return fmt.Errorf("guest %s: disk %.80q is none that has a key", name, disk)
	case len(key) == 0 || len(key) > maxKey:
		return fmt.Errorf("guest %s: disk %s: a key of %d bytes: from 1 to %d are possible", name, disk, len(key), maxKey)
	}
	if !g.do(func() {
		if g.keys == nil {
			g.keys = make(map[string][]byte)
		}
		g.keys[disk] = key
	}) {
		return ErrClosed
	}
	return nil
}

// dropKeys forgets the keys of a guest that is off.
func (g *guest) dropKeys() {
	for _, key := range g.keys {
		clear(key)
	}
	g.keys = nil
}

// pidFile is the PID file of the storage daemon of a disk.
func (g *guest) pidFile(disk string) string {
	return filepath.Join(g.m.runDir(g.name), "disk."+disk+".pid")
}

// serve starts the storage daemons of a guest that is about to start.
func (g *guest) serve(ctx context.Context, def *store.Guest) error {
	g.serving.Wait() // for those of before, which have the images
	for i := range def.Disks {
		k := &def.Disks[i]
		if !k.Served() {
			continue
		}
		of := servedImage(k)
		is, err := of.Encrypted()
		if err == nil && is {
			g.do(func() { of.Secret = slices.Clone(g.keys[k.Name]) })
			if of.Secret == nil {
				err = fmt.Errorf("%w: lodge start asks for it", ErrKey)
			}
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", k.Name, err)
		}
		err = g.startDaemon(ctx, storaged.Config{Name: g.name + "." + k.Name, Socket: def.Definition.Disks[i].Socket, PIDFile: g.pidFile(k.Name),
			Image: of, ReadOnly: k.ReadOnly, Queues: def.CPUs, Log: g.log})
		clear(of.Secret)
		if err != nil {
			return err
		}
	}
	return nil
}

// startDaemon starts one. If a manager was killed as it started it, that one may only now be found.
func (g *guest) startDaemon(ctx context.Context, cfg storaged.Config) error {
	for deadline := time.Now().Add(strayLimit); ; {
		_, err := storaged.Start(ctx, cfg)
		if !errors.Is(err, storaged.ErrInUse) || time.Now().After(deadline) {
			return err
		}
		if pid, ok := storaged.PID(cfg.PIDFile); ok {
			if p, e := openProcess(pid, 0); e == nil {
				err = p.kill(unix.SIGTERM)
				p.close()
				if err != nil {
					return err
				}
			}
		}
		select {
		case <-time.After(strayPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// How long a start waits for an image that is in use, and how often it looks.
const (
	strayLimit = 5 * time.Second
	strayPause = 100 * time.Millisecond
)

// daemon is a storage daemon of a guest.
type daemon struct {
	*process
	disk string
}

// daemons returns the guest's, whichever manager has started them.
func (g *guest) daemons() (list []daemon) {
	files, _ := filepath.Glob(g.pidFile("*")) // of a pattern that is well-formed
	for _, file := range files {
		pid, ok := storaged.PID(file)
		if !ok {
			continue
		}
		p, err := openProcess(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if _, ok := storaged.PID(file); !ok { // its number is another's
			p.close()
			continue
		}
		list = append(list, daemon{p, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "disk."), ".pid")})
	}
	return list
}

// endDaemons ends the storage daemons of a guest whose VMM is gone. It does not wait for that: serve does.
func (g *guest) endDaemons() {
	for _, d := range g.daemons() {
		g.serving.Add(1)
		g.spawn(func() {
			defer g.serving.Done()
			defer d.close()
			ctx, cancel := context.WithTimeout(g.m.ctx, endLimit)
			defer cancel()
			err := d.kill(unix.SIGTERM)
			if err == nil {
				_, err = d.wait(ctx)
			}
			if err != nil && g.m.ctx.Err() == nil {
				g.log.Error("storage daemon does not end: it is killed", "disk", d.disk, "err", errors.Join(err, d.kill(unix.SIGKILL)))
			}
		})
	}
}

// attendDaemons tells people when a storage daemon ends before the guest.
func (g *guest) attendDaemons(ctx context.Context, p *process) {
	for _, d := range g.daemons() {
		g.spawn(func() {
			defer d.close()
			if _, err := d.wait(ctx); err != nil {
				return
			}
			g.do(func() {
				if g.proc == p {
					g.note = fmt.Sprintf("the storage daemon of disk %s has ended: what the guest does with that disk fails. Stop the guest, and start it again", d.disk)
					g.log.Error(g.note)
					g.publish()
				}
			})
		})
	}
}
