package main

import (
	"context"
	"errors"
	"fmt"
	"image"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/laptop"
)

// powerOns measure a notebook with Lodge in its flash, from the start of lodged until the browser is on the screen and answers a key, by the
// notebook's clock: with the guest from its template, and beside that booted. The notebook's processor is emulated, by which new code costs much more than
// code that was executed before; so its instructions are counted, too.
func powerOns(dir string) []figure {
	const name, peer = "lodged's start to the browser, from its template", "the same guest booted under Lodge"
	return []figure{
		{name: name, unit: "s", goal: goal{ratio: 1.0 / 20}, runs: 2, peerName: peer, prepare: powerOn(filepath.Join(dir, "laptop"), false)},
		{name: name + ", instructions", unit: "Ginstr", goal: goal{ratio: 1.0 / 20}, runs: 1, peerName: peer, prepare: powerOn(filepath.Join(dir, "counted"), true)},
	}
}

// powerOn prepares such a notebook in a directory.
func powerOn(dir string, counted bool) func(ctx context.Context) (ours, peer measurement, done func() error, err error) {
	return func(ctx context.Context) (ours, peer measurement, done func() error, err error) {
		b, err := lodgeimage.NewBuilder(os.Stderr)
		if err != nil {
			return nil, nil, nil, err
		}
		l, err := laptop.New(ctx, b, dir, laptop.Config{})
		if err != nil {
			return nil, nil, nil, err
		}
		l.Counted = counted
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
	}
}

// inUse measures the memory that is in use in a notebook with Lodge, its seat and its manager, and no guest: the kernel's is in it, what can be
// dropped is not, as Lodge's log tells it.
func inUse(dir string) figure {
	return figure{
		name: "memory of Lodge with seat and manager, no guest", unit: "MiB", goal: goal{value: 80}, runs: 1,
		prepare: func(ctx context.Context) (ours, peer measurement, done func() error, err error) {
			b, err := lodgeimage.NewBuilder(os.Stderr)
			if err != nil {
				return nil, nil, nil, err
			}
			l, err := laptop.New(ctx, b, filepath.Join(dir, "bare"), laptop.Config{NoGuests: true})
			if err != nil {
				return nil, nil, nil, err
			}
			return func(ctx context.Context) (float64, error) { return memoryOf(ctx, l) }, nil, nil, nil
		},
	}
}

var memoryRE = regexp.MustCompile(`msg="memory in use" MiB=([0-9]+)`)

// memoryOf switches a notebook on, and off when Lodge has told how much memory is in use, in MiB.
func memoryOf(ctx context.Context, l *laptop.Laptop) (mib float64, err error) {
	m, err := l.FromFlash(ctx, l.Disk)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Await(ctx, `msg="memory in use"`, " of="); err != nil {
		return 0, err
	}
	said := memoryRE.FindStringSubmatch(m.Said())
	if said == nil {
		return 0, errors.New("the machine does not say how much memory is in use")
	}
	if mib, err = strconv.ParseFloat(said[1], 64); err != nil {
		return 0, err
	}
	return mib, m.PowerButton(ctx)
}

// browse switches the notebook on, until the browser answers a key, and off again. It returns the seconds from lodged's start, by the notebook's clock. Template
// says that a template is to be made.
func browse(ctx context.Context, l *laptop.Laptop, dir string, template bool) (seconds float64, err error) {
	m, err := l.FromFlash(ctx, l.Disk)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	shot := filepath.Join(dir, "screen.png")
	before, err := m.Sees(ctx, shot, "the browser", laptop.Shows(laptop.White))
	if err != nil {
		return 0, err
	}
	answered := "msg=shutdown ending="
	if template { // which is made as soon as the browser is there and would answer
		answered = `msg="is ready" guest=instant`
		err = m.Await(ctx, "a template was made of it")
	} else if err = m.Press(ctx, "ctrl", "l"); err == nil {
		_, err = m.Sees(ctx, shot, "an answer to a key", func(img image.Image) bool { return !same(img, before) })
	}
	if err != nil {
		return 0, err
	}
	if err := m.PowerButton(ctx); err != nil {
		return 0, fmt.Errorf("switching off: %w", err)
	}
	begin, err := m.Clock("service=lodged ")
	if err != nil {
		return 0, err
	}
	end, err := m.Clock(answered)
	return end - begin, err
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
