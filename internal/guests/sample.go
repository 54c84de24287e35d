package guests

import "time"

// sample is how much processors' time a process had used at a moment.
type sample struct {
	pid     int
	started uint64
	cpu     time.Duration
	at      time.Time
	share   float64 // of one processor, in per cent, that it used before; negative: unknown
}

// shortest is the time between two samples from which a share is made: it is some ticks long.
const shortest = 200 * time.Millisecond

func (s sample) same(t sample) bool { return s.pid == t.pid && s.started == t.started }

// soon reports whether next, of the same process, is too soon after s to tell anything.
func (s sample) soon(next sample) bool { return s.same(next) && next.at.Sub(s.at) < shortest }

// since returns which share of one processor was used since before, in per cent; negative if before is of another process.
func (s sample) since(before sample) float64 {
	if !s.same(before) || s.cpu < before.cpu {
		return -1
	}
	return 100 * float64(s.cpu-before.cpu) / float64(s.at.Sub(before.at))
}
