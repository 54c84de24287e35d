package main

import (
	"context"
	"log/slog"
	"testing"

	"github.com/lodgehv/lodge/console/seat"
)

// Who changes terminals while the seat begins keeps the keyboard: it is grabbed when the seat's terminal is back.
func TestDevicesWhileAway(t *testing.T) {
	s, err := seat.New(seat.Config{}, seat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // no device of this machine is touched
	d := &devices{seat: s, log: slog.New(slog.DiscardHandler)}
	running := func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.cancel != nil
	}
	d.release()
	if d.start(ctx, &lights{}); running() {
		t.Error("the devices are grabbed although the terminal is another's")
	}
	if d.acquire(ctx, &lights{}); !running() {
		t.Error("the devices are not grabbed although the terminal is back")
	}
	d.stop()
}
