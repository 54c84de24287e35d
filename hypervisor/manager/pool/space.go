package pool

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is the space of a pool, in bytes.
type Usage struct {
	Total, Free int64 // of the file system; Free is what we may use
	Images      int
	// Virtual is the size of all disks together, Allocated what their files take up; what clones share counts in each.
	Virtual, Allocated int64
}

// Usage returns how full the pool is.
func (p *Pool) Usage() (Usage, error) {
	u, err := p.space()
	if err != nil {
		return u, err
	}
	list, err := p.List()
	if err != nil {
		return u, err
	}
	u.Images = len(list)
	for _, i := range list {
		u.Virtual += i.Size
		u.Allocated += i.Allocated
	}
	return u, nil
}

// space returns the file system's part of Usage.
func (p *Pool) space() (Usage, error) {
	var s unix.Statfs_t
	for {
		err := unix.Fstatfs(int(p.dir.Fd()), &s)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Usage{}, fmt.Errorf("pool %s: free space: %w", p.path, err)
		}
		unit := s.Frsize
		if unit == 0 {
			unit = s.Bsize
		}
		return Usage{Total: int64(s.Blocks) * unit, Free: int64(s.Bavail) * unit}, nil
	}
}

// Level is how urgent it is to make space.
type Level int

// The levels. At Critical nothing new is made in the pool; guests run on until they meet its end, and then pause.
const (
	Enough Level = iota
	Low
	Critical
)

// String returns l's name.
func (l Level) String() string {
	switch l {
	case Enough:
		return "enough"
	case Low:
		return "low"
	case Critical:
		return "critical"
	}
	return fmt.Sprintf("Level(%d)", int(l))
}

// thresholds returns below how many free bytes the levels begin.
func (p *Pool) thresholds(u Usage) (low, critical int64) {
	low, critical = p.opt.Low, p.opt.Critical
	if low == 0 {
		low = min(10<<30, u.Total/10)
	}
	if critical == 0 {
		critical = min(1<<30, u.Total/50)
	}
	return low, critical
}

// level returns the level for free bytes. It is left again when a quarter more than its threshold is free, so that it does
// not change with every block that is written.
func level(now Level, free, low, critical int64) Level {
	enters := func(l Level, threshold int64) bool {
		if now >= l {
			threshold += threshold / 4
		}
		return free < threshold
	}
	switch {
	case enters(Critical, critical):
		return Critical
	case enters(Low, low):
		return Low
	}
	return Enough
}

// How often Watch looks. A disk that is written to as fast as watchSpeed allows does not pass a threshold for longer than
// watchMin unseen.
const (
	watchMin   = 2 * time.Second
	watchMax   = 2 * time.Minute
	watchSpeed = 512 << 20 // bytes per second
)

// watchPause returns when the next look is due: the farther the next threshold is, the later.
func watchPause(now Level, free, low, critical int64) time.Duration {
	left := free
	switch now {
	case Enough:
		left -= low
	case Low:
		left -= critical
	case Critical: // until somebody has made space there is no hurry
		return 10 * time.Second
	}
	return min(max(time.Duration(left/watchSpeed)*time.Second, watchMin), watchMax)
}

// Watch calls signal when the level of free space changes, first with the level that there is, until ctx ends. It looks the
// more often the less space there is, every two minutes at least: have it run while guests do.
func (p *Pool) Watch(ctx context.Context, signal func(Level, Usage)) error {
	now := Level(-1)
	for {
		u, err := p.space()
		if err != nil {
			return err
		}
		low, critical := p.thresholds(u)
		if l := level(now, u.Free, low, critical); l != now {
			now = l
			signal(l, u)
		}
		select {
		case <-time.After(watchPause(now, u.Free, low, critical)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
