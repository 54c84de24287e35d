package image

import (
	"context"
	"errors"
	"sync"
)

// Set is all that rung 3 needs.
type Set struct {
	Guests   []*Guest // amd64, i386
	Notebook *Notebook
}

// All builds a Set; the guests side by side, for each waits for the network.
func (b *Builder) All(ctx context.Context) (*Set, error) {
	archs := []Arch{AMD64(), I386()}
	guests := make([]*Guest, len(archs))
	errs := make([]error, len(archs))
	var wg sync.WaitGroup
	for i, a := range archs {
		wg.Go(func() { guests[i], errs[i] = b.Guest(ctx, a) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	n, err := b.Notebook(ctx, guests...)
	if err != nil {
		return nil, err
	}
	return &Set{Guests: guests, Notebook: n}, nil
}
