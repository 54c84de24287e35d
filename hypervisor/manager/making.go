package manager

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/internal/deffile"
)

// making is on the disk while a guest is made together with its images, so that after a crash there are all of them or none.
// The file's name is what the images' Meta have as Work.
type making struct {
	Guest string `json:"guest"`
	Tag   string `json:"tag"` // of the definition, once its images are there: the guest is made if it has that
}

func (m *Manager) makingDir() string { return filepath.Join(m.cfg.StateDir, "making") }

// make makes a guest: images makes its images, for that work, and returns its definition.
func (m *Manager) make(ctx context.Context, name string, images func(work string) (definition []byte, err error)) (err error) {
	work := rand.Text()
	file := filepath.Join(m.makingDir(), work+".json")
	if err := os.MkdirAll(m.makingDir(), 0o700); err != nil {
		return err
	}
	if err := writeFile(file, making{Guest: name}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.unmake(work))
		}
		err = errors.Join(err, os.Remove(file))
		for _, p := range m.Pools() {
			m.bus.send(Event{Kind: ImagesChanged, Name: p.Name})
		}
	}()
	text, err := images(work)
	if err != nil {
		return err
	}
	if err := writeFile(file, making{name, deffile.Tag(text)}); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err = m.Define(text)
	return err
}

// unmake removes the images that were made for that work.
func (m *Manager) unmake(work string) error {
	var errs []error
	for _, o := range m.Pools() {
		p, err := m.pool(o.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		images, err := p.List()
		errs = append(errs, err)
		for _, i := range images {
			if i.Work == work {
				errs = append(errs, p.Delete(i.Name))
			}
		}
	}
	return errors.Join(errs...)
}

// finishMaking undoes what the manager before this one has not finished.
func (m *Manager) finishMaking() {
	files, err := os.ReadDir(m.makingDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Error("unfinished guests", "err", err)
	}
	for _, f := range files {
		file := filepath.Join(m.makingDir(), f.Name())
		work, ok := strings.CutSuffix(f.Name(), ".json")
		if ok && !strings.HasPrefix(work, tmpPrefix) {
			d, err := readJSON[making](file)
			if _, tag, e := m.store.Text(d.Guest); err == nil && (e != nil || tag != d.Tag) {
				m.log.Info("removing the images of a guest that was not finished", "guest", d.Guest)
				err = m.unmake(work)
			}
			if err != nil {
				m.log.Error("a guest was not finished: its images are removed at the next start", "guest", d.Guest, "err", err)
				continue
			}
		}
		if err := os.Remove(file); err != nil {
			m.log.Error("left over", "err", err)
		}
	}
}

// free returns an error if a guest of that name cannot be defined.
func (m *Manager) free(name string) error {
	if _, err := m.find(name); err == nil {
		return fmt.Errorf("%w: %s: choose another name", store.ErrExists, name)
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}

// CloneGuest makes a guest like another, which is off, or like it was at a snapshot: with copies of the disks that it writes to,
// which become images of their pools, and with a UUID, MACs and a vsock CID of its own. It gets no slot, and no memory.
func (m *Manager) CloneGuest(name, clone, snapshot string) (job uint64, err error) {
	g, err := m.find(name)
	if err != nil {
		return 0, err
	}
	if err := m.free(clone); err != nil {
		return 0, err
	}
	if snapshot == "" {
		return g.whileOff("clone", "it is cloned", func(ctx context.Context, def *store.Guest, op *progress) error {
			return g.clone(ctx, def, clone, func(k *store.Disk) (string, error) { return k.Path, isPlain(k) }, op.set)
		})
	}
	s, err := g.findSnapshot(snapshot)
	if err != nil {
		return 0, err
	}
	def, err := m.store.Get(name)
	if err != nil {
		return 0, err
	}
	return m.jobs.Start("clone", name, func(ctx context.Context, report func(done, total int64)) error {
		err := g.clone(ctx, def, clone, func(k *store.Disk) (string, error) {
			for _, disk := range s.Disks {
				if disk == k.Name {
					return g.snapshotDisk(snapshot, disk), nil
				}
			}
			return "", fmt.Errorf("disk %s is not in the snapshot %s: it is newer", k.Name, snapshot)
		}, report)
		if err != nil {
			return fmt.Errorf("guest %s: clone: %w", name, err)
		}
		return nil
	})
}

// clone makes a guest like g. from says which file has a disk's content.
func (g *guest) clone(
	ctx context.Context, def *store.Guest, clone string, from func(k *store.Disk) (string, error), progress pool.Progress,
) error {
	text, _, err := g.m.store.Text(g.name)
	if err != nil {
		return err
	}
	if def, err = g.m.withImages(def); err != nil {
		return err
	}
	images := make(map[string]string)
	for _, k := range written(def) {
		poolName := store.DefaultPool
		if k.Image != "" {
			poolName, _ = store.SplitImage(k.Image)
		}
		images[k.Name] = poolName + "/" + clone + "-" + k.Name
	}
	text, err = store.Derive(text, clone, g.m.freeCID(), images)
	if err != nil {
		return err
	}
	if err := g.m.store.Check(text); err != nil { // before it takes time
		return err
	}
	return g.m.make(ctx, clone, func(work string) ([]byte, error) {
		for _, k := range written(def) {
			path, err := from(&k)
			if err == nil {
				err = g.m.takeIn(ctx, images[k.Name], path, work, progress)
			}
			if err != nil {
				return nil, fmt.Errorf("disk %s: %w", k.Name, err)
			}
		}
		return text, nil
	})
}

// takeIn makes an image of a raw file of ours, by reflink if it can.
func (m *Manager) takeIn(ctx context.Context, image, path, work string, progress pool.Progress) error {
	poolName, name := store.SplitImage(image)
	p, err := m.pool(poolName)
	if err != nil {
		return err
	}
	f, err := pool.OpenLocked(path)
	if err != nil {
		return err
	}
	defer f.Close()
	src, err := pool.FromFile(f)
	if err != nil {
		return err
	}
	_, err = p.Import(ctx, name, src, pool.ImportOptions{Format: format.Raw, Work: work}, progress)
	return err
}

// freeCID returns a vsock context identifier that no guest has.
func (m *Manager) freeCID() uint32 {
	taken := make(map[uint32]bool)
	for _, g := range m.store.List() {
		if g.Vsock != nil {
			taken[g.Vsock.CID] = true
		}
	}
	cid := uint32(3) // those below are the host's and reserved
	for taken[cid] {
		cid++
	}
	return cid
}

// ImportGuest makes a guest of what a file or a server has: of an OVA with the machine that it describes, of a disk image with
// one processor, 1 GiB of memory and a network card. Without a name it gets that of the file.
func (m *Manager) ImportGuest(poolName, name string, src Source, opt pool.ImportOptions) (job uint64, err error) {
	defer func() {
		if err != nil {
			src.close()
		}
	}()
	if name == "" {
		name = pool.NameFor(src.origin())
	}
	if err := m.free(name); err != nil {
		return 0, err
	}
	p, err := m.pool(poolName)
	if err != nil {
		return 0, err
	}
	return m.jobs.Start("import", name, func(ctx context.Context, report func(done, total int64)) error {
		defer src.close()
		from, closer, err := src.open(ctx)
		if err != nil {
			return fmt.Errorf("guest %s: %w", name, err)
		}
		defer closer.Close()
		err = m.make(ctx, name, func(work string) ([]byte, error) {
			opt := opt
			opt.Work = work
			done, err := p.Import(ctx, name, from, opt, report)
			if err != nil {
				return nil, err
			}
			return machineText(poolName, name, done)
		})
		if err != nil {
			return fmt.Errorf("guest %s: %w", name, err)
		}
		return nil
	})
}

// What a machine has of which nothing is said, and the firmware of all.
const (
	defaultMemory = 1 << 30
	maxCPUs       = 16
	biosFile      = "/usr/share/seabios/bios-256k.bin"
)

// machineText returns the definition of a guest with the images that were imported.
func machineText(poolName, name string, done *pool.Imported) ([]byte, error) {
	o := done.Machine
	if o == nil {
		o = &format.Machine{NICs: []format.OVFNIC{{}}}
	}
	if o.Firmware == "efi" {
		return nil, fmt.Errorf("the machine starts by UEFI firmware, which there is none of: import its disks alone, and define a guest that has a kernel")
	}
	memory := definition.Size(defaultMemory)
	if o.Memory > 0 {
		memory = definition.Size(o.Memory)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "name = %q\ncpus = %d\nmemory = %q\n", name, min(max(o.CPUs, 1), maxCPUs), memory)
	fmt.Fprintf(&b, "\n[boot]\nfirmware = %q\n", biosFile)
	for n, i := range done.Images {
		fmt.Fprintf(&b, "\n[[disk]]\nname = \"disk%d\"\nimage = %q\n", n+1, poolName+"/"+i.Name)
		if i.ReadOnly {
			b.WriteString("readonly = true\n")
		}
	}
	if len(o.NICs) > 0 { // a guest has one card on a network
		b.WriteString("\n[[nic]]\nname = \"net\"\nnetwork = \"default\"\n")
	}
	b.WriteString("\n[display]\ncard = \"vga\"\n")
	return []byte(b.String()), nil
}
