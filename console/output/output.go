// Package output is the seam between what composes the picture of a seat and what shows it: a monitor (console/kms), or
// what stands for one where there is none (console/headless). The compositor draws into Buffers and presents them; an
// Output says when each is on the screen. Neither knows the other.
//
// The package also holds what both sides need: Region, a bounded set of damaged rectangles, and the identity of a monitor
// from its EDID.
package output

import (
	"errors"
	"image"
	"time"

	"github.com/lodgehv/lodge/vgpu/display"
)

// Errors of an Output.
var (
	ErrBusy     = errors.New("the frame before is not on the screen yet")
	ErrInactive = errors.New("the screen is not ours at the moment") // another program or text console has it
	ErrNoCursor = errors.New("no such cursor in hardware: draw it")
	ErrNoDirect = errors.New("the picture cannot be shown where it is: copy it")
)

// Mode is a size and rate of a picture.
type Mode struct {
	Width, Height  int // pixels
	RefreshMilliHz int // 1/1000 Hz
	Preferred      bool
}

// Size returns the rectangle from the origin to Width and Height.
func (m Mode) Size() image.Rectangle { return image.Rect(0, 0, m.Width, m.Height) }

// Period returns the time from one frame to the next; that of 60 Hz if the rate is unknown.
func (m Mode) Period() time.Duration {
	if m.RefreshMilliHz <= 0 {
		return time.Second / 60
	}
	return time.Second * 1000 / time.Duration(m.RefreshMilliHz)
}

// Info is what is known of an output, whatever its mode.
type Info struct {
	Name              string // of the connector: "eDP-1"
	Monitor           string // Identity of the monitor's EDID; "" if it has none
	WidthMM, HeightMM int    // size of the picture; 0 is unknown
	Internal          bool   // the notebook's own panel
}

// Buffer is a picture in memory that its Output can show, XRGB8888. On real hardware the memory is write-combining: writing
// in order is fast, reading is not, so it is never read.
type Buffer struct {
	Width, Height int
	Stride        int    // bytes from one row to the next
	Pixels        []byte // Stride × Height bytes
	ID            uint32 // the output's own name for it
}

// Flip says that a frame is on the screen.
type Flip struct {
	Sequence uint32        // counts the screen's refreshes, where it does
	Time     time.Duration // when, on CLOCK_MONOTONIC
}

// Direct is a guest's picture in its own memory, over a part of a buffer.
type Direct struct {
	Surface *display.Surface // with a DMABuf; it need not be there any more when PresentDirect has returned
	Rect    image.Rectangle  // of the screen, that it covers with its upper left part, all opaque
	Damage  []image.Rectangle
}

// Director is an Output that may show a guest's picture without a copy. There is more to it than one can ask for beforehand:
// a driver says by trying.
type Director interface {
	// PresentDirect is Present with a picture over b, which is seen where d.Rect is not. d.Damage is what of the picture has
	// changed since it was presented last, in pixels of the screen; none is all of it. It is ErrNoDirect if it cannot be done
	// now, and then nothing has changed. What the guest draws afterwards may be on the screen at once. A Present ends it.
	PresentDirect(b *Buffer, damage []image.Rectangle, d Direct) error
}

// Output shows pictures. Its methods are called by one goroutine, the compositor's for this output.
type Output interface {
	Info() Info
	// Modes returns the modes that are possible, the preferred one first.
	Modes() []Mode
	// Mode returns the mode that is set: the preferred one at first.
	Mode() Mode
	// SetMode changes the mode, which the next Present makes real. Buffers of another size are useless then; free them.
	SetMode(m Mode) error

	// NewBuffer returns a buffer of the mode's size, black.
	NewBuffer() (*Buffer, error)
	// FreeBuffer gives a buffer back, which is neither shown nor about to be.
	FreeBuffer(b *Buffer)

	// Present shows b from the next refresh of the screen on, when Flips tells so; until then it is ErrBusy to present
	// another. damage is where b differs from what was shown before, and from itself when it was presented last; none
	// is all of it. The output does not keep the slice. It returns at once, save when the mode is new, which may take
	// as long as a monitor needs.
	Present(b *Buffer, damage []image.Rectangle) error
	// Flips gives one Flip for each successful Present, also if the screen ceases to be ours meanwhile. It is closed when
	// the output is gone.
	Flips() <-chan Flip

	// SetCursor shows a pointer in a plane of its own over the picture, nil hides it. It is ErrNoCursor if the output
	// cannot; then no pointer is shown.
	SetCursor(c *display.Cursor) error
	// MoveCursor moves the pointer's hot spot.
	MoveCursor(p image.Point) error

	// Close turns the screen off and frees everything.
	Close() error
}
