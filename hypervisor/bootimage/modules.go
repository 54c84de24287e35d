package bootimage

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Modules are the kernel modules in a directory lib/modules/VERSION, as depmod's indices describe them.
type Modules struct {
	// Dir is the directory.
	Dir     string
	deps    map[string][]string // file → files
	files   map[string]string   // name → file
	builtin map[string]bool     // names of what the kernel itself has
}

// ReadModules reads modules.dep and modules.builtin of a directory lib/modules/VERSION.
func ReadModules(dir string) (*Modules, error) {
	m := &Modules{Dir: dir, builtin: make(map[string]bool)}
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	if err := m.parseDep(dep); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "modules.dep"), err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	for l := range strings.Lines(string(builtin)) {
		m.builtin[moduleName(strings.TrimSpace(l))] = true
	}
	return m, nil
}

// parseDep reads modules.dep: in each line a file, a colon, and all files that it needs, relative to the directory.
func (m *Modules) parseDep(b []byte) error {
	m.deps, m.files = make(map[string][]string), make(map[string]string)
	n := 0
	for l := range strings.Lines(string(b)) {
		n++
		f, rest, ok := strings.Cut(strings.TrimSpace(l), ":")
		if !ok {
			return fmt.Errorf("line %d: no colon: run depmod", n)
		}
		deps := strings.Fields(rest)
		for _, p := range append(deps, f) {
			if !filepath.IsLocal(p) {
				return fmt.Errorf("line %d: %q is not a path within the directory: run depmod", n, p)
			}
		}
		m.deps[f] = deps
		m.files[moduleName(f)] = f
	}
	return nil
}

// Resolve returns the files of modules, relative to Dir, in an order in which they can be inserted: each after those that it
// depends on. Names of what the kernel has built in give no file. Soft dependencies are not followed.
func (m *Modules) Resolve(names ...string) ([]string, error) {
	var order []string
	seen := make(map[string]bool)
	var add func(f string)
	add = func(f string) {
		if seen[f] {
			return
		}
		seen[f] = true
		for _, d := range m.deps[f] {
			add(d)
		}
		order = append(order, f)
	}
	for _, n := range names {
		n = moduleName(n)
		switch f, ok := m.files[n]; {
		case ok:
			add(f)
		case !m.builtin[n]:
			return nil, fmt.Errorf("kernel %s has no module %s", filepath.Base(m.Dir), n)
		}
	}
	return order, nil
}

// indices returns depmod's indices for files alone: what a program needs that loads modules by name or modalias.
func (m *Modules) indices(files []string) (map[string][]byte, error) {
	var dep bytes.Buffer
	names := make(map[string]bool)
	for _, f := range files {
		fmt.Fprintf(&dep, "%s:", f)
		for _, d := range m.deps[f] {
			fmt.Fprintf(&dep, " %s", d)
		}
		fmt.Fprintln(&dep)
		names[moduleName(f)] = true
	}
	builtin, err := os.ReadFile(filepath.Join(m.Dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	alias, err := os.Open(filepath.Join(m.Dir, "modules.alias"))
	if err != nil {
		return nil, err
	}
	defer alias.Close()
	kept, err := filterAliases(alias, names)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", alias.Name(), err)
	}
	return map[string][]byte{"modules.dep": dep.Bytes(), "modules.builtin": builtin, "modules.alias": kept}, nil
}

// filterAliases returns the lines "alias PATTERN MODULE" of the modules in names.
func filterAliases(r io.Reader, names map[string]bool) ([]byte, error) {
	var kept bytes.Buffer
	s := bufio.NewScanner(r)
	for s.Scan() {
		if w := strings.Fields(s.Text()); len(w) == 3 && w[0] == "alias" && names[w[2]] {
			fmt.Fprintln(&kept, s.Text())
		}
	}
	return kept.Bytes(), s.Err()
}

// moduleName is what the kernel calls the module in a file, which may be compressed: dashes are the same as underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
