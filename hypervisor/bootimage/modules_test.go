package bootimage

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// writeFiles writes files into a new directory, and returns it.
func writeFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// kernelFiles is a directory lib/modules/6.1.0-test.
var kernelFiles = map[string]string{
	"6.1.0-test/modules.dep":          "kernel/kvm-amd.ko: kernel/kvm.ko kernel/irqbypass.ko kernel/ccp.ko\nkernel/kvm.ko: kernel/irqbypass.ko\nkernel/irqbypass.ko:\nkernel/ccp.ko.xz:\nkernel/ccp.ko:\nkernel/loop.ko:\n",
	"6.1.0-test/modules.builtin":      "kernel/fs/ext2/ext4-thing.ko\n",
	"6.1.0-test/modules.alias":        "# comment\nalias pci:v1 kvm_amd\nalias pci:v2 loop\nalias devname:kvm kvm\n",
	"6.1.0-test/kernel/kvm-amd.ko":    "amd",
	"6.1.0-test/kernel/kvm.ko":        "kvm",
	"6.1.0-test/kernel/irqbypass.ko":  "bypass",
	"6.1.0-test/kernel/ccp.ko":        "ccp",
	"6.1.0-test/kernel/loop.ko":       "loop",
	"firmware/vendor/card.bin":        "blob",
	"6.1.0-test/kernel/unrelated.txt": "",
}

func TestResolve(t *testing.T) {
	dir := filepath.Join(writeFiles(t, kernelFiles), "6.1.0-test")
	m, err := ReadModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Resolve("kvm_amd", "ext4-thing", "kvm")
	want := []string{"kernel/kvm.ko", "kernel/irqbypass.ko", "kernel/ccp.ko", "kernel/kvm-amd.ko"}
	slices.Sort(want)
	sorted := slices.Sorted(slices.Values(got))
	if err != nil || !cmp.Equal(sorted, want) {
		t.Errorf("kvm_amd and what it needs: %v %v, want %v in some order", got, err, want)
	}
	if a, b := slices.Index(got, "kernel/irqbypass.ko"), slices.Index(got, "kernel/kvm.ko"); a > b {
		t.Errorf("%v: irqbypass is after kvm, which needs it", got)
	}
	if _, err := m.Resolve("nothere"); err == nil || err.Error() != "kernel 6.1.0-test has no module nothere" {
		t.Errorf("a module that is not there: %v", err)
	}
	indices, err := m.indices([]string{"kernel/irqbypass.ko", "kernel/kvm.ko"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(indices["modules.alias"]), "alias devname:kvm kvm\n"; got != want {
		t.Errorf("aliases of kvm: %q, want %q", got, want)
	}
	if got, want := string(indices["modules.dep"]), "kernel/irqbypass.ko:\nkernel/kvm.ko: kernel/irqbypass.ko\n"; got != want {
		t.Errorf("dependencies: %q, want %q", got, want)
	}
}

func FuzzModulesDep(f *testing.F) {
	f.Add([]byte(kernelFiles["6.1.0-test/modules.dep"]), "kvm-amd")
	f.Add([]byte("a.ko: b.ko\nb.ko: a.ko\n"), "a")
	f.Add([]byte("../../etc/passwd:\n"), "passwd")
	f.Fuzz(func(t *testing.T, dep []byte, name string) {
		var m Modules
		if m.parseDep(dep) != nil {
			return
		}
		order, err := m.Resolve(name)
		if err != nil {
			return
		}
		seen := make(map[string]bool)
		for _, p := range order {
			if !filepath.IsLocal(p) {
				t.Errorf("%q is not within the directory", p)
			}
			if seen[p] {
				t.Errorf("%q is there twice", p)
			}
			seen[p] = true
		}
	})
}
