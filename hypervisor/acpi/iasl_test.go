package acpi

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

var complaint = regexp.MustCompile(`(?i)error|warning|invalid|incorrect|unknown|unresolved|should be`)

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
					if complaint.MatchString(line) {
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
			if d := cmp.Diff(want[headerLen:], got[headerLen:]); d != "" {
				t.Errorf("compiled again, the DSDT differs (-want +got):\n%s", d)
			}
		})
	}
}

// TestExecute has ACPICA's interpreter, which is Linux's, run the methods.
func TestExecute(t *testing.T) {
	if _, err := exec.LookPath("acpiexec"); err != nil {
		t.Skip("needs acpiexec")
	}
	dir := t.TempDir()
	dsdt := place(t, board())["DSDT"]
	if err := os.WriteFile(filepath.Join(dir, "dsdt.aml"), dsdt, 0o600); err != nil {
		t.Fatal(err)
	}
	const (
		uuid  = "(5B4DDB33F71F1C4096577441C03DD766)"
		other = "(5B4DDB33F71F1C4096577441C03DD767)"
	)
	tests := []struct {
		name, command string
		want          []string
	}{
		{"address of the generation identifier", `\_SB.VGEN.ADDR`,
			[]string{fmt.Sprintf("[Integer] = %016X", binary.LittleEndian.Uint32(dsdt[headerLen+7:])), "[Integer] = 0000000000000000"}},
		{"new generation", `\_GPE._E05`, []string{"Device Notify on [VGEN]", "Value 0x80"}},
		{"all that is granted", `\_SB.PCI0._OSC ` + uuid + ` 1 3 (00000000 00000000 1D000000)`,
			[]string{"00 00 00 00 00 00 00 00 1D 00 00 00"}},
		{"more than is granted", `\_SB.PCI0._OSC ` + uuid + ` 1 3 (01000000 1F000000 1F010000)`,
			[]string{"11 00 00 00 1F 00 00 00 1D 00 00 00"}},
		{"later revision", `\_SB.PCI0._OSC ` + uuid + ` 2 3 (00000000 00000000 01000000)`,
			[]string{"08 00 00 00 00 00 00 00 01 00 00 00"}},
		{"capabilities of something else", `\_SB.PCI0._OSC ` + other + ` 1 3 (00000000 00000000 1F000000)`,
			[]string{"04 00 00 00 00 00 00 00 1F 00 00 00"}},
		{"suspend to RAM", `\_S3`, []string{"Contains 4 Elements", "[Integer] = 0000000000000001"}},
		{"suspend to disk", `\_S4`, []string{"Contains 4 Elements", "[Integer] = 0000000000000002"}},
		{"off", `\_S5`, []string{"Contains 4 Elements"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // it takes a second to end
			cmd := exec.Command("acpiexec", "-b", "execute "+tt.command, "dsdt.aml")
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			_, result, _ := strings.Cut(string(out), "\nEvaluating ")
			for _, want := range tt.want {
				if !strings.Contains(result, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if strings.Contains(string(out), "ACPI Error") || strings.Contains(string(out), "ACPI Warning") {
				t.Errorf("complaints:\n%s", out)
			}
		})
	}
}
