package virtiopci

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/virtio/rng"
)

var update = flag.Bool("update", false, "write the golden file anew")

// dump returns a function's configuration space in the form that lspci -F reads.
func dump(b *board) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%v Class\n", slot)
	for off := 0; off < pci.ConfigSize; off += 16 {
		fmt.Fprintf(&s, "%02x:", off)
		for i := range 16 {
			fmt.Fprintf(&s, " %02x", b.read(config(off+i), 1))
		}
		s.WriteByte('\n')
	}
	return s.String() + "\n"
}

// lspci reads the configuration space of a running device as we mean it: identity, register, interrupts, capabilities.
func TestLspciAgrees(t *testing.T) {
	lspci, err := exec.LookPath("lspci")
	if err != nil {
		t.Skip("needs lspci")
	}
	d := probe(newBoard(t, new(rng.Device), false))
	d.start(true)
	file := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(file, []byte(dump(d.board)), 0o600); err != nil {
		t.Fatal(err)
	}
	// Numbers only: names depend on the age of the host's list.
	cmd := exec.CommandContext(t.Context(), lspci, "-vvv", "-n", "-F", file)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	got, err := cmd.Output()
	if err != nil {
		t.Fatalf("lspci: %v", err)
	}
	golden := filepath.Join("testdata", "lspci.txt")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
