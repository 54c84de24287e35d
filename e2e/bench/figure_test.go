package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// series returns a measurement that gives the values in turn and notes that it ran.
func series(log *string, name string, values ...float64) measurement {
	return func(context.Context) (float64, error) {
		*log += name
		v := values[0]
		values = values[1:]
		return v, nil
	}
}

func ptr(v float64) *float64 { return &v }

func TestMeasure(t *testing.T) {
	var order string
	tests := []struct {
		name       string
		figure     figure
		ours, peer measurement
		want       result
		met        bool
	}{
		{
			"lower is better", figure{name: "x", unit: "ms", goal: goal{ratio: 0.5}, runs: 3, peerName: "QEMU"},
			series(&order, "o", 100, 3, 1, 2), series(&order, "p", 100, 4, 4, 5),
			result{Name: "x", Unit: "ms", Better: "lower", Ours: 2, Peer: ptr(4), PeerName: "QEMU", Ratio: ptr(0.5), Goal: "≤ 0.5 × peer", Runs: 3}, true,
		},
		{
			"higher is better", figure{name: "x", unit: "MB/s", higher: true, goal: goal{ratio: 1}, runs: 2, peerName: "QEMU"},
			series(&order, "o", 0, 3, 5), series(&order, "p", 0, 8, 8),
			result{Name: "x", Unit: "MB/s", Better: "higher", Ours: 4, Peer: ptr(8), PeerName: "QEMU", Ratio: ptr(0.5), Goal: "≥ 1 × peer", Runs: 2}, false,
		},
		{
			"no peer", figure{name: "x", unit: "ms", goal: goal{value: 1}, runs: 1},
			series(&order, "o", 9, 2), nil,
			result{Name: "x", Unit: "ms", Better: "lower", Ours: 2, Goal: "≤ 1 ms", Runs: 1}, false,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			order = ""
			cleaned := false
			tt.figure.prepare = func(context.Context) (measurement, measurement, func() error, error) {
				return tt.ours, tt.peer, func() error { cleaned = true; return nil }, nil
			}
			got, err := tt.figure.measure(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got.met != tt.met || !cleaned {
				t.Errorf("met %v, cleaned up %v", got.met, cleaned)
			}
			got.met = false
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); d != "" {
				t.Error(d)
			}
			if tt.peer != nil && order != strings.Repeat("op", tt.figure.runs+1) {
				t.Errorf("ran in the order %s", order)
			}
		})
	}
}

func TestMeasureFails(t *testing.T) {
	wrong := errors.New("wrong")
	cleaned := false
	f := figure{runs: 1, peerName: "QEMU", prepare: func(context.Context) (measurement, measurement, func() error, error) {
		one := func(context.Context) (float64, error) { return 1, nil }
		fails := func(context.Context) (float64, error) { return 0, wrong }
		return one, fails, func() error { cleaned = true; return nil }, nil
	}}
	if _, err := f.measure(t.Context()); !errors.Is(err, wrong) || !strings.Contains(err.Error(), "QEMU") || !cleaned {
		t.Errorf("%v, cleaned up %v", err, cleaned)
	}
}

func TestWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out", "bench.json")
	if err := write(file, []result{{Name: "x", Unit: "ms", Better: "lower", Ours: 2, Goal: "≤ 1 ms", Runs: 3}}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{{"name": "x", "unit": "ms", "better": "lower", "ours": 2.0, "goal": "≤ 1 ms", "runs": 3.0}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPrint(t *testing.T) {
	var out bytes.Buffer
	if err := print(&out, []result{
		{Name: "a", Unit: "ms", Ours: 2, Peer: ptr(4), PeerName: "QEMU", Ratio: ptr(0.5), Goal: "≤ 0.1 × peer"},
		{Name: "b", Unit: "MiB", Ours: 5, Goal: "≤ 8 MiB", met: true},
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"4 ms (QEMU)", "0.500", "MISSED", "5 MiB", "met"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestROM(t *testing.T) {
	for _, code := range [][]byte{sayByte, waitForFlag, outForever} {
		b := rom(code...)
		if len(b) != romSize || len(code) > resetSize || !bytes.HasPrefix(b[romSize-resetSize:], code) {
			t.Errorf("% x: not at the reset vector of a ROM of %d bytes", code, len(b))
		}
	}
}

const smaps = `00400000-00800000 r-xp 00000000 08:01 1 /bin/lodge-vmm
Size:               4096 kB
Rss:                1024 kB
Pss:                1024 kB
7f0000000000-7f0010000000 rw-s 00000000 00:01 7 /memfd:guest-ram (deleted)
Rss:               65536 kB
VmFlags: rd wr sh mr mw me ms sd
7f0020000000-7f0020100000 rw-p 00000000 00:00 0
Rss:                 512 kB
`

func TestResident(t *testing.T) {
	got, err := resident(strings.NewReader(smaps))
	if err != nil || got != 1.5 {
		t.Errorf("%v MiB, %v, want 1.5", got, err)
	}
	if _, err := resident(strings.NewReader(strings.ReplaceAll(smaps, "rw-", "r--"))); err == nil {
		t.Error("a process without guest RAM is measured")
	}
}

// Each sleep is a run of the thread that wakes.
func TestRuns(t *testing.T) {
	before, err := runs(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		time.Sleep(time.Millisecond)
	}
	after, err := runs(os.Getpid())
	if err != nil || after < before+25 {
		t.Errorf("%d runs, then %d, %v", before, after, err)
	}
	if n, err := runs(1 << 30); err == nil {
		t.Errorf("%d runs of a process that is not", n)
	}
}

func TestAwaitGuests(t *testing.T) {
	const two = `{"event":"focus","new":"a"}` + "\n" + `{"event":"guest","guest":"a","there":true}` + "\n" + `{"event":"guest","guest":"b","there":true}` + "\n"
	if err := awaitGuests(strings.NewReader(two), 2); err != nil {
		t.Error(err)
	}
	for _, wrong := range []string{two, "x\n"} {
		if err := awaitGuests(strings.NewReader(wrong), 3); err == nil {
			t.Errorf("three guests are in %q", wrong)
		}
	}
}

// The pictures' figures can be measured.
func TestUpdates(t *testing.T) {
	for _, f := range updates(t.TempDir()) {
		f.runs = 1
		r, err := f.measure(t.Context())
		if err != nil || r.Ours <= 0 || r.Peer != nil && *r.Peer <= 0 {
			t.Errorf("%s: %+v, %v", f.name, r, err)
		}
	}
}
