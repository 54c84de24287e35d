// Package display is the seam between what a guest draws on and what shows it. A graphics device owns surfaces in memory
// and tells a Screen which of them is shown and what has changed in it; viewers (a D-Bus listener, a recorder of tests)
// attach a Sink to the Screen. Neither knows the other.
//
//	device ──Scanout, Update, Cursor──▶ Screen ──▶ Sink, Sink, …
//	device ◀──Monitor, OnMonitor─────── Screen ◀── SetMonitor ── who shows it
//
// A Screen lives as long as its guest's VMM: a device that is built anew at a reboot finds the same one, and viewers stay.
package display

import (
	"fmt"
	"image"
	"os"
	"sync"

	"github.com/lodgehv/lodge/vgpu/dmabuf"
)

// MaxSize is the largest width and height of a surface, in pixels.
const MaxSize = 16384

// Format is the layout of a pixel of 32 bits, as a DRM fourcc: channels are named from the most significant bits of the
// little-endian word (Linux, include/uapi/drm/drm_fourcc.h).
type Format uint32

// The formats that devices produce. All sinks take them.
const (
	XRGB8888 Format = 'X' | 'R'<<8 | '2'<<16 | '4'<<24 // bytes B, G, R, unused
	ARGB8888 Format = 'A' | 'R'<<8 | '2'<<16 | '4'<<24 // bytes B, G, R, A
	XBGR8888 Format = 'X' | 'B'<<8 | '2'<<16 | '4'<<24 // bytes R, G, B, unused
	ABGR8888 Format = 'A' | 'B'<<8 | '2'<<16 | '4'<<24 // bytes R, G, B, A
	RGBX8888 Format = 'R' | 'X'<<8 | '2'<<16 | '4'<<24 // bytes unused, B, G, R
	RGBA8888 Format = 'R' | 'A'<<8 | '2'<<16 | '4'<<24 // bytes A, B, G, R
	BGRX8888 Format = 'B' | 'X'<<8 | '2'<<16 | '4'<<24 // bytes unused, R, G, B
	BGRA8888 Format = 'B' | 'A'<<8 | '2'<<16 | '4'<<24 // bytes A, R, G, B
)

// BytesPerPixel is the size of a pixel in every Format.
const BytesPerPixel = 4

// String returns the fourcc.
func (f Format) String() string {
	return string([]byte{byte(f), byte(f >> 8), byte(f >> 16), byte(f >> 24)})
}

// Surface is a picture in memory, its top row first. Its device owns the memory and keeps it until it has told the Screen
// another surface; a viewer that maps File has it for as long as it likes.
//
// The picture changes while it is shown. Who writes Pixels holds Mu, who reads them holds it for reading, but a guest that
// draws into its own memory (a blob resource) asks nobody: a torn frame is possible there, and harmless.
type Surface struct {
	Width, Height int // pixels, 1 to MaxSize
	Stride        int // bytes from one row to the next, at least 4 × Width
	Format        Format
	Pixels        []byte       // Stride × (Height-1) + 4 × Width bytes at least
	Mu            sync.RWMutex // of Pixels

	// File is the memory that Pixels lie in at Offset, sealed against shrinking, for other processes to map; nil if they
	// cannot.
	File   *os.File
	Offset int64

	// DMABuf is the same memory as the kernel's drivers share it, from the first pixel on, linear; nil if they cannot. Who
	// reads Pixels of such a surface does so between BeginRead and EndRead.
	DMABuf *os.File
}

// BeginRead locks Pixels for reading, when devices have written what they were writing.
func (s *Surface) BeginRead() {
	s.Mu.RLock()
	if s.DMABuf != nil {
		_ = dmabuf.BeginRead(s.DMABuf) // then older pixels are read
	}
}

// EndRead is called after BeginRead.
func (s *Surface) EndRead() {
	if s.DMABuf != nil {
		_ = dmabuf.EndRead(s.DMABuf)
	}
	s.Mu.RUnlock()
}

// Check returns an error if s is not what it must be.
func (s *Surface) Check() error {
	switch {
	case s.Width < 1 || s.Width > MaxSize || s.Height < 1 || s.Height > MaxSize:
		return fmt.Errorf("surface of %d×%d pixels: from 1 to %d are possible", s.Width, s.Height, MaxSize)
	case s.Stride < s.Width*BytesPerPixel:
		return fmt.Errorf("surface with a stride of %d bytes for %d pixels", s.Stride, s.Width)
	case len(s.Pixels) < s.Stride*(s.Height-1)+s.Width*BytesPerPixel:
		return fmt.Errorf("surface of %d×%d pixels with a stride of %d in %d bytes", s.Width, s.Height, s.Stride, len(s.Pixels))
	}
	return nil
}

// Bounds returns the rectangle from the origin to Width and Height.
func (s *Surface) Bounds() image.Rectangle { return image.Rect(0, 0, s.Width, s.Height) }

// Cursor is the picture of a pointer.
type Cursor struct {
	Width, Height int         // pixels, 1 to 256
	Hot           image.Point // the pixel that points
	Pixels        []byte      // 4 × Width × Height bytes, ARGB8888 with alpha multiplied in; never changed
}

// Sink shows a screen, or records it. Its methods are called in turn, never two at once, by whatever goroutine of the
// device draws: they do not block, and drop what they cannot take.
type Sink interface {
	// Scanout shows s from now on, all of it; nil means that the screen is off. When Scanout returns, the surface of the
	// Scanout before may be gone: the sink does not touch its Pixels any more.
	Scanout(s *Surface)
	// Update says that a part of the surface, within its bounds and not empty, has changed.
	Update(r image.Rectangle)
	// Cursor sets the pointer's picture; nil hides it.
	Cursor(c *Cursor)
	// MoveCursor moves the pointer's hot spot. p may lie outside the surface.
	MoveCursor(p image.Point)
}

// Monitor is what a guest is to see at the other end of its cable.
type Monitor struct {
	Connected      bool
	Width, Height  int // pixels: the preferred mode
	WidthMM        int // size of the picture in millimetres; 0 is unknown
	HeightMM       int
	RefreshMilliHz int    // of the preferred mode, in 1/1000 Hz; 0 is 60 Hz
	Name           string // up to 13 ASCII characters, as EDID has room for
	Serial         uint32 // tells monitors apart: guests keep a layout for each
	X, Y           int    // where it stands among the guest's other monitors, in pixels
}

// Screen is one head of a guest's graphics, through all of its reboots.
type Screen struct {
	mu      sync.Mutex // serialises the calls of sinks
	sinks   []*attached
	surface *Surface
	cursor  *Cursor
	at      image.Point
	monitor Monitor
	changed map[*func(Monitor)]struct{}

	watchers []*watcher // replaced, not changed, when one is added or goes
}

// attached gives each Attach an identity: a Sink need not be comparable.
type attached struct {
	Sink
	looks bool // somebody looks at what it shows
}

// NewScreen returns a screen on which nothing is shown, with a monitor of the given kind.
func NewScreen(m Monitor) *Screen {
	return &Screen{monitor: m, changed: make(map[*func(Monitor)]struct{})}
}

// Scanout is the device's: it shows s, or nothing if s is nil. s has passed Check.
func (s *Screen) Scanout(f *Surface) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.surface = f
	for _, k := range s.sinks {
		k.Scanout(f)
	}
}

// Update is the device's: a part of the surface has changed. What lies outside of it is cut off.
func (s *Screen) Update(r image.Rectangle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.surface == nil {
		return
	}
	if r = r.Intersect(s.surface.Bounds()); r.Empty() {
		return
	}
	for _, k := range s.sinks {
		k.Update(r)
	}
}

// Cursor is the device's: it sets the pointer's picture, nil to hide it.
func (s *Screen) Cursor(c *Cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cursor = c
	for _, k := range s.sinks {
		k.Cursor(c)
	}
}

// MoveCursor is the device's: it moves the pointer's hot spot.
func (s *Screen) MoveCursor(p image.Point) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = p
	for _, k := range s.sinks {
		k.MoveCursor(p)
	}
}

// Attach adds a sink, which is told at once what is shown. detach removes it: when it returns, the sink is not called any
// more. It may not be called by the sink itself.
func (s *Screen) Attach(k Sink) (detach func()) { return s.attach(&attached{k, true}) }

// Follow is Attach for a sink that shows nobody anything, and only has to know what is shown, such as its size. A device
// that draws only while somebody looks does not draw for it.
func (s *Screen) Follow(k Sink) (detach func()) { return s.attach(&attached{k, false}) }

func (s *Screen) attach(a *attached) (detach func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.watched()
	s.sinks = append(s.sinks, a)
	a.Scanout(s.surface)
	a.Cursor(s.cursor)
	a.MoveCursor(s.at)
	s.tellWatchers(was)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, have := range s.sinks {
			if have == a {
				was := s.watched()
				s.sinks = append(s.sinks[:i:i], s.sinks[i+1:]...)
				s.tellWatchers(was)
				return
			}
		}
	}
}

// Monitor returns the monitor that the guest is to see.
func (s *Screen) Monitor() Monitor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.monitor
}

// SetMonitor changes the monitor: the guest sees one unplugged and another plugged in, or a window resized.
func (s *Screen) SetMonitor(m Monitor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.monitor == m {
		return
	}
	s.monitor = m
	for f := range s.changed {
		(*f)(m)
	}
}

// OnMonitor is the device's: f is called when the monitor changes, until stop has returned. f may not call the screen.
func (s *Screen) OnMonitor(f func(Monitor)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed[&f] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.changed, &f)
	}
}

// Snapshot calls read with the surface that is shown, nil if there is none, which stays until read returns. It serves
// thumbnails and screenshots.
func (s *Screen) Snapshot(read func(*Surface)) {
	s.refresh()
	s.mu.Lock()
	defer s.mu.Unlock()
	read(s.surface)
}
