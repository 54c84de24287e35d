package pool

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Meta is what is known of an image beside its content. All of it may be empty.
type Meta struct {
	Created time.Time `json:"created,omitzero"`
	Origin  string    `json:"origin,omitempty"` // the file or URL that it was imported from
	Format  string    `json:"format,omitempty"` // of that
	SHA256  string    `json:"sha256,omitempty"` // of that, in hex
	Parent  string    `json:"parent,omitempty"` // the image that it was cloned from
	Work    string    `json:"work,omitempty"`   // what of the caller's it was made for, see ImportOptions
}

const maxMeta = 64 << 10

// readMeta returns what is known of an image. What cannot be read is not known.
func (p *Pool) readMeta(file string) (m Meta) {
	f, err := p.root.OpenFile(file+metaSuffix, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return Meta{}
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxMeta)).Decode(&m); err != nil {
		return Meta{}
	}
	return m
}

func allocated(st fs.FileInfo) int64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return 0
}

// staged is an image that is being made.
type staged struct {
	p    *Pool
	name string
	tmp  string // of the file, in the directory
	f    *os.File
	iso  bool
	meta Meta
}

// stage begins an image. Until discard or publish nobody else can make one of that name.
func (p *Pool) stage(name string) (*staged, error) {
	if err := p.reserve(name); err != nil {
		return nil, err
	}
	f, tmp, err := p.temporary()
	if err != nil {
		p.release(name)
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return &staged{p: p, name: name, tmp: tmp, f: f, meta: Meta{Created: time.Now().UTC()}}, nil
}

func (p *Pool) reserve(name string) error {
	_, err := p.fileOf(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil || p.making[name]:
		return fmt.Errorf("image %s: %w: delete that one first, or choose another name", name, ErrExists)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	p.making[name] = true
	return nil
}

func (p *Pool) release(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.making, name)
}

// temporary makes an empty file that the next Open removes.
func (p *Pool) temporary() (*os.File, string, error) {
	name := tmpPrefix + rand.Text()
	f, err := p.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return f, name, err
}

// discard removes what was begun. It does nothing after publish.
func (s *staged) discard() {
	if s.f == nil {
		return
	}
	s.f.Close()
	s.f = nil
	if err := s.p.root.Remove(s.tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.p.opt.Log.Error("a temporary file stays until the pool is opened again", "file", s.p.file(s.tmp), "err", err)
	}
	s.p.release(s.name)
}

// step is a file that is to get its name.
type step struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// publish makes images visible: all of them or, after an error, none. They are on the disk when it returns.
func (p *Pool) publish(images ...*staged) (err error) {
	var steps []step
	defer func() {
		if err == nil {
			return
		}
		for _, s := range steps { // what did not get its name; images are discarded by their owner
			if strings.HasSuffix(s.To, metaSuffix) {
				_ = p.root.Remove(s.From)
			}
		}
	}()
	for _, s := range images {
		mode, suffix := fs.FileMode(0o600), rawSuffix
		if s.iso {
			suffix = isoSuffix
		}
		if s.iso || isSnapshot(s.name) {
			mode = 0o400
		}
		if err := errors.Join(s.f.Chmod(mode), s.f.Sync()); err != nil {
			return fmt.Errorf("image %s: %w", s.name, err)
		}
		meta, err := p.writeTemporary(s.meta)
		if err != nil {
			return fmt.Errorf("image %s: %w", s.name, err)
		}
		// First what is known of the image: without that it is none, and the other way round it is one.
		steps = append(steps, step{meta, s.name + suffix + metaSuffix}, step{s.tmp, s.name + suffix})
	}
	if len(images) > 1 {
		if err := p.publishAll(steps); err != nil {
			return err
		}
	} else if err := p.rename(steps); err != nil {
		return err
	}
	for _, s := range images {
		s.f.Close()
		s.f = nil
		p.release(s.name)
	}
	return nil
}

// writeTemporary writes v to a temporary file, on the disk.
func (p *Pool) writeTemporary(v any) (string, error) {
	f, name, err := p.temporary()
	if err != nil {
		return "", err
	}
	if err = json.NewEncoder(f).Encode(v); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, p.root.Remove(name))
	}
	return name, nil
}

// publishAll gives several images their names: once the list of them is on the disk it happens, if need be at the next Open.
func (p *Pool) publishAll(steps []step) error {
	tmp, err := p.writeTemporary(steps)
	if err != nil {
		return err
	}
	list := publishPrefix + rand.Text()
	if err := p.rename([]step{{tmp, list}}); err != nil {
		return errors.Join(err, p.root.Remove(tmp))
	}
	if err := p.rename(steps); err != nil {
		return errors.Join(err, p.undo(steps), p.root.Remove(list))
	}
	if err := p.root.Remove(list); err != nil {
		p.opt.Log.Error("a list stays until the pool is opened again", "file", p.file(list), "err", err)
	}
	return nil
}

// undo takes away the names that publishAll gave before an error.
func (p *Pool) undo(steps []step) error {
	var errs []error
	for _, s := range steps {
		if _, err := p.root.Lstat(s.From); err == nil {
			continue // not given
		}
		errs = append(errs, p.root.Rename(s.To, s.From))
	}
	return errors.Join(errs...)
}

// rename gives files their names, unless others have them, and syncs the directory.
func (p *Pool) rename(steps []step) error {
	fd := int(p.dir.Fd())
	for _, s := range steps {
		err := unix.Renameat2(fd, s.From, fd, s.To, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) && strings.HasSuffix(s.To, metaSuffix) {
			err = p.root.Rename(s.From, s.To) // of an image that is gone
		}
		if errors.Is(err, unix.EINVAL) { // a file system that does not know how
			if _, err = p.root.Lstat(s.To); errors.Is(err, fs.ErrNotExist) {
				err = p.root.Rename(s.From, s.To)
			} else if err == nil {
				err = fs.ErrExist
			}
		}
		if err != nil {
			return fmt.Errorf("pool %s: %s: %w", p.path, s.To, err)
		}
	}
	return p.dir.Sync()
}

// clean finishes what was to be visible, and removes what was left unfinished and what is known of images that are gone.
func (p *Pool) clean() error {
	entries, err := fs.ReadDir(p.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), publishPrefix) {
			if err := p.finish(e.Name()); err != nil {
				return err
			}
		}
	}
	if entries, err = fs.ReadDir(p.root.FS(), "."); err != nil {
		return err
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	for name := range names {
		image, isMeta := strings.CutSuffix(name, metaSuffix)
		_, _, isImage := splitFile(image)
		orphan := isMeta && isImage && !names[image]
		if !orphan && !strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		p.opt.Log.Info("removing what was left unfinished", "file", p.file(name))
		if err := p.root.Remove(name); err != nil {
			return err
		}
	}
	return p.dir.Sync()
}

// finish does what is left of a list of publishAll.
func (p *Pool) finish(list string) error {
	f, err := p.root.OpenFile(list, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	var steps []step
	err = json.NewDecoder(io.LimitReader(f, maxMeta)).Decode(&steps)
	f.Close()
	if err != nil {
		return fmt.Errorf("%s: %w: remove it", p.file(list), err)
	}
	var left []step
	for _, s := range steps {
		_, _, ok := splitFile(strings.TrimSuffix(s.To, metaSuffix))
		if !ok || !strings.HasPrefix(s.From, tmpPrefix) || strings.Contains(s.From, "/") {
			return fmt.Errorf("%s names %q and %q: remove it", p.file(list), s.From, s.To)
		}
		if _, err := p.root.Lstat(s.From); err == nil {
			left = append(left, s)
		}
	}
	if err := p.rename(left); err != nil {
		return err
	}
	return p.root.Remove(list)
}
