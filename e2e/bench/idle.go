package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/internal/uevent"
)

const (
	idleGuests = 4
	// settleFor is how long before the seat is looked at nothing has happened; a minute's last seconds are let go by.
	settleFor = 2 * time.Second
	// quietSeconds are counted, out of idleFor at most.
	quietSeconds = 10
	idleFor      = 25 * time.Second
)

// idle is the figure of how often a seat wakes up when nothing happens: none of its guests draws, and one is switched off;
// nobody types, nobody watches. The bar's clock changes once a minute, which is waited for and does not count.
func idle(program, dir string) figure {
	return figure{
		name: "seat idle, wake-ups", unit: "1/s", goal: goal{value: 0}, runs: 1,
		prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
			s, err := startSeat(ctx, program, dir)
			if err != nil {
				return nil, nil, nil, err
			}
			return wakeups(s.cmd.Process.Pid), nil, s.close, nil
		},
	}
}

// idleSeat is a lodge-seat, and the guests that it shows.
type idleSeat struct {
	guests *screens
	cmd    *exec.Cmd
	dir    string
}

func startSeat(ctx context.Context, program, dir string) (_ *idleSeat, err error) {
	s := &idleSeat{}
	if s.dir, err = os.MkdirTemp(dir, "idle"); err != nil {
		return nil, err
	}
	if s.guests, err = startScreens(ctx, idleGuests, s.dir, false); err != nil {
		return nil, err
	}
	var text strings.Builder
	for _, g := range seatOf(idleGuests+1, s.dir).Guests {
		fmt.Fprintf(&text, "[[guest]]\nname = %q\ncolor = %q\nslot = %d\ndisplay = %q\n", g.Name, g.Color, g.Slot, g.Display)
	}
	file := filepath.Join(s.dir, "seat.toml")
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return nil, errors.Join(err, s.guests.close())
	}
	s.cmd = exec.CommandContext(ctx, program, "--events", "--output", fmt.Sprintf("rfb:127.0.0.1:0,%dx%d", seatWidth, seatHeight), file)
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, s.guests.close())
	}
	if err := awaitGuests(out, idleGuests); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// awaitGuests returns when a seat has told that n guests are there.
func awaitGuests(events io.Reader, n int) error {
	for lines := bufio.NewScanner(events); n > 0; {
		if !lines.Scan() {
			return errors.Join(errors.New("lodge-seat: ends before its guests are there"), lines.Err())
		}
		var e struct{ Event string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("lodge-seat: %q: %w", lines.Text(), err)
		}
		if e.Event == "guest" {
			n--
		}
	}
	return nil
}

func (s *idleSeat) close() error {
	_ = s.cmd.Process.Kill() // it ends with an error of no interest
	_ = s.cmd.Wait()
	return errors.Join(s.guests.close(), os.RemoveAll(s.dir))
}

// wakeups measures how often a thread of a process has begun to run in a second. Seconds in which the kernel has told of a
// device, such as KVM of a machine that somebody starts, do not count, nor those after them: who listens had to look at that.
func wakeups(pid int) measurement {
	return func(ctx context.Context) (float64, error) { return countWakeups(ctx, pid) }
}

func countWakeups(ctx context.Context, pid int) (float64, error) {
	devices, err := uevent.Listen()
	if err != nil {
		return 0, err
	}
	var told atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, err := devices.Read(); err != nil && !errors.Is(err, uevent.ErrLost) {
				return // closed
			}
			told.Add(1)
		}
	})
	defer wg.Wait()
	defer devices.Close()

	const need = settleFor + idleFor
	now := time.Now()
	wait := settleFor
	if left := now.Truncate(time.Minute).Add(time.Minute).Sub(now); left < need {
		wait += left
	}
	if err := sleep(ctx, wait); err != nil {
		return 0, err
	}
	var counted, seconds uint64
	before, err := runs(pid)
	if err != nil {
		return 0, err
	}
	quiet := true
	for began := time.Now(); seconds < quietSeconds && time.Since(began) < idleFor; {
		events := told.Load()
		if err := sleep(ctx, time.Second); err != nil {
			return 0, err
		}
		now, err := runs(pid)
		if err != nil {
			return 0, err
		}
		still := told.Load() == events
		if still && quiet {
			counted, seconds = counted+now-before, seconds+1
		}
		before, quiet = now, still
	}
	if seconds == 0 {
		return 0, errors.New("there is no second in which the kernel does not tell of devices")
	}
	return float64(counted) / float64(seconds), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// runs returns how often the threads of a process have been given a processor: the third number of schedstat (Linux,
// Documentation/scheduler/sched-stats.rst).
func runs(pid int) (n uint64, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err == nil && tasks == nil {
		err = fmt.Errorf("process %d has ended", pid)
	}
	if err != nil {
		return 0, err
	}
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		var running, waiting, slices uint64
		if _, err := fmt.Sscan(string(b), &running, &waiting, &slices); err != nil {
			return 0, fmt.Errorf("%s: %w", t, err)
		}
		n += slices
	}
	return n, nil
}
