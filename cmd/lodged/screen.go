package main

import (
	"context"
	"errors"
	"image"
	"sync"

	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/vgpu/display"
)

// screenshot returns what a guest shows on its first screen, over the socket of its display. The guest is not trusted: what it
// sends is bounded by the receiver, and it is waited for until ctx ends.
func screenshot(ctx context.Context, socket string) (image.Image, error) {
	c, err := qdisplay.Dial(socket, qdisplay.ClientConfig{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	s := &shot{done: make(chan struct{})}
	r, err := c.Listen(ctx, 0, s, qdisplay.ReceiverConfig{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	select {
	case <-s.done:
		return s.img, s.err
	case <-r.Done():
		return nil, errors.Join(errors.New("the guest's machine has ended the connection"), r.Err())
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// shot is a sink that takes the first picture.
type shot struct {
	once sync.Once
	done chan struct{}
	img  *image.RGBA
	err  error
}

// Scanout implements display.Sink.
func (s *shot) Scanout(f *display.Surface) {
	s.once.Do(func() {
		defer close(s.done)
		if f == nil {
			s.err = errors.New("the screen is off")
			return
		}
		s.img, s.err = f.Image()
	})
}

// Update implements display.Sink.
func (*shot) Update(image.Rectangle) {}

// Cursor implements display.Sink.
func (*shot) Cursor(*display.Cursor) {}

// MoveCursor implements display.Sink.
func (*shot) MoveCursor(image.Point) {}
