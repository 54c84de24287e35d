package main

import (
	"context"

	"github.com/lodgehv/lodge/hypervisor/manager/api"
	"github.com/lodgehv/lodge/internal/program"
	"github.com/lodgehv/lodge/internal/seatctl"
)

// offer puts the API on its bus, and returns what is closed when it has ended, as it does with ctx.
func offer(ctx context.Context, cfg api.Config) (<-chan struct{}, error) {
	end := make(chan struct{})
	if cfg.Bus == "none" {
		close(end)
		return end, nil
	}
	cfg.Auth = api.Owner{}
	if cfg.Bus == "system" {
		cfg.Auth = api.Polkit{}
	}
	cfg.Version = program.Version()
	ready, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		defer close(end)
		failed <- api.Serve(ctx, cfg, func() {
			select {
			case ready <- struct{}{}:
			default: // it is there again
			}
		})
	}()
	select {
	case <-ready:
		return end, nil
	case err := <-failed:
		return end, err
	}
}

// switcher returns what has the seat show a guest, or nil if there is none.
func switcher(socket string) func(ctx context.Context, guest string) error {
	if socket == "" {
		return nil
	}
	return func(ctx context.Context, guest string) error { return seatctl.Focus(ctx, socket, guest) }
}
