package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// measurement is one run of something. It returns what it took, in its figure's unit.
type measurement func(context.Context) (float64, error)

// figure is something to measure.
type figure struct {
	name, unit string
	higher     bool // more is better
	goal       goal
	runs       int
	peerName   string // empty if there is no peer

	// prepare makes ready. done, which may be nil, cleans up.
	prepare func(context.Context) (ours, peer measurement, done func() error, err error)
}

// goal bounds a figure, from above or, if more of it is better, from below: itself, its ratio to the peer's, or by how much it
// is over that.
type goal struct{ value, ratio, over float64 }

func (f *figure) goalText() string {
	sign, v, of := "≤", f.goal.value, " "+f.unit
	if f.higher {
		sign = "≥"
	}
	switch {
	case f.goal.ratio != 0:
		v, of = f.goal.ratio, " × peer"
	case f.goal.over != 0:
		v, of = f.goal.over, " "+f.unit+" over peer"
	}
	return fmt.Sprintf("%s %.3g%s", sign, v, of)
}

// result is a figure as out/bench.json tells it.
type result struct {
	Name     string   `json:"name"`
	Unit     string   `json:"unit"`
	Better   string   `json:"better"`
	Ours     float64  `json:"ours"`
	Peer     *float64 `json:"peer,omitempty"`
	PeerName string   `json:"peer_name,omitempty"`
	Ratio    *float64 `json:"ratio,omitempty"`
	Goal     string   `json:"goal"`
	Runs     int      `json:"runs"`
	met      bool
}

// measure runs ours and the peer's in turn. A first run of each, which warms caches, does not count.
func (f *figure) measure(ctx context.Context) (r result, err error) {
	ours, peer, done, err := f.prepare(ctx)
	if done != nil {
		defer func() { err = errors.Join(err, done()) }()
	}
	if err != nil {
		return r, err
	}
	var a, b []float64
	for i := range f.runs + 1 {
		x, err := ours(ctx)
		if err != nil {
			return r, err
		}
		var y float64
		if peer != nil {
			if y, err = peer(ctx); err != nil {
				return r, fmt.Errorf("%s: %w", f.peerName, err)
			}
		}
		if i > 0 {
			a, b = append(a, x), append(b, y)
		}
	}
	return f.result(a, b, peer != nil), nil
}

// result compares the medians of ours and, if there is one, the peer's.
func (f *figure) result(ours, peer []float64, hasPeer bool) result {
	r := result{Name: f.name, Unit: f.unit, Better: "lower", Ours: median(ours), Goal: f.goalText(), Runs: len(ours)}
	if f.higher {
		r.Better = "higher"
	}
	bound, of := f.goal.value, r.Ours
	if hasPeer {
		p := median(peer)
		ratio := r.Ours / p
		r.Peer, r.PeerName, r.Ratio = &p, f.peerName, &ratio
		switch {
		case f.goal.ratio != 0:
			bound, of = f.goal.ratio, ratio
		case f.goal.over != 0:
			bound, of = f.goal.over, r.Ours-p
		}
	}
	r.met = of <= bound
	if f.higher {
		r.met = of >= bound
	}
	return r
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}
