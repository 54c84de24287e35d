package image

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// modules returns files of kernel modules, relative to lib/modules/VERSION, in an
// order in which they can be inserted: each after those it depends on. Names of
// what the kernel has built in give no file.
func (k *Kernel) modules(names ...string) ([]string, error) {
	dir := filepath.Join(k.Dir, "lib/modules", k.Version)
	deps := map[string][]string{} // file → files, as in modules.dep
	file := map[string]string{}   // name → file
	err := eachLine(filepath.Join(dir, "modules.dep"), func(l string) {
		f, rest, _ := strings.Cut(l, ":")
		deps[f] = strings.Fields(rest)
		file[moduleName(f)] = f
	})
	if err != nil {
		return nil, err
	}
	builtin := map[string]bool{}
	if err := eachLine(filepath.Join(dir, "modules.builtin"), func(l string) { builtin[moduleName(l)] = true }); err != nil {
		return nil, err
	}
	var order []string
	seen := map[string]bool{}
	var add func(f string)
	add = func(f string) {
		if seen[f] {
			return
		}
		seen[f] = true
		for _, d := range deps[f] {
			add(d)
		}
		order = append(order, f)
	}
	for _, n := range names {
		n = moduleName(n)
		switch f, ok := file[n]; {
		case ok:
			add(f)
		case !builtin[n]:
			return nil, fmt.Errorf("kernel %s has no module %s", k.Version, n)
		}
	}
	return order, nil
}

// moduleName is what the kernel calls the module in a file: dashes are the same
// as underscores.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

func eachLine(path string, f func(string)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	s := bufio.NewScanner(file)
	for s.Scan() {
		f(s.Text())
	}
	return s.Err()
}
