// Package headless is an output without a monitor, for tests and servers: a Screen in memory, of which a PNG can be written
// at any time, and an RFB server (RFC 6143), so that any VNC viewer can look at it and type.
//
// The server asks for no password and encrypts nothing: it serves this machine alone, and refuses to listen on any other
// address. Who wants more puts a tunnel in front.
package headless

import (
	"fmt"
	"image"
	"image/png"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/vgpu/display"
)

// maxBuffers is how many buffers a screen has at most.
const maxBuffers = 32

// Screen is an output in memory. A frame is on it as soon as it was presented. It has no pointer of its own, so that one is
// drawn into the picture.
type Screen struct {
	name  string
	flips chan output.Flip

	mu       sync.RWMutex
	mode     output.Mode
	front    *output.Buffer // nil: nothing was presented in this mode
	buffers  int
	sequence uint32
	closed   bool
	watchers map[*watcher]struct{}
}

// watcher is told what changes. It is called with the screen's lock held and does not block. No damage means all of it,
// perhaps in another mode.
type watcher struct {
	changed func(damage []image.Rectangle)
}

// NewScreen returns a screen of the given size in pixels, at 60 Hz.
func NewScreen(name string, width, height int) (*Screen, error) {
	s := &Screen{name: name, flips: make(chan output.Flip, 1), watchers: make(map[*watcher]struct{})}
	if err := s.SetMode(output.Mode{Width: width, Height: height, RefreshMilliHz: 60000, Preferred: true}); err != nil {
		return nil, err
	}
	return s, nil
}

// Info implements output.Output.
func (s *Screen) Info() output.Info { return output.Info{Name: s.name} }

// Modes implements output.Output: it is the mode that is set, though any other can be.
func (s *Screen) Modes() []output.Mode { return []output.Mode{s.Mode()} }

// Mode implements output.Output.
func (s *Screen) Mode() output.Mode {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mode
}

// SetMode implements output.Output.
func (s *Screen) SetMode(m output.Mode) error {
	if m.Width < 1 || m.Height < 1 || m.Width > display.MaxSize || m.Height > display.MaxSize {
		return fmt.Errorf("screen %s of %d×%d pixels: from 1 to %d are possible", s.name, m.Width, m.Height, display.MaxSize)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.Width != s.mode.Width || m.Height != s.mode.Height {
		s.front = nil
		defer s.tell(nil)
	}
	s.mode = m
	return nil
}

// NewBuffer implements output.Output.
func (s *Screen) NewBuffer() (*output.Buffer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buffers >= maxBuffers {
		return nil, fmt.Errorf("screen %s has %d buffers already", s.name, s.buffers)
	}
	s.buffers++
	m := s.mode
	return &output.Buffer{Width: m.Width, Height: m.Height, Stride: 4 * m.Width, Pixels: make([]byte, 4*m.Width*m.Height)}, nil
}

// FreeBuffer implements output.Output.
func (s *Screen) FreeBuffer(*output.Buffer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buffers--
}

// Present implements output.Output.
func (s *Screen) Present(b *output.Buffer, damage []image.Rectangle) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Width != s.mode.Width || b.Height != s.mode.Height {
		return fmt.Errorf("buffer of %d×%d pixels for screen %s of %d×%d", b.Width, b.Height, s.name, s.mode.Width, s.mode.Height)
	}
	if s.closed {
		return output.ErrInactive
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	select {
	case s.flips <- output.Flip{Sequence: s.sequence + 1, Time: time.Duration(now.Nano())}:
	default:
		return output.ErrBusy
	}
	s.sequence++
	if s.front == nil {
		damage = nil
	}
	s.front = b
	s.tell(damage)
	return nil
}

// Flips implements output.Output.
func (s *Screen) Flips() <-chan output.Flip { return s.flips }

// SetCursor implements output.Output.
func (s *Screen) SetCursor(c *display.Cursor) error {
	if c != nil {
		return output.ErrNoCursor
	}
	return nil
}

// MoveCursor implements output.Output.
func (s *Screen) MoveCursor(image.Point) error { return nil }

// Close implements output.Output.
func (s *Screen) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.flips)
	}
	return nil
}

// tell tells all watchers. s.mu is held.
func (s *Screen) tell(damage []image.Rectangle) {
	for w := range s.watchers {
		w.changed(damage)
	}
}

// watch adds a watcher, which is told of everything that is there.
func (s *Screen) watch(w *watcher) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[w] = struct{}{}
	w.changed(nil)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, w)
	}
}

// Image returns what is on the screen; black if nothing is.
func (s *Screen) Image() *image.RGBA {
	s.mu.RLock()
	defer s.mu.RUnlock()
	img := image.NewRGBA(s.mode.Size())
	for y := range s.mode.Height {
		to := img.Pix[y*img.Stride:][:4*s.mode.Width]
		for x := 3; x < len(to); x += 4 {
			to[x] = 0xff
		}
		if s.front == nil {
			continue
		}
		from := s.front.Pixels[y*s.front.Stride:][:len(to)]
		for x := 0; x < len(to); x += 4 {
			to[x], to[x+1], to[x+2] = from[x+2], from[x+1], from[x]
		}
	}
	return img
}

// WritePNG writes what is on the screen as a PNG.
func (s *Screen) WritePNG(w io.Writer) error {
	if err := png.Encode(w, s.Image()); err != nil {
		return fmt.Errorf("picture of screen %s: %w", s.name, err)
	}
	return nil
}
