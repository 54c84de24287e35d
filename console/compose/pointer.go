package compose

import (
	"errors"
	"image"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/vgpu/display"
)

// hardwarePointer is what is known of the output's pointer.
type hardwarePointer struct {
	cursor  *display.Cursor // that is shown; nil: none
	at      image.Point     // its hot spot
	refused *display.Cursor // that the output cannot show
	unknown bool            // what it shows
}

func (p *hardwarePointer) forget() { *p = hardwarePointer{refused: p.refused, unknown: true} }

// inHardware reports whether the output can show a pointer: it may not reach into the bar, where it would be a guest's
// drawing, nor be cut off anywhere but at the screen's edges.
func (h *Head) inHardware(c *display.Cursor, r image.Rectangle, l look) bool {
	return c != h.hw.refused && l.at.scale == 1 && l.placard == nil && r.Min.Y >= h.area.Min.Y
}

// pointerOf returns the pointer of a picture.
func pointerOf(snap *snapshot, l look) pointer {
	if snap.cursor == nil || snap.surface == nil {
		return pointer{}
	}
	return pointer{snap.cursor, rectOf(snap.cursor, snap.at, l), l.at.scale}
}

// softPointer returns the pointer that is drawn into the picture.
func (h *Head) softPointer(snap *snapshot, l look) pointer {
	p := pointerOf(snap, l)
	if p.cursor == nil || !p.rect.Overlaps(h.area) || h.inHardware(p.cursor, p.rect, l) {
		return pointer{}
	}
	return p
}

// movePointer makes the output's pointer that of src.
func (h *Head) movePointer(src *Source) {
	snap, _ := src.pending(nil)
	l := h.lookOf(src, &snap)
	p := pointerOf(&snap, l)
	if p.cursor != nil && !h.inHardware(p.cursor, p.rect, l) {
		p.cursor = nil
	}
	if p.cursor != h.hw.cursor || h.hw.unknown {
		switch err := h.out.SetCursor(p.cursor); {
		case p.cursor != nil && err != nil:
			if errors.Is(err, output.ErrInactive) {
				h.hw.forget()
				return
			}
			if !errors.Is(err, output.ErrNoCursor) {
				h.c.cfg.Log.Warn("cannot show a pointer; drawing it", "output", h.out.Info().Name, "err", err)
			}
			h.hw = hardwarePointer{refused: p.cursor}
			h.poke() // to draw it
			return
		default:
			h.hw.cursor, h.hw.unknown = p.cursor, false
			h.hw.at = image.Pt(-1<<30, 0)
		}
	}
	if p.cursor == nil {
		return
	}
	if at := l.at.toScreen(image.Rectangle{snap.at, snap.at}).Min; at != h.hw.at {
		if err := h.out.MoveCursor(at); err != nil {
			h.c.cfg.Log.Debug("cannot move the pointer", "output", h.out.Info().Name, "err", err)
		}
		h.hw.at = at
	}
}
