// Package procstat reads what the kernel tells of a process in /proc/PID/stat (proc_pid_stat(5)).
package procstat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that there is no such process.
var ErrGone = errors.New("the process has ended")

// Stat is what a process is, and what it costs the host.
type Stat struct {
	State    byte          // such as 'R', or 'Z' of one that has ended and was not waited for
	Started  uint64        // when, in ticks since the host's boot: tells processes with the same number apart
	CPU      time.Duration // processors' time, in user and in kernel mode; a guest's is in both
	Resident uint64        // bytes of memory
}

const (
	// tick is the unit of times: USER_HZ is 100 on all that Linux runs on and we do.
	tick = time.Second / 100
	// maxLine is more than any line, in bytes.
	maxLine = 4096
)

// Of asks the kernel. The error is ErrGone if the process is not there.
func Of(pid int) (Stat, error) {
	if pid <= 0 {
		return Stat{}, fmt.Errorf("process %d is not to be seen from here", pid)
	}
	b, err := read(pid)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Stat{}, ErrGone
	}
	if err != nil {
		return Stat{}, err
	}
	s, err := parse(b)
	if err != nil {
		err = fmt.Errorf("process %d: %w", pid, err)
	}
	return s, err
}

func read(pid int) ([]byte, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, maxLine)
	n, err := f.Read(b)
	return b[:n], err
}

// Fields after the program's name, from 0; the manual counts from 3.
const (
	fieldState = 0
	fieldUser  = 14 - 3 // ticks
	fieldSys   = 15 - 3
	fieldStart = 22 - 3
	fieldRSS   = 24 - 3 // pages
)

// parse reads a line. The program's name is the program's own choice, and may have spaces and parentheses.
func parse(b []byte) (Stat, error) {
	end := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[end+1:])
	if end < 0 || len(fields) <= fieldRSS || len(fields[fieldState]) != 1 {
		return Stat{}, fmt.Errorf("statistics that are not as proc_pid_stat(5) describes them: %.40q", b)
	}
	var v [fieldRSS + 1]uint64
	// Bits of what is sensible: 87 years in ticks, so that a sum of two in nanoseconds is a Duration; 4 EiB in pages.
	for i, bits := range map[int]int{fieldUser: 38, fieldSys: 38, fieldStart: 64, fieldRSS: 50} {
		n, err := strconv.ParseUint(string(fields[i]), 10, bits)
		if err != nil {
			return Stat{}, fmt.Errorf("field %d of its statistics: %w", i+3, err)
		}
		v[i] = n
	}
	return Stat{
		State: fields[fieldState][0], Started: v[fieldStart], CPU: time.Duration(v[fieldUser]+v[fieldSys]) * tick,
		Resident: v[fieldRSS] * uint64(os.Getpagesize()),
	}, nil
}
