package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/internal/deffile"
)

// Errors that a caller may want to tell apart. What is returned says which guest it is about.
var (
	ErrNotFound = errors.New("no such guest")
	ErrExists   = errors.New("there is a guest of that name")
	ErrName     = errors.New("not a name for a guest: use up to 64 letters, digits, '-', '_' and '.'")
	ErrChanged  = errors.New("the definition was changed meanwhile: look at it again")
	ErrNeeded   = errors.New("other guests depend on it")
	ErrTooMany  = errors.New("too many guests")
)

const (
	maxGuests   = 256
	maxVersions = 10 // that are kept beside the current one
)

// Config says where things are.
type Config struct {
	Dir      string                    // of the definitions
	Versions string                    // of the versions before them, a directory each
	Sockets  func(name string) Sockets // of a guest
	Network  func(name string) bool    // reports whether there is a network of that name; nil: any may be
	Images   Images                    // nil: there are no pools
}

// Store is a directory of definitions. Its methods may be called from any goroutine; the guests that they return are not
// changed any more.
type Store struct {
	cfg Config

	mu      sync.Mutex
	entries map[string]*entry
}

type entry struct {
	text  []byte
	guest *Guest // nil if err is not
	err   error
}

// Open reads all definitions, and removes what was left half-written. A definition that is wrong does not keep the others from
// being used: see Faults.
func Open(cfg Config) (*Store, error) {
	s := &Store{cfg: cfg, entries: make(map[string]*entry)}
	for _, dir := range []string{cfg.Dir, cfg.Versions} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("definitions: %w", err)
		}
	}
	guests, err := os.ReadDir(cfg.Versions)
	if err != nil {
		return nil, fmt.Errorf("definitions: %w", err)
	}
	dirs := []string{cfg.Dir}
	for _, g := range guests {
		dirs = append(dirs, filepath.Join(cfg.Versions, g.Name()))
	}
	for _, dir := range dirs {
		if err := deffile.RemoveTemporary(dir); err != nil {
			return nil, fmt.Errorf("definitions: %w", err)
		}
	}
	_, err = s.Reload()
	return s, err
}

func (s *Store) file(name string) string { return filepath.Join(s.cfg.Dir, name+deffile.Suffix) }

func (s *Store) parse(name string, text []byte) (*Guest, error) {
	return Parse(s.file(name), s.cfg.Dir, s.cfg.Sockets(name), s.cfg.Images, text)
}

// Reload reads the files anew, of which people may have edited some, and returns the names of guests that are others than
// before.
func (s *Store) Reload() (changed []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	files, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("definitions: %w", err)
	}
	fresh := make(map[string]*entry)
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), deffile.Suffix)
		if !ok || !definition.IsName(name) {
			continue // an editor's backup, or a README
		}
		if len(fresh) == maxGuests {
			return nil, fmt.Errorf("definitions: %w in %s: at most %d are possible", ErrTooMany, s.cfg.Dir, maxGuests)
		}
		e := &entry{}
		if e.text, e.err = deffile.Read(filepath.Join(s.cfg.Dir, f.Name())); e.err == nil {
			e.guest, e.err = s.parse(name, e.text)
		}
		fresh[name] = e
	}
	s.settle(fresh)
	for name, e := range fresh {
		if old := s.entries[name]; old == nil || string(old.text) != string(e.text) || (old.err == nil) != (e.err == nil) {
			changed = append(changed, name)
		}
	}
	for name := range s.entries {
		if fresh[name] == nil {
			changed = append(changed, name)
		}
	}
	s.entries = fresh
	slices.Sort(changed)
	return changed, nil
}

// settle finds out which guests do not go together. Those that were taken into use so far stay, if they can; of the others the
// first does.
func (s *Store) settle(fresh map[string]*entry) {
	names := slices.SortedFunc(maps.Keys(fresh), func(a, b string) int {
		known := func(name string) int {
			if old := s.entries[name]; old != nil && old.err == nil && string(old.text) == string(fresh[name].text) {
				return 0
			}
			return 1
		}
		if d := known(a) - known(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	good := make(map[string]*Guest) // those that nobody has found fault with yet
	for _, name := range names {
		if fresh[name].err == nil {
			good[name] = fresh[name].guest
		}
	}
	fault := func(name string, err error) {
		fresh[name].guest, fresh[name].err = nil, err
		delete(good, name)
	}
	accepted := make(map[string]*Guest)
	for _, name := range names {
		g := good[name]
		if g == nil {
			continue
		}
		// Of what it depends on nothing is known yet but that it is there; of the rest, those that were accepted count.
		others := maps.Clone(accepted)
		for _, d := range g.Depends {
			if others[d] == nil && fresh[d] != nil {
				others[d] = &Guest{}
				if o := good[d]; o != nil {
					others[d].Depends = o.Depends
				}
			}
		}
		if err := s.check(s.file(name), g, others); err != nil {
			fault(name, err)
			continue
		}
		accepted[name] = g
	}
	for again := true; again; { // a guest falls with what it depends on
		again = false
		for _, name := range names {
			g := good[name]
			if g == nil {
				continue
			}
			if i := slices.IndexFunc(g.Depends, func(d string) bool { return good[d] == nil }); i >= 0 {
				fault(name, g.Fault(s.file(name), "depends", "depends: guest %q has no valid definition: correct that one", g.Depends[i]))
				again = true
			}
		}
	}
}

// List returns all guests whose definitions are valid, by name.
func (s *Store) List() []*Guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*Guest
	for _, name := range slices.Sorted(maps.Keys(s.entries)) {
		if e := s.entries[name]; e.err == nil {
			list = append(list, e.guest)
		}
	}
	return list
}

// Faults returns what is wrong with the definitions that cannot be used, by guest.
func (s *Store) Faults() map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	faults := make(map[string]error)
	for name, e := range s.entries {
		if e.err != nil {
			faults[name] = e.err
		}
	}
	return faults
}

// Get returns a guest. If its definition is wrong, the error says how.
func (s *Store) Get(name string) (*Guest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return nil, err
	}
	return e.guest, e.err
}

func (s *Store) find(name string) (*entry, error) {
	if !definition.IsName(name) {
		return nil, fmt.Errorf("%w: %.80q", ErrName, name)
	}
	if e := s.entries[name]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
}

// Text returns a guest's file as it was read last, and its tag, by which Edit knows what it is to replace.
func (s *Store) Text(name string) (text []byte, tag string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return nil, "", err
	}
	return slices.Clone(e.text), deffile.Tag(e.text), nil
}

// Check validates a definition as Define does, or as Edit does if there is a guest of its name, and saves nothing.
func (s *Store) Check(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, err := nameIn(text)
	if err != nil {
		return err
	}
	_, err = s.validate(name, text)
	return err
}

// nameIn returns the name of the guest that text defines.
func nameIn(text []byte) (string, error) {
	if len(text) > deffile.MaxText {
		return "", deffile.TooLong("definition")
	}
	name := definition.NameIn(text)
	if !definition.IsName(name) {
		_, err := Parse("definition", "/", Sockets{Run: "/", Logs: "/"}, nil, text) // says where
		return "", errors.Join(fmt.Errorf("%w: name = %.80q", ErrName, name), err)
	}
	return name, nil
}

// validate returns the guest that text defines, if it goes together with the others. With mu.
func (s *Store) validate(name string, text []byte) (*Guest, error) {
	g, err := s.parse(name, text)
	if err != nil {
		return nil, err
	}
	others := make(map[string]*Guest)
	for n, e := range s.entries {
		if e.err == nil && n != name {
			others[n] = e.guest
		}
	}
	return g, s.check(s.file(name), g, others)
}

// Define adds a guest.
func (s *Store) Define(text []byte) (*Guest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, err := nameIn(text)
	if err != nil {
		return nil, err
	}
	if s.entries[name] != nil {
		return nil, fmt.Errorf("%w: %s: edit that one, or choose another name", ErrExists, name)
	}
	if len(s.entries) >= maxGuests {
		return nil, fmt.Errorf("%w: %d: delete one", ErrTooMany, maxGuests)
	}
	g, err := s.validate(name, text)
	if err != nil {
		return nil, err
	}
	// A file that somebody has put there since the last Reload is not replaced.
	if err := deffile.Publish(s.cfg.Dir, name+deffile.Suffix, text, os.Link); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("%w: %s: reload, and edit that one", ErrExists, name)
		}
		return nil, err
	}
	s.entries[name] = &entry{text: slices.Clone(text), guest: g}
	return g, nil
}

// Edit replaces a guest's definition, and keeps the old one as a version. tag is that of the text which was edited; "" replaces
// whatever is there.
func (s *Store) Edit(name string, text []byte, tag string) (*Guest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.find(name)
	if err != nil {
		return nil, err
	}
	onDisk, err := deffile.Read(s.file(name))
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", name, err)
	}
	if tag != "" && (tag != deffile.Tag(old.text) || string(onDisk) != string(old.text)) {
		return nil, fmt.Errorf("guest %s: %w", name, ErrChanged)
	}
	if n, err := nameIn(text); err != nil {
		return nil, err
	} else if n != name {
		return nil, fmt.Errorf("%w: the text defines %s, not %s: a guest keeps its name, define another one", ErrName, n, name)
	}
	g, err := s.validate(name, text)
	if err != nil {
		return nil, err
	}
	if string(onDisk) == string(text) {
		s.entries[name] = &entry{text: onDisk, guest: g}
		return g, nil
	}
	if err := s.keep(name, onDisk); err != nil {
		return nil, err
	}
	if err := deffile.Publish(s.cfg.Dir, name+deffile.Suffix, text, os.Rename); err != nil {
		return nil, err
	}
	s.entries[name] = &entry{text: slices.Clone(text), guest: g}
	return g, nil
}

// Delete removes a guest. Its last definition stays as a version, in case it was not meant.
func (s *Store) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return err
	}
	for _, n := range slices.Sorted(maps.Keys(s.entries)) {
		if o := s.entries[n]; o.err == nil && slices.Contains(o.guest.Depends, name) {
			return fmt.Errorf("guest %s: %w: %s does: edit that one first", name, ErrNeeded, n)
		}
	}
	if len(e.text) <= deffile.MaxText {
		if err := s.keep(name, e.text); err != nil {
			return err
		}
	}
	if err := os.Remove(s.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("guest %s: %w", name, err)
	}
	delete(s.entries, name)
	return deffile.SyncDir(s.cfg.Dir)
}

// Version is an earlier definition of a guest.
type Version struct {
	Number int       // grows from one to the next
	Time   time.Time // when it was replaced
	Size   int64
}

// Versions returns the earlier definitions of a guest that are kept, the newest first; also of one that was deleted.
func (s *Store) Versions(name string) ([]Version, error) {
	if !definition.IsName(name) {
		return nil, fmt.Errorf("%w: %.80q", ErrName, name)
	}
	files, err := os.ReadDir(filepath.Join(s.cfg.Versions, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("guest %s: versions: %w", name, err)
	}
	var list []Version
	for _, f := range files {
		base, ok := strings.CutSuffix(f.Name(), deffile.Suffix)
		n, err := strconv.Atoi(base)
		if st, e := f.Info(); ok && err == nil && e == nil && n > 0 {
			list = append(list, Version{n, st.ModTime(), st.Size()})
		}
	}
	slices.SortFunc(list, func(a, b Version) int { return b.Number - a.Number })
	return list, nil
}

// VersionText returns an earlier definition.
func (s *Store) VersionText(name string, number int) ([]byte, error) {
	if !definition.IsName(name) {
		return nil, fmt.Errorf("%w: %.80q", ErrName, name)
	}
	b, err := deffile.Read(filepath.Join(s.cfg.Versions, name, strconv.Itoa(number)+deffile.Suffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: version %d of %s", ErrNotFound, number, name)
	}
	return b, err
}

// keep makes text the newest version of a guest, and drops the oldest.
func (s *Store) keep(name string, text []byte) error {
	dir := filepath.Join(s.cfg.Versions, name)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("guest %s: versions: %w", name, err)
	}
	list, err := s.Versions(name)
	if err != nil {
		return err
	}
	next := 1
	if len(list) > 0 {
		next = list[0].Number + 1
		if last, err := s.VersionText(name, list[0].Number); err == nil && string(last) == string(text) {
			return nil // a change that was interrupted after this step
		}
	}
	if err := deffile.Publish(dir, strconv.Itoa(next)+deffile.Suffix, text, os.Rename); err != nil {
		return fmt.Errorf("guest %s: versions: %w", name, err)
	}
	for i, v := range list {
		if i >= maxVersions-1 {
			err = errors.Join(err, os.Remove(filepath.Join(dir, strconv.Itoa(v.Number)+deffile.Suffix)))
		}
	}
	return errors.Join(err, deffile.SyncDir(s.cfg.Versions))
}
