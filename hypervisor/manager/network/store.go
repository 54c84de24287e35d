package network

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/internal/deffile"
)

// Errors that a caller may want to tell apart. What is returned says which network it is about.
var (
	ErrNotFound = errors.New("no such network")
	ErrExists   = errors.New("there is a network of that name")
	ErrName     = errors.New("not a name for a network: use up to 9 lower-case letters, digits and '-'")
	ErrChanged  = errors.New("the definition was changed meanwhile: look at it again")
	ErrTooMany  = errors.New("too many networks")
	ErrBuiltIn  = errors.New("it is there without a file, and cannot be deleted: edit it")
)

// maxNetworks is how many networks there can be.
const maxNetworks = 64

// Default is the network that is there without a file. A file of its name replaces it.
const Default = "default"

// builtIn is the text of Default.
const builtIn = `# The network that is there without a file.
name = "default"
kind = "user"
subnet = "10.76.0.0/24"
`

// Store is a directory of definitions, NAME.toml each. Its methods may be called from any goroutine; the networks that they return
// are not changed any more.
type Store struct {
	dir string

	mu      sync.Mutex
	entries map[string]*entry
}

type entry struct {
	text []byte
	net  *Network // nil if err is not
	keys *definition.Keys
	err  error
	file bool // false: it is built in
}

// OpenStore reads all definitions in dir, which it makes if need be. A definition that is wrong does not keep the others from
// being used: see Faults.
func OpenStore(dir string) (*Store, error) {
	s := &Store{dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	if err := deffile.RemoveTemporary(dir); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	return s, s.Reload()
}

func (s *Store) file(name string) string { return filepath.Join(s.dir, name+deffile.Suffix) }

// parse makes an entry of the text of a file. Its name is to be that of the network.
func (s *Store) parse(name string, text []byte, file bool) *entry {
	e := &entry{text: text, file: file}
	e.net, e.keys, e.err = parse(s.file(name), text)
	if e.err == nil && e.net.Name != name {
		e.fail(e.keys.Fault("name", "name %q: the file is called %s%s: use one name for both", e.net.Name, name, deffile.Suffix))
	}
	return e
}

func (e *entry) fail(err error) { e.net, e.err = nil, err }

// Reload reads the files anew, of which people may have edited some.
func (s *Store) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	fresh := make(map[string]*entry)
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), deffile.Suffix)
		if !ok || !isName(name) {
			continue // an editor's backup, or a README
		}
		if len(fresh) == maxNetworks {
			return fmt.Errorf("%w in %s: at most %d are possible", ErrTooMany, s.dir, maxNetworks)
		}
		text, err := deffile.Read(s.file(name))
		if err != nil {
			fresh[name] = &entry{err: err, file: true}
			continue
		}
		fresh[name] = s.parse(name, text, true)
	}
	if fresh[Default] == nil {
		fresh[Default] = s.parse(Default, []byte(builtIn), false)
	}
	s.settle(fresh)
	s.entries = fresh
	return nil
}

// settle finds out which networks do not go together. Those that are in use stay, if they can; of the others the first does, and
// the one without a file comes last.
func (s *Store) settle(fresh map[string]*entry) {
	rank := func(name string) int {
		e := fresh[name]
		switch old := s.entries[name]; {
		case !e.file:
			return 2
		case old != nil && old.err == nil && string(old.text) == string(e.text):
			return 0
		}
		return 1
	}
	names := slices.SortedFunc(maps.Keys(fresh), func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	accepted := make(map[string]*entry)
	for _, name := range names {
		if e := fresh[name]; e.err == nil {
			if err := e.together(accepted); err != nil {
				e.fail(err)
			} else {
				accepted[name] = e
			}
		}
	}
}

// together reports what of e does not go together with the others.
func (e *entry) together(others map[string]*entry) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(others)) {
		if o := others[name]; o.err == nil && name != e.net.Name {
			errs = append(errs, e.net.together(o.net, e.keys.Fault))
		}
	}
	return errors.Join(errs...)
}

// Names returns the names of all networks in order, also of those whose definitions are wrong.
func (s *Store) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.entries))
}

// Get returns a network. If its definition is wrong, the error says how.
func (s *Store) Get(name string) (*Network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return nil, err
	}
	return e.net, e.err
}

func (s *Store) find(name string) (*entry, error) {
	if !isName(name) {
		return nil, fmt.Errorf("%w: %.80q", ErrName, name)
	}
	if e := s.entries[name]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
}

// Text returns a network's definition as it was read last, and its tag, by which Edit knows what it is to replace.
func (s *Store) Text(name string) (text []byte, tag string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return nil, "", err
	}
	return slices.Clone(e.text), deffile.Tag(e.text), nil
}

// validate returns the entry for a text that defines a network, if it goes together with the others. With mu.
func (s *Store) validate(text []byte) (*entry, error) {
	const what = "definition"
	if len(text) > deffile.MaxText {
		return nil, deffile.TooLong(what)
	}
	name := definition.NameIn(text)
	if !isName(name) {
		_, err := Parse(what, text) // says where
		return nil, errors.Join(fmt.Errorf("%w: name = %.80q", ErrName, name), err)
	}
	e := s.parse(name, slices.Clone(text), true)
	if e.err == nil {
		e.err = e.together(s.entries)
	}
	return e, e.err
}

// Check validates a definition as Define and Edit do, and saves nothing.
func (s *Store) Check(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.validate(text)
	return err
}

// Define adds a network.
func (s *Store) Define(text []byte) (*Network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.validate(text)
	if err != nil {
		return nil, err
	}
	name := e.net.Name
	exists := fmt.Errorf("%w: %s: edit that one, or choose another name", ErrExists, name)
	if s.entries[name] != nil {
		return nil, exists
	}
	if len(s.entries) >= maxNetworks {
		return nil, fmt.Errorf("%w: %d: delete one", ErrTooMany, maxNetworks)
	}
	// A file that somebody has put there since the last Reload is not replaced.
	if err := deffile.Publish(s.dir, name+deffile.Suffix, text, os.Link); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, exists
		}
		return nil, err
	}
	s.entries[name] = e
	return e.net, nil
}

// Edit replaces a network's definition. tag is that of the text which was edited; "" replaces whatever is there.
func (s *Store) Edit(name string, text []byte, tag string) (*Network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.find(name)
	if err != nil {
		return nil, err
	}
	if old.file {
		onDisk, err := deffile.Read(s.file(name))
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", name, err)
		}
		if tag != "" && string(onDisk) != string(old.text) {
			return nil, fmt.Errorf("network %s: %w", name, ErrChanged)
		}
	}
	if tag != "" && tag != deffile.Tag(old.text) {
		return nil, fmt.Errorf("network %s: %w", name, ErrChanged)
	}
	e, err := s.validate(text)
	if err != nil {
		return nil, err
	}
	if e.net.Name != name {
		return nil, fmt.Errorf("%w: the text defines %s, not %s: a network keeps its name, define another one", ErrName, e.net.Name, name)
	}
	if err := deffile.Publish(s.dir, name+deffile.Suffix, text, os.Rename); err != nil {
		return nil, err
	}
	s.entries[name] = e
	return e.net, nil
}

// Delete removes a network. Default is then again what it is without a file.
func (s *Store) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(name)
	if err != nil {
		return err
	}
	if !e.file {
		return fmt.Errorf("network %s: %w", name, ErrBuiltIn)
	}
	if err := os.Remove(s.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network %s: %w", name, err)
	}
	delete(s.entries, name)
	if name == Default {
		e := s.parse(Default, []byte(builtIn), false)
		if err := e.together(s.entries); err != nil {
			e.fail(err)
		}
		s.entries[name] = e
	}
	return deffile.SyncDir(s.dir)
}
