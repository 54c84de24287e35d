package vga

import "time"

// The card draws at most so often. Where the guest draws into memory that it has itself nobody says when it does: the card
// looks, less and less often while nothing changes.
const (
	framesBusy  = 32 // so many times without a change, then it halves the rate
	slowestPoll = 3  // so often, at most: to 7.5 Hz
)

// unseen is returned by draw when the guest draws unseen.
const unseen time.Duration = -1

// The text cursor changes every 16 frames, blinking text every 32.
const blinkPeriod = 16 * time.Second / 60

// touch says that there may be something to draw. mu is held.
func (c *Card) touch() {
	if !c.touched {
		c.touched = true
		c.poke()
	}
}

func (c *Card) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// watch is told by the Screen, which is locked, whether anybody looks.
func (c *Card) watch(watched bool) {
	c.watched.Store(watched)
	if watched {
		c.poke()
	}
}

// run draws while anybody looks, until stop is closed.
func (c *Card) run(stop, done chan struct{}) {
	defer close(done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	idle := 0
	for {
		select {
		case <-stop:
			return
		case <-c.wake:
		case <-timer.C:
		}
		if !c.watched.Load() {
			continue // the timer has run out: only a token wakes it
		}
		began := c.now()
		changed, again := c.draw()
		if idle++; changed {
			idle = 0
		}
		if again == unseen {
			again = framePeriod << min(idle/framesBusy, slowestPoll)
		}
		// No second picture within the frame, whatever the guest does.
		timer.Reset(began + framePeriod - c.now())
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		if again > 0 {
			timer.Reset(began + again - c.now())
		}
	}
}

// draw makes the Screen show what the registers and memory say now. It reports whether anything has changed, and after
// which time it should look again though nobody touches the card: never if 0.
func (c *Card) draw() (changed bool, again time.Duration) {
	c.drawing.Lock()
	defer c.drawing.Unlock()
	var d damage
	changed, retire, again := c.paint(&d)
	screen, s := c.cfg.Screen, c.picture.surface
	if changed {
		screen.Scanout(s)
		if retire != nil {
			retire()
		}
		return true, again
	}
	for _, r := range d.rects[:d.n] {
		screen.Update(r)
	}
	return d.n > 0, again
}

// paint brings the surface up to date. replaced says that it is another one, and retire frees the one before.
func (c *Card) paint(d *damage) (replaced bool, retire func(), again time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, nil, 0
	}
	c.touched = false
	mapped := c.video.gather()
	m := c.scan()
	if mapped && c.vbe.on() && m.kind != kindBlank {
		again = unseen
	}
	replaced, retire = c.adopt(&m)
	p := &c.picture
	colour := c.colours(m.kind)
	full := replaced || m != p.mode || colour != p.colour
	p.mode, p.colour = m, colour
	phase := int(c.now() / blinkPeriod)
	if s := p.surface; s != nil && !p.direct {
		s.Mu.Lock()
		c.fill(&m, full, phase, d)
		s.Mu.Unlock()
	} else if s != nil {
		c.directDamage(&m, d)
	}
	clear(c.video.dirty)
	if m.kind == kindText && p.blinks {
		again = blinkPeriod*time.Duration(phase+1) - c.now()
		again = max(again, time.Millisecond)
	}
	return replaced, retire, again
}

// fill draws the card's own surface.
func (c *Card) fill(m *mode, full bool, phase int, d *damage) {
	switch s := c.picture.surface; m.kind {
	case kindBlank:
		if full {
			clear(s.Pixels)
			d.add(s.Bounds())
		}
	case kindText:
		c.drawText(m, full, phase, d)
	default:
		c.drawGraphics(m, full, d)
	}
}

// halt ends the goroutine that draws, if it runs. drawing is held: the goroutine may wait for it, so that it is let go.
func (c *Card) halt() {
	if c.stop == nil {
		return
	}
	close(c.stop)
	done := c.done
	c.stop, c.done = nil, nil
	c.drawing.Unlock()
	<-done
	c.drawing.Lock()
}

// Pause implements snap.Component. It leaves the picture as it is now.
func (c *Card) Pause() error {
	c.drawing.Lock()
	c.halt()
	c.drawing.Unlock()
	c.draw()
	return nil
}

// Resume implements snap.Component.
func (c *Card) Resume() error {
	c.drawing.Lock()
	defer c.drawing.Unlock()
	c.stop, c.done = make(chan struct{}), make(chan struct{})
	go c.run(c.stop, c.done)
	return nil
}
