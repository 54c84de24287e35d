package main

import (
	"context"
	"errors"
	"image"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/virtiogpu/virtiogputest"
)

// updatesPerRun is how many updates a run takes the median of.
const updatesPerRun = 200

// updates are the figures of a guest's drawing on its graphics card, from the kick to the answer, while a viewer is connected:
// a copy from the guest's memory, whose pages lie scattered as those of Linux's buffers do, and the same memory shown itself,
// where there is nothing to copy. The peer is the same bytes by memmove.
func updates(dir string) []figure {
	whole := image.Rect(0, 0, virtiogputest.Width, virtiogputest.Height)
	copied := func(name string, unit string, per time.Duration, most float64, r image.Rectangle) figure {
		return figure{
			name: name, unit: unit, goal: goal{value: most}, runs: 9, peerName: "memmove",
			prepare: func(context.Context) (measurement, measurement, func() error, error) {
				p, err := newPainter(dir)
				if err != nil {
					return nil, nil, nil, err
				}
				do, err := p.copies(r)
				if err != nil {
					return nil, nil, p.close, err
				}
				from, err := newSurface(whole.Max)
				if err != nil {
					return nil, nil, p.close, err
				}
				to, err := newSurface(whole.Max)
				if err != nil {
					return nil, nil, p.close, err
				}
				return medianOf(do, per), medianOf(func() error { move(to, from, r); return nil }, per), p.close, nil
			},
		}
	}
	return []figure{
		copied("frame of 1920×1080, copied", "ms", time.Millisecond, 1.5, whole),
		copied("damage of 256×256, copied", "µs", time.Microsecond, 50, image.Rect(300, 200, 556, 456)),
		{
			// What has to be moved takes no time at all, so that the bound is that of the way.
			name: "frame of 1920×1080, the guest's own memory", unit: "µs", goal: goal{value: 50}, runs: 9,
			prepare: func(context.Context) (measurement, measurement, func() error, error) {
				p, err := newPainter(dir)
				if err != nil {
					return nil, nil, nil, err
				}
				err = p.desk.ShowBlob(false)
				if err != nil {
					return nil, nil, p.close, err
				}
				do, err := p.desk.Flush()
				return medianOf(do, time.Microsecond), nil, p.close, err
			},
		},
	}
}

// medianOf returns a measurement of the median of updatesPerRun calls.
func medianOf(do func() error, per time.Duration) measurement {
	return func(context.Context) (float64, error) {
		took := make([]time.Duration, 0, updatesPerRun)
		for range updatesPerRun {
			began := time.Now()
			if err := do(); err != nil {
				return 0, err
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return float64(took[updatesPerRun/2]) / float64(per), nil
	}
}

// move copies a part of a picture, row by row.
func move(to, from *display.Surface, r image.Rectangle) {
	n := r.Dx() * display.BytesPerPixel
	for y := r.Min.Y; y < r.Max.Y; y++ {
		at := y*to.Stride + r.Min.X*display.BytesPerPixel
		copy(to.Pixels[at:at+n], from.Pixels[at:])
	}
}

// painter is a graphics card with its driver, and a viewer at its display's socket.
type painter struct {
	desk   *virtiogputest.Desk
	server *qdisplay.Server
	client *qdisplay.Client
	viewer *qdisplay.Receiver
	serve  sync.WaitGroup
}

func newPainter(dir string) (p *painter, err error) {
	screen := display.NewScreen(display.Monitor{Connected: true, Width: virtiogputest.Width, Height: virtiogputest.Height})
	p = &painter{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.desk, err = virtiogputest.NewDesk(screen); err != nil {
		return p, err
	}
	path := filepath.Join(dir, "display")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return p, err
	}
	p.server = qdisplay.NewServer(qdisplay.Config{
		Name: "bench", UUID: "00000000-0000-4000-8000-000000000000", Screens: []*display.Screen{screen}, Input: deaf{},
	})
	p.serve.Go(func() { _ = p.server.Serve(l) }) // ends with Close, which removes the socket
	if p.client, err = qdisplay.Dial(path, qdisplay.ClientConfig{}); err != nil {
		return p, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p.viewer, err = p.client.Listen(ctx, 0, blind{}, qdisplay.ReceiverConfig{})
	return p, err
}

// copies shows a picture and returns what updates a part of it.
func (p *painter) copies(r image.Rectangle) (func() error, error) {
	if err := p.desk.Show2D(true); err != nil {
		return nil, err
	}
	return p.desk.Update(r)
}

func (p *painter) close() error {
	if p.viewer != nil {
		p.viewer.Close()
	}
	if p.client != nil {
		p.client.Close()
	}
	if p.server != nil {
		p.server.Close()
	}
	p.serve.Wait()
	if p.desk != nil {
		p.desk.Close()
	}
	return nil
}

// blind is a viewer that does not look.
type blind struct{}

func (blind) Scanout(*display.Surface) {}
func (blind) Update(image.Rectangle)   {}
func (blind) Cursor(*display.Cursor)   {}
func (blind) MoveCursor(image.Point)   {}
