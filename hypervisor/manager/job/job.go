// Package job keeps track of long work: what runs, how far it is, how it ended; and it cancels.
package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// State is where a job is in its life.
type State string

// The states. A job starts Running and ends in one of the others, for good.
const (
	Running   State = "running"
	Done      State = "done"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Status is a job as it was at one moment.
type Status struct {
	ID     uint64
	Kind   string // what is done, such as "import"
	Object string // to what, such as an image's name
	State  State

	Done, Total int64 // in units of the work, mostly bytes; Total is 0 while it is not known
	Err         error // of Failed
	Began       time.Time
	Ended       time.Time // zero while it runs
}

// Work is what a job does. It returns soon after ctx ends, with ctx's error if it has not done its work by then. It may call
// progress as often as it likes, from one goroutine at a time.
type Work func(ctx context.Context, progress func(done, total int64)) error

// Options bound what is kept. Zero values are replaced.
type Options struct {
	Running int           // jobs at a time; 8
	Ended   int           // jobs that are kept after their end, the newest; 64
	Every   time.Duration // how often Changed hears of a job's progress at most; 250 ms

	// Changed is told of each job that begins, gets on or ends: of one job in order, and not at the same time. The job waits
	// for it, and it must not call back. It may be nil.
	Changed func(Status)
}

// Errors of Jobs.
var (
	ErrTooMany  = errors.New("too many jobs")
	ErrNotFound = errors.New("no such job")
	ErrClosed   = errors.New("no jobs are taken any more")
)

// Jobs are those of a process. Its methods may be called from any goroutine.
type Jobs struct {
	opt Options

	mu     sync.Mutex
	last   uint64
	jobs   map[uint64]*job
	closed bool
	wg     sync.WaitGroup
}

type job struct {
	cancel context.CancelFunc
	ended  chan struct{}

	tell sync.Mutex // held while Changed is told, and before Jobs.mu

	// With Jobs.mu:
	status  Status
	written time.Time // when Changed heard last
	stopped bool      // by Cancel or Close
}

// New returns an empty set of jobs.
func New(opt Options) *Jobs {
	opt.Running = cmp.Or(opt.Running, 8)
	opt.Ended = cmp.Or(opt.Ended, 64)
	opt.Every = cmp.Or(opt.Every, 250*time.Millisecond)
	if opt.Changed == nil {
		opt.Changed = func(Status) {}
	}
	return &Jobs{opt: opt, jobs: map[uint64]*job{}}
}

// Start begins a job and returns its ID, from 1 on and never used twice. It is ErrTooMany if as many run as may.
func (j *Jobs) Start(kind, object string, work Work) (uint64, error) {
	ctx, cancel := context.WithCancel(context.Background())
	b := &job{cancel: cancel, ended: make(chan struct{})}
	if err := j.add(b, kind, object); err != nil {
		cancel()
		return 0, err
	}
	id := b.status.ID
	go func() {
		defer j.wg.Done()
		defer close(b.ended)
		defer cancel()
		j.update(b, true, func(*Status) {})
		err := work(ctx, func(done, total int64) {
			j.update(b, false, func(s *Status) { s.Done, s.Total = done, total })
		})
		j.update(b, true, func(s *Status) {
			s.Ended = time.Now()
			switch {
			case err == nil:
				s.State = Done
			case b.stopped && errors.Is(err, context.Canceled):
				s.State = Cancelled
			default:
				s.State, s.Err = Failed, err
			}
		})
		j.forget()
	}()
	return id, nil
}

func (j *Jobs) add(b *job, kind, object string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return ErrClosed
	}
	running := 0
	for _, o := range j.jobs {
		if o.status.State == Running {
			running++
		}
	}
	if running >= j.opt.Running {
		return fmt.Errorf("%w: %d run already: wait for one to end, or cancel it", ErrTooMany, running)
	}
	j.last++
	b.status = Status{ID: j.last, Kind: kind, Object: object, State: Running, Began: time.Now()}
	j.jobs[j.last] = b
	j.wg.Add(1)
	return nil
}

// update changes b's status and tells of it: always, or if the last time was long enough ago.
func (j *Jobs) update(b *job, always bool, change func(*Status)) {
	b.tell.Lock()
	defer b.tell.Unlock()
	j.mu.Lock()
	change(&b.status)
	s := b.status
	now := time.Now()
	tell := always || now.Sub(b.written) >= j.opt.Every
	if tell {
		b.written = now
	}
	j.mu.Unlock()
	if tell {
		j.opt.Changed(s)
	}
}

// forget drops the oldest of the jobs that have ended if there are too many.
func (j *Jobs) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	var ended []*job
	for _, b := range j.jobs {
		if b.status.State != Running {
			ended = append(ended, b)
		}
	}
	slices.SortFunc(ended, func(a, b *job) int { return a.status.Ended.Compare(b.status.Ended) })
	for _, b := range ended[:max(0, len(ended)-j.opt.Ended)] {
		delete(j.jobs, b.status.ID)
	}
}

func (j *Jobs) find(id uint64) (*job, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if b := j.jobs[id]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("%w: %d", ErrNotFound, id)
}

// Get returns a job's status.
func (j *Jobs) Get(id uint64) (Status, error) {
	b, err := j.find(id)
	if err != nil {
		return Status{}, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return b.status, nil
}

// List returns all jobs that are known, in the order in which they began.
func (j *Jobs) List() []Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := make([]Status, 0, len(j.jobs))
	for _, id := range slices.Sorted(maps.Keys(j.jobs)) {
		list = append(list, j.jobs[id].status)
	}
	return list
}

// Cancel asks a job to stop. It does nothing to one that has ended.
func (j *Jobs) Cancel(id uint64) error {
	b, err := j.find(id)
	if err != nil {
		return err
	}
	j.stop(b)
	return nil
}

func (j *Jobs) stop(b *job) {
	j.mu.Lock()
	b.stopped = true
	j.mu.Unlock()
	b.cancel()
}

// Wait returns a job's status after its end, or ctx's error.
func (j *Jobs) Wait(ctx context.Context, id uint64) (Status, error) {
	b, err := j.find(id)
	if err != nil {
		return Status{}, err
	}
	select {
	case <-b.ended:
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return b.status, nil
}

// Close cancels all jobs and returns when they have ended. No others begin.
func (j *Jobs) Close() {
	j.mu.Lock()
	j.closed = true
	all := slices.Collect(maps.Values(j.jobs))
	j.mu.Unlock()
	for _, b := range all {
		j.stop(b)
	}
	j.wg.Wait()
}
