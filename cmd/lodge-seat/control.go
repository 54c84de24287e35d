package main

import (
	"context"
	"log/slog"
	"sync"

	"github.com/lodgehv/lodge/console/seat"
	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/internal/seatctl"
)

// serveControl serves the seat's control socket, if it is to have one, until ctx is done.
func serveControl(ctx context.Context, wg *sync.WaitGroup, path string, s *seat.Seat, log *slog.Logger) error {
	if path == "" {
		return nil
	}
	l, err := control.Listen(path)
	if err != nil {
		return err
	}
	server := control.Server{Methods: seatctl.Methods(s)}
	wg.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			log.Error("control socket", "err", err)
		}
	})
	return nil
}
