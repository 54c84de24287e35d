package guests

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// usage is what a process costs the host.
type usage struct {
	started  uint64        // when, in ticks since the host's boot: tells processes with the same number apart
	cpu      time.Duration // processors' time, in user and in kernel mode; a guest's is in both
	resident uint64        // bytes
}

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 on all that Linux runs on and we do.
const tick = time.Second / 100

// maxStat is more than any /proc/PID/stat, in bytes.
const maxStat = 4096

// usageOf asks the kernel.
func usageOf(pid int) (usage, error) {
	if pid <= 0 {
		return usage{}, fmt.Errorf("process %d is not to be seen from here", pid)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	defer f.Close()
	b := make([]byte, maxStat)
	n, err := f.Read(b)
	if err != nil {
		return usage{}, err
	}
	return parseStat(b[:n])
}

// Fields of /proc/PID/stat after the program's name, from 0 (proc_pid_stat(5) counts from 3).
const (
	fieldUTime = 14 - 3
	fieldSTime = 15 - 3
	fieldStart = 22 - 3
	fieldRSS   = 24 - 3
)

// parseStat reads a line of /proc/PID/stat. The program's name is the program's own choice, and may have spaces and parentheses.
func parseStat(b []byte) (usage, error) {
	end := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[end+1:])
	if end < 0 || len(fields) <= fieldRSS {
		return usage{}, fmt.Errorf("not a process's statistics: %.40q", b)
	}
	var v [fieldRSS + 1]uint64
	for _, i := range []int{fieldUTime, fieldSTime, fieldStart, fieldRSS} {
		n, err := strconv.ParseUint(string(fields[i]), 10, 50)
		if err != nil {
			return usage{}, fmt.Errorf("a process's statistics: field %d: %w", i+3, err)
		}
		v[i] = n
	}
	return usage{v[fieldStart], time.Duration(v[fieldUTime]+v[fieldSTime]) * tick, v[fieldRSS] * uint64(os.Getpagesize())}, nil
}

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
