package vcpu

import (
	"math"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

func TestAdvanceTSC(t *testing.T) {
	const saved = int64(1_700_000_000) * int64(time.Second)
	for _, c := range []struct {
		name   string
		khz    uint32
		read   int64
		passed time.Duration
		want   uint64 // added
	}{
		{"a millisecond", 3_000_000, saved, time.Millisecond, 3_000_000},
		{"less than a millisecond", 2_000_000, saved, time.Microsecond, 2000},
		{"ten years", 5_000_000, saved, 10 * 365 * 24 * time.Hour, 315_360_000 * 5_000_000_000},
		{"the clock was set back", 3_000_000, saved, -time.Hour, 0},
		{"an unknown frequency", 0, saved, time.Hour, 0},
		{"a state of version 1", 0, 0, math.MaxInt64, 0},
		{"a time that cannot be", math.MaxUint32, math.MinInt64, 0, 0},
	} {
		s := state{tscKHz: c.khz, read: c.read, msrs: []kvm.MSREntry{{Index: msrTSC, Data: 7}, {Index: 0x3b, Data: 7}, {Index: msrTSCDeadline, Data: 7}}}
		s.advanceTSC(c.read + int64(c.passed))
		if got := s.msrs[0].Data - 7; got != c.want {
			t.Errorf("%s: the counter went on by %d, want %d", c.name, got, c.want)
		}
		if s.msrs[1].Data != 7 || s.msrs[2].Data != 7 {
			t.Errorf("%s: TSC_ADJUST or the deadline moved", c.name)
		}
	}
}

func TestSameTSC(t *testing.T) {
	for _, c := range []struct {
		saved, here int64
		want        bool
	}{
		{3_000_000, 3_000_000, true}, {3_000_700, 3_000_000, true}, {2_999_300, 3_000_000, true},
		{3_000_800, 3_000_000, false}, {2_999_200, 3_000_000, false}, {1, 0, false}, {math.MaxUint32, 1, false},
	} {
		if got := sameTSC(c.saved, c.here); got != c.want {
			t.Errorf("%d and %d kHz: %t", c.saved, c.here, got)
		}
	}
}
