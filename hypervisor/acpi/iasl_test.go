package acpi

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// iasl runs the ACPI compiler in dir.
func iasl(t *testing.T, dir string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("iasl"); err != nil {
		t.Skip("needs iasl")
	}
	cmd := exec.Command("iasl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("iasl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

var boards = map[string]func() Config{"everything": board, "small": smallBoard}

// TestDisassemble has iasl read every table, which it must do without a complaint.
func TestDisassemble(t *testing.T) {
	for name, config := range boards {
		t.Run(name, func(t *testing.T) {
			for sig, table := range place(t, config()) {
				if sig == "RSDP" {
					continue // not a table to iasl
				}
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, sig+".aml"), table, 0o600); err != nil {
					t.Fatal(err)
				}
				out := iasl(t, dir, "-d", sig+".aml")
				dsl, err := os.ReadFile(filepath.Join(dir, sig+".dsl"))
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(out + string(dsl)) {
					if regexp.MustCompile(`(?i)error|warning|invalid|incorrect|unknown|unresolved|should be`).MatchString(line) {
						t.Errorf("%s: %s", sig, line)
					}
				}
			}
		})
	}
}

// TestRecompile has iasl compile what it disassembled: it must find nothing to complain about and arrive at our bytes.
func TestRecompile(t *testing.T) {
	for name, config := range boards {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			want := place(t, config())["DSDT"]
			if err := os.WriteFile(filepath.Join(dir, "dsdt.aml"), want, 0o600); err != nil {
				t.Fatal(err)
			}
			iasl(t, dir, "-d", "dsdt.aml")
			// Without optimizing, names stay as they were written.
			out := iasl(t, dir, "-oa", "-p", "again", "dsdt.dsl")
			if !strings.Contains(out, "0 Errors, 0 Warnings, 0 Remarks") {
				t.Errorf("iasl:\n%s", out)
			}
			got, err := os.ReadFile(filepath.Join(dir, "again.aml"))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[headerLen:], want[headerLen:]) {
				t.Errorf("compiled again, the DSDT differs from byte %d\nwant %s\ngot  %s", diff(got[headerLen:], want[headerLen:]),
					around(want[headerLen:], diff(got[headerLen:], want[headerLen:])), around(got[headerLen:], diff(got[headerLen:], want[headerLen:])))
			}
		})
	}
}

func diff(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func around(b []byte, at int) string {
	return fmt.Sprintf("%x", b[max(at-16, 0):min(at+16, len(b))])
}
