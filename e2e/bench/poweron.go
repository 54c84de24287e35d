package main

import (
	"context"
	"errors"
	"fmt"
	"image"
	"os"
	"path/filepath"
	"time"

	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/laptop"
)

// powerOns measures a notebook with Lodge in its flash, from the start of Lodge's first program until the browser is on the screen and answers
// a key: with the guest from its template, and beside that booted. The notebook's processor is emulated.
func powerOns(dir string) figure {
	return figure{
		name: "Lodge's start to the browser, from its template", unit: "s", goal: goal{ratio: 1.0 / 20}, runs: 2, peerName: "the same guest booted under Lodge",
		prepare: func(ctx context.Context) (ours, peer measurement, done func() error, err error) {
			b, err := lodgeimage.NewBuilder(os.Stderr)
			if err != nil {
				return nil, nil, nil, err
			}
			l, err := laptop.New(ctx, b, filepath.Join(dir, "laptop"), "", "")
			if err != nil {
				return nil, nil, nil, err
			}
			if _, err := browse(ctx, l, dir, true); err != nil { // makes state and template
				return nil, nil, nil, err
			}
			ours = func(ctx context.Context) (float64, error) { return browse(ctx, l, dir, false) }
			peer = func(ctx context.Context) (float64, error) {
				if _, err := l.State(ctx, "rm "+laptop.TemplateDir+"template.json"); err != nil {
					return 0, err
				}
				return browse(ctx, l, dir, true)
			}
			return ours, peer, nil, nil
		},
	}
}

// browse switches the notebook on, until the browser answers a key, and off again. It returns the seconds from the start of the first program. Template
// says that a template is to be made.
func browse(ctx context.Context, l *laptop.Laptop, dir string, template bool) (seconds float64, err error) {
	m, err := l.FromFlash(ctx, l.Disk)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Await(ctx, "Run /init as init process"); err != nil {
		return 0, err
	}
	begin := time.Now()
	shot := filepath.Join(dir, "screen.png")
	before, err := m.Sees(ctx, shot, "the browser", laptop.Shows(laptop.White))
	if err != nil {
		return 0, err
	}
	if err := m.Press(ctx, "ctrl", "l"); err != nil {
		return 0, err
	}
	if _, err := m.Sees(ctx, shot, "an answer to a key", func(img image.Image) bool { return !same(img, before) }); err != nil {
		return 0, err
	}
	seconds = time.Since(begin).Seconds()
	if template {
		if err := m.Await(ctx, "a template was made of it"); err != nil {
			return 0, err
		}
	}
	if err := m.PowerButton(ctx); err != nil {
		return 0, fmt.Errorf("switching off: %w", err)
	}
	return seconds, nil
}

// same returns whether the address line of a browser is the same in two pictures of the screen.
func same(a, b image.Image) bool {
	for y := 60; y < 188; y++ { // below the bar and the guest's own
		for x := range a.Bounds().Dx() {
			if a.At(x, y) != b.At(x, y) {
				return false
			}
		}
	}
	return true
}
