package main

import (
	"context"
	"os"
	"strings"
	"time"

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
	if path, ok := strings.CutPrefix(cfg.Bus, "unix:path="); ok {
		awaitSocket(ctx, path)
	}
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

// awaitSocket waits a little for a bus that is started at the same time: guests are started meanwhile.
func awaitSocket(ctx context.Context, path string) {
	for until := time.Now().Add(10 * time.Second); ctx.Err() == nil && time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
}

// switcher returns what has the seat show a guest, or nil if there is none.
func switcher(socket string) func(ctx context.Context, guest string) error {
	if socket == "" {
		return nil
	}
	return func(ctx context.Context, guest string) error { return seatctl.Focus(ctx, socket, guest) }
}
