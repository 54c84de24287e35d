package appliance

import (
	"bufio"
	"bytes"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/lodgehv/lodge/hypervisor/appliance"
)

// modules adds the kernel modules that the appliance needs, and indices of them alone, to files.
func modules(t *testing.T, files map[string]string, version, dir string) {
	t.Helper()
	from, to := filepath.Join("/lib/modules", version), path.Join("lib/modules", version)
	name := func(file string) string {
		n, _, _ := strings.Cut(path.Base(file), ".ko")
		return strings.ReplaceAll(n, "-", "_")
	}
	lines := func(index string) []string {
		b, err := os.ReadFile(filepath.Join(from, index))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(string(b), "\n")
	}
	want := make(map[string]bool)
	for _, m := range appliance.Modules() {
		want[name(m)] = true
	}
	var dep, alias bytes.Buffer
	kept := make(map[string]bool)
	all := lines("modules.dep")
	needed := make(map[string]bool)
	for _, l := range all {
		if f, deps, ok := strings.Cut(l, ":"); ok && want[name(f)] {
			needed[f] = true
			for _, d := range strings.Fields(deps) {
				needed[d] = true
			}
		}
	}
	for _, l := range all {
		if f, _, _ := strings.Cut(l, ":"); needed[f] {
			dep.WriteString(l + "\n")
			kept[name(f)] = true
			files[path.Join(to, f)] = filepath.Join(from, f)
		}
	}
	for _, l := range lines("modules.alias") {
		if w := strings.Fields(l); len(w) == 3 && kept[w[2]] {
			alias.WriteString(l + "\n")
		}
	}
	for index, b := range map[string][]byte{"modules.dep": dep.Bytes(), "modules.alias": alias.Bytes()} {
		made := filepath.Join(dir, index)
		if err := os.WriteFile(made, b, 0o644); err != nil {
			t.Fatal(err)
		}
		files[path.Join(to, index)] = made
	}
	files[path.Join(to, "modules.builtin")] = filepath.Join(from, "modules.builtin")
}

// pack writes an initramfs.
func pack(t *testing.T, name string, files map[string]string) {
	t.Helper()
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	buffered := bufio.NewWriter(out)
	records := map[string]cpio.Record{"dev/console": cpio.CharDev("dev/console", 0o600, 5, 1)}
	for to, from := range files {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		records[to] = cpio.StaticFile(to, string(b), 0o755)
	}
	for _, to := range slices.Collect(maps.Keys(records)) {
		for d := path.Dir(to); d != "."; d = path.Dir(d) {
			records[d] = cpio.Directory(d, 0o755)
		}
	}
	w := cpio.Newc.Writer(buffered)
	for _, n := range slices.Sorted(maps.Keys(records)) {
		if err := w.WriteRecord(records[n]); err != nil {
			t.Fatal(err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	if err := buffered.Flush(); err != nil {
		t.Fatal(err)
	}
}
