package guests

import (
	"testing"
	"time"
)

func TestSample(t *testing.T) {
	began := time.Now()
	old := sample{1, 7, time.Second, began, -1}
	s := sample{1, 7, 1500 * time.Millisecond, began.Add(time.Second), -1}
	if share := s.since(old); share != 50 {
		t.Errorf("a share of %.1f %%", share)
	}
	for _, other := range []sample{{2, old.started, old.cpu, old.at, -1}, {1, 8, old.cpu, old.at, -1}} {
		if share := s.since(other); share >= 0 {
			t.Errorf("another process's share is %.1f %%", share)
		}
	}
	if s.soon(sample{1, s.started, s.cpu, s.at.Add(time.Second), -1}) || !s.soon(sample{1, s.started, s.cpu, s.at.Add(time.Millisecond), -1}) {
		t.Error("what is soon")
	}
}
