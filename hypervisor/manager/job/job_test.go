package job

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A job that gets on, and ends well: all of it is told, in order.
func TestLife(t *testing.T) {
	var told []string
	j := New(Options{Every: time.Nanosecond, Changed: func(s Status) {
		told = append(told, fmt.Sprintf("%d %s %s: %s %d/%d", s.ID, s.Kind, s.Object, s.State, s.Done, s.Total))
	}})
	id, err := j.Start("import", "root", func(_ context.Context, progress func(done, total int64)) error {
		progress(1, 2)
		progress(2, 2)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := j.Wait(t.Context(), id)
	if err != nil || s.State != Done || s.Err != nil || s.Ended.Before(s.Began) {
		t.Errorf("ended as %+v: %v", s, err)
	}
	want := []string{
		"1 import root: running 0/0", "1 import root: running 1/2", "1 import root: running 2/2", "1 import root: done 2/2",
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}
}

func TestEndings(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name   string
		work   func(ctx context.Context) error
		cancel bool
		state  State
		err    error
	}{
		{"failed", func(context.Context) error { return broken }, false, Failed, broken},
		{"cancelled", func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("copy: %w", ctx.Err()) }, true, Cancelled, nil},
		{"done in spite of it", func(ctx context.Context) error { <-ctx.Done(); return nil }, true, Done, nil},
		{"failed meanwhile", func(ctx context.Context) error { <-ctx.Done(); return broken }, true, Failed, broken},
		{"cancelled by nobody", func(context.Context) error { return context.Canceled }, false, Failed, context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := New(Options{})
			id, err := j.Start("test", "x", func(ctx context.Context, _ func(int64, int64)) error { return c.work(ctx) })
			if err != nil {
				t.Fatal(err)
			}
			if c.cancel {
				if err := j.Cancel(id); err != nil {
					t.Fatal(err)
				}
			}
			s, err := j.Wait(t.Context(), id)
			if err != nil || s.State != c.state || !errors.Is(s.Err, c.err) {
				t.Errorf("ended as %+v: %v", s, err)
			}
		})
	}
}

// What runs and what is remembered is bounded.
func TestBounds(t *testing.T) {
	j := New(Options{Running: 2, Ended: 3})
	var wg sync.WaitGroup
	for range 10 {
		for range 2 {
			wg.Add(1)
			if _, err := j.Start("test", "x", func(ctx context.Context, _ func(int64, int64)) error {
				defer wg.Done()
				<-ctx.Done()
				return ctx.Err()
			}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := j.Start("test", "x", func(context.Context, func(int64, int64)) error { return nil }); !errors.Is(err, ErrTooMany) {
			t.Fatalf("a third job: %v", err)
		}
		for _, s := range j.List() {
			if err := j.Cancel(s.ID); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range j.List() {
			if _, err := j.Wait(t.Context(), s.ID); err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
	j.Close()
	wg.Wait()
	list := j.List()
	if len(list) != 3 || list[0].ID < 17 || list[0].ID >= list[1].ID || list[1].ID >= list[2].ID {
		t.Errorf("%d jobs are remembered: %+v", len(list), list)
	}
	if _, err := j.Get(1); !errors.Is(err, ErrNotFound) {
		t.Errorf("the first job: %v", err)
	}
	if _, err := j.Start("test", "x", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a job after the end: %v", err)
	}
}

// Progress is told every so often only, however often it is reported; what is asked for is always the newest.
func TestProgressIsThinned(t *testing.T) {
	told := 0
	j := New(Options{Every: time.Hour, Changed: func(Status) { told++ }})
	var id uint64
	reported, next := make(chan struct{}), make(chan struct{})
	id, err := j.Start("test", "x", func(_ context.Context, progress func(done, total int64)) error {
		for i := range int64(1000) {
			progress(i, 1000)
		}
		close(reported)
		<-next
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	<-reported
	if s, err := j.Get(id); err != nil || s.Done != 999 {
		t.Errorf("%+v: %v", s, err)
	}
	close(next)
	if _, err := j.Wait(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if told != 2 {
		t.Errorf("told %d times, want at its begin and its end", told)
	}
}

// Close ends what runs and waits for it.
func TestClose(t *testing.T) {
	j := New(Options{})
	ended := false
	if _, err := j.Start("test", "x", func(ctx context.Context, _ func(int64, int64)) error {
		<-ctx.Done()
		ended = true
		return ctx.Err()
	}); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if list := j.List(); !ended || list[0].State != Cancelled {
		t.Errorf("ended: %t; %+v", ended, list)
	}
}
