package vcpu

import "testing"

func TestYielder(t *testing.T) {
	y := yielder{ticks: 100}
	for _, c := range []struct {
		now  uint64
		want bool
	}{
		{1000, true}, // the first time
		{1099, false},
		{1100, true},
		{1199, false},
		{1250, true},
		{700, true}, // the counter has gone back
		{799, false},
		{1 << 63, true},
	} {
		if got := y.due(c.now); got != c.want {
			t.Errorf("due(%d) = %v", c.now, got)
		}
	}
}

func TestRDTSC(t *testing.T) {
	if a, b := rdtsc(), rdtsc(); a == 0 || b == a {
		t.Errorf("the counter says %d, then %d", a, b)
	}
}
