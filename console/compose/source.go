package compose

import (
	"image"
	"slices"
	"sync"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/vgpu/display"
)

// Source is one guest's picture: the display.Sink of its screen. What it is told it notes down, and heads take it from here.
//
// Who calls Scanout does not hold the Mu of a Surface.
type Source struct {
	c *Compositor

	// reading is held while Pixels of the surface are read, for a frame at most, and by Scanout.
	reading sync.Mutex

	mu      sync.Mutex
	guest   trustbar.Guest
	note    string
	placard *trustbar.Placard
	surface *display.Surface
	cursor  *display.Cursor
	at      image.Point // the cursor's hot spot
	slots   []*slot     // buffers with this picture
	seen    bool        // it had a surface once
	gone    bool
}

// Scanout implements display.Sink.
func (s *Source) Scanout(f *display.Surface) {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	s.surface = f
	s.seen = s.seen || f != nil
	for _, k := range s.slots {
		k.dirty.Clear()
		if f != nil {
			k.dirty.Add(f.Bounds())
		}
	}
	s.poke()
}

// Update implements display.Sink.
func (s *Source) Update(r image.Rectangle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.surface == nil {
		return
	}
	r = r.Intersect(s.surface.Bounds())
	for _, k := range s.slots {
		k.dirty.Add(r)
	}
	s.poke()
}

// Cursor implements display.Sink.
func (s *Source) Cursor(c *display.Cursor) {
	if c != nil && (c.Width < 1 || c.Height < 1 || c.Width > maxCursor || c.Height > maxCursor || len(c.Pixels) < 4*c.Width*c.Height) {
		c = nil
	}
	if c != nil && !c.Hot.In(image.Rect(0, 0, c.Width, c.Height)) {
		// A pointer that is drawn away from where it points could get to where its guest may not draw.
		inside := *c
		inside.Hot = image.Pt(min(max(c.Hot.X, 0), c.Width-1), min(max(c.Hot.Y, 0), c.Height-1))
		c = &inside
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cursor = c
	s.poke()
}

// maxCursor is the largest width and height of a cursor.
const maxCursor = 256

// MoveCursor implements display.Sink.
func (s *Source) MoveCursor(p image.Point) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Far away is as good as further away.
	s.at = image.Pt(min(max(p.X, -display.MaxSize), 2*display.MaxSize), min(max(p.Y, -display.MaxSize), 2*display.MaxSize))
	s.poke()
}

// Guest returns how the guest is called.
func (s *Source) Guest() trustbar.Guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guest
}

// SetGuest changes how the guest is called.
func (s *Source) SetGuest(g trustbar.Guest) {
	s.mu.Lock()
	s.guest = g
	s.mu.Unlock()
	s.c.wake()
}

// SetPlacard shows p in place of the guest's picture, or over it if there is one; nil shows none. note says the same in
// the bar, "" if nothing is wrong.
func (s *Source) SetPlacard(p *trustbar.Placard, note string) {
	if p != nil {
		copied := *p
		p = &copied
	}
	s.mu.Lock()
	s.placard, s.note = p, note
	s.mu.Unlock()
	s.c.wake()
}

// Close forgets the guest: where it is on screen no guest is from now on.
func (s *Source) Close() {
	s.reading.Lock()
	s.mu.Lock()
	s.gone, s.surface, s.cursor = true, nil, nil
	s.mu.Unlock()
	s.reading.Unlock()
	s.c.closed(s)
}

func (s *Source) describe() (g trustbar.Guest, note string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guest, s.note
}

// poke wakes the heads that have something to do. s.mu is held.
func (s *Source) poke() {
	for _, k := range s.slots {
		// One that is hidden is brought up to date now and then: the head is woken if it does not do so already.
		if k.head.want.Load() == s || k.head.resting.CompareAndSwap(true, false) {
			k.head.poke()
		}
	}
}

// adopt adds a buffer, which will have this picture.
func (s *Source) adopt(k *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots = append(s.slots, k)
}

// disown removes a buffer.
func (s *Source) disown(k *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots = slices.DeleteFunc(s.slots, func(j *slot) bool { return j == k })
}

// snapshot is what a source shows at one moment. Its surface stays while the source's reading is held.
type snapshot struct {
	surface *display.Surface
	cursor  *display.Cursor
	at      image.Point
	placard *trustbar.Placard
	seen    bool // there was a surface once
}

// take returns what is to be shown, and moves what has changed since k was drawn to dirty, if that is not nil.
func (s *Source) take(k *slot, dirty *output.Region) snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dirty != nil {
		*dirty = k.dirty
		k.dirty.Clear()
	}
	return snapshot{s.surface, s.cursor, s.at, s.placard, s.seen}
}

// changed returns what has changed since k was drawn.
func (s *Source) changed(k *slot, dirty *output.Region) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*dirty = k.dirty
}

// untake undoes what take did to what has changed.
func (s *Source) untake(k *slot, dirty *output.Region) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k.dirty.AddAll(dirty)
}

// pending returns what is to be shown, and how many pixels of it have changed since k was drawn; k may
// be nil.
func (s *Source) pending(k *slot) (snap snapshot, area int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k != nil {
		area = k.dirty.Area()
	}
	return snapshot{s.surface, s.cursor, s.at, s.placard, s.seen}, area
}
