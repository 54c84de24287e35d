package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/headless"
	"github.com/lodgehv/lodge/console/kms"
	"github.com/lodgehv/lodge/console/seat"
	"github.com/lodgehv/lodge/console/vt"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hid/evdev"
)

// showDRM shows the seat on the monitors of a graphics card, and gives it all input devices, until ctx is done.
func showDRM(ctx context.Context, s *seat.Seat, path string, lights *lights, log *slog.Logger) error {
	if path == "" {
		cards, err := kms.Cards()
		if err != nil {
			return err
		}
		if len(cards) == 0 {
			return errors.New("no graphics card in /dev/dri: load its driver, or use --output rfb:127.0.0.1:5900")
		}
		path = cards[0]
	}
	card, err := kms.OpenDisplay(path, kms.Options{Log: log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	devices := &devices{seat: s, log: log}
	console, err := vt.Open(vt.Config{
		Release: func() { devices.release(); _ = card.Release() }, // it is ours no more, whatever it says
		Acquire: func() {
			if err := card.Acquire(); err != nil {
				log.Error("the graphics card does not come back", "err", err)
			}
			s.Refresh()
			devices.acquire(ctx, lights)
		},
		Log: log,
	})
	if err != nil && !errors.Is(err, vt.ErrNone) {
		return errors.Join(err, card.Close())
	}
	devices.start(ctx, lights)
	var heads sync.WaitGroup
	err = card.Run(ctx, func(screen *kms.Screen) {
		show, err := s.Plug(screen)
		if err != nil {
			log.Error("a monitor cannot be used", "output", screen.Info().Name, "err", err)
			return
		}
		heads.Go(func() {
			if err := show(ctx); err != nil {
				log.Error("monitor", "output", screen.Info().Name, "err", err)
			}
		})
	})
	cancel()
	heads.Wait()
	devices.stop()
	err = errors.Join(err, card.Close())
	if console != nil {
		err = errors.Join(err, console.Close())
	}
	return err
}

// devices are the input devices, grabbed between start and stop, unless the terminal is another's.
type devices struct {
	seat *seat.Seat
	log  *slog.Logger

	mu     sync.Mutex
	away   bool               // the terminal is another's, perhaps before start
	cancel context.CancelFunc // nil while stopped
	done   chan struct{}
}

// release gives them up with the terminal, acquire takes them back.
func (d *devices) release() {
	d.mu.Lock()
	d.away = true
	d.mu.Unlock()
	d.stop()
}

func (d *devices) acquire(ctx context.Context, lights *lights) {
	d.mu.Lock()
	d.away = false
	d.mu.Unlock()
	d.start(ctx, lights)
}

func (d *devices) start(ctx context.Context, lights *lights) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cancel != nil || d.away {
		return
	}
	ctx, d.cancel = context.WithCancel(ctx)
	done := make(chan struct{})
	d.done = done
	e := evdev.NewSeat(evdev.Config{
		Plugged:   func(id int, k *evdev.Device) { d.seat.Router.Plug(seat.Device(id), k.Held()) },
		Unplugged: func(id int) { d.seat.Router.Unplug(seat.Device(id)) },
		Input:     func(id int, at time.Duration, batch []hid.Event) { d.seat.Input(seat.Device(id), at, batch) },
		Log:       d.log,
	})
	lights.connect(e.SetLEDs)
	go func() {
		defer close(done)
		if err := e.Run(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("input devices", "err", err)
		}
	}()
}

func (d *devices) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cancel == nil {
		return
	}
	d.cancel()
	<-d.done
	d.cancel = nil
}

// rfbDevice numbers the viewers of a seat without a screen: no input device has it.
const rfbDevice = 1 << 30

// showRFB shows the seat to VNC viewers until ctx is done. where is HOST:PORT, and may be followed by ,WIDTHxHEIGHT.
func showRFB(ctx context.Context, s *seat.Seat, where string, log *slog.Logger) error {
	addr, size, given := strings.Cut(where, ",")
	width, height := 1024, 768
	if given {
		if _, err := fmt.Sscanf(size, "%dx%d", &width, &height); err != nil {
			return fmt.Errorf("--output rfb: size %q: write it as 1280x800", size)
		}
	}
	screen, err := headless.NewScreen("rfb", width, height)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("--output rfb: %w", err)
	}
	show, err := s.Plug(screen)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := show(ctx); err != nil {
			log.Error("screen", "err", err)
		}
	})
	server := &headless.Server{Screen: screen, Name: "Lodge", Input: viewer{s}, Log: log}
	err = server.Serve(ctx, l)
	cancel()
	wg.Wait()
	return err
}

// viewer is the sink of what VNC viewers do.
type viewer struct{ s *seat.Seat }

func (v viewer) Send(batch []hid.Event) {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it exists
	v.s.Input(rfbDevice, time.Duration(ts.Nano()), batch)
}
