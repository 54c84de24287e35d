package legacy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResetControl(t *testing.T) {
	for _, tc := range []struct {
		name   string
		writes []uint64
		want   []ResetKind
		reads  uint64
	}{
		{"as Linux: hard", []uint64{0x02, ResetValue}, []ResetKind{ResetHard}, 0x06},
		{"power cycle", []uint64{0x0a, 0x0e}, []ResetKind{ResetPower}, 0x0e},
		{"processor only", []uint64{0x04}, []ResetKind{ResetINIT}, 0x04},
		{"needs an edge", []uint64{0x06, 0x06}, []ResetKind{ResetHard}, 0x06},
		{"no reset", []uint64{0x00, 0xfb}, nil, 0x0a},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []ResetKind
			r := NewResetControl(func(k ResetKind) { got = append(got, k) })
			for _, v := range tc.writes {
				out(r, ResetPort, 0, 1, v)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("resets (-want +got):\n%s", diff)
			}
			if v := in(r, ResetPort, 0, 1); v != tc.reads {
				t.Errorf("reads %#x, want %#x", v, tc.reads)
			}
		})
	}
}

func TestFastA20(t *testing.T) {
	resets := 0
	f := NewFastA20(func(k ResetKind) {
		if k != ResetINIT {
			t.Errorf("reset of kind %d", k)
		}
		resets++
	})
	for _, tc := range []struct {
		write, reads uint64
		resets       int
	}{{0x00, 0x00, 0}, {0x02, 0x02, 0}, {0xff, 0x03, 1}, {0x01, 0x01, 1}, {0x00, 0x00, 1}, {0x01, 0x01, 2}} {
		out(f, Port92, 0, 1, tc.write)
		if v := in(f, Port92, 0, 1); v != tc.reads || resets != tc.resets {
			t.Errorf("wrote %#x: reads %#x, %d resets, want %#x and %d", tc.write, v, resets, tc.reads, tc.resets)
		}
	}
}
