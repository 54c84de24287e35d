package bootimage

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

func TestSBOM(t *testing.T) {
	name := filepath.Join(t.TempDir(), "program") // a test program has no list of its modules
	if out, err := exec.Command("go", "build", "-o", name, "github.com/lodgehv/lodge/e2e/poweron/init").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	plain := FileComponents("etc/name", "", []byte("hello"))
	if len(plain) != 1 || plain[0].Hashes[0].Content != "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" {
		t.Errorf("a plain file: %v", plain)
	}
	program := FileComponents("bin/program", "1", read(t, name))
	twice := slices.Concat(program, plain, program)
	b, err := SBOM("1.2", twice)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(twice)
	if again, err := SBOM("1.2", twice); err != nil || !bytes.Equal(b, again) {
		t.Errorf("the order of the components matters (%v)", err)
	}
	var got struct {
		BOMFormat, SpecVersion string
		Metadata               struct{ Component Component }
		Components             []Component
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.BOMFormat != "CycloneDX" || got.SpecVersion != "1.5" || got.Metadata.Component.Version != "1.2" {
		t.Errorf("head %v", got)
	}
	if len(got.Components) != len(program)+1 {
		t.Errorf("%d components, want each of %d once", len(got.Components), len(program)+1)
	}
	for _, want := range []string{"golang.org/x/sys", "std"} {
		i := slices.IndexFunc(got.Components, func(c Component) bool { return c.Name == want })
		if i < 0 {
			t.Errorf("the Go module %s is not in it", want)
		} else if c := got.Components[i]; c.Version == "" || c.PURL != "pkg:golang/"+want+"@"+c.Version {
			t.Errorf("%s: version %q, URL %q", want, c.Version, c.PURL)
		}
	}
}
