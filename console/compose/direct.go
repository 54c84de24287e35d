package compose

import (
	"errors"
	"image"

	"github.com/lodgehv/lodge/console/output"
)

// presentDirect presents a slot with its source's picture over it, where the guest draws it, and without a copy. It is false
// without an error if that cannot be: the picture's memory is one that drivers cannot read, it does not cover all of the guests'
// area, there is something to draw over it, or the output has no way. What is in the slot below is an older picture, or another
// guest's: nobody sees it.
func (h *Head) presentDirect(k *slot, switching bool) (presented bool, err error) {
	out, ok := h.out.(output.Director)
	if !ok {
		return false, nil
	}
	src := k.src
	src.reading.Lock() // the surface is there until it is unlocked
	defer src.reading.Unlock()
	snap, _ := src.pending(nil)
	if snap.surface == nil || snap.surface.DMABuf == nil {
		return false, nil
	}
	l := h.lookOf(src, &snap)
	if l.placard != nil || l.at.scale != 1 || l.at.origin != h.area.Min || !h.area.In(l.at.toScreen(snap.surface.Bounds())) ||
		h.softPointer(&snap, l).cursor != nil {
		return false, nil
	}
	h.drawBar(k)
	h.todo.Clear()
	if !switching && h.shown.direct == snap.surface { // what has changed since is known
		src.changed(h.shown, &h.dirty)
		for _, r := range h.dirty.Rects() {
			h.todo.Add(l.at.toScreen(r).Intersect(h.area))
		}
	}
	src.take(k, &h.dirty)
	var damage []image.Rectangle
	d := output.Direct{Surface: snap.surface, Rect: h.area}
	if !switching && !h.again {
		damage, d.Damage = k.drawn.Rects(), h.todo.Rects()
	}
	if err := out.PresentDirect(k.buf, damage, d); err != nil {
		src.untake(k, &h.dirty)
		if errors.Is(err, output.ErrNoDirect) {
			err = nil
		}
		return false, err
	}
	k.valid, k.direct, k.look, k.cursor = false, snap.surface, l, pointer{}
	return true, nil
}
