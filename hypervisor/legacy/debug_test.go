package legacy

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func TestDebugExit(t *testing.T) {
	var got []uint32
	d := NewDebugExit(func(v uint32) { got = append(got, v) })
	out(d, DebugExitBase, 0, 1, 0x10)
	out(d, DebugExitBase, 0, 2, 0x1234)
	out(d, DebugExitBase, 0, 4, 0x12345678)
	if diff := cmp.Diff([]uint32{0x10, 0x1234, 0x12345678}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for v, want := range map[uint32]int{0: 1, 1: 3, 0x10: 0x21, 0xffffffff: 0xff} {
		if got := ExitCode(v); got != want {
			t.Errorf("exit code of %#x is %d, want %d", v, got, want)
		}
	}
}

// lines is a writer that keeps what each call gave it.
type lines []string

func (l *lines) Write(p []byte) (int, error) {
	*l = append(*l, string(p))
	return len(p), nil
}

func TestDebugConsole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got lines
		d := NewDebugConsole(&got)
		if err := d.Resume(); err != nil {
			t.Fatal(err)
		}
		print := func(s string) {
			for _, b := range []byte(s) {
				out(d, DebugConsolePort, 0, 1, uint64(b))
			}
		}
		if v := in(d, DebugConsolePort, 0, 1); v != 0xe9 {
			t.Errorf("reads %#x, want 0xe9", v)
		}
		print("SeaBIOS")
		synctest.Wait()
		print(" here\nnext")
		print(strings.Repeat("x", 300))
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.Pause(); err != nil {
			t.Fatal(err)
		}
		all := strings.Join(got, "")
		if want := "SeaBIOS here\nnext" + strings.Repeat("x", 300); all != want {
			t.Errorf("printed %q, want %q", all, want)
		}
	})
}

// TestDebugConsoleFull prints while the writer is stuck: lines are lost whole, and the vCPU never waits.
func TestDebugConsoleFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		d := NewDebugConsole(g)
		if err := d.Resume(); err != nil {
			t.Fatal(err)
		}
		line := strings.Repeat("y", 99) + "\n"
		for range 3 * outputSize / len(line) {
			for _, b := range []byte(line) {
				out(d, DebugConsolePort, 0, 1, uint64(b))
			}
		}
		close(g.open)
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.Pause(); err != nil {
			t.Fatal(err)
		}
		if n := outputSize / len(line); !bytes.Equal(g.Bytes(), []byte(strings.Repeat(line, n))) {
			t.Errorf("printed %d bytes, want %d whole lines", g.Len(), n)
		}
	})
}
