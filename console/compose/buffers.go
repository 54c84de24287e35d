package compose

import (
	"image"
	"time"
)

// A head's buffers. The guest on screen has two: one is shown while the other is drawn. Each other guest has one, with its
// picture, as long as there are enough; the second one of a guest that has just been left goes to the next.

// back returns a slot to draw the next frame of src into: one that has its picture, or else any. It is nil if there is none.
func (h *Head) back(src *Source) *slot {
	if s := h.slotOf(src); s != nil {
		return s
	}
	s := h.spare(src)
	if s == nil { // the one that has not been shown for the longest time
		for _, k := range h.slots {
			if h.free(k) && (s == nil || k.used < s.used) {
				s = k
			}
		}
	}
	if s != nil {
		h.assign(s, src)
	}
	return s
}

// free reports whether a slot can be drawn into.
func (h *Head) free(k *slot) bool { return k != h.shown && k != h.pending }

// slotOf returns the best slot with the picture of src that can be drawn into, or nil.
func (h *Head) slotOf(src *Source) *slot {
	var best *slot
	for _, k := range h.slots {
		if k.src == src && h.free(k) && (best == nil || k.valid && !best.valid || k.valid == best.valid && k.used > best.used) {
			best = k
		}
	}
	return best
}

// spare returns a slot that nobody misses, for src, or nil.
func (h *Head) spare(src *Source) *slot {
	var double *slot
	for _, k := range h.slots {
		if !h.free(k) {
			continue
		}
		if k.src == nil {
			return k
		}
		if k.src == src || k.src == h.want.Load() {
			continue
		}
		for _, j := range h.slots {
			if j != k && j.src == k.src && (j.valid && !k.valid || j.valid == k.valid && j.used > k.used) {
				double = k
			}
		}
	}
	if double != nil {
		return double
	}
	if len(h.slots) >= h.most {
		return nil
	}
	buf, err := h.out.NewBuffer()
	if err != nil {
		// With fewer it goes on, only more slowly; with less than two it cannot.
		h.c.cfg.Log.Warn("no memory for another buffer", "output", h.out.Info().Name, "buffers", len(h.slots), "err", err)
		if len(h.slots) >= 2 {
			h.most = len(h.slots)
		}
		return nil
	}
	k := &slot{head: h, buf: buf}
	h.slots = append(h.slots, k)
	return k
}

// assign gives a slot to src, with nothing of its picture yet; nil gives it to nobody.
func (h *Head) assign(k *slot, src *Source) {
	if k.src != nil {
		k.src.disown(k)
	}
	k.src, k.valid, k.direct, k.look, k.cursor = src, false, nil, look{}, pointer{}
	k.dirty.Clear()
	k.bar = image.Rect(0, 0, h.area.Max.X, h.area.Min.Y)
	if src != nil {
		src.adopt(k)
	}
}

// hidden brings one hidden guest's buffer up to date, if there is one that needs it and it is time, and returns when to
// look again.
func (h *Head) hidden(now time.Time) time.Duration {
	if d := h.prepare.Sub(now); d > 0 {
		return d
	}
	h.resting.Store(true) // before looking: what is drawn meanwhile wakes the head
	list := *h.sources
	for i := range list {
		src := list[(h.turn+i)%len(list)]
		if src == h.c.none || src == h.want.Load() || h.shown != nil && h.shown.src == src || h.pending != nil && h.pending.src == src {
			continue
		}
		k := h.slotOf(src)
		if k == nil {
			if k = h.spare(src); k == nil {
				continue
			}
			h.assign(k, src)
		}
		if !h.setBar(src, false) && h.clean(k) {
			continue
		}
		h.draw(k, false)
		h.turn = (h.turn + i + 1) % len(list)
		h.resting.Store(false)
		h.prepare = now.Add(prepareEvery)
		return prepareEvery
	}
	return never
}
