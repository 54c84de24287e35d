package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/headless"
	"github.com/lodgehv/lodge/console/seat"
	"github.com/lodgehv/lodge/hid"
)

// switches are the figures of going from one guest to the next: from the chord's key at the seat until the other guest's
// picture is handed to the display, all guests drawing. The display is one in memory, and the time in which a real one would
// still show the frame before does not count.
func switches(dir string) []figure {
	of := func(guests int, name string, at float64, switches int, most float64) figure {
		return figure{
			name: fmt.Sprintf("chord to frame, %d guests drawing, %s", guests, name), unit: "ms", goal: goal{value: most}, runs: 5,
			prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
				r, err := newSwitching(ctx, dir, guests)
				if err != nil {
					return nil, nil, nil, err
				}
				return r.percentile(at, switches), nil, r.close, nil
			},
		}
	}
	// That it does not depend on the number of guests shows with the fewest and the most.
	return []figure{
		of(4, "p50", 0.5, 100, 0.5), of(4, "p99", 0.99, 200, 1),
		of(2, "p50", 0.5, 100, 0.5), of(16, "p50", 0.5, 100, 0.5),
	}
}

// switching is a seat with a screen in memory, and guests that draw.
type switching struct {
	seat     *seat.Seat
	dir      string
	guests   *screens
	stop     func()
	switched chan switched
}

// switched is when the display was given the other guest's picture, without the time in which it could not take it.
type switched struct{ at time.Time }

// settled is how long a seat is left alone between two switches, so that the hidden guests' pictures are made ready as they
// are for a person, who is slower.
const settled = 20 * time.Millisecond

func newSwitching(ctx context.Context, dir string, guests int) (_ *switching, err error) {
	r := &switching{switched: make(chan switched, 16)}
	if r.dir, err = os.MkdirTemp(dir, "seat"); err != nil {
		return nil, err
	}
	if r.guests, err = startScreens(ctx, guests, r.dir, true); err != nil {
		return nil, err
	}
	there := make(chan struct{}, guests)
	r.seat, err = seat.New(seatOf(guests, r.dir), seat.Options{
		OnGuest:    announce(there),
		OnSwitched: func(s compose.Switched) { r.done(s) },
		Log:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, errors.Join(err, r.guests.close())
	}
	screen, err := headless.NewScreen("bench", seatWidth, seatHeight)
	if err != nil {
		return nil, errors.Join(err, r.guests.close())
	}
	show, err := r.seat.Plug(screen)
	if err != nil {
		return nil, errors.Join(err, r.guests.close())
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = show(ctx) }) // a screen in memory has nothing to say
	wg.Go(func() { r.seat.Run(ctx) })
	r.stop = func() { cancel(); wg.Wait() }
	for range guests {
		select {
		case <-there:
		case <-time.After(time.Minute):
			return nil, errors.Join(errors.New("the seat does not find its guests"), r.close())
		}
	}
	return r, nil
}

// announce returns what takes word of guests that come. That they go when all is over nobody listens to.
func announce(there chan<- struct{}) func(string, bool) {
	return func(string, bool) {
		select {
		case there <- struct{}{}:
		default:
		}
	}
}

func (r *switching) close() error {
	r.stop()
	return errors.Join(r.guests.close(), os.RemoveAll(r.dir))
}

// done is called by the goroutine of the screen.
func (r *switching) done(s compose.Switched) {
	select {
	case r.switched <- switched{time.Now().Add(-s.Waited)}:
	default: // the first guest is shown, and nobody waits for it yet
	}
}

// percentile returns a measurement of n switches.
func (r *switching) percentile(at float64, n int) measurement {
	return func(ctx context.Context) (float64, error) {
		var took []time.Duration
		for range n {
			t, err := r.next(ctx)
			if err != nil {
				return 0, err
			}
			took = append(took, t)
			time.Sleep(settled)
		}
		slices.Sort(took)
		return float64(took[int(at*float64(n))]) / float64(time.Millisecond), nil
	}
}

// next goes to the next guest and returns how long that took.
func (r *switching) next(ctx context.Context) (time.Duration, error) {
	for len(r.switched) > 0 {
		<-r.switched
	}
	key := func(code uint16, v int32) {
		r.seat.Input(1, monotonic(), []hid.Event{{Type: hid.EVKey, Code: code, Value: v}})
	}
	key(hid.KeyLeftCtrl, 1)
	key(hid.KeyLeftAlt, 1)
	began := time.Now()
	key(hid.KeyRight, 1)
	var s switched
	select {
	case s = <-r.switched:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(10 * time.Second):
		return 0, fmt.Errorf("no other guest on the screen; the focus is %q", r.seat.Router.Focus())
	}
	for _, code := range []uint16{hid.KeyRight, hid.KeyLeftAlt, hid.KeyLeftCtrl} {
		key(code, 0)
	}
	return s.at.Sub(began), nil
}
